"""`.tflite` files: whole or not at all, and a clear word about any that LiteRT cannot run."""

import errno

import numpy as np
import pytest

from tfspeed.errors import TfspeedError
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.runtime import Program, check_file
from tfspeed.litert.weights import pack


def small_file(version=3):
    file = TfliteFile("test")
    graph = file.signature("double")
    x = graph.input("x", (2, 64))
    weight = pack("w", 2 * np.eye(64, dtype=np.float32), 32)
    graph.finish({"y": graph.fully_connected(x, weight)})
    file._model.version = version
    return file


def test_a_file_runs(tmp_path):
    path = tmp_path / "a.tflite"
    small_file().write(path)
    buffers = Program(path, 1).buffers("double")
    x = np.arange(128, dtype=np.float32).reshape(2, 64)
    buffers["x"] = x
    buffers.run()
    np.testing.assert_array_equal(buffers["y"], 2 * x)


@pytest.mark.parametrize(("change", "words"), [
    (lambda b: b"GGUF" * 100, "no .tflite file"),
    (lambda b: b"", "no .tflite file"),
    (lambda b: b[:len(b) - 5000], "truncated"),
    (lambda b: b[:40], "damaged|truncated"),
    (lambda b: b[:8] + b"\xff" * 64 + b[72:], "damaged"),
])
def test_files_that_are_none(tmp_path, change, words):
    path = tmp_path / "a.tflite"
    small_file().write(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TfspeedError, match=words):
        Program(path, 1)


def test_another_version(tmp_path):
    path = tmp_path / "a.tflite"
    small_file(version=9).write(path)
    with pytest.raises(TfspeedError, match="version=9"):
        check_file(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(TfspeedError, match="could not be read"):
        check_file(tmp_path / "none.tflite")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.tflite"
    path.write_bytes(b"the older one")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        small_file().write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tflite"]
    assert path.read_bytes() == b"the older one"
