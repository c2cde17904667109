"""prune_structured: what comes out is smaller, dense, near, and runs under every engine."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

import strategies
import tfspeed
from strategies import prune_structured
from strategies.prune_structured import Options
from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tests.engines.test_engines import generate, make, reference
from tests.models import seq2seq
from tfspeed.compression import decoder_pruning, seq2seq_pruning
from tfspeed.compression.sources import Sources
from tfspeed.engines import ENGINES, create
from tfspeed.errors import TfspeedError
from tfspeed.models.uncached import UncachedModel

PROMPTS = [[5, 9, 2, 33], [7], list(range(1, 19))]
TOKENS = np.random.default_rng(1).integers(0, 64, (2, 24)).astype(np.int32)


def pruned(model, **options):
    strategy = strategies.create("prune_structured", {"prune_structured": Options(**options)})
    return strategy.apply(model), strategy.report()


def larger(**changes):
    """Layers that differ, and units of which some are superfluous."""
    return tiny_decoder(**{"num_layers": 3, "num_heads": 8, "num_kv_heads": 4, "mlp_dim": 48,
                           **changes})


@functools.cache
def left(what):
    """A model, what is left of it, and the report; not to be changed."""
    model = larger()
    return model, *pruned(model, fraction=0.2, what=what)


@pytest.mark.parametrize(("engine", "what"), [
    *((engine, "auto") for engine in ENGINES), ("litert", "neurons"), ("fused", "heads"),
    ("xla", "layers")])
def test_every_engine_runs_what_is_left(what, engine):
    model, made, report = left(what)
    assert made.parameters <= 0.8 * model.parameters
    assert made.parameters == made.config.parameter_count
    assert made.step_bytes(1, 32) < model.step_bytes(1, 32)
    assert f"{model.parameters:,}" in report[0]
    np.testing.assert_array_equal(generate(make(engine, made), PROMPTS, 6),
                                  reference(made, PROMPTS, 6))


@pytest.mark.parametrize("family", [
    {"positions": "learned", "norm": "layer", "gated_mlp": False, "activation": "gelu_tanh",
     "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    {"qk_norm": True, "post_norms": True, "tied_embeddings": False, "sliding_window": 5,
     "sliding_layers": (True, False, True)},
    {"parallel_residual": True, "shared_norm": True, "positions": "alibi"}])
def test_families(family, tmp_path):
    model = larger(**family)
    made, report = pruned(model, fraction=0.15, multiple=4)
    assert made.parameters <= 0.85 * model.parameters
    assert any("ALiBi" in line for line in report) == (family.get("positions") == "alibi")
    made.keras_model.save(tmp_path / "m.keras")
    again = tfspeed.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(np.asarray(again.score(TOKENS)), np.asarray(made.score(TOKENS)))
    layers, _ = pruned(model, fraction=0.2, what="layers")
    assert layers.config.num_layers < 3
    assert np.isfinite(np.asarray(layers.score(TOKENS))).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["whisper", "bart", "t5", "t5_gated"])
def test_both_sides_of_an_encoder_decoder_shrink(shape, tmp_path):
    model = seq2seq.tiny(shape)
    heard = seq2seq.sources(model, 2)
    if model.config.source == "audio":
        model.heard = np.asarray(heard)
    made, report = pruned(model, fraction=0.15, multiple=4)
    assert made.parameters <= 0.85 * model.parameters
    assert made.parameters == made.config.parameter_count
    assert any("relative" in line for line in report) == shape.startswith("t5")
    exact = create("graph", made)
    for engine in ("xla", "litert"):
        other = create(engine, made)
        want, have = (e.score(TOKENS, e.encode(heard)) for e in (exact, other))
        np.testing.assert_allclose(have, want, atol=1e-4 * max(1, np.abs(want).max()))
        want, have = (np.stack(list(e.generate(PROMPTS[:2], 5, encoded=e.encode(heard))))
                      for e in (exact, other))
        np.testing.assert_array_equal(have, want)
    near = create("litert:int8", made)
    assert near.step_bytes(1, 8) < create("litert:int8", model).step_bytes(1, 8)
    assert np.isfinite(near.score(TOKENS, near.encode(heard))).all()
    made.keras_model.save(tmp_path / "m.keras")
    again = tfspeed.load(tmp_path / "m.keras").keras_model
    source = made.checked_source(heard)
    np.testing.assert_array_equal(again((source, TOKENS)), made.keras_model((source, TOKENS)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["whisper", "bart", "t5_gated"])
def test_idle_units_of_an_encoder_decoder_go_and_change_nothing(shape):
    model = seq2seq.tiny(shape)
    both = model.keras_model
    heads = {"cross": (both.decoder[1].cross.out, slice(4, 8))}
    if shape != "t5_gated":
        heads |= {"heads": (both.decoder[0].attention.out, slice(8, 12))}
    idle = [*heads.values(), (both.encoder[1].mlp.down, slice(0, 8))]
    for dense, rows in idle:
        kernel = dense.kernel.numpy()
        kernel[rows] = 0
        dense.kernel.assign(kernel)
    cut = {("neurons", "encoder_1"): 2, ("cross", "decoder_1"): 1}
    cut |= {("heads", "decoder_0"): 1} if "heads" in heads else {}
    source = model.checked_source(seq2seq.sources(model, 2))
    made = seq2seq_pruning.build(both, cut, TOKENS, Sources(source, np.arange(2)), 4)
    assert made.config.cross_heads == (4, 3)
    assert made.config.encoder_mlp_dims == (32, 24)
    np.testing.assert_allclose(made((source, TOKENS)), both((source, TOKENS)), atol=2e-4)


def test_what_an_encoder_decoder_keeps():
    model = seq2seq.tiny("whisper")
    for options, text in (({"what": "layers"}, "no layers"), ({}, "needs sounds")):
        with pytest.raises(TfspeedError, match=text):
            pruned(model, **options)
    config = model.config
    for changes, text in (({"cross_heads": (4,)}, "one integer a layer"),
                          ({"encoder_mlp_dims": (33, 32)}, "from 1 to 32"),
                          ({"decoder_heads": (4, 3), "positions": "relative"}, "Relative")):
        with pytest.raises(TfspeedError, match=text):
            dataclasses.replace(config, **changes)


def test_units_that_do_nothing_go_first_and_change_nothing():
    model = larger()
    useless = [(0, 0), (1, 2)]
    for layer, group in useless:
        block = model.keras_model.blocks[layer]
        kernel = block.attention.out.kernel.numpy()
        kernel[8 * group:8 * group + 8] = 0
        block.attention.out.kernel.assign(kernel)
        kernel = block.mlp.down.kernel.numpy()
        kernel[::2] = 0
        block.mlp.down.kernel.assign(kernel)
    for what, fraction in ("neurons", 0.15), ("heads", 0.05):
        made, _ = pruned(model, fraction=fraction, what=what, multiple=4)
        np.testing.assert_allclose(np.asarray(made.score(TOKENS)), np.asarray(model.score(TOKENS)),
                                   atol=2e-2)
        assert made.config.layer(2).mlp_dim == 48
        assert made.config.layer(2).num_kv_heads == 4


def test_a_layer_that_does_nothing_goes_first():
    model = larger()
    for dense in (model.keras_model.blocks[1].attention.out, model.keras_model.blocks[1].mlp.down):
        dense.kernel.assign(0 * dense.kernel)
    made, report = pruned(model, fraction=0.2, what="layers")
    np.testing.assert_allclose(np.asarray(made.score(TOKENS)), np.asarray(model.score(TOKENS)),
                               atol=1e-5)
    assert any("(1)" in line for line in report)


def test_the_refit_makes_up_for_a_copy(monkeypatch):
    """A neuron that repeats another can go; its reader's weights move to the other."""
    monkeypatch.setattr(prune_structured, "_WINDOWS", 64)
    model = larger()
    mlp = model.keras_model.blocks[1].mlp
    kernel = mlp.up.kernel.numpy()
    kernel[:, 24:48], kernel[:, 72:] = kernel[:, :24], kernel[:, 48:72]
    mlp.up.kernel.assign(kernel)
    errors = []
    for refit in (decoder_pruning.refitted, lambda matrix, gram, kept: matrix[:, kept]):
        monkeypatch.setattr(decoder_pruning, "refitted", refit)
        made, _ = pruned(model, fraction=0.08, what="neurons", multiple=4, targets="block_1/mlp")
        assert made.config.mlp_dims == (48, 24, 48)
        errors.append(np.abs(np.asarray(made.score(TOKENS)) - np.asarray(model.score(TOKENS))))
    assert errors[0].mean() < errors[1].mean() / 3


