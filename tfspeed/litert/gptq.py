"""Rounding that makes up for its own errors: each column's error is taken out of those to come.

Plain rounding minimises the error of the weights; this minimises the error of the product over
calibration inputs, `‖(W − Q) X‖²`, column by column, the rest of the row adjusted after each.
Source: GPTQ, arXiv:2210.17323 (Cholesky form; columns in their own order; its lazy batches taken to
their end, in halves of halves).
"""

import numpy as np

from tfspeed.compression.hessian import inverse_root
from tfspeed.litert.smooth import normalized
from tfspeed.litert.weights import (
    Weight,
    eight_bit_scales,
    four_bit_scales,
    packed_eight_bits,
    packed_four_bits,
)


def pack_int4(name: str, matrix: np.ndarray, block: int, inputs: np.ndarray) -> Weight:
    """As `weights.pack` with 4 bits, compensated.

    Args:
        matrix: float32 `[out, in]`.
        block: values that share a scale, 0 for a whole row.
        inputs: calibration inputs of the product, `[tokens, in]`; each token counts as the others.
    """
    x = normalized(inputs)
    return compensated(name, matrix, 4, block, x.T @ x / len(x))


def compensated(name: str, matrix: np.ndarray, bits: int, block: int,
                gram: np.ndarray) -> Weight:
    """As `weights.pack` with 4 or 8 bits, compensated.

    Args:
        gram: mean of `x xᵀ` over calibration tokens, `[in, in]`.
    """
    width, least, most = block or matrix.shape[1], -2 ** (bits - 1), 2 ** (bits - 1) - 1
    root = inverse_root(gram)
    rest = np.ascontiguousarray(matrix.T, np.float32)  # columns of the matrix lie in one piece
    values = np.empty(rest.shape, np.int8)
    scales = np.empty((matrix.shape[1] // width, matrix.shape[0]), np.float32)

    def set_scales(start):
        part = np.ascontiguousarray(rest[start:start + width].T)
        scales[start // width] = (eight_bit_scales(part) if bits == 8
                                  else four_bit_scales(part, bool(block)))

    def rounded(start, end):
        """Rounds columns, and leaves their errors in their place."""
        count = end - start
        if count == width:  # all that went before has been taken out of these
            set_scales(start)
        if count == 1:
            scale, row = scales[start // width], rest[start]
            values[start] = column = np.clip(np.rint(row / scale), least, most)
            rest[start] = (row - column * scale) / root[start, start]
            return
        # Halves, not column by column: nearly all of the work is in large products.
        middle = start + (count // 2 if count <= width else -(-count // (2 * width)) * width)
        rounded(start, middle)
        rest[middle:end] -= root[start:middle, middle:end].T @ rest[start:middle]
        rounded(middle, end)

    rounded(0, len(rest))
    values, scales = np.ascontiguousarray(values.T), np.ascontiguousarray(scales.T)
    return (packed_eight_bits(name, values, scales) if bits == 8
            else packed_four_bits(name, values, scales, block))
