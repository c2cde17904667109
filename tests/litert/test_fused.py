"""The fused operator computes what the Keras decoder computes, on every kind of processor."""

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from tests.conftest import tiny_decoder
from tests.engines.test_engines import generate, reference
from tests.litert.test_decoder import FAMILIES, PROMPTS
from tests.scripts import forked
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.litert import compiler
from tfspeed.litert.panels import Blob, panels
from tfspeed.litert.weights import pack


def error_of(engine, model):
    tokens = np.random.default_rng(0).integers(0, 64, (2, 20)).astype(np.int32)
    expected = np.asarray(model.score(tokens))
    return np.abs(engine.score(tokens) - expected).mean() / np.abs(expected).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_gives_the_references_tokens(family):
    model = tiny_decoder(**FAMILIES[family])
    engine = create("fused", model)
    count = 4 if family == "longrope" else 12  # see test_decoder
    np.testing.assert_array_equal(generate(engine, PROMPTS, count),
                                  reference(model, PROMPTS, count))
    for prompt in PROMPTS:
        np.testing.assert_array_equal(generate(engine, [prompt], count),
                                      reference(model, [prompt], count))
    assert error_of(engine, model) < 1e-5


@pytest.mark.parametrize("shape", [
    {"head_dim": 80, "num_heads": 6, "num_kv_heads": 1},   # more than four vectors a head
    {"head_dim": 20, "num_heads": 3, "num_kv_heads": 3},   # no whole vector
    {"hidden_dim": 40, "mlp_dim": 50, "vocabulary_size": 67},  # nor anything else
    {"num_heads": 16, "num_kv_heads": 1, "num_layers": 1}])  # tiles of more than eight rows
def test_shapes_that_fill_no_vector(shape):
    model = tiny_decoder(**shape)
    for weights, limit in (("float32", 1e-5), ("int8", 0.1), ("int4_channel", 0.6)):
        engine = create(f"fused:{weights}", model)
        assert error_of(engine, model) < limit
    np.testing.assert_array_equal(generate(create("fused", model), PROMPTS, 6),
                                  reference(model, PROMPTS, 6))


@pytest.mark.parametrize(("weights", "limit"), [
    ("float16", 0.005), ("float16,cache=float32", 0.005), ("int8", 0.1), ("int4", 0.6),
    ("int4_channel", 0.6), ("int8,head=int4", 0.4), ("float32,cache=float16", 0.005)])
def test_fewer_bits_stay_near(weights, limit):
    model = tiny_decoder(hidden_dim=32, mlp_dim=64, vocabulary_size=128)
    engine = create(f"fused:{weights}", model)
    assert error_of(engine, model) < limit
    if not weights.startswith("float32"):
        assert engine.weights_bytes < model.weights_bytes
    assert generate(engine, PROMPTS, 4).shape == (3, 4)


