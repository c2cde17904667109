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

    variables = _variables(matrix)
    schedule = ConstantSparsity(sparsity, begin_step=1, frequency=1)
    engine = _engine([variables], pattern, schedule, tf.constant(1))
    engine.conditional_mask_update()
    engine.weight_mask_op()
    return variables[0].numpy().T


class Masks:
    """Keeps zeros at zero while a model is trained, and lets their number grow where asked.

    `masks(step)` after each training step, from 1 on. The kernels must have memory of their own
    (`copying.renew`) before this is made.

    Args:
        targets: the layers; without `growing`, those that have their zeros already.
        growing: masks by magnitude, by TFMOT's PolynomialDecay from no zeros to `sparsity` at 70 %
            of the steps (m:n patterns have no in-between: all at once at step 1).
        steps: of the training.
    """

    def __init__(self, targets: list[Target], pattern: Pattern = Pattern(), sparsity: float = 0.0,
                 steps: int = 1, growing: bool = False):
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

        frequency = max(1, int(steps * _GROWING) // _UPDATES)
        self.last_update = 1 + max(1, int(steps * _GROWING) // frequency) * frequency
        if growing and self.last_update > steps:
            raise TfspeedError("Masks need some steps to grow in.", steps=steps, needed=3)
        self.growing = growing
        self.step = tf.Variable(0, dtype=tf.int32, trainable=False)
        # TFMOT masks a kernel itself where it lies as it wants it, `[in, out]`; others in a copy.
        self.copied, variables = [], []
        for target in targets:
            in_place = target.order == (1, 0)
            variables.append(_variables(target.matrix(), target.variable.value if in_place
                                        else None))
            if not in_place:
                self.copied.append((target, variables[-1][0]))
        schedule = PolynomialDecay(0.0, sparsity, begin_step=1, end_step=self.last_update,
                                   frequency=frequency)
        self.engine = _engine(variables, pattern, schedule, self.step)

    def __call__(self, step: int) -> None:
        self.step.assign(step)
        for target, weights in self.copied:
            weights.assign(target.matrix().T)
        if self.growing:
            self.engine.conditional_mask_update()
        self.engine.weight_mask_op()
        for target, weights in self.copied:
            target.variable.assign(target.unfolded(weights.numpy().T))


def _engine(variables, pattern, schedule, step):
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    return pruning_impl.Pruning(
        lambda: step, variables, schedule, block_size=(pattern.columns, pattern.rows)
        if not pattern.zeros else (1, 1), block_pooling_type="AVG",
        sparsity_m_by_n=(pattern.zeros, pattern.columns) if pattern.zeros else None)


def _variables(matrix: np.ndarray, weights=None):
    """(weights, mask, threshold), each `[in, out]` and a scalar; groups of m:n lie along `in`."""
    kernel = np.ascontiguousarray(matrix.T)
    if weights is None:
        weights = tf.Variable(kernel, trainable=False)
    mask = tf.Variable((kernel != 0).astype(np.float32), trainable=False)
    return weights, mask, tf.Variable(0.0, trainable=False)