def test_the_same_each_time():
    made = left("auto")[1], pruned(larger(), fraction=0.2)[0]
    scores = [np.asarray(model.score(TOKENS)) for model in made]
    np.testing.assert_array_equal(*scores)


def functional():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 16)(tokens)
    y = keras.layers.Dense(40, name="wide")(x)
    y = keras.layers.Dropout(0.1)(keras.layers.Activation("relu")(y))
    y = keras.layers.Dense(24, activation="gelu", name="middle")(y)
    y = keras.layers.Dense(16, name="narrow")(y)
    x = keras.layers.Add()([x, y])
    return UncachedModel("f", keras.Model(tokens, keras.layers.Dense(64)(x)), context_length=96)


def sequential():
    keras.utils.set_random_seed(0)
    return UncachedModel("s", keras.Sequential([
        keras.Input((None,), dtype="int32"), keras.layers.Embedding(64, 16),
        keras.layers.Dense(40, activation="relu"), keras.layers.Dense(64)]), context_length=96)


@pytest.mark.parametrize("build", [functional, sequential, tiny_uncached])
def test_any_keras_model_with_a_chain(build, tmp_path):
    model = build()
    before = np.asarray(model.score(TOKENS))
    made, report = pruned(model, fraction=0.1, multiple=4)
    assert made.parameters <= 0.9 * model.parameters
    np.testing.assert_array_equal(np.asarray(model.score(TOKENS)), before)
    after = np.asarray(made.score(TOKENS))
    assert np.abs(after - before).mean() < np.abs(before).mean()
    made.keras_model.save(tmp_path / "m.keras")
    again = tfspeed.load(tmp_path / "m.keras")
    np.testing.assert_allclose(np.asarray(again.score(TOKENS)), after, atol=1e-6)
    assert any("Left alone" in line for line in report)