@pytest.mark.parametrize("kind", ["int8", "int4", "int4_channel"])
def test_a_looked_up_row_is_the_weights_row(kind):
    """A table's panels hold every value of the weight at its place."""
    bits, block = {"int8": (8, 0), "int4": (4, 32), "int4_channel": (4, 0)}[kind]
    matrix = np.random.default_rng(0).normal(size=(37, 64)).astype(np.float32)
    weight = pack("w", matrix, bits, block)
    values, scales, group = panels(weight, slice(None))
    assert group == (block or 64)
    flat = np.ascontiguousarray(values).reshape(-1)
    for row, column in ((0, 0), (17, 33), (36, 63), (15, 31)):
        panel, lane, b, k = row // 16, row % 16, column // 32, column % 32
        if bits == 8:
            value = int(flat[(panel * 2 + b) * 512 + k // 4 * 64 + lane * 4 + k % 4]) - 128
        else:
            pair = int(flat[(panel * 2 + b) * 256 + k // 8 * 64 + lane * 4 + k % 4])
            value = (pair >> 4 if k % 8 >= 4 else pair & 15) - 8
        scale = float(scales[panel, column // group, lane])
        assert value * scale == pytest.approx(weight.dequantized()[row, column], rel=1e-3)


def test_blobs_begin_on_cache_lines():
    blob = Blob()
    assert [blob.add(np.zeros(n, np.uint8)) for n in (3, 64, 65, 1)] == [0, 64, 128, 256]
    assert blob.add(None) == -1
    assert blob.size == 320


def test_a_blob_copies_a_weight_of_floats_only_where_it_is_written():
    """What an engine is made of is as large as the model: it is held once."""
    weight = pack("w", np.arange(32 * 8, dtype=np.float32).reshape(32, 8), 32)
    values, _, _ = panels(weight, slice(None))
    assert np.shares_memory(values, weight.data)
    blob = Blob()
    blob.add(np.ones(3, np.float32))
    at = blob.matrix(weight).values
    place = np.zeros(blob.size, np.uint8)
    blob.write(place)
    assert place[:12].view(np.float32).tolist() == [1, 1, 1]
    panel = place[at:at + weight.data.nbytes].view(np.float32).reshape(2, 8, 16)
    assert np.array_equal(panel[1, 5], weight.data[16:, 5])


SCORES = """
import json, sys
import numpy as np
from tests.conftest import tiny_decoder
from tfspeed.engines import create
model = tiny_decoder(hidden_dim=64, mlp_dim=96, vocabulary_size=128, num_heads=6, num_kv_heads=2)
tokens = np.random.default_rng(0).integers(0, 64, (1, 21)).astype(np.int32)
print(json.dumps({w: create(f"fused:{w}", model).score(tokens).tolist()
                  for w in ("float32", "float16", "int8", "int4")}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="flags of gcc on x86")
@pytest.mark.parametrize("other", [
    "-march=haswell", pytest.param("-march=x86-64", marks=pytest.mark.slow)])
def test_kernels_of_other_processors_agree(tmp_path, other):
    """The sums of AVX-512, of AVX2, and of a processor that has no vectors."""
    program, found = tmp_path / "scores.py", []
    program.write_text(SCORES)
    for cflags in ("", other):
        code, out, err = forked.run(str(program), cwd=tmp_path, env={
            **os.environ, "CFLAGS": cflags, "XDG_CACHE_HOME": str(tmp_path)})
        assert code == 0, err[-2000:]
        found.append(json.loads(out.splitlines()[-1]))
    for weights, expected in found[0].items():
        np.testing.assert_allclose(found[1][weights], expected, atol=2e-4)


def test_a_cache_grows_while_a_text_does(monkeypatch):
    monkeypatch.setattr("tfspeed.engines.fused._SMALLEST", 16)
    monkeypatch.setattr("tfspeed.engines.fused._ROWS", 4)  # prompts are read in pieces
    model = tiny_decoder()
    engine = create("fused", model)
    np.testing.assert_array_equal(generate(engine, PROMPTS, 60), reference(model, PROMPTS, 60))
    assert engine.traces == 1


def test_longrope_is_decided_for_a_whole_prompt(monkeypatch):
    """Also where it is read in pieces, as the reference does."""
    monkeypatch.setattr("tfspeed.engines.fused._ROWS", 6)
    model = tiny_decoder(**FAMILIES["longrope"])
    prompt = list(range(1, 31))  # past the original context of 24
    np.testing.assert_array_equal(generate(create("fused", model), [prompt], 1),
                                  reference(model, [prompt], 1))
    session = create("fused", model)._new_session(1, 40)
    found = session.begin(np.asarray([prompt], np.int32), np.zeros(1, np.int32))
    np.testing.assert_allclose(found, np.asarray(model.score(np.asarray([prompt])))[:, -1],
                               atol=1e-4)


def test_post_norms_of_a_parallel_layer():
    model = tiny_decoder(post_norms=True, parallel_residual=True)
    assert error_of(create("fused", model), model) < 1e-5


def test_tokens_outside_of_the_vocabulary():
    engine = create("fused", tiny_decoder())
    for bad in (64, -1):
        with pytest.raises(TfspeedError, match=r"must lie in \[0, 64\)"):
            engine.score(np.asarray([[1, bad]]))
        with pytest.raises(TfspeedError, match=r"must lie in \[0, 64\)"):
            engine.profile([[1, bad]])


def test_a_cache_that_was_outgrown_is_let_go(monkeypatch):
    monkeypatch.setattr("tfspeed.engines.fused._SMALLEST", 16)
    engine = create("fused", tiny_decoder())
    for _ in range(3):
        generate(engine, [[1, 2, 3]], 60)
    (session,) = engine._sessions.values()
    assert list(session._caches) == [64]
    assert len(session.program._bound) == 1
    for length, size in ((5, 16), (50, 64), (20, 32)):  # a longer prompt too, not only new tokens
        session.begin(np.ones((1, length), np.int32), np.zeros(1, np.int32))
        assert list(session._caches) == [size]
        assert len(session.program._bound) == 1


def test_a_forked_process_makes_its_own_threads():
    engine = create("fused", tiny_decoder())
    expected = generate(engine, [PROMPTS[0]], 4)
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(int(not np.array_equal(generate(engine, [PROMPTS[0]], 4), expected)))
    assert os.waitpid(child, 0)[1] == 0


def test_a_full_cache_is_told():
    engine = create("fused", tiny_decoder())
    session = engine._open(1, 8, [16], 1)
    session.begin(np.ones((1, 16), np.int32), np.zeros(1, np.int32))
    with pytest.raises(TfspeedError, match=r"cache is full.*capacity=16"):
        session.step(np.ones(1, np.int32))


@pytest.mark.parametrize("weights", ["float32", "float16", "int8", "int4", "int8,cache=float32"])
@pytest.mark.parametrize("changes", [
    {"hidden_dim": 64, "mlp_dim": 112, "num_heads": 6, "num_kv_heads": 2},
    {"sliding_window": 5, "sliding_layers": (True, False)}, {"positions": "alibi"}])
def test_what_a_token_gets_does_not_depend_on_how_many_are_read(weights, changes):
    """To the last bit: several tokens at once give the logits that they give one by one."""
    session = create(f"fused:{weights}", tiny_decoder(**changes))._new_session(1, 96, 16)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 60)).astype(np.int32)
    session.begin(tokens[:, :20], np.zeros(1, np.int32))
    expected = [session.step(tokens[:, at]).copy() for at in range(20, 60)]
    for count in (1, 2, 3, 4, 5, 7, 8, 12, 16):
        session.take_back(20)
        for at in range(20, 61 - count, count):
            np.testing.assert_array_equal(session.read(tokens[:, at:at + count])[0],
                                          np.concatenate(expected[at - 20:at - 20 + count]))
        assert session.filled == 20 + 40 // count * count


def test_generations_that_overlap_do_not_share_a_cache():
    model = tiny_decoder()
    engine = create("fused", model)
    first, second = engine.generate([PROMPTS[0]], 8), engine.generate([PROMPTS[2]], 8)
    rows = np.asarray([(int(a[0]), int(b[0])) for a, b in zip(first, second, strict=True)]).T
    np.testing.assert_array_equal(rows[0], reference(model, [PROMPTS[0]], 8)[0])
    np.testing.assert_array_equal(rows[1], reference(model, [PROMPTS[2]], 8)[0])


def test_engines_on_threads_of_their_own():
    models = [tiny_decoder(), tiny_decoder(head_dim=20, num_layers=3)]
    engines = [create("fused", model) for model in models]
    expected = [reference(model, PROMPTS, 12) for model in models]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda engine: generate(engine, PROMPTS, 12), engines))
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("threads", [1, 3])  # alone, and more than there are cores
def test_any_number_of_threads(threads):
    model = tiny_decoder()
    engine = create("fused", model)
    engine._threads = threads
    np.testing.assert_array_equal(generate(engine, PROMPTS, 8), reference(model, PROMPTS, 8))


def test_a_profile_adds_up_to_a_step():
    parts = create("fused", tiny_decoder()).profile([PROMPTS[2]])
    names = {part["name"] for part in parts}
    assert {"attend", "gate, up", "head"} <= names
    assert all(part["seconds"] > 0 and part["calls"] in (1, 2) for part in parts)


def test_no_compiler_is_told_before_anything_slow(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    compiler.library.cache_clear()
    with pytest.raises(TfspeedError, match=r"needs a C compiler.*CC='no-such-compiler'"):
        create("fused", tiny_decoder())
    compiler.library.cache_clear()


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CFLAGS", "--no-such-flag")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    with pytest.raises(TfspeedError, match=r"could not be compiled.*no-such-flag"):
        create("fused", tiny_decoder())
    compiler.library.cache_clear()
    assert not (tmp_path / "tfspeed").exists()


def shell(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_where_one_compiler_fails_the_next_is_used(monkeypatch, tmp_path):
    old = shell(tmp_path, "old", "echo \"error: unknown type name '_Float16'\" >&2; exit 1")
    found = compiler.compilers()
    monkeypatch.setattr(compiler, "compilers", lambda: [[old], *found])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    assert compiler.library()
    assert len(list((tmp_path / "tfspeed" / "kernels").iterdir())) == 1
    (tmp_path / "old").unlink()  # a second start tries neither
    monkeypatch.setattr(compiler, "_compile", None)
    compiler.library.cache_clear()
    assert compiler.library()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("CC", shell(tmp_path, "old", "echo \"error: no _Float16\" >&2; exit 1"))
    compiler.library.cache_clear()
    with pytest.raises(TfspeedError, match="need gcc 12 or clang 15"):
        compiler.library()
    compiler.library.cache_clear()


@pytest.mark.parametrize("part", ["folder", pytest.param("file", marks=pytest.mark.slow)])
def test_kernels_that_another_user_can_have_written_are_not_loaded(monkeypatch, tmp_path, part):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "tfspeed" / "kernels"
    compiler.library.cache_clear()
    compiler.library()
    kept, = folder.iterdir()
    assert folder.stat().st_mode & 0o077 == kept.stat().st_mode & 0o077 == 0
    kept.unlink()  # what is loaded must not be written over
    kept.write_bytes(b"another user's program")
    kept.chmod(0o600)
    for path in (folder,) if part == "folder" else (kept,):
        path.chmod(path.stat().st_mode | 0o020)
    compiler.library.cache_clear()
    assert compiler.library()  # compiled anew, not that one
    foreign = kept.read_bytes() == b"another user's program"
    assert foreign == (part == "folder")  # and where others write, nothing is kept
    compiler.library.cache_clear()


def test_a_cache_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiler.library.cache_clear()
    assert generate(create("fused", tiny_decoder()), [[1, 2]], 2).shape == (1, 2)
    compiler.library.cache_clear()


def test_engines_that_are_gone_leave_no_memory():
    model = tiny_decoder(hidden_dim=512, mlp_dim=2048, vocabulary_size=4096)  # 30 MB
    sizes = []
    for _ in range(10):
        generate(create("fused", model), [[1, 2, 3]], 2)
        sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] < 1.1 * sizes[1]
