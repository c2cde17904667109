"""`--strategy=multi_worker` as a user runs it: real processes, killed, frozen and misled."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.scripts import forked
from tfspeed.cluster import addresses

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                reason="glassllm is not installed: make test installs it")
MODEL = ("--model=glassllm", "--engine=graph")
MEASURED = ("--batch=4", "--repetitions=1", "--new_tokens=8", "--eval_tokens=256",
            "--task_questions=0", "--max_perplexity_increase=inf")


def start(*args, cwd, script="run.py", **variables):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / script), *MODEL, *args],
                            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **variables})


def fork(*args, cwd, script="run.py", **variables):
    """The same but for the import of TensorFlow."""
    return forked.start(script, *MODEL, *args, cwd=cwd, env={**os.environ, **variables})


def end(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def worker(supervisor, index, deadline=120):
    """The process of one worker, once it runs Python."""
    limit = time.monotonic() + deadline
    while time.monotonic() < limit:
        for child in psutil.Process(supervisor.pid).children():
            try:
                config = json.loads(child.environ()["TF_CONFIG"])
            except (psutil.Error, KeyError, ValueError):  # about to be a worker
                continue
            if config["task"]["index"] == index:
                return child
        time.sleep(0.02)
    raise TimeoutError


def told_of_the_loss(process, sent, seconds):
    """Sends a signal to worker 1 while it is timed: one message says so, and nothing hangs."""
    other = worker(process, 1)
    assert "Timing will take" in process.stderr.readline()
    begun = time.monotonic()
    other.send_signal(sent)
    code, _, err = end(process)
    assert code == 2
    assert err.startswith("error: Worker 1 (127.0.0.1:")
    assert len(err.splitlines()) == 1
    assert time.monotonic() - begun < seconds


def wait_for(condition, deadline=200):
    limit = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


PROMPTS = [f"Once upon a time there were {n} sisters who" for n in range(12)]
NEW = 40
ANSWER = ("--prompts=prompts.txt", f"--new_tokens={NEW}", "--batch=2", "--strategy=multi_worker")


def expected():
    import tfspeed
    model = tfspeed.load("glassllm")
    engine = tfspeed.engine("graph", model)
    rows = [[int(t[0]) for t in engine.generate([model.tokenizer.encode(p)], NEW, None,
                                                model.tokenizer.eos_ids)] for p in PROMPTS]
    return [{"index": i, "prompt": p, "answer": model.tokenizer.decode(row), "tokens": row}
            for i, (p, row) in enumerate(zip(PROMPTS, rows, strict=True))]


@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_every_prompt_has_one_answer_whoever_is_killed(tmp_path, index):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    process = start(*ANSWER, "--restarts=1", cwd=tmp_path)
    journal = tmp_path / "answers.jsonl.journal"
    wait_for(lambda: lines(journal) >= 4)
    worker(process, index).kill()
    code, _, err = end(process)
    assert code == 0, err
    assert f"Worker {index} (127.0.0.1:" in err
    assert "killed by SIGKILL" in err
    assert "from an interrupted run" in err
    answers = [json.loads(x) for x in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers == expected()
    assert not journal.exists()


@pytest.mark.slow
def test_a_worker_that_stands_still_for_five_seconds_is_waited_for(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    process = start(*ANSWER, cwd=tmp_path)
    wait_for(lambda: lines(tmp_path / "answers.jsonl.journal") >= 2)
    frozen = worker(process, 1)
    frozen.suspend()
    time.sleep(5)
    frozen.resume()
    code, _, err = end(process)
    assert code == 0, err
    assert "killed" not in err
    assert lines(tmp_path / "answers.jsonl") == len(PROMPTS)


@pytest.mark.slow
def test_the_main_job_over_two_workers(tmp_path):
    code, out, err = end(start("--strategy=multi_worker", "--workers=2", *MEASURED, cwd=tmp_path))
    assert code == 0, err
    assert err == ""
    assert out.count("multi_worker: 2 workers") == 1  # the chief alone prints
    baseline, row = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["devices"] == ["worker 0", "worker 1"]
    assert row["same_tokens"] is True
    assert "chief of the workers alone" in " ".join(baseline["notes"])
    assert 0 < row["ttft_s"]["median"] < row["e2e_s"]["median"]
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_worker_killed_while_measuring_is_one_message(tmp_path):
    process = start("--strategy=multi_worker", *MEASURED, "--repetitions=100000", cwd=tmp_path)
    told_of_the_loss(process, signal.SIGKILL, 100)


@pytest.mark.slow
def test_training_goes_on_after_a_kill(tmp_path):
    options = [*MEASURED, "--distill_tokens=1600", "--distill_length=32", "--distill_batch=2",
               "--distill_cross_entropy=1.0", "--distill_checkpoint_seconds=0"]
    process = start("--strategy=multi_worker+distill", *options, "--distill_checkpoint=two",
                    cwd=tmp_path)
    wait_for((tmp_path / "two" / "training.npz").exists)
    worker(process, 1).kill()
    code, _, err = end(process)
    assert code == 0, err
    assert "started again" in err
    code, _, err = end(start("--strategy=baseline+distill", *options, "--distill_checkpoint=one",
                             cwd=tmp_path))
    assert code == 0, err
    losses = [json.loads(str(np.load(tmp_path / name / "training.npz")["meta"]))["losses"]
              for name in ("one", "two")]
    assert len(losses[0]) == 25
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.slow
def test_hosts_and_a_worker_of_another_model(tmp_path):
    """launch.py on each host; the second one has weights of its own."""
    import tfspeed
    from tfspeed.models.keras_file import save_keras
    other = tfspeed.load("glassllm")
    other.keras_model.weights[0].assign(other.keras_model.weights[0] * 2)
    save_keras(other, tmp_path / "other.keras")
    hosts = ",".join(addresses.local(2, "127.0.0.1").addresses)
    common = ("--strategy=multi_worker", f"--hosts={hosts}", *MEASURED)
    started = [start(*common, "--index=0", cwd=tmp_path, script="launch.py"),
               start(*common, "--index=1", "--model=other.keras", cwd=tmp_path,
                     script="launch.py")]
    for process in started:
        code, _, err = end(process)
        assert code == 2, err
        assert "worker 1 (127.0.0.1:" in err
        assert "differs from the chief in model" in err
        assert len(err.splitlines()) == 1


def test_mistakes_are_one_message_and_exit_code_2(tmp_path):
    two = ("--strategy=multi_worker",)
    own, other = addresses.local(2, "127.0.0.1").addresses
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        cases = [
            (fork(*two, cwd=tmp_path, TF_CONFIG="{"), "TF_CONFIG does not describe"),
            (fork(*two, "--workers=0", cwd=tmp_path), "workers=0"),
            (fork("--workers=2", cwd=tmp_path), "--workers is for workers"),
            (fork(*two, f"--hosts={port},{other}", "--index=0", cwd=tmp_path,
                   script="launch.py"), f"address='{port}'"),
            (fork("--strategy=dataflow", f"--hosts={port},{other}", "--index=0", cwd=tmp_path,
                   script="launch.py"), f"address='{port}'"),
            (fork(*two, "--hosts=10.1.1.1:22,10.1.1.2:22", "--index=0", cwd=tmp_path,
                   script="launch.py"), "--bind=10.1.1.1"),
            (fork(*two, f"--hosts={own},{other}", "--index=0", "--join_timeout=15", cwd=tmp_path,
                   script="launch.py"), f"worker 1 ({other})"),
        ]
        for process, words in cases:
            code, out, err = end(process)
            assert code == 2, (words, out, err)
            assert words in err, err
            assert err.startswith("error: ")
            assert len(err.strip().splitlines()) == 1, err
