"""TFMOT's pruning engine and schedules, on the kernels of Keras 3 layers."""

import keras
import numpy as np
import pytest

from tests.conftest import tiny_decoder
from tfspeed.compression import copying, targets, tfmot_pruning
from tfspeed.compression.patterns import Pattern
from tfspeed.errors import TfspeedError

MATRIX = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)


@pytest.mark.parametrize(("text", "sparsity"), [("unstructured", 0.5), ("unstructured", 0.8),
                                                ("2:4", 0.5), ("1:4", 0.25), ("2x4", 0.5)])
def test_masks_by_tfmot_are_those_of_the_pattern(text, sparsity):
    pattern = Pattern.parse(text)
    kept = pattern.keep(np.abs(MATRIX), sparsity, by_row=False)
    np.testing.assert_array_equal(tfmot_pruning.magnitude(MATRIX, pattern, sparsity),
                                  np.where(kept, MATRIX, 0))


def einsum_and_dense():
    keras.utils.set_random_seed(1)
    x = keras.Input((8,))
    y = keras.layers.EinsumDense("ab,bcd->acd", (4, 4), name="split")(x)
    y = keras.layers.EinsumDense("acd,cde->ae", 8, name="join")(y)
    return keras.Model(x, keras.layers.Dense(8, name="dense")(y))


def zeros(found):
    return [float(np.mean(t.matrix() == 0)) for t in found]


def moved(found):
    """What a training step does: every weight is another."""
    for target in found:
        target.variable.assign(target.variable + 0.01)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "2x2"])
def test_zeros_grow_in_training(text):
    found, seen = targets.find(einsum_and_dense()), []
    masks = tfmot_pruning.Masks(found, Pattern.parse(text), 0.5, 20, growing=True)
    for step in range(1, 21):
        moved(found)
        masks(step)
        seen.append(zeros(found))
    seen = np.asarray(seen)
    assert (np.diff(seen, axis=0) >= 0).all()
    np.testing.assert_allclose(seen[15:], 0.5, atol=0.02)
    if text != "2:4":  # which has nothing in between
        assert seen[0].max() < 0.1 < seen[5].max() < 0.5


def test_masks_hold_in_training():
    found = targets.find(einsum_and_dense())
    for target in found:
        target.assign(tfmot_pruning.magnitude(target.matrix(), Pattern(), 0.5))
    before = [t.matrix() for t in found]
    masks = tfmot_pruning.Masks(found, Pattern(), 0.5, 3, growing=False)
    for target in found:  # as the training loop does
        copying.renew(target.variable, target.variable.value)
    for step in (1, 2, 3):
        moved(found)
        masks(step)
    for target, was in zip(found, before, strict=True):
        np.testing.assert_allclose(target.matrix(), np.where(was == 0, 0, was + 0.03), atol=1e-6)


def test_too_few_steps_to_grow():
    found = targets.find(tiny_decoder().keras_model, "down")
    with pytest.raises(TfspeedError, match="steps=1"):
        tfmot_pruning.Masks(found, Pattern(), 0.5, 1, growing=True)
