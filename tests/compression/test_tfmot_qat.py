"""Quantization-aware training with TFMOT's quantizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import tiny_decoder
from tfspeed.compression import targets
from tfspeed.compression.tfmot_qat import fake_quantized
from tfspeed.errors import TfspeedError

TOKENS = np.random.default_rng(3).integers(0, 64, (4, 24), np.int32)


def rounded(matrix, bits, group=0):
    """To the nearest of a symmetric grid, a scale for each group of a row."""
    most = 2 ** (bits - 1) - 1
    parts = matrix.reshape(-1, group or matrix.shape[1])
    scale = np.abs(parts).max(1, keepdims=True) / most
    return (np.rint(parts / scale) * scale).reshape(matrix.shape).astype(np.float32)


def einsum_model():
    keras.utils.set_random_seed(1)
    x = keras.Input((8,))
    y = keras.layers.EinsumDense("ab,bcd->acd", (4, 4), name="split")(x)
    y = keras.layers.EinsumDense("acd,cde->ae", 8, name="join")(y)
    return keras.Model(x, keras.layers.Dense(8, name="dense")(y))


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 8), (4, 0)])
@pytest.mark.parametrize("make", [lambda: tiny_decoder().keras_model, einsum_model])
def test_the_forward_pass_sees_the_rounded_kernels(make, bits, group):
    """Of every target: also of a table that is the head as well, and of kernels of rank 3."""
    model, reference = make(), make()
    for target in targets.find(reference):
        target.assign(rounded(target.matrix(), bits, group))
    x = TOKENS if hasattr(model, "config") else np.float32(TOKENS[:, :8] / 8)
    plain = np.asarray(model(x))
    with fake_quantized(model, bits, targets.find(model), group):
        seen = np.asarray(model(x))
    np.testing.assert_allclose(seen, reference(x), atol=2e-3 * np.abs(plain).max())
    assert np.abs(seen - plain).max() > 1e-4
    np.testing.assert_array_equal(model(x), plain)  # outside all is as it was


def gradients(model, variables):
    with tf.GradientTape() as tape:
        loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(
            TOKENS[:, 1:], model(TOKENS)[:, :-1], from_logits=True))
    return [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]


def test_gradients_pass_through():
    model = tiny_decoder().keras_model
    found = targets.find(model)
    variables = [t.variable.value for t in found]
    plain = gradients(model, variables)
    with fake_quantized(model, 8, found):
        through = gradients(model, variables)
        compiled = tf.function(lambda: gradients(model, variables), jit_compile=True)()
    for mine, same, exact in zip(through, compiled, plain, strict=True):
        mine, same, exact = mine.numpy(), same.numpy(), exact.numpy()
        np.testing.assert_allclose(mine, same, atol=1e-3 * np.abs(exact).max())
        assert np.sum(mine * exact) > 0.9 * np.linalg.norm(mine) * np.linalg.norm(exact) > 0


def fitted(quantized):
    """The loss of a small network on a small task, trained with or without, then rounded to three
    bits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype(np.float32)
    y = np.tanh(x @ rng.normal(size=(8, 4))).astype(np.float32)
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, activation="relu"),
                              keras.layers.Dense(4)])
    rate = keras.optimizers.schedules.CosineDecay(0.02, 400)
    found, optimizer = targets.find(model), keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)

    def steps(count):
        for _ in range(count):
            step()

    if quantized:
        with fake_quantized(model, 3, found):
            steps(400)
    else:
        steps(400)
    for target in found:
        target.variable.assign(target.unfolded(rounded(target.matrix(), 3)))
    return float(np.square(np.asarray(model(x)) - y).mean())


def test_rounding_costs_less_after_training_for_it():
    assert fitted(quantized=True) < 0.3 * fitted(quantized=False)


def test_one_scale_a_matrix():
    model = einsum_model()
    x, found = np.float32(TOKENS[:, :8] / 8), targets.find(model)
    with fake_quantized(model, 4, found, quantizer="moving_average"):
        seen = np.asarray(model(x))
    reference = einsum_model()
    for target in targets.find(reference):
        target.assign(rounded(target.matrix().reshape(1, -1), 4).reshape(target.shape))
    np.testing.assert_allclose(seen, reference(x), atol=0.02 * np.abs(seen).max())


def test_bad_input():
    model = tiny_decoder().keras_model
    found = targets.find(model, "down")
    for options, words in (({"bits": 1}, "2 to 8"), ({"bits": 9}, "2 to 8"),
                           ({"bits": 8, "group": 5}, "block_0/mlp/down.*inputs=32"),
                           ({"bits": 8, "quantizer": "last"}, "moving_average")):
        with pytest.raises(TfspeedError, match=words), \
                fake_quantized(model, targets=found, **options):
            pass
    assert "call" not in found[0].layer.__dict__
