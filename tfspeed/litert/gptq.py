"""Rounding that makes up for its own errors: each column's error is taken out of those to come.

Source: GPTQ, arXiv:2210.17323; see `hessian.compensated`.
"""

import numpy as np

from tfspeed.compression import hessian
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
    return compensated(name, matrix, 4, block, hessian.inverse_root(x.T @ x / len(x)))


def compensated(name: str, matrix: np.ndarray, bits: int, block: int,
                root: np.ndarray) -> Weight:
    """As `weights.pack` with 4 or 8 bits, compensated.

    Args:
        root: of the mean of `x xᵀ` over calibration tokens, see `hessian.inverse_root`.
    """
    width, least, most = block or matrix.shape[1], -2 ** (bits - 1), 2 ** (bits - 1) - 1
    values = np.empty(matrix.shape[::-1], np.int8)
    scales = np.empty((matrix.shape[1] // width, matrix.shape[0]), np.float32)

    def plan(rest, start):
        part = np.ascontiguousarray(rest.T)
        scales[start // width] = scale = (eight_bit_scales(part) if bits == 8
                                          else four_bit_scales(part, bool(block)))

        def rounded(column, row):
            values[start + column] = whole = np.clip(np.rint(row / scale), least, most)
            return whole * scale

        return rounded

    hessian.compensated(matrix, root, width, plan)
    values, scales = np.ascontiguousarray(values.T), np.ascontiguousarray(scales.T)
    return (packed_eight_bits(name, values, scales) if bits == 8
            else packed_four_bits(name, values, scales, block))
