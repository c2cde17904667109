"""Adam (arXiv:1412.6980) on plain variables, alike on every replica.

Without weight decay: a run of minutes must not pull weights away from the teacher's. Keras's
optimizers clip before replicas have added up their gradients, so that the result would depend on
how many there are.
"""

import tensorflow as tf

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Holds two float32 slots for each variable: twice the memory of what is trained."""

    def __init__(self, variables: list):
        """Takes `tf.Variable`s; must be called in the scope that they were made in."""
        self.variables = variables
        self.first = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
        self.second = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]

    @property
    def slots(self) -> list:
        return self.first + self.second

    def apply(self, gradients, rate, step) -> None:
        """One step, in replica context.

        Args:
            gradients: the same on each replica.
            rate: float32 scalar.
            step: float32 scalar, 1 for the first.
        """
        tf.distribute.get_replica_context().merge_call(
            self._merged, args=(gradients, rate, step))

    def _merged(self, strategy, gradients, rate, step):
        for variable, m, v, gradient in zip(self.variables, self.first, self.second, gradients,
                                            strict=True):
            strategy.extended.update(variable, _update, args=(m, v, gradient, rate, step))


def _update(variable, m, v, gradient, rate, step):
    """TensorFlow's own operator: one pass over memory, in place."""
    return tf.raw_ops.ResourceApplyAdam(
        var=variable.handle, m=m.handle, v=v.handle, beta1_power=tf.pow(BETA1, step),
        beta2_power=tf.pow(BETA2, step), lr=rate, beta1=BETA1, beta2=BETA2, epsilon=EPSILON,
        grad=gradient)
