"""Rounding that makes up for its own errors: each column's error is taken out of those to come.

Plain rounding minimises the error of the weights; this minimises the error of the product over
calibration inputs, `‖(W − Q) X‖²`, column by column, the rest of the row adjusted after each.
Source: GPTQ, arXiv:2210.17323 (lazy batches, Cholesky form; columns in their own order).
"""

import numpy as np

from tfspeed.litert.smooth import normalized
from tfspeed.litert.weights import Weight, four_bit_scales, packed_four_bits

_DAMPING = 0.2  # share of the mean diagonal: the text is short, some directions are hardly seen


def pack_int4(name: str, matrix: np.ndarray, block: int, inputs: np.ndarray) -> Weight:
    """As `weights.pack` with 4 bits, compensated.

    Args:
        matrix: float32 `[out, in]`.
        block: values that share a scale, 0 for a whole row.
        inputs: calibration inputs of the product, `[tokens, in]`.
    """
    width = block or matrix.shape[1]
    root = _inverse_root(inputs)
    rest = np.ascontiguousarray(matrix.T, np.float32)  # columns of the matrix lie in one piece
    values = np.empty(rest.shape, np.int8)
    scales = np.empty((matrix.shape[0], matrix.shape[1] // width), np.float32)
    for start in range(0, len(rest), width):
        end = start + width
        scale = four_bit_scales(np.ascontiguousarray(rest[start:end].T), in_blocks=bool(block))
        scales[:, start // width] = scale
        errors = np.empty((width, matrix.shape[0]), np.float32)
        for column in range(start, end):
            row = rest[column]
            values[column] = np.clip(np.rint(row / scale), -8, 7)
            errors[column - start] = (row - values[column] * scale) / root[column, column]
            rest[column + 1:end] -= np.outer(root[column, column + 1:end], errors[column - start])
        rest[end:] -= root[start:end, end:].T @ errors
    return packed_four_bits(name, np.ascontiguousarray(values.T), scales, block)


def _inverse_root(inputs: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor of the inverse of `XᵀX`, float32 `[in, in]`, each token as large as
    the others."""
    x = normalized(inputs)
    hessian = (x.T @ x).astype(np.float64)
    diagonal = np.einsum("ii->i", hessian)
    diagonal += _DAMPING * diagonal.mean() + 1e-12
    return np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
