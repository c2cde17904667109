"""Magnitude pruning by TFMOT's engine and schedules, on the kernels of Keras 3 layers.

TFMOT's own wrappers take tf_keras models only; the engine below them, `pruning_impl.Pruning`, takes
plain TensorFlow variables. It has no public name (pinned: tensorflow-model-optimization 0.8.1); the
schedules have. Nothing of TFMOT stays in the model. Source: arXiv:1710.01878.
"""

import numpy as np
import tensorflow as tf

from tfspeed.compression.patterns import Pattern
from tfspeed.compression.targets import Target
from tfspeed.errors import TfspeedError

_UPDATES = 20  # of the masks while the sparsity grows
_GROWING = 0.7  # share of the steps: in the others the model recovers under its last masks


def magnitude(matrix: np.ndarray, pattern: Pattern, sparsity: float) -> np.ndarray:
    """Zeroes the smallest weights (blocks by their mean) of a matrix `[out, in]`."""
    from tensorflow_model_optimization.sparsity.keras import ConstantSparsity

    variables = _variables(tf.Variable(matrix.T, trainable=False), np.ones(matrix.shape, bool))
    schedule = ConstantSparsity(sparsity, begin_step=1, frequency=1)
    engine = _engine([variables], pattern, schedule, tf.constant(1))
    engine.conditional_mask_update()
    engine.weight_mask_op()
    return variables[0].numpy().T


class Masks:
    """Keeps zeros at zero while a model is trained, or lets their number grow.

    Call it with 1, 2, … after each training step; before the first one the kernels may still be
    replaced by others (`copying.renew`).

    Args:
        targets: the layers; those without `growing` have their zeros already.
        growing: masks by magnitude, by TFMOT's PolynomialDecay from no zeros to `sparsity` within
            70 % of the steps (m:n patterns have no in-between: all at once after step 1).
        steps: of the training.
    """

    def __init__(self, targets: list[Target], pattern: Pattern, sparsity: float,
                 steps: int, growing: bool):
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

        frequency = max(1, int(steps * _GROWING) // _UPDATES)
        last = 1 + max(1, int(steps * _GROWING) // frequency) * frequency
        if growing and last > steps:
            raise TfspeedError("Masks need at least 4 steps to grow in.", steps=steps)
        self.schedule = PolynomialDecay(0.0, sparsity, begin_step=1, end_step=last,
                                        frequency=frequency)
        self.targets, self.pattern, self.growing = targets, pattern, growing
        self.kept = [target.matrix() != 0 for target in targets]
        self.engine = None
        self.copies: list[tuple[Target, tf.Variable]] = []

    def __call__(self, step: int) -> None:
        if self.engine is None:
            self._begin()
        self.step.assign(step)
        for target, weights in self.copies:
            weights.assign(target.matrix().T)
        if self.growing:
            self.engine.conditional_mask_update()
        self.engine.weight_mask_op()
        for target, weights in self.copies:
            target.variable.assign(target.unfolded(weights.numpy().T))

    def _begin(self) -> None:
        """TFMOT masks a kernel itself where it lies as it wants it, `[in, out]`; else a copy."""
        self.step = tf.Variable(0, trainable=False)
        variables = []
        for target, kept in zip(self.targets, self.kept, strict=True):
            in_place = target.order == (1, 0)
            variables.append(_variables(target.variable.value if in_place
                                        else tf.Variable(target.matrix().T, trainable=False), kept))
            if not in_place:
                self.copies.append((target, variables[-1][0]))
        self.engine = _engine(variables, self.pattern, self.schedule, self.step)


def _engine(variables, pattern, schedule, step):
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    return pruning_impl.Pruning(
        lambda: step, variables, schedule, block_size=(pattern.columns, pattern.rows)
        if not pattern.zeros else (1, 1), block_pooling_type="AVG",
        sparsity_m_by_n=(pattern.zeros, pattern.columns) if pattern.zeros else None)


def _variables(weights, kept: np.ndarray):
    """(weights, mask, threshold) for TFMOT: `[in, out]` (groups of m:n lie along `in`), a scalar.

    Args:
        kept: bool `[out, in]`.
    """
    mask = tf.Variable(kept.T.astype(np.float32), trainable=False)
    return weights, mask, tf.Variable(0.0, trainable=False)
