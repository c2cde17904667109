"""Zeros that cost the outputs least: Wanda and SparseGPT, on a matrix and what it reads."""

import numpy as np

from tfspeed.compression import hessian
from tfspeed.compression.patterns import Pattern

_GROUP = 128  # columns whose mask is chosen together


def wanda(matrix: np.ndarray, gram: np.ndarray, pattern: Pattern, sparsity: float) -> np.ndarray:
    """Zeroes the weights of smallest `|W| · ‖x‖`, an equal share of each output.

    Args:
        matrix: `[out, in]`.
        gram: mean of `x xᵀ` over tokens, `[in, in]`.

    Source: arXiv:2306.11695.
    """
    scores = np.abs(matrix) * np.sqrt(np.diagonal(gram))
    return np.where(pattern.keep(scores, sparsity, by_row=True), matrix, np.float32(0))


def sparsegpt(matrix: np.ndarray, gram: np.ndarray, pattern: Pattern,
              sparsity: float) -> np.ndarray:
    """Zeroes the weights that cost least by optimal brain surgery; the others make up for them.

    Args:
        matrix, gram: see `wanda`.

    Source: arXiv:2301.00774.
    """
    root = hessian.inverse_root(gram)

    def chosen(rest, start):
        diagonal = np.diagonal(root)[start:start + len(rest)]
        return pattern.keep(np.square(rest.T / diagonal), sparsity, by_row=False).T

    # The smaller the group, the better it is known what is left of each weight by then.
    width = pattern.columns
    if not pattern.zeros:
        width *= max(1, _GROUP // pattern.columns)
    return hessian.compensated(matrix, root, width,
                               lambda rest, start: _masked(chosen(rest, start)))


def _masked(kept):
    return lambda column, values: np.where(kept[column], values, np.float32(0))
