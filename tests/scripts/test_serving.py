"""scripts/serve.py, chat.py and bench_serve.py as a user runs them."""

import importlib.util
import json
import re
import signal

import pytest

from tests.scripts import forked
from tests.serving.serving import ask

needs_glassllm = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                    reason="glassllm is not installed: make test installs it")


@needs_glassllm
def test_a_server_serves_and_stops(tmp_path):
    server = forked.start("serve.py", "--model=glassllm", "--port=0", cwd=tmp_path)
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", said)):
            line = server.stderr.readline() or server.stdout.readline()
            assert line, said
            said += line
        port = int(found[1])
        body = {"prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}
        status, _, answer = ask(port, "/v1/completions", body)
        assert status == 200
        assert answer["choices"][0]["text"]
        code, _, err = forked.run("serve.py", "--model=glassllm", f"--port={port}", cwd=tmp_path)
        assert code == 2
        assert "Traceback" not in err
    finally:
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=60)
    assert "Traceback" not in err


@needs_glassllm
def test_a_chat_through_a_pipe(tmp_path):
    code, out, err = forked.run("chat.py", "--model=glassllm", "--max_new_tokens=6",
                                "--temperature=0", cwd=tmp_path,
                                given="Once upon a time\n\nand then\n")
    assert code == 0, err
    assert len(out.strip().splitlines()) >= 2
    assert err.count("TTFT") == 2


@needs_glassllm
def test_a_load_is_measured(tmp_path):
    code, out, err = forked.run(
        "bench_serve.py", "--model=glassllm", "--requests=6", "--new_tokens=6",
        "--prompt_tokens=10", "--rates=50,inf", "--shared_prefix=70",
        "--goodput=ttft:60000;ttft:0.001", "--picture=goodput.svg", cwd=tmp_path)
    assert code == 0, err
    assert "p99_tpot_ms" in out
    sharing, *rows = json.loads((tmp_path / "results_serve.json").read_text())["rows"]
    assert sharing["followers"] == 5
    assert sharing["followers_ratio"] == pytest.approx(
        sharing["median_followers_ttft_ms"] / sharing["first_ttft_ms"])
    assert "TTFT of the first" in out
    assert [row["completed"] for row in rows] == [6, 6]
    assert all(row["request_goodput"] > 0 for row in rows)
    assert [[g["share"] for g in row["goodputs"]] for row in rows] == [[pytest.approx(1), 0]] * 2
    assert b"good: TTFT 0.001 ms" in (tmp_path / "goodput.svg").read_bytes()


@pytest.mark.parametrize(("script", "flag", "words"), [
    ("serve.py", "--engine=litert", "engine='litert'"), ("bench_serve.py", "--rates=0", "--rates"),
    ("chat.py", "--max_new_tokens=0", "--max_new_tokens")])
def test_mistakes_are_told(script, flag, words, tmp_path):
    code, _, err = forked.run(script, "--model=glassllm", flag, cwd=tmp_path)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
