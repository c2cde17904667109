"""How long one matrix product takes in `graph` and `xla`, by its rows and by where weights lie.

No formula has their kernels: another one for each number of rows, some of which copy the weights
into blocks first, which costs more where they come from memory. So a table: seconds a weight of
products of 1 to 320 rows with matrices that a last-level cache holds together (`near`) and with
some that it does not (`far`), and with a table that is used as it lies, transposed (the output
layer). What lies between two entries lies between them on logarithmic scales.
"""

import functools
import math
import time
from collections.abc import Callable

import numpy as np

ROWS = (1, 2, 4, 8, 16, 32, 96, 320)
_FEW_ROWS = (1, 4, 16, 96)
_HEAD_ROWS = (1, 4, 16)
_INPUTS, _OUTPUTS = 1024, 2560
PACKINGS = {8: 0, 4: 32}  # bits, and values that share a scale, 0: a row's
NEAR, FAR = 4, 28  # matrices that are used in turn: 42 and 294 MB
_FAR_ROWS = 40  # of more, where weights come from is nothing beside multiplying
_SECONDS, _LEAST, _MOST = 0.05, 3, 9  # repetitions
_MATRIX_BYTES = 4 * _INPUTS * _OUTPUTS


def measure(engine: str, short: bool) -> list[list[float]]:
    """`[rows, bytes that are read in turn, transposed (0, 1), seconds a weight]` of each, with the
    threads that TensorFlow has; `short`: of fewer numbers of rows."""
    found = []
    for transposed, every in ((False, _FEW_ROWS if short else ROWS), (True, _HEAD_ROWS)):
        for rows in every:
            for count in (NEAR, FAR) if rows <= _FAR_ROWS else (NEAR,):
                found.append([rows, count * _MATRIX_BYTES, int(transposed),
                              _seconds(engine, rows, count, transposed)])
    return found


def measure_unpacking(engine: str) -> dict[str, float]:
    """Seconds a weight of a product of one row whose matrix is kept in so many bits, and unpacked
    for it (`models/packed.py`)."""
    import tensorflow as tf

    from tfspeed.models.packed import unpack

    x, found = tf.ones((1, _INPUTS)), {}
    for bits, block in PACKINGS.items():
        def product(values, scales, bits=bits):
            return tf.matmul(x, tf.transpose(unpack(values, scales, bits, _INPUTS, "float32")))

        scales = tf.ones((_OUTPUTS, _INPUTS // block if block else 1),
                         tf.float16 if block else tf.float32)
        # As many as one row's floats: what is read is a quarter or less of what is written.
        values = [tf.cast(tf.fill((_OUTPUTS, _INPUTS * bits // 8), i), tf.int8 if bits == 8
                          else tf.uint8) for i in range(NEAR)]
        function = tf.function(product, jit_compile=engine == "xla")
        found[str(bits)] = _a_weight_of(
            engine, [functools.partial(function, v, scales) for v in values])
    return found


def _seconds(engine: str, rows: int, count: int, transposed: bool) -> float:
    import tensorflow as tf

    x = tf.random.stateless_normal((rows, _INPUTS), (0, 1))
    function = _function(engine, transposed)
    return _a_weight_of(engine, [functools.partial(function, x, weight)
                                 for weight in _weights(transposed)[:count]])


def _a_weight_of(engine: str, products: list[Callable]) -> float:
    """Seconds a weight of products that run in turn."""
    def in_turn():
        for product in products:
            made = product()
        return made

    spent = _least(in_turn) / len(products) - _call_seconds(engine)
    return max(1e-13, spent / (_INPUTS * _OUTPUTS))


def _least(call) -> float:
    """Seconds: the shortest of some, since a table has no other entries to put one right with, and
    what disturbs a machine makes times longer, never shorter."""
    call().numpy()
    spent: list[float] = []
    while len(spent) < _LEAST or (sum(spent) < _SECONDS and len(spent) < _MOST):
        start = time.perf_counter()
        call().numpy()
        spent.append(time.perf_counter() - start)
    return min(spent)


@functools.cache
def _function(engine: str, transposed: bool):
    import tensorflow as tf
    return tf.function(lambda x, w: tf.matmul(x, w, transpose_b=transposed),
                       jit_compile=engine == "xla")


@functools.cache
def _call_seconds(engine: str) -> float:
    """Of a function that does next to nothing."""
    import tensorflow as tf
    x = tf.ones((1, 1))
    function = _function(engine, False)

    def in_turn():
        for _ in range(20):
            made = function(x, x)
        return made

    return _least(in_turn) / 20


@functools.lru_cache(maxsize=2)  # graph and xla read the same
def _weights(transposed: bool):
    import tensorflow as tf
    shape = (_OUTPUTS, _INPUTS) if transposed else (_INPUTS, _OUTPUTS)
    one = tf.random.stateless_normal(shape, (0, 0)) * 0.05
    return [one + 0.0 for _ in range(FAR)]


class Table:
    """Seconds of a product, between those that were measured.

    Args:
        dots, unpacking: see `measure` and `measure_unpacking`.
    """

    def __init__(self, dots: list[list[float]], unpacking: dict[str, float]):
        self._columns: dict = {}
        for rows, size, transposed, seconds in dots:
            column = self._columns.setdefault(bool(transposed), {}).setdefault(size, ([], []))
            column[0].append(math.log(rows))
            column[1].append(math.log(seconds))
        # What a product takes longer; XLA, which unpacks as it multiplies, may take less.
        plain = self.a_weight(1, min(self._columns[False]), False)
        self.unpacking = {32: 0.0} | {int(bits): seconds - plain
                                      for bits, seconds in unpacking.items()}

    def seconds(self, rows: int, weights: int, read: float, transposed: bool = False) -> float:
        """Args:
            read: bytes of all weights that are read in turn.
        """
        return weights * _a_weight(self, rows, read, transposed and rows <= _HEAD_ROWS[-1])

    def a_weight(self, rows: int, read: float, transposed: bool) -> float:
        (near, close), (far, away) = sorted(self._columns[transposed].items())
        at = math.log(rows)
        fast = float(np.interp(at, *close)) + max(0.0, at - close[0][-1])
        # Beyond the rows that were measured from afar, the difference fades away.
        slow = float(np.interp(at, *away))
        gap = max(0.0, slow - float(np.interp(min(at, away[0][-1]), *close)))
        fading = max(0.0, 1 - max(0.0, at - away[0][-1]) / math.log(8))
        share = min(1.0, max(0.0, math.log(read / near) / math.log(far / near)))
        return math.exp(fast + share * gap * fading)


@functools.lru_cache(maxsize=4096)
def _a_weight(table: Table, rows: int, read: float, transposed: bool) -> float:
    return table.a_weight(rows, read, transposed)
