"""Quantization-aware training: the forward pass sees rounded kernels, the gradients pass through.

TFMOT's quantizers do the rounding (public names, tensorflow-model-optimization 0.8.1); its
wrappers, which take tf_keras layers only, are not used. Under `fake_quantized` a model is trained
by any loop; afterwards its kernels are floats that lose little when rounded to the same grid.
Source: arXiv:1712.05877.
"""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfspeed.compression.targets import Target
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder import Decoder
from tfspeed.models.encoder_decoder import EncoderDecoder

QUANTIZERS = ("last_value", "moving_average")


@contextlib.contextmanager
def fake_quantized(keras_model: keras.Model, bits: int, targets: list[Target], group: int = 0,
                   quantizer: str = "last_value") -> Iterator[list["Rounded"]]:
    """While entered, the targets' kernels are read rounded; a table that is the head too, in both.

    What is traced (`tf.function`) inside stays so; trace anew outside.

    Yields what rounds, one a target: `settle` leaves its kernel rounded for good.

    Args:
        bits: 2 to 8; the grid is symmetric, -127 to 127 for eight.
        group: values of a row that share a scale, 0 for a whole row.
        quantizer: `last_value`, a scale for each row or group, from its values as they are now;
            `moving_average`, one scale a matrix, averaged over the steps.

    Raises:
        TfspeedError: bits out of range, a width that groups do not divide, an unknown quantizer.
    """
    if not 2 <= bits <= 8:
        raise TfspeedError("Training rounds to 2 to 8 bits.", bits=bits)
    if quantizer not in QUANTIZERS:
        raise TfspeedError(f"The quantizer is one of {', '.join(QUANTIZERS)}.",
                           quantizer=quantizer)
    all_rounded = []
    with contextlib.ExitStack() as undo:
        for target in targets:
            rounded = Rounded(target, bits, group, quantizer)
            all_rounded.append(rounded)
            readers = [(target.layer, "call")]
            if isinstance(keras_model, (Decoder, EncoderDecoder)) and keras_model.head is None and (
                    target.layer is keras_model.embedding):
                readers.append((keras_model, "logits"))
            for owner, method in readers:
                setattr(owner, method, rounded.reading(getattr(owner, method)))
                undo.callback(owner.__dict__.pop, method)
        yield all_rounded


class Rounded:
    """One target's kernel as TFMOT's quantizer rounds it."""

    def __init__(self, target: Target, bits: int, group: int, quantizer: str):
        from tensorflow_model_optimization.quantization.keras import quantizers

        if group and target.shape[1] % group:
            raise TfspeedError("Groups must divide every row that is rounded.", layer=target.name,
                               inputs=target.shape[1], group=group)
        self.target = target
        self.width = group or target.shape[1]
        rows = target.shape[0] * target.shape[1] // self.width
        by_row = quantizer == "last_value"
        cls = quantizers.LastValueQuantizer if by_row else quantizers.MovingAverageQuantizer
        self.quantizer = cls(bits, per_axis=by_row, symmetric=True, narrow_range=True)
        self.ranges = self.quantizer.build((self.width, rows), "kernel", _Host())
        if not by_row:  # else the average sets out from ±6 and takes thousands of steps
            most = float(abs(target.matrix()).max())
            self.ranges["min_var"].assign(-most)
            self.ranges["max_var"].assign(most)

    def reading(self, call):
        """`call`, which reads the rounded kernel instead of the variable."""
        def read(*args, **kwargs):
            rounded = self.value()
            with keras.StatelessScope(state_mapping=[(self.target.variable, rounded)]):
                return call(*args, **kwargs)

        return read

    def settle(self) -> None:
        """Gives the variable the rounded values: to round them again changes nothing."""
        self.target.variable.assign(self.value())

    def value(self):
        """The kernel, rounded, in its own shape; gradients reach the variable."""
        target, kernel = self.target, tf.convert_to_tensor(self.target.variable.value)
        columns = tf.transpose(tf.reshape(tf.transpose(kernel, target.order), (-1, self.width)))
        columns = self.quantizer(tf.cast(columns, tf.float32), True, self.ranges)
        sizes = [kernel.shape[axis] for axis in target.order]
        back = sorted(range(len(sizes)), key=target.order.__getitem__)
        rounded = tf.cast(tf.transpose(tf.reshape(tf.transpose(columns), sizes), back),
                          kernel.dtype)
        # TensorFlow's own gradient is zero for what a range's rounding leaves outside of it: under
        # XLA often the largest weight of a row.
        return kernel + tf.stop_gradient(rounded - kernel)


class _Host:
    """What TFMOT's quantizers ask of a layer: variables for their ranges."""

    def add_weight(self, name, initializer, trainable, shape=()):
        shape = () if shape is None else shape if isinstance(shape, tuple) else (shape,)
        return tf.Variable(initializer(shape), name=name, trainable=trainable)
