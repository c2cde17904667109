"""Matrices in the forms that LiteRT's kernels read: float, int8 a row, int4 a row or in blocks.

Symmetric, round to nearest: `w ≈ q · scale`. Activations stay float32 in the file; the kernels
quantize them row by row to int8 as they go (XNNPACK's qd8 kernels).
"""

import dataclasses

import numpy as np

from tfspeed.errors import TfspeedError

BLOCKS = (0, 32, 64, 128)


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

    def dequantized(self) -> np.ndarray:
        """float32 `[out, in]`, what the kernels compute with."""
        if self.scales is None:
            return self.data.astype(np.float32)
        values = self.data
        if self.type == "INT4":
            values = np.stack([values & 15, values >> 4], axis=-1).reshape(self.shape)
            values = values.astype(np.int8)
            values = np.where(values > 7, values - 16, values)
        scales = self.scales.astype(np.float32).reshape(self.shape[0], -1)
        return values * np.repeat(scales, self.shape[1] // scales.shape[1], axis=1)


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
    top = 127 if bits == 8 else 7
    width = block or shape[1]
    if shape[1] % width or (bits == 4 and shape[1] % 2):
        raise TfspeedError(f"The rows of {name} do not divide into blocks.", width=shape[1],
                           block=block, hint="Use a smaller block, or 8 bits.")
    parts = matrix.reshape(shape[0], -1, width)
    scales = np.abs(parts).max(-1) / top
    scales = np.maximum(scales, 1e-8 if not block else 6e-8)  # a row of zeros; float16's least
    if block:
        scales = scales.astype(np.float16)
    values = np.rint(parts / scales[..., None].astype(np.float32))
    values = np.clip(values, -top - (bits == 4), top).astype(np.int8).reshape(shape)
    if bits == 8:
        return Weight(name, "INT8", shape, values, scales[:, 0].astype(np.float32))
    flat = values.reshape(-1, 2).view(np.uint8) & 15
    data = flat[:, 0] | (flat[:, 1] << 4)
    if block:
        return Weight(name, "INT4", shape, data, scales, block)
    return Weight(name, "INT4", shape, data, scales[:, 0].astype(np.float32))
