"""A matrix as two thin ones: `y = B (A x) + b`, what `low_rank` makes of Dense layers."""

import keras
from keras import ops

from tfspeed.models.conversion import Converted, Convertible


@keras.saving.register_keras_serializable("tfspeed")
class LowRankDense(Convertible, Converted, keras.layers.Layer):
    """Two Dense layers, `first` (`in → rank`, no bias) and `second` (`rank → units`), so that other
    strategies find each of them.

    It pays where `rank < in · units / (in + units)`: else the two hold more than the one.
    """

    def __init__(self, units: int, rank: int, use_bias: bool = True, activation=None, **kwargs):
        converted = kwargs.pop("converted", None)
        super().__init__(**kwargs)
        self.units, self.rank, self.use_bias = units, rank, use_bias
        self.activation = keras.activations.get(activation)
        self.first = keras.layers.Dense(rank, use_bias=False, dtype=self.dtype_policy,
                                        name="first")
        self.second = keras.layers.Dense(units, use_bias=use_bias, dtype=self.dtype_policy,
                                         name="second")
        self._taken = converted

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.rank))
        self.take_over(self._taken)

    def call(self, x):
        return self.activation(self.second(self.first(x)))

    @property
    def kernel(self):
        """The product of the two, `[in, units]`."""
        return ops.matmul(self.first.kernel, self.second.kernel)

    @property
    def bias(self):
        return self.second.bias

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "rank": self.rank,
                "use_bias": self.use_bias,
                "activation": keras.activations.serialize(self.activation)}
