"""Rounding that makes up for its own errors: each column's error is taken out of those to come.

Plain rounding minimises the error of the weights; this minimises the error of the product over
calibration inputs, `‖(W − Q) X‖²`, column by column, the rest of the row adjusted after each.
Source: GPTQ, arXiv:2210.17323 (lazy batches, Cholesky form; columns in their own order).
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
    scales = np.empty((matrix.shape[0], matrix.shape[1] // width), np.float32)
    for start in range(0, len(rest), width):
        end = start + width
        part = np.ascontiguousarray(rest[start:end].T)
        scale = eight_bit_scales(part) if bits == 8 else four_bit_scales(part, bool(block))
        scales[:, start // width] = scale
        errors = np.empty((width, matrix.shape[0]), np.float32)
        for column in range(start, end):
            row = rest[column]
            values[column] = np.clip(np.rint(row / scale), least, most)
            errors[column - start] = (row - values[column] * scale) / root[column, column]
            rest[column + 1:end] -= np.outer(root[column, column + 1:end], errors[column - start])
        rest[end:] -= root[start:end, end:].T @ errors
    values = np.ascontiguousarray(values.T)
    return (packed_eight_bits(name, values, scales) if bits == 8
            else packed_four_bits(name, values, scales, block))
