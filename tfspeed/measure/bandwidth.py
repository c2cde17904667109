"""How fast this machine reads memory: the limit of every decode step.

Measured anew for each row, since virtual machines share their memory with others and it moves by a
factor of two; and by reading as many bytes as a step of that row does, again and again, since a
last-level cache of a server can hold part of a small model. Each thread reads chunks of its own,
in a loop of C that asks for what it needs soon (`read.c`), or where there is no C compiler with
numpy. The loop of C is what comes near the limit: on a 2-core Xeon VM it read 140 MB at 45 GB/s
where numpy read them at 26, and 540 MB at 31 against 25.
"""

import concurrent.futures
import ctypes
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from tfspeed.devices import default_device
from tfspeed.litert.compiler import loops
from tfspeed.memory import aligned

_CHUNKS = 16  # a thread, so that one that is held up does not hold up all
_PASSES = 8
_AT_ONCE = 64 << 20  # bytes: of fewer, starting the threads would be most of what is timed
_SMALL_PASSES = 40  # at most: of what a cache can hold, the first passes miss
_SOURCE = Path(__file__).with_name("read.c")
_MOST_BYTES = 1 << 30  # more than any cache: what is larger is read at the same speed


def memory_bandwidth(threads: int, step_bytes: int) -> float:
    """10^9 bytes a second at which the device that models are put on reads `step_bytes`."""
    device = default_device()
    if device.startswith("GPU"):
        return device_read_bandwidth(device)
    return read_bandwidth(threads, step_bytes)


def read_bandwidth(threads: int, step_bytes: int) -> float:
    """10^9 bytes a second that `threads` threads read together of a buffer as large as a step's
    bytes, at most 1 GiB and a quarter of the free memory: the best of some passes."""
    return _measure(threads, max(1 << 16, min(step_bytes, _MOST_BYTES,
                                              psutil.virtual_memory().available // 4)))


@functools.lru_cache
def device_read_bandwidth(device: str, buffer_bytes: int = 1 << 30) -> float:
    """10^9 bytes a second at which a GPU reads its own memory: a compiled sum over a buffer."""
    import tensorflow as tf

    with tf.device(device):
        buffer = tf.ones((buffer_bytes // 4,), tf.float32)
        total = tf.function(lambda: tf.reduce_sum(buffer), jit_compile=True)
        total().numpy()
        best = 0.0
        for _ in range(_PASSES):
            start = time.perf_counter()
            for _ in range(10):
                value = total()
            value.numpy()
            best = max(best, 10 * buffer_bytes / (time.perf_counter() - start) / 1e9)
    return best


@functools.cache
def _read() -> Callable[[np.ndarray, int], object]:
    """Reads an array of uint64 so many times."""
    library = loops(_SOURCE)
    if library is None:
        return _read_by_numpy
    function = library.tfspeed_read_again
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    function.restype = ctypes.c_uint64
    return lambda array, times: function(array.ctypes.data, array.nbytes, times)


def _read_by_numpy(array: np.ndarray, times: int):
    for _ in range(times):
        found = np.bitwise_or.reduce(array)
    return found


def usual_bandwidth(threads: int, buffer_bytes: int) -> float:
    """The same where not the limit is asked for but what can be expected: the median of a few
    passes, too few for the fastest."""
    return statistics.median(_passes(threads, buffer_bytes, 3))


class MemoryReader:
    """Tells how fast memory is read just now, in five milliseconds: of a buffer larger than any
    cache each call reads the next quarter. In halves it says 3 % more, in sixteen chunks a thread
    16 % less.

    Args:
        threads: that read together.
        buffer_bytes: of the buffer, which stays.
    """

    _PARTS, _CHUNKS = 4, 2  # of the buffer; of a part, a thread

    def __init__(self, threads: int, buffer_bytes: int):
        buffer = aligned((buffer_bytes // 8,), np.uint64)
        buffer.fill(1)  # untouched pages all map to one page of zeros
        self._parts = [np.array_split(part, threads * self._CHUNKS)
                       for part in np.array_split(buffer, self._PARTS)]
        self._pool, self._at = concurrent.futures.ThreadPoolExecutor(threads), 0
        self.read()  # starts the threads

    def read(self) -> float:
        """Bytes a second."""
        self._at = (self._at + 1) % self._PARTS
        chunks, read, start = self._parts[self._at], _read(), time.perf_counter()
        list(self._pool.map(lambda chunk: read(chunk, 1), chunks))
        return sum(chunk.nbytes for chunk in chunks) / (time.perf_counter() - start)


def _measure(threads: int, buffer_bytes: int) -> float:
    return max(_passes(threads, buffer_bytes))


def _passes(threads: int, buffer_bytes: int, fewer: int = 1) -> list[float]:
    buffer, read = aligned((buffer_bytes // 8,), np.uint64), _read()
    # What a cache may hold each thread reads again and again, the same part, as a step does.
    times = max(1, _AT_ONCE // buffer.nbytes)
    chunks = np.array_split(buffer, threads * (_CHUNKS if times == 1 else 1))
    found: list[float] = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # Written first: untouched pages all map to one page of zeros, which the cache holds.
        list(pool.map(lambda chunk: chunk.fill(1), chunks))
        passes = min(_SMALL_PASSES, max(_PASSES, (4 << 30) // buffer.nbytes))
        for _ in range(-(-passes // fewer)):
            start = time.perf_counter()
            list(pool.map(lambda chunk: read(chunk, times), chunks))
            found.append(times * buffer.nbytes / (time.perf_counter() - start) / 1e9)
    return found
