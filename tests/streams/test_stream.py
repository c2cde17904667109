"""The script, over a real model: pipes, faults, Ctrl-C; and results that share a cache."""

import dataclasses
import importlib.util
import json
import signal
import subprocess

import pytest

from tests.scripts import forked
from tfspeed.engines import create
from tfspeed.models.load import load
from tfspeed.serving import backend as backends
from tfspeed.serving.worker import Worker
from tfspeed.streams.inbox import Event
from tfspeed.streams.partials import Partials

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                reason="glassllm is not installed: make setup")
CALL = ("stream.py", "--model=glassllm", "--engine=fused")


@pytest.fixture(scope="module")
def worker():
    made = Worker(backends.create("fused", load("glassllm"), max_rows=4))
    yield made
    made.close()


def test_a_result_is_that_of_the_text_so_far_and_what_was_read_is_kept(worker):
    model = worker.backend.model
    tokenizer = model.tokenizer
    text = "once upon a time there was a little boy and he went to the old house. "
    while len(tokenizer.encode(text)) < worker.backend.block + 8:
        text += "the old man said that it was a very good thing to do. "
    events = [Event("a", text), Event("b", "hello"), Event("a", text + "then"),
              Event("a", text + "then", end=True)]
    made = list(Partials(worker, 6).results(events))
    assert [(p.stream, p.revision, p.end) for p in made] == [
        ("a", 0, False), ("b", 0, False), ("a", 1, False), ("a", 1, True)]
    plain = create("fused", model)
    for event, partial in zip(events[:3], made, strict=False):
        ids = tokenizer.encode(event.text.rstrip())
        tokens = [int(t[0]) for t in plain.generate([ids], 6, stop_tokens=tokenizer.eos_ids)]
        assert partial.text == tokenizer.decode(
            [t for t in tokens if t not in tokenizer.eos_ids])
        assert partial.read == len(ids)
    assert made[0].reused == 0
    assert made[2].reused >= worker.backend.block
    assert made[3].text == made[2].text


def test_a_text_that_is_too_long_ends_nobody_else(worker):
    long = Event("long", "word " * 3 * worker.backend.context_length)
    dropped = []
    made = list(Partials(worker, 4, drop=dropped.append).results(
        [long, dataclasses.replace(long, text=long.text + "more"), Event("short", "hello")]))
    assert len(made) == 2
    assert "longer than the model" in made[0].error
    assert made[0].end
    assert dropped == ["long"]
    assert made[1].text


def test_a_pipe_that_never_ends_ends_with_its_context(tmp_path):
    """As `yes | stream.py`: one message, and the job is over."""
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        reader = forked.start(*CALL, "--new_tokens=1", stdin=endless.stdout, cwd=tmp_path)
        endless.stdout.close()
        _, err = reader.communicate(timeout=120)
        endless.kill()
    assert reader.returncode == 2
    assert err.count("longer than the model") == 1


def run(*flags, cwd, given):
    return forked.run(*CALL, *flags, cwd=cwd, given=given, text=False)


def test_a_pipe_through_the_script(tmp_path):
    code, out, err = run("--json", "--new_tokens=4", cwd=tmp_path, given=b"once upon\na time\n")
    assert code == 0, err[-2000:]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["revision"], row["end"]) for row in rows] == [(0, False), (1, False), (1, True)]
    assert all(row["stream"] == "stdin" and row["text"] for row in rows)


@pytest.mark.parametrize(("flags", "stdin", "said"), [
    (("--source=file:/nowhere",), b"", b"No such file"),
    (("--source=ftp:x",), b"", b"--source must be"),
    (("--new_tokens=0",), b"", b"--new_tokens"), ((), b"\xff\xff\n", b"no UTF-8 text")])
def test_mistakes_are_told_and_exit_2(flags, stdin, said, tmp_path):
    code, _, err = run(*flags, cwd=tmp_path, given=stdin)
    assert code == 2
    assert said in err
    assert b"Traceback" not in err


def test_ctrl_c_while_nothing_comes(tmp_path):
    process = forked.start(*CALL, "--json", stdin=subprocess.PIPE, cwd=tmp_path, text=False)
    try:
        process.stdin.write(b"once upon a time\n")
        process.stdin.flush()
        assert b'"revision": 0' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        still_open, process.stdin = process.stdin, None  # its end would be another reason to go
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    still_open.close()
    assert process.returncode == 130
    assert b"Traceback" not in errors
