"""The curvature of a product's squared error: what GPTQ, SparseGPT and their kin solve with."""

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


def relative_error(difference: np.ndarray, matrix: np.ndarray, gram: np.ndarray) -> float:
    """`‖ΔW X‖ / ‖W X‖`: how much of a product's output a change has moved.

    Args:
        difference, matrix: `[out, in]`.
    """
    moved = np.sum((difference @ gram) * difference)
    whole = np.sum((matrix @ gram) * matrix)
    return float(np.sqrt(max(moved, 0.0) / max(whole, 1e-30)))