@pytest.mark.parametrize("options", [
    {"fraction": 0.0}, {"fraction": 0.9}, {"fraction": -1.0}, {"fraction": float("nan")},
    {"what": "everything"}, {"multiple": 0}, {"targets": "("}])
def test_options_that_make_no_sense(options):
    with pytest.raises(TfspeedError, match=next(iter(options))):
        pruned(larger(), **options)


@pytest.mark.parametrize(("build", "options", "text"), [
    (larger, {"fraction": 0.85}, "fraction"),
    (larger, {"fraction": 0.4, "what": "heads"}, "fraction"),
    (larger, {"targets": "block_9"}, "Nothing of the model"),
    (lambda: larger(positions="alibi"), {"what": "heads"}, "ALiBi"),
    (lambda: tiny_recurrent("lstm"), {}, "functional and sequential|No layer"),
    (tiny_uncached, {"what": "layers"}, "heads and layers"),
    (tiny_uncached, {"targets": "embedding"}, "No layer"),
    (tiny_uncached, {"fraction": 0.8}, "fraction")])
def test_what_cannot_be_done_is_said(build, options, text):
    with pytest.raises(TfspeedError, match=text):
        pruned(build(), **options)


def test_a_text_that_is_too_short():
    class Tokenizer:
        def encode(self, text):
            return list(text.encode())

    model = larger()
    model.tokenizer = Tokenizer()
    with pytest.raises(TfspeedError, match="too short"):
        strategies.create("prune_structured").apply(model, "short")


def test_weights_that_are_not_finite_are_named():
    model = larger()
    kernel = model.keras_model.blocks[1].mlp.down.kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(TfspeedError, match="block_1/mlp/down"):
        pruned(model)


def test_packed_layers_come_later():
    made = strategies.create("quantize").apply(larger())
    with pytest.raises(TfspeedError, match="float weights"):
        pruned(made)
    composed = strategies.create("prune_structured+quantize")
    assert composed.apply(larger()).weights_bytes < larger().weights_bytes / 2
