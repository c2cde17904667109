"""`quantize`: what it stores, what it keeps of the model's mind, and what it refuses."""

import keras
import numpy as np
import pytest

import strategies
from strategies.quantize import Options, Quantize
from tests.compression.test_core import einsum_model
from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tfspeed.compression import hessian, quantizing
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.litert.gptq import compensated
from tfspeed.models.load import load
from tfspeed.models.packed import Packed

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24), np.int32)
WIDE = {"hidden_dim": 64, "head_dim": 16, "mlp_dim": 128}
MODELS = {
    "decoder": lambda: tiny_decoder(**WIDE),
    "untied": lambda: tiny_decoder(**WIDE, tied_embeddings=False),
    "shared norm": lambda: tiny_decoder(**WIDE, shared_norm=True, parallel_residual=True,
                                        norm="layer", qkv_bias=True, mlp_bias=True),
    "plain mlp": lambda: tiny_decoder(**WIDE, gated_mlp=False, activation="gelu", qk_norm=True,
                                      post_norms=True),
    "gru": lambda: tiny_recurrent("gru"), "convolution": tiny_uncached, "einsum": einsum_model,
}


def quantized(model, **options):
    return Quantize(Options(**options)).apply(model)


def error(model, reference):
    expected = np.asarray(reference.score(TOKENS))
    return np.sqrt(np.square(np.asarray(model.score(TOKENS)) - expected).mean()) / expected.std()


@pytest.mark.parametrize("method", quantizing.METHODS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_method_on_every_model(make, method):
    model = make()
    eight = quantized(model, method=method)
    assert error(eight, model) < 0.1
    assert eight.weights_bytes < model.weights_bytes
    four = quantized(model, bits=4, method=method)
    assert error(four, model) < 0.9
    assert four.weights_bytes <= eight.weights_bytes


@pytest.mark.parametrize("make", [MODELS["decoder"], MODELS["untied"], MODELS["shared norm"],
                                  MODELS["plain mlp"]])
@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_what_is_moved_between_layers_changes_nothing(make, method, monkeypatch):
    """With rounding taken out, smoothing and AWQ leave the function as it was."""
    monkeypatch.setattr("tfspeed.compression.replacing.pack",
                        lambda target, weight, scale=None: _assign(target, weight, scale))
    monkeypatch.setattr(quantizing.Rounding, "weight",
                        lambda self, name, matrix, gram, factor=None:
                        matrix if factor is None else matrix * factor)
    model = make()
    assert error(quantized(model, method=method), model) < 1e-4


def _assign(target, matrix, scale):
    if scale is None:
        target.assign(matrix)
    else:  # the tied table: rows that are looked up are scaled back
        target.assign(matrix)
        call = target.layer.call
        target.layer.call = lambda ids: call(ids) * scale


def test_gptq_beats_rounding_on_what_the_layer_reads():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 64)) @ rng.normal(size=(64, 64))
    gram, matrix = (x.T @ x / 512).astype(np.float32), rng.normal(size=(32, 64)).astype(np.float32)
    found = {}
    for method in quantizing.METHODS:
        rounding = quantizing.Rounding(4, 32, method, 8, "^$")
        factor = rounding.factor("w", gram, matrix) if method == "awq" else 1.0
        weight = rounding.weight("w", matrix * factor, gram)
        difference = weight.dequantized() / factor - matrix
        found[method] = np.sum((difference @ gram) * difference)
    assert found["gptq"] < 0.7 * found["rtn"]
    assert found["awq"] <= found["rtn"] * 1.01
    # Calibrated codes are not the rounded ones (Keras 3.15's own GPTQ gives those).
    plain = quantizing.Rounding(4, 32, "rtn", 8, "^$").weight("w", matrix, gram)
    calibrated = compensated("w", matrix, 4, 32, hessian.inverse_root(gram))
    assert (calibrated.data != plain.data).mean() > 0.05


