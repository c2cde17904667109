"""How fast this machine reads memory: the limit of every decode step.

Measured anew for each row, since virtual machines share their memory with others and it moves by a
factor of two; and by reading as many bytes as a step of that row does, again and again, since a
last-level cache of a server can hold a small model. Each thread reduces chunks of its own with
numpy, which vectorizes the loop and lets go of the interpreter lock; no compiler is needed.
Against a C loop with OpenMP and AVX-512 on a 2-core Xeon VM: 16.0 to 16.8 against 15.8 GB/s on one
thread, 30.2 to 32.3 against 30.6 on two.
"""

import concurrent.futures
import functools
import time

import numpy as np
import psutil

from tfspeed.devices import default_device

_CHUNKS = 16  # a thread, so that one that is held up does not hold up all
_PASSES = 8
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


def _measure(threads: int, buffer_bytes: int) -> float:
    buffer = np.empty(buffer_bytes // 8, np.uint64)
    chunks = np.array_split(buffer, threads * _CHUNKS)
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # Written first: untouched pages all map to one page of zeros, which the cache holds.
        list(pool.map(lambda chunk: chunk.fill(1), chunks))
        for _ in range(_PASSES):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, chunks))
            best = max(best, buffer.nbytes / (time.perf_counter() - start) / 1e9)
    return best
