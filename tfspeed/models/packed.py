"""Layers whose matrix is kept in eight or four bits: `w ≈ q · scale`, symmetric.

They are what `quantize` makes of Dense, EinsumDense, Embedding and Conv layers. The packed engines
(`litert`, `fused`) read the integers as they lie. Under `graph` and `xla` the matrix of one layer
at a time is unpacked when the layer runs: memory shrinks, a step does not get faster.
"""

import keras
import numpy as np
from keras import ops

from tfspeed.models.conversion import Converted, unallocated


class Packed(Converted):
    """What the kinds of packed layers share; goes in front of a Keras layer class.

    Args:
        packing: `bits` (8 or 4), `block` (values along `in` that share a scale; 0: a whole row),
            `channel_scale` (whether there is one), `shape` (`[out, in]`), `order` and `kernel`
            (how the matrix becomes the layer's kernel: see `targets.Target`).

    Variables:
        values: int8 `[out, in]`; of four bits uint8 `[out, in / 2]`, the earlier value in the low
            half.
        scales: float32 `[out, 1]`, or float16 `[out, in / block]`.
        channel_scale: float32 `[in]`, multiplies what the layer reads (of an Embedding: the row
            that is looked up).
    """

    _table = "_kernel"

    def __init__(self, *args, packing: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self.packing = packing

    def build(self, input_shape=None):
        with unallocated():
            super().build(input_shape)  # for the shapes; the float kernel never gets memory
        self._untrack_variable(getattr(self, self._table))
        setattr(self, self._table, None)
        for variable in self.weights:
            variable._initialize(np.zeros(variable.shape, np.float32))
        out, width = self.packing["shape"]
        bits, block = self.packing["bits"], self.packing["block"]

        def add(name, shape, dtype):
            return self.add_weight(name=name, shape=shape, dtype=dtype, initializer="zeros",
                                   trainable=False, autocast=False)

        self.values = add("values", (out, width if bits == 8 else width // 2),
                          "int8" if bits == 8 else "uint8")
        self.scales = add("scales", (out, width // block if block else 1),
                          "float16" if block else "float32")
        self.channel_scale = (add("channel_scale", (width,), "float32")
                              if self.packing["channel_scale"] else None)

    @property
    def uncounted_parameters(self) -> int:
        """Weights of the matrix, less the elements of the variables that hold them."""
        stored = [self.values, self.scales, self.channel_scale]
        return int(np.prod(self.packing["shape"])) - sum(
            int(np.prod(v.shape)) for v in stored if v is not None)

    def unpacked(self, rows=None):
        """The matrix in the compute type, `[out, in]`, or some of its rows, `[..., in]`."""
        values, scales = ops.convert_to_tensor(self.values), ops.convert_to_tensor(self.scales)
        if rows is not None:
            values, scales = ops.take(values, rows, axis=0), ops.take(scales, rows, axis=0)
        return unpack(values, scales, self.packing["bits"], self.packing["shape"][1],
                      self.compute_dtype)

    @property
    def kernel(self):
        """What the float layer's kernel was, up to rounding."""
        matrix = self.unpacked()
        if self.channel_scale is not None:
            matrix = matrix * ops.cast(self.channel_scale, matrix.dtype)
        order, shape = self.packing["order"], self.packing["kernel"]
        matrix = ops.reshape(matrix, [shape[axis] for axis in order])
        return ops.transpose(matrix, tuple(int(i) for i in np.argsort(order)))

    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return {**super().get_config(), "packing": self.packing}


def unpack(values, scales, bits: int, width: int, dtype: str):
    """`[..., width]` in a floating type, of what `Packed` keeps of it."""
    if bits == 4:
        pairs = ops.cast(values, "int8")
        low = ops.right_shift(ops.left_shift(pairs, 4), 4)  # the sign comes along
        values = ops.stack([low, ops.right_shift(pairs, 4)], axis=-1)
    blocks = ops.reshape(values, (*scales.shape, width // scales.shape[-1]))
    matrix = ops.cast(blocks, dtype) * ops.cast(scales, dtype)[..., None]
    return ops.reshape(matrix, (*scales.shape[:-1], width))


@keras.saving.register_keras_serializable("tfspeed")
class PackedDense(Packed, keras.layers.Dense):
    """See `Packed`."""


@keras.saving.register_keras_serializable("tfspeed")
class PackedEinsumDense(Packed, keras.layers.EinsumDense):
    """See `Packed`."""


@keras.saving.register_keras_serializable("tfspeed")
class PackedConv1D(Packed, keras.layers.Conv1D):
    """See `Packed`."""


@keras.saving.register_keras_serializable("tfspeed")
class PackedConv2D(Packed, keras.layers.Conv2D):
    """See `Packed`."""


@keras.saving.register_keras_serializable("tfspeed")
class PackedEmbedding(Packed, keras.layers.Embedding):
    """See `Packed`; `embeddings` is the table without the channel scale, which belongs to rows that
    are looked up: where the table is the output layer too, the norm before it has the inverse."""

    _table = "_embeddings"

    @property
    def embeddings(self):
        return self.unpacked()

    def call(self, inputs):
        rows = self.unpacked(ops.cast(inputs, "int32"))
        if self.channel_scale is not None:
            rows = rows * ops.cast(self.channel_scale, rows.dtype)
        return rows


CLASSES = {keras.layers.Dense: PackedDense, keras.layers.EinsumDense: PackedEinsumDense,
           keras.layers.Embedding: PackedEmbedding, keras.layers.Conv1D: PackedConv1D,
           keras.layers.Conv2D: PackedConv2D}
