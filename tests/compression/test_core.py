"""Copies, targets and calibration, on every kind of model."""

import keras
import numpy as np
import pytest

import strategies
from tests.conftest import tiny_decoder, tiny_uncached
from tfspeed.compression import calibration, copying, hessian, targets
from tfspeed.errors import TfspeedError
from tfspeed.models.uncached import UncachedModel

TOKENS = np.random.default_rng(0).integers(0, 64, (3, 12), np.int32)


def test_a_copy_gives_the_same_logits_and_shares_memory(model):
    copy = copying.copied(model)
    np.testing.assert_array_equal(model.score(TOKENS), copy.score(TOKENS))
    for mine, original in zip(copy.keras_model.variables, model.keras_model.variables, strict=True):
        assert mine is not original
        assert mine.value is original.value


def test_a_renewed_variable_leaves_the_original_alone(model):
    copy = copying.copied(model)
    before = [v.numpy() for v in model.keras_model.weights]
    for variable in copy.keras_model.weights:
        copying.renew(variable, np.ones(variable.shape))
    for variable in copy.keras_model.weights:
        np.testing.assert_array_equal(variable.numpy(), np.ones(variable.shape))
    for was, variable in zip(before, model.keras_model.weights, strict=True):
        np.testing.assert_array_equal(was, variable.numpy())
    with pytest.raises(TfspeedError, match="keeps its shape"):
        copying.renew(copy.keras_model.weights[0], np.ones(3))


def test_copying_leaves_no_variable_to_be_initialized():
    copying.copied(tiny_decoder())
    with keras.StatelessScope():  # on exit Keras initializes what is pending
        pass
    model = tiny_decoder()
    copying.copied(model)
    model.score(TOKENS)


def test_a_model_without_a_config_is_refused():
    class Hidden(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.table = keras.layers.Embedding(64, width)
            self.out = keras.layers.Dense(64)

        def call(self, x):
            return self.out(self.table(x))

        def get_config(self):
            raise NotImplementedError

    model = UncachedModel("hidden", Hidden(8))
    with pytest.raises(TfspeedError, match="from its config"):
        copying.copied(model)


def test_targets_of_a_decoder():
    found = targets.find(tiny_decoder().keras_model)
    assert [t.name for t in found][:5] == [
        "embedding", "block_0/attention/query_key_value", "block_0/attention/out",
        "block_0/mlp/gate_up", "block_0/mlp/down"]
    assert [t.shape for t in found][:5] == [(64, 16), (32, 16), (16, 16), (64, 16), (16, 32)]
    assert {t.kind for t in targets.find(tiny_decoder().keras_model, "down|out$")} == {"down",
                                                                                       "out"}


def einsum_model():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 12, name="table")(tokens)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 3, 4), name="split")(x)
    x = keras.layers.EinsumDense("abde,dec->abc", (None, 12), name="join")(x)
    x = keras.layers.Conv1D(10, 3, padding="causal", name="conv")(x)
    return UncachedModel("einsum", keras.Model(tokens, keras.layers.Dense(64, name="head")(x)), 32)


def test_every_kind_of_layer_is_a_matrix():
    model = copying.copied(einsum_model())
    found = {t.name: t for t in targets.find(model.keras_model)}
    assert {name: t.shape for name, t in found.items()} == {
        "table": (64, 12), "split": (12, 12), "join": (12, 12), "conv": (10, 36),
        "head": (64, 10)}
    rng = np.random.default_rng(1)
    for target in found.values():
        matrix = rng.normal(size=target.shape).astype(np.float32)
        target.assign(matrix)
        np.testing.assert_array_equal(target.matrix(), matrix)


@pytest.mark.parametrize("make", [tiny_decoder, einsum_model, tiny_uncached])
def test_observed_rows_explain_the_output(make):
    """`W x` of what was observed is what the layer gave."""
    model = copying.copied(make())
    found = [t for t in targets.find(model.keras_model) if t.plain]
    seen = {}

    def record(target, call):
        def watched(x, *args, **kwargs):
            out = call(x, *args, **kwargs)
            seen[target.name] = target.rows(x), np.asarray(out)
            return out
        return watched

    for target in found:
        target.layer.call = record(target, target.layer.call)
    model.score(TOKENS)
    assert seen.keys() == {t.name for t in found}
    for target in found:
        rows, out = seen[target.name]
        bias = getattr(target.layer, "bias", None)
        expected = rows @ target.matrix().T
        np.testing.assert_allclose(expected + (0 if bias is None else bias.numpy().reshape(-1)),
                                   out.reshape(expected.shape), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_decoder, einsum_model])
