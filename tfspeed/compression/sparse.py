"""Zeros that cost the outputs least: Wanda and SparseGPT, on a matrix and what it reads."""

from collections.abc import Callable

import numpy as np

from tfspeed.compression import hessian
from tfspeed.compression.patterns import Pattern

_GROUP = 128  # columns whose mask is chosen together
_BLOCK = 16  # columns whose errors reach those behind them together, at least: what is fastest


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
    return compensated(matrix, root, width, lambda rest, start: _masked(chosen(rest, start)))


def _masked(kept):
    return lambda column, values: np.where(kept[column], values, np.float32(0))


def compensated(matrix: np.ndarray, root: np.ndarray, width: int,
                plan: Callable[[np.ndarray, int], Callable]) -> np.ndarray:
    """Changes a matrix column by column, each one's error taken out of those to come.

    Args:
        matrix: `[out, in]`.
        root: see `hessian.inverse_root`.
        width: columns that are planned together.
        plan: takes the columns of a group as they are now, `[width, out]`, and the first one's
            number; returns a function from (column within the group, its values `[out]`) to its new
            values.

    Returns:
        float32 `[out, in]`.
    """
    rest = np.ascontiguousarray(matrix.T, np.float32)
    block = width * max(1, _BLOCK // width)
    for start in range(0, len(rest), block):
        end = min(start + block, len(rest))
        errors = np.empty((end - start, rest.shape[1]), np.float32)
        for column in range(start, end):
            if column % width == 0:
                change = plan(rest[column:min(column + width, end)], column)
            values = change(column % width, rest[column])
            error = (rest[column] - values) / root[column, column]
            rest[column] = values
            rest[column + 1:end] -= np.outer(root[column, column + 1:end], error)
            errors[column - start] = error
        rest[end:] -= root[start:end, end:].T @ errors
    return np.ascontiguousarray(rest.T)
