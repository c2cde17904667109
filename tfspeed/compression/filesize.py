"""What a matrix takes in a file that is compressed afterwards (zip, gzip, HTTP)."""

import zlib

import numpy as np

_SAMPLE = 1 << 20  # bytes of a matrix that are really compressed


def deflated_share(array: np.ndarray) -> float:
    """Bytes after deflate over bytes before, by the array's first megabyte."""
    data = array.reshape(-1).view(np.uint8)[:_SAMPLE].tobytes()
    return len(zlib.compress(data, 6)) / len(data)


def index_bits(matrix: np.ndarray, per: str) -> float:
    """Entropy of which value of its codebook each weight has, in bits a weight.

    Args:
        matrix: `[out, in]`, of few distinct values.
        per: what shares a codebook: `tensor`, `output` (a row) or `input` (a column).
    """
    parts = {"tensor": matrix.reshape(1, -1), "output": matrix, "input": matrix.T}[per]
    bits = []
    for part in parts:
        shares = np.unique(part, return_counts=True)[1] / part.size
        bits.append(-np.sum(shares * np.log2(shares)))
    return float(np.mean(bits))