@pytest.mark.parametrize("method", quantizing.METHODS)
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 32), (4, 0)])
def test_some_rows_at_a_time_are_rounded_as_all_at_once(method, bits, block, monkeypatch):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(512, 64)), rng.normal(size=(33, 64)).astype(np.float32)
    gram = (x.T @ x / 512).astype(np.float32)
    rounding = quantizing.Rounding(bits, block, method, 8, "^$")
    whole, factor = rounding.weight("w", matrix, gram), rounding.factor("w", gram, matrix)
    monkeypatch.setattr(quantizing, "_ROWS", 10)
    parts = rounding.weight("w", matrix, gram)
    assert parts.shape == whole.shape
    assert parts.type == whole.type
    np.testing.assert_array_equal(parts.data, whole.data)
    np.testing.assert_array_equal(parts.scales, whole.scales)
    np.testing.assert_array_equal(rounding.factor("w", gram, matrix), factor)


@pytest.mark.parametrize("engine", ["litert", "fused", "xla"])
@pytest.mark.parametrize("bits", [8, 4])
def test_engines_run_it_packed(engine, bits):
    model = quantized(tiny_decoder(**WIDE), bits=bits)
    made = create(engine, model)
    expected = np.asarray(model.score(TOKENS[:1]))
    difference = np.asarray(made.score(TOKENS[:1])) - expected
    assert np.sqrt(np.square(difference).mean()) < 0.1 * expected.std()
    assert made.weights_bytes < 1.05 * model.weights_bytes


def test_only_the_targets_change(tmp_path):
    model = tiny_decoder(**WIDE)
    strategy = Quantize(Options(bits=4, targets="mlp"))
    changed = strategy.apply(model)
    kinds = {layer.name: isinstance(layer, Packed)
             for layer in changed.keras_model._flatten_layers()}
    assert kinds["down"]
    assert kinds["gate_up"]
    assert not kinds["out"]
    assert not kinds["embedding"]
    assert "4 matrices in 4 bits" in strategy.report()[0]
    changed.keras_model.save(tmp_path / "mine.keras")
    np.testing.assert_array_equal(load(tmp_path / "mine.keras").score(TOKENS),
                                  changed.score(TOKENS))


def test_it_runs_under_replicas():
    strategy = strategies.create("quantize+mirrored")
    with strategy.scope():
        model = strategy.apply(tiny_decoder(**WIDE))
    alone = quantized(tiny_decoder(**WIDE))
    prompts = [[5, 9, 2], [7], [1, 2, 3, 4], [60]]
    tokens = [np.stack(list(create("graph", m).generate(prompts, 5))) for m in (model, alone)]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize(("options", "told"), [
    ({"bits": 3}, "8 or 4"), ({"bits": 8, "group": 32}, "whole rows"), ({"group": 48}, "32, 64"),
    ({"method": "best"}, "rtn, gptq, awq"), ({"table_bits": 4}, "8 bits"),
])
def test_options_out_of_range(options, told):
    with pytest.raises(TfspeedError, match=told):
        Quantize(Options(**options))


def test_bad_input():
    with pytest.raises(TfspeedError, match="No layer"):
        quantized(tiny_decoder(), targets="convolution")
    damaged = tiny_decoder()
    damaged.keras_model.blocks[1].mlp.down.kernel.assign(
        np.full(damaged.keras_model.blocks[1].mlp.down.kernel.shape, np.nan))
    for method in quantizing.METHODS:
        with pytest.raises(TfspeedError, match="not finite"):
            quantized(damaged, method=method)
    model = tiny_decoder()

    class Tokenizer:
        def encode(self, text):
            return [1] * 10

    model.tokenizer = Tokenizer()
    with pytest.raises(TfspeedError, match="too short"):
        quantized(model, bits=4)


def test_a_subclass_is_left_alone_and_named():
    @keras.saving.register_keras_serializable("tests")
    class Mine(keras.layers.Dense):
        pass

    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 16)(tokens)
    model = load(keras.Model(tokens, Mine(64, name="mine")(x)))
    strategy = Quantize()
    changed = strategy.apply(model)
    assert type(changed.keras_model.get_layer("mine")) is Mine
    assert any("mine" in line for line in strategy.report())
