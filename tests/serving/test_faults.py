"""Clients that vanish, dawdle or send nonsense: others are served, nothing is left behind."""

import json
import logging
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.serving.serving import ask, serving, wait_until
from tfspeed.serving.http import guards
from tfspeed.serving.http.asked import Limits

SCHEMATHESIS = Path(__file__).parents[2] / ".peers" / "schemathesis" / "bin" / "schemathesis"
LONG = {"prompt": "Hello", "max_tokens": 400, "temperature": 0}


def post(port, body, path="/v1/completions", length=None):
    """A socket over which a request has been sent."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    made = socket.create_connection(("127.0.0.1", port), timeout=30)
    made.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {length or len(data)}\r\n\r\n".encode() + data)
    return made


def vanish(port, count, stream):
    for i in range(count):
        made = post(port, {**LONG, "prompt": f"{i} {'x' * (i % 90)}", "stream": stream})
        if stream:
            assert made.recv(100)
        made.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_vanish_leave_nothing_behind(stream, count, caplog):
    with serving(max_waiting=2000) as (port, server):
        logging.getLogger("uvicorn.error").addHandler(caplog.handler)
        vanish(port, 10, stream)
        before = psutil.Process().memory_info().rss
        vanish(port, count, stream)
        pool = server.worker.scheduler.pool
        wait_until(lambda: server.worker.requests == 0, 60)
        assert pool.available == pool.count
        assert psutil.Process().memory_info().rss < before + 50e6
        assert ask(port, "/v1/completions", {**LONG, "max_tokens": 3})[0] == 200
        assert 'reason="gone"' in ask(port, "/metrics")[2]
    assert "Traceback" not in caplog.text


def test_slow_clients_are_shown_out_while_others_are_served(monkeypatch):
    monkeypatch.setattr(guards, "_HEADER_S", 0.5)
    with serving(limits=Limits(body_s=0.5)) as (port, _):
        silent = socket.create_connection(("127.0.0.1", port), timeout=20)
        headers = socket.create_connection(("127.0.0.1", port), timeout=20)
        headers.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: local")
        body = post(port, b'{"pro', length=1000)
        again = post(port, {**LONG, "max_tokens": 3})
        while not again.recv(10000).endswith(b"}"):
            pass
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")  # of a kept connection
        assert ask(port, "/v1/completions", {**LONG, "max_tokens": 3})[0] == 200
        start = time.monotonic()
        assert again.recv(10000) == b""
        assert silent.recv(100) == b""
        assert headers.recv(100) == b""
        assert body.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 15


def test_bytes_that_are_no_http():
    with serving() as (port, _):
        for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50, b"\r\n" * 3 + b"GARBAGE",
                     b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                     b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nZZ\r\n"):
            made = socket.create_connection(("127.0.0.1", port), timeout=20)
            made.sendall(data)
            made.shutdown(socket.SHUT_WR)
            answer = made.recv(1000)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
            made.close()
        assert ask(port, "/v1/completions", {**LONG, "max_tokens": 3})[0] == 200


def test_who_does_not_read_his_answer_holds_up_nobody():
    with serving() as (port, server):
        idle = post(port, {**LONG, "stream": True})
        assert ask(port, "/v1/completions", {**LONG, "max_tokens": 3})[0] == 200
        wait_until(lambda: server.worker.requests == 0, 60)
        idle.close()


def test_what_runs_may_finish_when_the_server_is_closed():
    with serving() as (port, server):
        expected = ask(port, "/v1/completions", {**LONG, "max_tokens": 20})[2]["choices"]
        read, answers = server.worker.backend.read, []
        server.worker.backend.read = lambda chunks: (time.sleep(0.02), read(chunks))[1]
        thread = threading.Thread(target=lambda: answers.append(ask(port, "/v1/completions", {
            **LONG, "max_tokens": 20})))
        thread.start()
        wait_until(lambda: server.worker.requests == 1)
    thread.join(30)
    assert answers[0][2]["choices"] == expected
    assert not server.worker.alive
    assert not server.worker._thread.is_alive()


@pytest.mark.slow
@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="schemathesis is not installed: see BUILD.md")
def test_the_server_does_what_its_own_description_says():
    with serving() as (port, _):
        done = subprocess.run(
            [SCHEMATHESIS, "run", f"http://127.0.0.1:{port}/openapi.json", "--phases=coverage",
             "--seed=1", "--request-timeout=20", "--no-color", "--checks=not_a_server_error,"
             "status_code_conformance,content_type_conformance,response_schema_conformance,"
             "response_headers_conformance"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
