"""Artifacts appear whole or not at all; ten exports take no more memory than three."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import tiny_decoder
from tests.export.conftest import export, with_tokenizer
from tfspeed.errors import TfspeedError
from tfspeed.export import manifest
from tfspeed.export.files import appearing, check_folder, ended_by_sigterm, file_name

ROOT = Path(__file__).parents[2]
# In a process of its own: what other tests left behind must not count.
TEN_EXPORTS = """
import gc, os, sys, tempfile
from pathlib import Path
import psutil
sys.path.insert(0, sys.argv[1])
from tests.conftest import tiny_decoder
from tests.export.conftest import export, with_tokenizer
sizes = []
with tempfile.TemporaryDirectory() as folder:
    for number in range(10):
        form = ("saved_model", "tflite", "litertlm")[number % 3]
        export(with_tokenizer(tiny_decoder()), form, Path(folder))
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
        descriptors = len(os.listdir("/proc/self/fd"))
        if len(sizes) == 3:
            open_after_three = descriptors
print(sizes[2], sizes[9], open_after_three, descriptors, file=sys.stderr)
assert sizes[9] < 1.1 * sizes[2]
assert descriptors <= open_after_three + 2
"""


@pytest.mark.slow
def test_ten_exports_leak_nothing():
    done = subprocess.run([sys.executable, "-c", TEN_EXPORTS, str(ROOT)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("form", ["tflite", "litertlm", "saved_model"])
def test_a_full_disk_leaves_what_was_there(form, tmp_path, monkeypatch):
    import tensorflow as tf
    model = with_tokenizer(tiny_decoder())
    path = export(model, form, tmp_path)
    before = manifest.path_of(path).read_text()

    def full(*_, **__):
        if form == "saved_model":
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        raise OSError(errno.ENOSPC, "No space left on device")

    if form == "saved_model":
        monkeypatch.setattr("tensorflow.saved_model.save", full)
    else:
        monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TfspeedError, match="No space left"):
        export(model, form, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, manifest.path_of(path).name}
    assert manifest.path_of(path).read_text() == before


def test_no_room_for_the_manifest_leaves_what_was_there(tmp_path, monkeypatch):
    model = with_tokenizer(tiny_decoder())
    path = export(model, "tflite", tmp_path, context=40)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest.Path, "write_text", full)
    for form in ("tflite", "saved_model"):
        with pytest.raises(TfspeedError, match="No space left"):
            export(model, form, tmp_path, context=50)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert manifest.read(path)["context"] == 40


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage",
                        lambda _: type("Usage", (), {"free": 1000})())
    for form in ("tflite", "saved_model"):
        with pytest.raises(TfspeedError, match="free_mb=0"):
            export(with_tokenizer(tiny_decoder()), form, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfspeed.export.evidence.measure", interrupted)
    for form in ("tflite", "litertlm", "saved_model"):
        with pytest.raises(KeyboardInterrupt):
            export(with_tokenizer(tiny_decoder()), form, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tfspeed.export.evidence.measure",
                        lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"), ended_by_sigterm():
        export(with_tokenizer(tiny_decoder()), "litertlm", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_artifact_that_is_there_already_is_replaced(tmp_path):
    model = with_tokenizer(tiny_decoder())
    for form in ("tflite", "saved_model"):
        path = export(model, form, tmp_path, context=40)
        assert export(model, form, tmp_path, context=50) == path
        assert manifest.read(path)["context"] == 50
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["tiny-float32.tflite", "tiny-float32.tflite.manifest.json"])
def test_a_folder_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name / "kept").mkdir(parents=True)
    with pytest.raises(TfspeedError, match="could not be written"):
        export(with_tokenizer(tiny_decoder()), "tflite", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "kept").is_dir()


def test_a_folder_is_put_back_when_its_heir_fails(tmp_path, monkeypatch):
    old = tmp_path / "model"
    (old / "kept").mkdir(parents=True)

    def fails(*_):
        raise OSError("boom")

    def put_in_its_place():
        with appearing(old) as beside:
            beside.mkdir()
            monkeypatch.setattr(Path, "replace", fails)

    with pytest.raises(OSError, match="boom"):
        put_in_its_place()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (old / "kept").is_dir()


def test_names():
    assert file_name("a/b c", "", "int4,x=int8") == "a_b_c-int4_x_int8"
    assert len(file_name("x" * 500)) == 120


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "a\0b"])
def test_folders_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TfspeedError, match="--out must be a folder"):
        check_folder(tmp_path / name, "out")
