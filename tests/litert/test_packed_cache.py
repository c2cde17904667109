"""The cache of packed weights: the same bytes back, never another model's, never a failure."""

import dataclasses
import errno
import os
import time

import keras
import numpy as np
import pytest

from tests.conftest import tiny_decoder
from tests.engines.test_engines import generate
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.litert import packed_cache
from tfspeed.litert.formats import Formats
from tfspeed.litert.pack import Packer
from tfspeed.litert.packed_cache import LIMIT, digest, packed
from tfspeed.litert.packed_file import read_packed, write_packed

PROMPTS = [[5, 9, 2, 33], [7]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT, "1")
    return tmp_path / "tfspeed" / "packed"


@pytest.fixture
def packs(monkeypatch):
    """How often weights were packed."""
    calls, pack = [], Packer.pack

    def counted(self):
        calls.append(1)
        return pack(self)

    monkeypatch.setattr(Packer, "pack", counted)
    return calls


def arrays(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, list):
        return [array for item in value for array in arrays(item)]
    if dataclasses.is_dataclass(value):
        return [array for field in dataclasses.fields(value)
                for array in arrays(getattr(value, field.name))]
    return []


def test_what_takes_long_is_told_once(folder, monkeypatch, capsys):
    model = tiny_decoder(hidden_dim=32, mlp_dim=64)
    packed(model, Formats("int4"))
    monkeypatch.setattr(packed_cache, "_ROUNDING_S", 60 / model.parameters)
    packed(model, Formats("int4"))  # in the cache by now
    packed(model, Formats("int8"))
    assert capsys.readouterr().err == ""
    packed(model, Formats("int4_64"))
    assert "to four bits takes about 60 s" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False, "qkv_bias": True},
                                     {"qk_norm": True, "post_norms": True},
                                     {"positions": "learned", "norm": "layer",
                                      "gated_mlp": False, "parallel_residual": True,
                                      "shared_norm": True}])
@pytest.mark.parametrize("weights", ["int8", "int4,head=int4_64", "float16"])
def test_a_file_gives_back_what_was_written(tmp_path, changes, weights):
    model = tiny_decoder(**changes).keras_model
    written = Packer(model, Formats(weights), np.zeros((1, 8), np.int32)).pack()
    write_packed(tmp_path / "a", written)
    read = read_packed(tmp_path / "a")
    before, after = arrays(written), arrays(read)
    assert len(before) == len(after) > 10
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now)
        assert (was.dtype, was.shape) == (now.dtype, now.shape)
    assert [(w.name, w.type, w.shape, w.block) for w in written.weights] == [
        (w.name, w.type, w.shape, w.block) for w in read.weights]
    # One object in two places is still one: a tied table, a norm that two layers share.
    assert (read.head.weight is read.embedding) == (written.head.weight is written.embedding)
    assert all((r.mlp_norm is r.attention_norm) == (w.mlp_norm is w.attention_norm)
               for r, w in zip(read.blocks, written.blocks, strict=True))


def test_a_second_start_packs_nothing(folder, packs):
    first = generate(create("litert:int8", tiny_decoder()), PROMPTS, 8)
    assert [path.suffix for path in folder.iterdir()] == [".packed"]
    second = generate(create("litert:int8", tiny_decoder()), PROMPTS, 8)
    assert len(packs) == 1
    np.testing.assert_array_equal(first, second)


def test_whatever_changes_the_result_changes_the_key():
    model, tokens = tiny_decoder().keras_model, np.zeros((1, 8), np.int32)
    keys = [digest(model, Formats("int8"), tokens), digest(model, Formats("int4"), tokens),
            digest(model, Formats("int8"), tokens + 1),
            digest(tiny_decoder(norm_epsilon=1e-6).keras_model, Formats("int8"), tokens)]
    scale = model.blocks[1].mlp_norm.scale
    scale.assign(keras.ops.slice_update(scale, (3,), np.float32([1.5])))
    keys.append(digest(model, Formats("int8"), tokens))
    assert len(set(keys)) == 5
    assert digest(model, Formats("int8"), tokens) == keys[-1]


@pytest.mark.parametrize("damage", [
    lambda b: b"", lambda b: b[:100], lambda b: b[:-64], lambda b: b + b"\0" * 64,
    lambda b: b"GGUF" * 5000, lambda b: b[:-200] + bytes([b[-200] ^ 1]) + b[-199:],
    lambda b: b[:60] + bytes([b[60] ^ 1]) + b[61:],
    lambda b: b[:16] + b"\xff" * 8 + b[24:]])
def test_a_damaged_file_is_made_anew(folder, packs, damage):
    packed(tiny_decoder(), Formats("int8"))
    path, = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert read_packed(path) is None
    packed(tiny_decoder(), Formats("int8"))
    assert len(packs) == 2
    assert path.read_bytes() == whole


def test_a_full_disk_means_no_cache(folder, monkeypatch):
    def full(path, found):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed_cache, "write_packed", full)
    assert packed(tiny_decoder(), Formats("int8")).blocks
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_means_no_cache(folder):
    folder.parent.write_text("a file where the folder should be")
    assert packed(tiny_decoder(), Formats("int8")).blocks


def test_float_weights_and_a_limit_of_0_leave_nothing(folder, monkeypatch):
    packed(tiny_decoder(), Formats("float32"))
    monkeypatch.setenv(LIMIT, "0")
    packed(tiny_decoder(), Formats("int8"))
    monkeypatch.setenv(LIMIT, "1e-9")  # smaller than the model
    packed(tiny_decoder(), Formats("int8"))
    assert not folder.exists()


@pytest.mark.parametrize("spelled", ["much", "-1", "nan"])
def test_a_limit_that_is_none(folder, monkeypatch, spelled):
    monkeypatch.setenv(LIMIT, spelled)
    with pytest.raises(TfspeedError, match=LIMIT):
        packed(tiny_decoder(), Formats("int8"))


def test_the_oldest_files_go_first(folder, monkeypatch):
    packed(tiny_decoder(), Formats("int8"))
    first, = folder.iterdir()
    size = first.stat().st_size
    os.utime(first, (1, 1))
    other = folder / "used.packed"
    other.write_bytes(b"\0" * size)
    abandoned, writing = folder / ".a.1.part", folder / ".b.2.part"
    for path in (abandoned, writing):
        path.write_bytes(b"half")
    os.utime(abandoned, (time.time() - 1e5,) * 2)
    monkeypatch.setenv(LIMIT, str(3 * size / 1e9))
    packed(tiny_decoder(norm_epsilon=1e-6), Formats("int8"))
    assert first.exists()  # three fit
    assert (abandoned.exists(), writing.exists()) == (False, True)
    packed(tiny_decoder(norm_epsilon=1e-7), Formats("int8"))
    assert not first.exists()
    assert other.exists()
    assert len(list(folder.glob("*.packed"))) == 3


def test_a_layer_without_a_form_is_named_also_where_its_weights_are_cached(folder):
    packed(tiny_decoder(), Formats("int8"))
    model = tiny_decoder()
    model.keras_model.blocks[1].mlp.down.activation = keras.activations.tanh
    with pytest.raises(TfspeedError, match="no LiteRT form"):
        packed(model, Formats("int8"))
