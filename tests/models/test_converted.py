"""Packed and low-rank layers: the numbers they stand for, in every engine, through a file."""

import gc
import weakref

import keras
import numpy as np
import pytest

from tests.compression.test_core import einsum_model
from tests.conftest import MODELS, tiny_decoder, tiny_recurrent
from tfspeed.compression import copying, replacing, targets
from tfspeed.engines import create
from tfspeed.litert.weights import fitting, pack
from tfspeed.models.load import load

TOKENS = np.random.default_rng(0).integers(0, 64, (3, 12), np.int32)
WIDE = {"hidden_dim": 32, "head_dim": 8, "mlp_dim": 64}


def packed(model, bits, block=0, pattern=""):
    model = copying.copied(model)
    for target in targets.find(model.keras_model, pattern):
        width = target.shape[1]
        replacing.pack(target, pack(target.name, target.matrix(), bits, fitting(block, width)))
    return model


def low_rank(model, pattern="mlp", rank=None):
    model = copying.copied(model)
    for target in targets.find(model.keras_model, pattern):
        u, s, v = np.linalg.svd(target.matrix(), full_matrices=False)
        kept = rank or len(s)
        replacing.split(target, s[:kept, None] * v[:kept], u[:, :kept])
    return model


def rounded(model, bits, block=0, pattern=""):
    """The same values in float layers."""
    model = copying.copied(model)
    for target in targets.find(model.keras_model, pattern):
        width = target.shape[1]
        weight = pack(target.name, target.matrix(), bits, fitting(block, width))
        target.assign(weight.dequantized())
    return model


@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 0), (4, 32)])
@pytest.mark.parametrize("make", [*MODELS.values(), einsum_model,
                                  lambda: tiny_decoder(**WIDE, tied_embeddings=False)])
def test_packed_layers_compute_with_their_integers(make, bits, block):
    plain = make()
    before = plain.score(TOKENS).numpy()
    model = packed(plain, bits, block)
    np.testing.assert_allclose(model.score(TOKENS), rounded(plain, bits, block).score(TOKENS),
                               atol=1e-4)
    np.testing.assert_array_equal(plain.score(TOKENS), before)
    assert model.parameters == plain.parameters
    assert model.weights_bytes < plain.weights_bytes


def test_memory_shrinks_with_the_bits():
    plain = tiny_decoder(hidden_dim=64, head_dim=16, mlp_dim=128)
    eight, four = (packed(plain, bits, block) for bits, block in ((8, 0), (4, 32)))
    assert plain.weights_bytes > 3.4 * eight.weights_bytes > 5.5 * four.weights_bytes
    assert (plain.dtype, eight.dtype, four.dtype) == ("float32", "int8", "int4")


@pytest.mark.parametrize("engine", ["graph", "xla"])
@pytest.mark.parametrize("change", [lambda m: packed(m, 8), lambda m: packed(m, 4, 32),
                                    lambda m: low_rank(m, rank=5)])
def test_tensorflows_engines_run_them(engine, change):
    model = change(tiny_decoder(**WIDE))
    made = create(engine, model)
    np.testing.assert_allclose(made.score(TOKENS[:1]), model.score(TOKENS[:1]), atol=1e-4)
    assert len(list(made.generate([[1, 2, 3], [4]], 4))) == 4


@pytest.mark.parametrize("engine", ["litert", "fused"])
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 32), (4, 0)])
def test_packed_engines_read_the_integers_as_they_lie(engine, bits, block):
    model = packed(tiny_decoder(**WIDE), bits, block)
    made = create(engine, model)
    assert {w.type for w in made._packed.weights} == {f"INT{bits}"}
    # Their kernels round activations to eight bits.
    expected = np.asarray(model.score(TOKENS[:1]))
    error = np.asarray(made.score(TOKENS[:1])) - expected
    assert np.sqrt(np.square(error).mean()) < 0.05 * expected.std()


def test_litert_reads_a_packed_embedding_of_a_recurrent_model():
    model = packed(tiny_recurrent("lstm"), 8)
    made = create("litert", model)
    assert made._packed.embedding.type == "INT8"
    assert made._packed.head.weight is made._packed.embedding
    assert len(list(made.generate([[1, 2, 3]], 4))) == 4


def test_litert_runs_two_thin_products():
    model = low_rank(tiny_decoder(**WIDE), "block", rank=6)
    made = create("litert", model)
    np.testing.assert_allclose(made.score(TOKENS[:1]), model.score(TOKENS[:1]), atol=1e-3)
    assert made.weights_bytes == pytest.approx(model.weights_bytes, rel=0.03)
    eight = create("litert:int8", model)
    expected = np.asarray(model.score(TOKENS[:1]))
    assert np.sqrt(np.square(np.asarray(eight.score(TOKENS[:1])) - expected).mean()) < (
        0.1 * expected.std())


@pytest.mark.parametrize("make", [tiny_decoder, lambda: tiny_recurrent("gru"), einsum_model])
def test_a_saved_model_comes_back_equal(make, tmp_path):
    plain = make()
    changed = [packed(plain, 8), packed(plain, 4, 32)]
    if make is tiny_decoder:
        changed.append(low_rank(plain))
        changed.append(packed(low_rank(plain), 8))
    for i, model in enumerate(changed):
        path = tmp_path / f"{i}.keras"
        model.keras_model.save(path)
        again = load(path)
        np.testing.assert_array_equal(model.score(TOKENS), again.score(TOKENS))
        assert again.weights_bytes == model.weights_bytes
        # A copy is made of the same config.
        np.testing.assert_array_equal(copying.copied(model).score(TOKENS), model.score(TOKENS))


def test_a_file_shrinks_with_the_bits(tmp_path):
    sizes = {}
    plain = tiny_decoder(hidden_dim=128, head_dim=32, mlp_dim=256)
    for name, model in (("float", plain), ("int8", packed(plain, 8)), ("int4", packed(plain, 4))):
        model.keras_model.save(tmp_path / f"{name}.keras")
        sizes[name] = (tmp_path / f"{name}.keras").stat().st_size
    assert sizes["float"] > 2.5 * sizes["int8"] > 3 * sizes["int4"]


def test_low_rank_at_full_rank_is_exact_and_its_parts_are_found():
    plain = tiny_decoder()
    model = low_rank(plain)
    np.testing.assert_allclose(model.score(TOKENS), plain.score(TOKENS), atol=1e-4)
    names = [t.name for t in targets.find(model.keras_model, "block_1/mlp")]
    assert names == [f"block_1/mlp/{layer}/{part}" for layer in ("gate_up", "down")
                     for part in ("first", "second")]


def test_a_subclass_is_left_alone():
    class Mine(keras.layers.Dense):
        pass

    model = keras.Sequential([keras.Input((4,)), Mine(3)])
    assert not replacing.can_pack(targets.find(model)[0])


def test_a_converted_layer_keeps_nothing_of_what_it_was():
    model = copying.copied(tiny_decoder())
    [target] = targets.find(model.keras_model, "block_0/mlp/down")
    target.assign(target.matrix())  # memory of its own: what `smooth` does before it is packed
    kernel, value = weakref.ref(target.variable), weakref.ref(target.variable.value)
    replacing.pack(target, pack(target.name, target.matrix(), 8))
    gc.collect()
    assert kernel() is None
    assert value() is None
