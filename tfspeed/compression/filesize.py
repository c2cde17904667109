"""What a matrix takes in a file that is compressed afterwards (zip, gzip, HTTP)."""

import zlib
from collections.abc import Iterable

import numpy as np

_SAMPLE = 1 << 20  # bytes of a matrix that are really compressed


def deflated_share(arrays: Iterable[np.ndarray]) -> float:
    """Bytes after deflate over bytes before, estimated from the first megabyte of each array."""
    before = after = 0.0
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)[:_SAMPLE].tobytes()
        after += len(zlib.compress(data, 6)) / len(data) * array.nbytes
        before += array.nbytes
    return after / before


