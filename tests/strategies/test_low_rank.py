"""Low rank: fewer parameters by a budget, two thin products where they pay."""

import functools

import keras
import numpy as np
import pytest

import strategies
from strategies.low_rank import LowRank, Options
from tests.conftest import MODELS, tiny_decoder, tiny_uncached
from tests.engines.test_engines import generate, reference
from tests.litert.test_decoder import PROMPTS
from tfspeed.compression import copying, targets
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.models.load import load
from tfspeed.models.low_rank import LowRankDense
from tfspeed.models.uncached import UncachedModel

TOKENS = np.random.default_rng(0).integers(0, 64, (3, 12), np.int32)
WIDE = {"hidden_dim": 48, "head_dim": 12, "mlp_dim": 96}


def applied(model, data=None, **options):
    options = {"multiple": 2, **options}
    strategy = LowRank(Options(**options))
    return strategy, strategy.apply(model, data)


@functools.cache
def thin():
    """A model of which a fifth went, not to be changed; its first tokens after `PROMPTS`."""
    made = applied(tiny_decoder(**WIDE), fraction=0.2)[1]
    return made, reference(made, PROMPTS, 8)


def split_layers(model):
    return [layer for layer in model.keras_model._flatten_layers()
            if isinstance(layer, LowRankDense)]


def divergence(model, other):
    p, q = (keras.ops.log_softmax(m.score(TOKENS)) for m in (model, other))
    return float(keras.ops.mean(keras.ops.sum(keras.ops.exp(p) * (p - q), -1)))


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.4])
def test_the_share_asked_for_goes(fraction):
    model = tiny_decoder(**WIDE)
    strategy, made = applied(model, fraction=fraction)
    gone = 1 - made.parameters / model.parameters
    assert fraction <= gone < fraction + 0.03
    assert split_layers(made)
    for layer in split_layers(made):
        width = layer.first.kernel.shape[0]
        assert layer.rank * (width + layer.units) < width * layer.units
    assert any("two thin products" in line for line in strategy.report())
    assert made.score(TOKENS).shape == (3, 12, 64)


def nearly_low_rank():
    """Matrices whose outputs lie in a few directions, as trained ones' do."""
    model = tiny_decoder(**WIDE)
    rng = np.random.default_rng(1)
    for target in targets.find(model.keras_model, "block"):
        out, width = target.shape
        steep = rng.normal(size=(out, 12)) @ rng.normal(size=(12, width)) / 12
        noise = rng.normal(size=(out, width)) * rng.uniform(0, 0.1, width)
        target.variable.assign(((steep + noise) / width ** 0.5).astype(np.float32).T)
    return model


def test_calibration_beats_a_plain_decomposition():
    model = nearly_low_rank()
    for fraction in (0.2, 0.4):
        _, whitened = applied(model, fraction=fraction)
        _, plain = applied(model, fraction=fraction, whiten=False)
        assert divergence(model, whitened) < divergence(model, plain)


def test_layers_that_matter_less_lose_more():
    model = nearly_low_rank()
    down = targets.find(model.keras_model, "block_0/mlp/down")[0]
    down.variable.assign(down.variable * 1e-3)
    _, made = applied(model, fraction=0.09)
    thin = {t.name for t in targets.find(made.keras_model) if t.kind == "first"}
    assert "block_0/mlp/down/first" in thin
    # What feeds it matters as little.
    assert thin <= {"block_0/mlp/down/first", "block_0/mlp/gate_up/first"}


@pytest.mark.parametrize("engine", ["graph", "xla", "litert", "fused"])
def test_every_engine_gives_its_tokens(engine):
    made, expected = thin()
    np.testing.assert_array_equal(generate(create(engine, made), PROMPTS, 8), expected)


@pytest.mark.parametrize("name", ["decoder", "learned", "uneven", "uncached"])
def test_other_models(name):
    model = MODELS[name]()
    before = [v.numpy() for v in model.keras_model.weights]
    _, made = applied(model, fraction=0.02, multiple=1)
    assert made.parameters < model.parameters
    assert np.isfinite(made.score(TOKENS)).all()
    for was, now in zip(before, model.keras_model.weights, strict=True):
        np.testing.assert_array_equal(was, now)


