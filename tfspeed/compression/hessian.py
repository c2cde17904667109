"""The curvature of a product's squared error: what GPTQ, SparseGPT and their kin solve with."""

from collections.abc import Callable

import numpy as np

_SMALL = 64
_DAMPING = 0.2  # share of the mean diagonal: the text is short, some directions are hardly seen


def inverse_root(gram: np.ndarray, damping: float = _DAMPING) -> np.ndarray:
    """Upper Cholesky factor of the inverse of a damped Gram matrix, float32 `[in, in]`.

    Args:
        gram: mean of `x xᵀ` over tokens, `[in, in]`.
        damping: added to the diagonal, as a share of its mean.

    Source: GPTQ, arXiv:2210.17323.
    """
    # With rows and columns backwards, the factor of the matrix itself is what is to be inverted: a
    # triangle, a quarter of the work of inverting the matrix.
    backwards = np.linalg.cholesky(damped(gram, damping)[::-1, ::-1])
    return _inverse(backwards)[::-1, ::-1].astype(np.float32)


def _inverse(lower: np.ndarray) -> np.ndarray:
    """Of a lower triangle, by halves: nearly all of it is products."""
    count, half = len(lower), len(lower) // 2
    if count <= _SMALL:
        return np.tril(np.linalg.inv(lower))
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    inverse = np.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -last @ (lower[half:, :half] @ first)
    return inverse


def damped(gram: np.ndarray, damping: float = _DAMPING) -> np.ndarray:
    """float64 `[in, in]`, safe to invert."""
    gram = np.array(gram, np.float64)
    diagonal = np.einsum("ii->i", gram)
    diagonal += damping * diagonal.mean() + 1e-12
    return gram


def compensated(matrix: np.ndarray, root: np.ndarray, width: int,
                plan: Callable[[np.ndarray, int], Callable]) -> np.ndarray:
    """Changes a matrix column by column, each one's error taken out of those to come.

    Plain rounding or pruning minimises the error of the weights; this minimises the error of the
    product over calibration inputs, `‖(W − Q) X‖²`. Source: GPTQ, arXiv:2210.17323 (Cholesky form;
    columns in their own order; its lazy batches taken to their end, in halves of halves).

    Args:
        matrix: `[out, in]`.
        root: see `inverse_root`.
        width: columns that are planned together.
        plan: takes the columns of a group as they are now, `[width, out]`, and the first one's
            number; returns a function from (column within the group, its values `[out]`) to its new
            values.

    Returns:
        float32 `[out, in]`.
    """
    rest = np.ascontiguousarray(matrix.T, np.float32)  # columns of the matrix lie in one piece
    made, change = np.empty_like(rest), None

    def changed(start, end):
        """Changes columns, and leaves their errors in the place of what they were."""
        nonlocal change
        count = end - start
        if start % width == 0 and end == min(start + width, len(rest)):
            change = plan(rest[start:end], start)  # all that went before has been taken out of it
        if count == 1:
            made[start] = change(start % width, rest[start])
            rest[start] = (rest[start] - made[start]) / root[start, start]
            return
        # Halves, not column by column: nearly all of the work is in large products.
        middle = start + (count // 2 if count <= width else -(-count // (2 * width)) * width)
        changed(start, middle)
        rest[middle:end] -= root[start:middle, middle:end].T @ rest[start:middle]
        changed(middle, end)

    changed(0, len(rest))
    return np.ascontiguousarray(made.T)


def relative_error(difference: np.ndarray, matrix: np.ndarray, gram: np.ndarray) -> float:
    """`‖ΔW X‖ / ‖W X‖`: how much of a product's output a change has moved.

    Args:
        difference, matrix: `[out, in]`.
    """
    moved = np.sum((difference @ gram) * difference)
    whole = np.sum((matrix @ gram) * matrix)
    return float(np.sqrt(max(moved, 0.0) / max(whole, 1e-30)))
