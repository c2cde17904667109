"""How long one matrix product takes in `graph` and `xla`, by rows and by size.

No formula has their kernels: another one for each number of rows, in blocks, on some of the
threads. So a table: seconds of products of 1 to 320 rows with matrices of two sizes, and with a
table that is used as it lies, transposed (the output layer). A product between two entries lies
between them on logarithmic scales.
"""

import functools
import time

import numpy as np

ROWS = (1, 2, 4, 8, 16, 32, 96, 320)
SIZES = ((512, 1024), (1024, 5120))  # inputs, outputs
_HEAD = (768, 8192)
_HEAD_ROWS = (1, 4, 16)
_COUNT = 4  # matrices that a function multiplies with; more take longer to compile
_SECONDS, _LEAST, _MOST = 0.06, 4, 15  # repetitions, of which the shortest counts


def measure(engine: str) -> list[list[float]]:
    """`[rows, inputs, outputs, transposed (0, 1), seconds]` of each, with the threads that
    TensorFlow has."""
    found = []
    for inputs, outputs in SIZES:
        found += [[rows, inputs, outputs, 0, _seconds(engine, rows, inputs, outputs, False)]
                  for rows in ROWS]
    return found + [[rows, *_HEAD, 1, _seconds(engine, rows, *_HEAD, True)]
                    for rows in _HEAD_ROWS]


def _seconds(engine: str, rows: int, inputs: int, outputs: int, transposed: bool) -> float:
    import tensorflow as tf

    count = 2 if rows > 64 else _COUNT
    x = tf.random.stateless_normal((rows, inputs), (0, 1))
    shape = (outputs, inputs) if transposed else (inputs, outputs)
    weights = _weights(shape)[:count]

    @tf.function(jit_compile=engine == "xla")
    def products(x):
        # A value of each, so that none is left out; each reads the same.
        return tf.add_n([tf.matmul(x, w, transpose_b=transposed)[0, 0] for w in weights])

    return max(1e-7, _shortest(lambda: products(x)) - _call_seconds(engine)) / count


def _shortest(call) -> float:
    call().numpy()
    spent: list[float] = []
    while len(spent) < _LEAST or (sum(spent) < _SECONDS and len(spent) < _MOST):
        start = time.perf_counter()
        call().numpy()
        spent.append(time.perf_counter() - start)
    return min(spent)


@functools.cache
def _call_seconds(engine: str) -> float:
    """Of a function that does nothing."""
    import tensorflow as tf
    x = tf.ones((1, 1))
    nothing = tf.function(lambda x: x[0, 0], jit_compile=engine == "xla")
    return _shortest(lambda: nothing(x))


@functools.lru_cache(maxsize=1)  # more rows follow with the same
def _weights(shape):
    import tensorflow as tf
    return [tf.Variable(tf.random.stateless_normal(shape, (0, i)) * 0.05)
            for i in range(_COUNT)]


class Table:
    """Seconds of a product, between those that were measured."""

    def __init__(self, entries: list[list[float]]):
        self._columns = {}
        for rows, inputs, outputs, transposed, seconds in entries:
            column = self._columns.setdefault(bool(transposed), {})
            column.setdefault(inputs * outputs, []).append((rows, seconds / (inputs * outputs)))

    def seconds(self, rows: int, inputs: int, outputs: int, transposed: bool = False) -> float:
        size = inputs * outputs
        column = self._columns[transposed and rows <= _HEAD_ROWS[-1]]
        sizes = sorted(column)
        each = [np.interp(np.log(rows), np.log([r for r, _ in column[s]]),
                          np.log([t for _, t in column[s]])) for s in sizes]
        one = float(np.exp(np.interp(np.log(size), np.log(sizes), each)))
        return size * one * max(1.0, rows / ROWS[-1])
