"""Memory that is lent to TensorFlow and LiteRT: on cache lines, and on huge pages where the kernel
has them."""

import contextlib
import ctypes
import mmap
from collections.abc import Sequence

import numpy as np

_LINE = 64
_HUGE = 2 << 20


def aligned(shape, dtype) -> np.ndarray:
    """Zeros that begin on a huge page, or on a cache line where they are smaller than one."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if count < _HUGE:
        memory = np.zeros(count + _LINE, np.uint8)
        start = -memory.ctypes.data % _LINE
    else:
        pages = _private(count + _HUGE)
        # A step reads all weights: with pages of 4 kB, looking up where they lie takes a fifth of
        # its time (33 against 27 GB/s on a 2-core EPYC VM).
        memory = np.frombuffer(pages, np.uint8)
        start = -memory.ctypes.data % _HUGE
        if hasattr(mmap, "MADV_HUGEPAGE"):  # but for the last one, which it would not fill
            pages.madvise(mmap.MADV_HUGEPAGE, start, count // _HUGE * _HUGE)
    return memory[start:start + count].view(dtype).reshape(shape)


def lent(array: np.ndarray):
    """A tensor over the memory of an array of `aligned`, which nobody may write to any more."""
    import tensorflow as tf
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def values(variable) -> np.ndarray:
    """What a Keras variable or a tensor holds, not to be written to: its own memory, but for types
    that numpy has none of."""
    import tensorflow as tf
    tensor = tf.convert_to_tensor(getattr(variable, "value", variable))
    try:
        return np.asarray(memoryview(tensor))
    except ValueError:
        return tensor.numpy()


def give_back() -> None:
    """Returns freed memory to the system; the C library keeps pieces of up to 32 MB for later."""
    # Another C library has no such call.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _private(size: int) -> mmap.mmap:
    """Memory of this process alone: what is shared gets no huge pages."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def pieces(sizes: Sequence[int]) -> list[np.ndarray]:
    """Zeros, uint8, of so many bytes each, on cache lines of one piece of memory."""
    ends = np.cumsum([-(-size // _LINE) * _LINE for size in sizes]).tolist()
    memory = aligned((ends[-1],), np.uint8)
    return [memory[at:at + size] for at, size in zip([0, *ends], sizes, strict=False)]
