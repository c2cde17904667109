"""Matrices in the forms that LiteRT's kernels read: float, int8 a row, int4 a row or in blocks.

Symmetric: `w ≈ q · scale`. Activations stay float32 in the file; the kernels
quantize them row by row to int8 as they go (XNNPACK's qd8 kernels).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfspeed.errors import TfspeedError

BLOCKS = (0, 32, 64, 128)
_CHUNK = 1 << 18  # values quantized at a time: they stay in the cache
_SMALLEST = 6.2e-5  # of float16's normal numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A matrix as it lies in the file.

    Attributes:
        type: a name of `schema.TensorType`.
        shape: `(out, in)`.
        data: `[out, in]`; int4 as uint8 `[out · in / 2]`, the earlier value in the low half.
        scales: float32 `[out]`, or float16 `[out, in / block]`; None for float types.
        block: values that share a scale; 0 means a whole row.
    """

    name: str
    type: str
    shape: tuple[int, int]
    data: np.ndarray
    scales: np.ndarray | None = None
    block: int = 0

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def integers(self) -> np.ndarray:
        """int8 `[out, in]` of an integer weight."""
        if self.type == "INT8":
            return self.data
        values = np.stack([self.data & 15, self.data >> 4], axis=-1).reshape(self.shape)
        values = values.astype(np.int8)
        return np.where(values > 7, values - 16, values)

    def dequantized(self) -> np.ndarray:
        """float32 `[out, in]`, what the kernels compute with."""
        if self.scales is None:
            return self.data.astype(np.float32)
        scales = self.scales.astype(np.float32).reshape(self.shape[0], -1)
        return self.integers() * np.repeat(scales, self.shape[1] // scales.shape[1], axis=1)


def joined(parts: Sequence[Weight]) -> Weight:
    """One matrix of some that hold its rows, in their order."""
    if len(parts) == 1:
        return parts[0]
    rows, width = sum(p.shape[0] for p in parts), parts[0].shape[1]
    return dataclasses.replace(parts[0], shape=(rows, width),
                               data=np.concatenate([p.data for p in parts]),
                               scales=np.concatenate([p.scales for p in parts]))


def fitting(block: int, width: int) -> int:
    """The largest block size up to `block` that divides rows of `width`; 0 (a whole row) where
    none does."""
    return max((b for b in BLOCKS[1:] if b <= block and width % b == 0), default=0)


def pack(name: str, matrix: np.ndarray, bits: int, block: int = 0) -> Weight:
    """Takes float32 `[out, in]` and gives it in 32, 16, 8 or 4 bits.

    Args:
        block: for 4 bits, how many neighbours along `in` share a scale (32, 64, 128; 0: a row).
    """
    shape = matrix.shape
    if bits == 32:
        return Weight(name, "FLOAT32", shape, np.ascontiguousarray(matrix, np.float32))
    if bits == 16:
        return Weight(name, "FLOAT16", shape, np.ascontiguousarray(matrix, np.float16))
    if bits not in (8, 4) or block not in BLOCKS or (bits == 8 and block):
        raise TfspeedError("Weights have 32, 16, 8 or 4 bits; 4 may come in blocks of "
                           "32, 64 or 128.", bits=bits, block=block)
    width = block or shape[1]
    if shape[1] % width or (bits == 4 and shape[1] % 2):
        raise TfspeedError(f"The rows of {name} do not divide into blocks.", width=shape[1],
                           block=block, hint="Use a smaller block, or 8 bits.")
    parts = np.ascontiguousarray(matrix, np.float32).reshape(-1, width)
    scales = np.empty(len(parts), np.float32)
    values = np.empty(parts.shape, np.int8)
    rows = max(1, _CHUNK // width)  # the table of a vocabulary is a fifth of a small model
    for at in range(0, len(parts), rows):
        some = parts[at:at + rows]
        scale = eight_bit_scales(some) if bits == 8 else four_bit_scales(some, bool(block))
        scales[at:at + rows] = scale
        values[at:at + rows] = np.clip(np.rint(some / scale[:, None]),
                                       *((-127, 127) if bits == 8 else (-8, 7)))
    values = values.reshape(shape)
    if bits == 8:
        return packed_eight_bits(name, values, scales)
    return packed_four_bits(name, values, scales.reshape(shape[0], -1), block)


def packed_eight_bits(name: str, values: np.ndarray, scales: np.ndarray) -> Weight:
    """Args:
        values: int8 `[out, in]`.
        scales: float32, one a row.
    """
    return Weight(name, "INT8", values.shape, values, scales.reshape(-1).astype(np.float32))


def eight_bit_scales(rows: np.ndarray) -> np.ndarray:
    """The scale of each row that clips nothing, float32."""
    return np.maximum(np.abs(rows).max(-1), 1e-8) / 127


def packed_four_bits(name: str, values: np.ndarray, scales: np.ndarray, block: int) -> Weight:
    """Args:
        values: int8 in [-8, 7], `[out, in]`.
        scales: float32 `[out, in / block]`, of `four_bit_scales`.
    """
    pairs = values.reshape(-1, 2).view(np.uint8) & 15
    data = pairs[:, 0] | (pairs[:, 1] << 4)
    kept = scales.astype(np.float16) if block else scales[:, 0]
    return Weight(name, "INT4", values.shape, data, kept, block)


def four_bit_scales(parts: np.ndarray, in_blocks: bool) -> np.ndarray:
    """The scale of each row of `parts` that rounds it with the least squared error, float32.

    The kernels want positive scales (so the trick of llama.cpp's Q4_0, a scale with the sign of
    the value that stands out most, is not to be had): the best of a few steps is kept.

    Args:
        in_blocks: of scales that the kernels keep in bfloat16.
    """
    largest = np.maximum(parts.max(-1) / 7, parts.min(-1) / -8)  # nothing is clipped
    scales = np.empty(len(parts), np.float32)
    least = np.full(len(parts), np.inf, np.float32)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 1.1):
        scale = np.maximum(largest * share, _SMALLEST).astype(np.float32)
        scale = _bfloat16(scale) if in_blocks else scale
        tried = np.clip(np.rint(parts / scale[:, None]), -8, 7)
        error = np.square(parts - tried * scale[:, None]).sum(-1)
        better = error < least
        least = np.where(better, error, least)
        scales[better] = scale[better]
    return scales


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the 8 significant bits that the kernels keep of a block's scale."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
