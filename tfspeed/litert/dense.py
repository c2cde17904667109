"""A dense layer of any kind on its way into packed weights: what may be scaled, and how it is
packed."""

import keras
import numpy as np
import tensorflow as tf

from tfspeed.litert.formats import Formats
from tfspeed.litert.gptq import pack_int4
from tfspeed.litert.weights import BLOCKS, Weight, fitting, pack
from tfspeed.models.low_rank import LowRankDense
from tfspeed.models.packed import Packed, PackedDense

KINDS = (keras.layers.Dense, PackedDense, LowRankDense)


class Dense:
    """Reads one layer.

    Attributes:
        parts: the matrices that the input goes through, one or (low rank) two: float32 `[out, in]`,
            or a `Weight` that a strategy has quantized already.
        bias: float32 `[out]`, or None.
    """

    def __init__(self, layer):
        both = (layer.first, layer.second) if isinstance(layer, LowRankDense) else (layer,)
        self.parts = [_matrix(part) for part in both]
        self.bias = np.array(array(layer.bias)) if layer.use_bias else None

    @property
    def floating(self) -> bool:
        """Whether its inputs and outputs may still be scaled."""
        return not any(isinstance(part, Weight) for part in self.parts)

    @property
    def reads(self) -> np.ndarray:
        """The matrix that reads the input, float32 `[out or rank, in]`; of a floating one."""
        return self.parts[0]

    def scale_inputs(self, factor: np.ndarray) -> None:
        """Args:
            factor: `[in]`.
        """
        self.parts[0] *= factor

    def scale_outputs(self, rows: slice, factor) -> None:
        """Multiplies some outputs; `factor` is a scalar or `[rows, 1]`."""
        last = self.parts[-1]
        if isinstance(last, Weight):
            scales = last.scales.astype(np.float32).reshape(last.shape[0], -1)
            scales[rows] *= factor
            self.parts[-1] = Weight(last.name, last.type, last.shape, last.data, scales.reshape(
                last.scales.shape).astype(last.scales.dtype), last.block)
        else:
            last[rows] *= factor
        if self.bias is not None:
            self.bias[rows] *= np.reshape(factor, -1)

    def weights(self, name: str, formats: Formats, inputs=None) -> list[Weight]:
        """Its matrices in the format of their name; those that are integers already stay so.

        Args:
            inputs: calibration inputs, `[tokens, in]`, or None.
        """
        found = []
        for part in self.parts:
            if isinstance(part, Weight):
                found.append(Weight(name, part.type, part.shape, part.data, part.scales,
                                    part.block))
            else:
                found.append(packed_matrix(name, part, formats, inputs))
            if inputs is not None and len(self.parts) > 1:
                inputs = inputs @ found[-1].dequantized().T  # what the next one reads
        return found


def packed_matrix(name: str, matrix: np.ndarray, formats: Formats, inputs=None) -> Weight:
    """A float matrix `[out, in]` in the format of its name."""
    bits, block = formats.of(name)
    block = fitting(block, matrix.shape[1])
    if bits == 4 and matrix.shape[1] % 2:
        bits = 8  # two values share a byte
    if bits == 4 and inputs is not None:
        return pack_int4(name, matrix, block, inputs)
    return pack(name, matrix, bits, block)


def integers(layer: Packed, name: str = "") -> Weight | None:
    """The weight of a packed layer; None where the kernels have no such form."""
    bits, block = layer.packing["bits"], layer.packing["block"]
    if block not in BLOCKS or (bits == 8 and block):
        return None
    packed, scales = (np.asarray(keras.ops.convert_to_numpy(v)) for v in (layer.values,
                                                                         layer.scales))
    return Weight(name, "INT8" if bits == 8 else "INT4", tuple(layer.packing["shape"]),
                  packed if bits == 8 else packed.reshape(-1), scales if block else scales[:, 0],
                  block)


def array(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def _matrix(layer) -> np.ndarray | Weight:
    """Free to be changed where it is an array."""
    if isinstance(layer, Packed) and layer.channel_scale is None:
        found = integers(layer)
        if found is not None:
            return found
    # numpy takes four times as long to transpose.
    return tf.transpose(tf.cast(layer.kernel, tf.float32)).numpy()
