"""scripts/export.py as a user runs it: a process, its output, its exit code, its files."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import tiny_recurrent
from tests.scripts import forked
from tfspeed.models import keras_file

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / ".peers" / "litert_lm" / "bin" / "python"
needs_glassllm = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                    reason="glassllm is not installed: make test installs it")
# What an app does, with LiteRT-LM's own runtime.
ASK = """
import sys
import litert_lm
engine = litert_lm.Engine(sys.argv[1], litert_lm.Backend.CPU(), cache_dir=sys.argv[2])
with engine.create_conversation() as conversation:
    for question in sys.argv[3:]:
        answer = conversation.send_message(question)
        print(answer["content"][0]["text"].replace("\\n", " "))
"""


def run(*args, cwd, **kwargs):
    return forked.run("export.py", *args, cwd=cwd, **kwargs)


def run_alone(*args, cwd, **kwargs):
    """In a Python of its own."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "export.py"), *args], cwd=cwd,
                          capture_output=True, text=True, timeout=300, **kwargs)
    return done.returncode, done.stdout, done.stderr


@needs_glassllm
def test_export_then_verify_then_tamper(tmp_path):
    code, out, err = run_alone("--format=tflite", "--model=glassllm", "--out=dist", cwd=tmp_path)
    assert code == 0, err
    assert err == ""  # nothing of the runtimes' start-up noise
    assert "glassllm-int8.tflite" in out
    assert "perplexity" in out
    assert sorted(p.name for p in (tmp_path / "dist").iterdir()) == [
        "glassllm-int8.tflite", "glassllm-int8.tflite.manifest.json"]
    path = tmp_path / "dist" / "glassllm-int8.tflite"
    record = json.loads(path.with_name(f"{path.name}.manifest.json").read_text())
    assert abs(record["quality"]["perplexity_delta"]) < 0.01
    assert record["command"].endswith("--format=tflite --model=glassllm --out=dist")
    code, out, err = run(f"--verify={path}", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "is what its manifest says" in out
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, out, err = run(f"--verify={path}", cwd=tmp_path)
    assert code == 1
    assert "mismatch: glassllm-int8.tflite is not what its manifest says: sha256" in out


@needs_glassllm
@pytest.mark.parametrize("form", ["litertlm", "saved_model"])
def test_a_disk_that_fills_up_leaves_nothing(form, tmp_path):
    """No file of the process may grow over 300 kB, which the weights do."""
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, out, err = run(f"--format={form}", "--model=glassllm", "--out=dist", cwd=tmp_path,
                         preexec_fn=limited)
    assert code == 2, (out, err)
    assert err.startswith("error: The artifact could not be written; nothing of it was left.")
    assert "Traceback" not in err
    assert list((tmp_path / "dist").iterdir()) == []


def test_mistakes_are_one_message_and_exit_code_2(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "a.tflite").write_text("hello")
    cases = {
        "--format=onnx": "format='onnx'",
        "--format=tflite": "--out must name",
        "--format=tflite --out=file": "out='file'",
        "--format=tflite --out=d --weights=int3": "weights='int3'",
        "--format=saved_model --out=d --weights=int8": "weights='int8'",
        "--format=tflite --out=d --context=0": "context=0",
        "--format=tflite --out=d --context=500 --model=glassllm": "context=500",
        "--format=tflite --out=d --eval_text=file --model=glassllm": "too short",
        "--format=tflite --out=d --strategy=speculative --model=glassllm": "Leave speculative out",
        "--verify=nowhere.tflite": "nowhere.tflite",
        "--verify=": "--verify must",
        "--verify=a.tflite": "no .tflite file",
        "--verify=a.tflite --format=tflite": "given=['format']",
        "--verify=a.tflite --model=glassllm --eval_text=file": "given=['eval_text', 'model']",
    }
    if not importlib.util.find_spec("glassllm"):
        cases = {flags: words for flags, words in cases.items() if "glassllm" not in flags}
    made = forked.calls("export.py", [flags.split() for flags in cases], tmp_path)
    for (flags, words), (code, out, err) in zip(cases.items(), made, strict=True):
        assert code == 2, (flags, out, err)
        assert words in err, (flags, err)
        assert err.startswith("error: "), (flags, err)
        assert "Traceback" not in err, (flags, err)
        assert len(err.strip().splitlines()) <= 3, (flags, err)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.skipif(not RUNTIME.exists(), reason="LiteRT-LM's runtime is not installed: see "
                    "BUILD.md, Export")
def test_litert_lms_own_runtime_answers(tmp_path):
    code, _, err = run_alone("--format=litertlm", "--out=dist", "--context=512", cwd=tmp_path)
    assert code == 0, err
    done = subprocess.run(
        [RUNTIME, "-c", ASK, "dist/smollm2-135m-int8.litertlm", ".",
         "What is the capital of France?", "And of Italy?", "Repeat: " + "one two three " * 100],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    france, italy, long = done.stdout.splitlines()
    assert "Paris" in france
    assert "Rome" in italy
    assert long  # through several prefills


@pytest.mark.slow
@pytest.mark.real_model
def test_the_default_model_fits_the_budget(tmp_path):
    """Under a minute and 3 times the float32 weights, calibration included."""
    code, out, err = run_alone("--format=tflite", "--out=dist", cwd=tmp_path,
                               env={**os.environ, "TFSPEED_PACKED_CACHE_GB": "0"})
    assert code == 0, err
    record = json.loads(
        (tmp_path / "dist" / "smollm2-135m-int8.tflite.manifest.json").read_text())
    assert record["quality"]["perplexity_delta"] < 0.01
    assert "The capital of France is Paris." in out
    assert float(out.splitlines()[-1].split(" s;")[0]) < 60


def test_a_recurrent_model_is_exported_and_verified(tmp_path):
    """A .keras file in; tests/export runs all formats in this process."""
    model = tiny_recurrent("gru")
    table = model.keras_model.embedding.embeddings
    table.assign(16 * table.value)  # as it is all tokens are equally likely, but for rounding
    keras_file.save_keras(model, tmp_path / "gru.keras")
    *made, (code, _, err) = forked.calls("export.py", [
        ["--format=tflite", "--model=gru.keras", "--out=dist"], ["--verify=dist/gru-int8.tflite"],
        ["--format=litertlm", "--model=gru.keras", "--out=dist"]], tmp_path)
    for done, out, said in made:
        assert done == 0, (out, said)
    assert sorted(p.name for p in (tmp_path / "dist").iterdir()) == [
        "gru-int8.tflite", "gru-int8.tflite.manifest.json"]
    assert code == 2
    assert "--format=saved_model" in err
