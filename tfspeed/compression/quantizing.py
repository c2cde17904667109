"""Rounds one matrix by RTN, GPTQ or AWQ; the factor that AWQ searches."""

import re
from collections.abc import Iterator

import numpy as np

from tfspeed.compression.hessian import inverse_root
from tfspeed.litert.gptq import compensated
from tfspeed.litert.smooth import channel_factors
from tfspeed.litert.weights import Weight, fitting, joined, pack

METHODS = ("rtn", "gptq", "awq")
_ROWS = 1024  # that are rounded at a time
_GRID = np.linspace(0, 1, 11)  # exponents that AWQ tries


class Rounding:
    """How matrices are rounded.

    Args:
        bits: 8 or 4.
        block: values of a row that share a scale, 0 for the whole row.
        method: of `METHODS`.
        table_bits: bits of the layers whose name `tables` is found in.
    """

    def __init__(self, bits: int, block: int, method: str, table_bits: int, tables: str):
        self.bits, self.block, self.method = bits, block, method
        self.table_bits, self._tables = table_bits, re.compile(tables)

    def form(self, name: str, width: int) -> tuple[int, int]:
        """Bits and block of a matrix with rows of `width`."""
        bits = self.table_bits if self._tables.search(name) else self.bits
        if bits == 4 and width % 2:
            bits = 8  # two values share a byte
        return bits, fitting(self.block, width) if bits == 4 else 0

    def weight(self, name: str, matrix: np.ndarray, gram: np.ndarray | None,
               factor: np.ndarray | None = None) -> Weight:
        """Args:
            matrix: float32 `[out, in]`.
            gram: mean of `x xᵀ` of its inputs, `[in, in]`; None: rounded to the nearest.
            factor: `t` of each channel, `[in]`: `matrix · t` is rounded, whose inputs are `x / t`.
        """
        bits, block = self.form(name, matrix.shape[1])
        root = None
        if self.method == "gptq" and gram is not None:
            root = inverse_root(gram if factor is None else gram / np.outer(factor, factor))

        def rounded(rows):
            rows = rows if factor is None else rows * factor
            if root is not None:
                return compensated(name, rows, bits, block, root)
            return pack(name, rows, bits, block)

        return joined([rounded(rows) for rows in _some_rows(matrix)])

    def factor(self, name: str, gram: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
        """`t` of each channel, float32 `[in]`, under which rounding `W · t` moves the matrices'
        outputs least. Source: AWQ, arXiv:2306.00978.
        """
        bits, block = self.form(name, gram.shape[0])
        activations = np.sqrt(np.diag(gram))
        tried = [channel_factors(activations, alpha, *matrices) for alpha in _GRID]
        tried.append(np.ones(len(gram), np.float32))
        return min(tried, key=lambda t: sum(_error(rows, t, bits, block, gram)
                                            for m in matrices for rows in _some_rows(m)))


def _some_rows(matrix) -> Iterator[np.ndarray]:
    """A few thousand at a time: each row is rounded by itself, and what that takes is several
    times its size. The table of a vocabulary is a fifth of a small model."""
    for at in range(0, len(matrix), _ROWS):
        yield matrix[at:at + _ROWS]


def _error(matrix, factor, bits, block, gram) -> float:
    """Squared error of the outputs, summed."""
    scaled = matrix * factor
    parts = scaled.reshape(-1, block or matrix.shape[1])
    most = 2 ** (bits - 1) - 1
    # The largest value sets the scale: the order of the factors is that of a finer search.
    scale = np.maximum(np.abs(parts).max(-1, keepdims=True) / (most + 0.5 * (bits == 4)), 1e-12)
    rounded = np.clip(np.rint(parts / scale), -most - 1, most) * scale
    difference = (rounded.reshape(matrix.shape) - scaled) / factor
    return float(np.sum((difference @ gram) * difference))