def test_stream_shows_every_target_once(make):
    model = copying.copied(make())
    found, groups = targets.find(model.keras_model), []
    calibration.stream(model, found, TOKENS, groups.append)
    observed = [o for group in groups for o in group]
    assert {o.target.name for o in observed} == {t.name for t in found}
    assert len(observed) == len(found)
    for o in observed:
        if o.target.plain:
            assert o.count == TOKENS.size
            np.testing.assert_allclose(np.trace(o.gram), o.target.shape[1], rtol=1e-4)
    assert all("call" not in t.layer.__dict__ for t in found)


def test_later_blocks_see_what_earlier_ones_became():
    def grams(change):
        model, found = copying.copied(tiny_decoder()), {}
        calibration.stream(model, targets.find(model.keras_model, "^block"), TOKENS, lambda group: (
            found.update({o.target.name: o.gram for o in group}),
            change(group) if group[0].target.name.startswith("block_0") else None))
        return found

    plain = grams(lambda group: None)
    changed = grams(lambda group: [o.target.assign(0 * o.target.matrix()) for o in group])
    first, second = "block_0/mlp/gate_up", "block_1/mlp/gate_up"
    np.testing.assert_array_equal(plain[first], changed[first])
    assert np.abs(plain[second] - changed[second]).max() > 1e-3


def test_errors():
    model = tiny_decoder().keras_model
    with pytest.raises(TfspeedError, match="regular expression"):
        targets.find(model, "(")
    with pytest.raises(TfspeedError, match="No layer") as error:
        targets.find(model, "convolution")
    assert "block_0/mlp/down" in str(error.value)
    copy = copying.copied(tiny_decoder())
    target = targets.find(copy.keras_model, "block_1/mlp/down")[0]
    matrix = target.matrix()
    matrix[1, 2] = np.nan
    target.assign(matrix)
    with pytest.raises(TfspeedError, match="block_1/mlp/down"):
        target.matrix()


def test_a_norm_that_is_not_finite_is_named_and_not_what_reads_it():
    model = tiny_decoder()
    norm = model.keras_model.blocks[0].mlp_norm
    norm.scale.assign(np.full(norm.scale.shape, np.nan))
    for name in ("prune", "prune_structured", "quantize"):
        with pytest.raises(TfspeedError, match="tensor='block_0/mlp_norm/scale', values=16"):
            strategies.create(name).apply(model)


def test_strategies_say_when_a_packed_model_leaves_them_nothing():
    packed = strategies.create("quantize").apply(tiny_decoder())
    for name in ("low_rank", "prune", "cluster", "quantize"):
        with pytest.raises(TfspeedError, match="before the one that packs"):
            strategies.create(name).apply(packed)


def test_calibration_text_must_hold_a_window():
    class Tokenizer:
        def encode(self, text):
            return list(range(len(text)))

    model = tiny_decoder()
    model.tokenizer = Tokenizer()
    assert calibration.tokens(model, "x" * 64, 3, 16).shape == (3, 16)
    with pytest.raises(TfspeedError, match="too short"):
        calibration.tokens(model, "x" * 15, 3, 16)
    assert calibration.tokens(tiny_decoder(), None, 3, 16).shape == (3, 16)
    with pytest.raises(TfspeedError, match="needs a tokenizer"):
        calibration.tokens(tiny_decoder(), "x" * 64, 3, 16)


def test_inverse_root():
    x = np.random.default_rng(0).normal(size=(50, 8))
    gram = x.T @ x / 50
    root = hessian.inverse_root(gram, 0.1)
    np.testing.assert_allclose(root.T @ root @ hessian.damped(gram, 0.1), np.eye(8), atol=1e-4)
    assert hessian.relative_error(0.1 * x[:3], x[:3], gram) == pytest.approx(0.1)