def mixed_model():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 24)(tokens)
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 24), name="einsum")(x)
    x = keras.layers.Dense(40, activation="relu", name="wide")(x)
    x = keras.layers.Dense(24, use_bias=False, name="narrow")(x)
    return UncachedModel("mixed", keras.Model(tokens, keras.layers.Dense(64, name="head")(x)), 32)


def test_what_is_no_plain_dense_layer_is_left_alone():
    strategy, made = applied(mixed_model(), fraction=0.05, targets="einsum|wide|narrow")
    assert {layer.name for layer in split_layers(made)} <= {"wide", "narrow"}
    assert any("einsum" in line for line in strategy.report() if "Left alone" in line)
    _, made = applied(mixed_model(), fraction=0.05)
    assert "head" not in {layer.name for layer in split_layers(made)}


def test_bias_and_activation_stay():
    model = mixed_model()
    wide = next(t for t in targets.find(model.keras_model) if t.name == "wide")
    wide.layer.bias.assign(np.linspace(-1, 1, 40))
    steep = np.random.default_rng(0).normal(size=(40, 3)) @ np.ones((3, 24)) / 9
    wide.variable.assign(steep.T)
    _, made = applied(model, fraction=0.01, targets="wide", multiple=1)
    assert split_layers(made)[0].activation is keras.activations.relu
    np.testing.assert_allclose(made.score(TOKENS), model.score(TOKENS), atol=1e-4)


def test_a_file_keeps_it(tmp_path):
    made, _ = thin()
    made.keras_model.save(tmp_path / "thin.keras")
    again = load(str(tmp_path / "thin.keras"))
    assert again.parameters == made.parameters
    np.testing.assert_array_equal(again.score(TOKENS), made.score(TOKENS))


def test_it_composes_with_quantize():
    strategy = strategies.create("low_rank+quantize", {
        "low_rank": Options(fraction=0.2, multiple=2)})
    model = tiny_decoder(**WIDE)
    made = strategy.apply(model)
    assert made.weights_bytes < 0.5 * model.weights_bytes
    for engine in ("xla", "litert", "fused"):
        assert generate(create(engine, made), PROMPTS, 4).shape == (3, 4)


class Letters:
    def encode(self, text):
        return [ord(c) % 64 for c in text]


@pytest.mark.parametrize(("options", "message"), [
    ({"fraction": 0.0}, "over 0 and under 0.9"), ({"fraction": 0.9}, "over 0 and under 0.9"),
    ({"fraction": -1.0}, "over 0 and under 0.9"),
    ({"fraction": float("nan")}, "over 0 and under 0.9"),
    ({"multiple": 0}, "from 1 on"), ({"targets": "convolution"}, "No layer of the model matches"),
    ({"targets": "("}, "regular expression"), ({"fraction": 0.89}, "No ranks of these layers"),
    ({"targets": "embedding"}, "No layer of the model matches"),
    ({"targets": "block_0/attention/out"}, "No ranks of these layers")])
def test_bad_options(options, message):
    with pytest.raises(TfspeedError, match=message):
        applied(tiny_decoder(**WIDE), **options)


def test_bad_data_and_weights():
    model = tiny_decoder(**WIDE)
    model.tokenizer = Letters()
    with pytest.raises(TfspeedError, match="calibration text is too short"):
        applied(model, data="short")
    model = copying.copied(tiny_decoder(**WIDE))
    target = targets.find(model.keras_model, "block_1/mlp/down")[0]
    matrix = target.matrix()
    matrix[3, 2] = np.nan
    target.assign(matrix)
    with pytest.raises(TfspeedError, match=r"not finite.*block_1/mlp/down"):
        applied(model)


def test_a_model_without_dense_layers_is_told():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 24)(tokens)
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 64), name="einsum")(x)
    with pytest.raises(TfspeedError, match=r"No ranks of these layers.*layers=0"):
        applied(UncachedModel("none", keras.Model(tokens, x), 32))


def test_uncached_head_only():
    """Its only Dense layer is the output."""
    _, made = applied(tiny_uncached(), fraction=0.01, multiple=1)
    assert len(split_layers(made)) == 1
