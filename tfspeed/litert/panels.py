"""Weights in panels of sixteen rows, as `kernels/matrix.h` reads them.

A panel holds the same columns of sixteen rows side by side: floats `[columns, 16]`; eight bits
`[columns / 4, 16, 4]`; four bits `[columns / 8, 16, 4]`, the low half four columns before the high
one. Integers are stored from 0 on (plus 128, plus 8), columns filled up to a multiple of 32.
"""

import ctypes

import numpy as np

from tfspeed.litert.weights import Weight

LANES, BLOCK = 16, 32
_ALIGNMENT = 64
_KINDS = {"FLOAT32": 0, "FLOAT16": 1, "INT8": 2, "INT4": 3}
_ZERO = {"INT8": 128, "INT4": 8}


class Matrix(ctypes.Structure):
    """`Matrix` of kernels/matrix.h: where a matrix lies in its blob, in bytes."""

    _fields_ = [(name, ctypes.c_int32) for name in (
        "kind", "rows", "cols", "group", "values", "scales", "bias")]


class Blob:
    """Arrays one behind the other, each on a cache line. They are copied once, by `write`: panels
    of floats are views of their weight until then."""

    def __init__(self):
        self._parts: list[tuple[int, np.ndarray]] = []
        self.size = 0

    def add(self, array: np.ndarray | None) -> int:
        """Its offset in bytes; -1 for None."""
        if array is None:
            return -1
        at = self.size
        self._parts.append((at, np.asarray(array)))
        self.size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return at

    def matrix(self, weight: Weight, rows: slice = slice(None),
               bias: np.ndarray | None = None) -> Matrix:
        """Adds some rows of a weight, in panels, and their bias."""
        values, scales, group = panels(weight, rows)
        count = len(range(*rows.indices(weight.shape[0])))
        if bias is not None:
            bias = np.pad(bias[rows], (0, -count % LANES)).astype(np.float32)
        return Matrix(_KINDS[weight.type], count, weight.shape[1], group, self.add(values),
                      self.add(scales), self.add(bias))

    def write(self, place: np.ndarray) -> None:
        """Into uint8 `[size]`; each array is let go once it is there."""
        for at, array in self._parts:
            place[at:at + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        self._parts.clear()


def panels(weight: Weight, rows: slice):
    """Values, scales (or None) and how many columns share a scale."""
    cols = weight.shape[1]
    if weight.scales is None:
        part = weight.data[rows]
        if len(part) % LANES:  # where nothing is filled up it would copy all
            part = np.pad(part, ((0, -len(part) % LANES), (0, 0)))
        return part.reshape(-1, LANES, cols).transpose(0, 2, 1), None, cols
    part = weight.integers()[rows]
    count = len(part)
    part = np.pad(part, ((0, -count % LANES), (0, -cols % BLOCK)))
    part = (part.astype(np.int16) + _ZERO[weight.type]).astype(np.uint8)
    if weight.type == "INT8":
        values = part.reshape(-1, LANES, part.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    else:
        pairs = part.reshape(-1, LANES, part.shape[1] // 8, 2, 4).transpose(0, 2, 3, 1, 4)
        values = pairs[:, :, 0] | (pairs[:, :, 1] << 4)
    scales = weight.scales.reshape(weight.shape[0], -1)[rows]
    scales = np.pad(scales, ((0, -count % LANES), (0, 0)))
    scales = scales.reshape(-1, LANES, scales.shape[1]).transpose(0, 2, 1)
    wide = weight.type == "INT8"
    return values, scales.astype(np.float32 if wide else np.float16), weight.block or cols
