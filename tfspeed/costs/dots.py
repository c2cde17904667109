"""How long one matrix product takes in `graph` and `xla`, by its rows and by where weights lie.

No formula has their kernels: another one for each number of rows, some of which copy the weights
into blocks first, which costs more where they come from memory. So a table: seconds a weight of
products of 1 to 320 rows with a matrix that the cache of some cores holds (`here`), with those that
a last-level cache holds together (`near`) and with some that it does not (`far`), and with a table
that is used as it lies, transposed (the output layer). Each takes what the one before gives, as in
a model. What lies between two entries lies between them on logarithmic scales.

Of 16 bits the kernels are others again: TensorFlow has some that multiply a matrix as it lies; XLA
turns it into floats first, of either type, and on one thread where it is small. So there are a few
numbers of rows of each, under XLA with a small matrix besides; between the two lies what lies
between them in size.

Narrow matrices take longer a weight under `graph`, since each of their rows is a short piece of
memory: half as long again with 512 outputs as with 2560 on a 2-core EPYC VM, and what lies between
goes with 1 / outputs. Under `xla` they do so on their own, but not within a model's function.
"""

import concurrent.futures
import functools
import math
import time
from collections.abc import Callable

import numpy as np

from tfspeed.errors import TfspeedError

ROWS = (1, 2, 4, 8, 16, 32, 96, 320)
_FEW_ROWS = (1, 4, 16, 96)
_HEAD_ROWS = (1, 4, 16)
_INPUTS, _OUTPUTS = 1024, 2560
_NARROW, _NARROW_ROWS = 512, (1, 4)  # outputs, of as many weights
_NARROWED = ("graph",)
_MOST_NARROW = 4.0  # times what that takes more: the line is not followed below 151 outputs
PACKINGS = {8: 0, 4: 32}  # bits, and values that share a scale, 0: a row's
HERE, NEAR, FAR = 1, 4, 28  # matrices that are used in turn: 10, 42 and 294 MB
_CHAIN = 2  # products of a function: alone, starting it is up to a quarter of its time
_ELSEWHERE_ROWS = 1, 4, 16  # of more, where weights come from is little beside multiplying
_HALF_ROWS = {False: (1, 4, 96), True: (1, 4)}  # of 16 bits; transposed or not
_SMALL = 640, 1024  # inputs and outputs
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # types that products are timed in
_SECONDS, _LEAST, _MOST = 0.02, 2, 6  # repetitions
_MATRIX_BYTES = 4 * _INPUTS * _OUTPUTS


def measure_all(engine: str, short: bool) -> dict:
    """What a `Table` is made from, of the products of `graph` or `xla`."""
    return {"dots": measure(engine, short), "unpacking": measure_unpacking(engine),
            "narrow": measure_narrow(engine) if engine in _NARROWED else []}


def compile_all(engine: str, short: bool) -> None:
    """Makes the weights and the functions of most of these products."""
    for transposed, every in _every(short):
        for rows in every:
            _one(engine, rows, 1, transposed)[0]()


def _every(short: bool) -> list[tuple[bool, tuple[int, ...]]]:
    """Transposed or not, and the numbers of rows."""
    return [(False, _FEW_ROWS if short else ROWS), (True, _HEAD_ROWS)]


def measured(found: dict) -> dict:
    """Of all that is known of an engine what `measure_all` found."""
    return {name: found[name] for name in ("dots", "unpacking", "narrow")}


def measure(engine: str, short: bool) -> list[list]:
    """`[rows, bytes that are read in turn, transposed (0, 1), type, seconds a weight]` of each,
    with the threads that TensorFlow has; `short`: of fewer numbers of rows, in float32 alone."""
    found = []
    for transposed, every in _every(short):
        for rows in every:
            for count in _counts(rows):
                found.append([rows, count * _MATRIX_BYTES, int(transposed), "float32",
                              _a_weight_of(engine, _one(engine, rows, count, transposed),
                                           _CHAIN * _INPUTS * _OUTPUTS)])
    return found if short else [*found, *_halves(engine)]


def _counts(rows: int) -> list[int]:
    """Matrices that products of so many rows are timed with, in turn."""
    return [HERE, NEAR, FAR] if rows in _ELSEWHERE_ROWS else [NEAR]


def _halves(engine: str) -> list[list]:
    """As `measure`, of products in 16 bits, each with one matrix."""
    import tensorflow as tf

    types = [name for name, size in ITEM_BYTES.items() if size == 2]
    asked = [(rows, transposed, dtype, (_INPUTS, _OUTPUTS))
             for dtype in (types[:1] if engine == "xla" else types)
             for transposed, every in _HALF_ROWS.items() for rows in every]
    if engine == "xla":
        asked += [(rows, False, types[0], _SMALL) for rows in _HALF_ROWS[False]]

    def product(rows, transposed, dtype, sizes):
        weight = tf.random.stateless_normal(sizes[::-1 if transposed else 1], (0, 0)) * 0.05
        return functools.partial(_chain(engine, transposed), tf.ones((rows, sizes[0]), dtype),
                                 *[tf.cast(weight, dtype)] * _CHAIN)

    products = [product(*each) for each in asked]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # they are compiled side by side
        list(pool.map(lambda product: product().numpy(), products))
    found = []
    for (rows, transposed, dtype, sizes), made in zip(asked, products, strict=True):
        weights = math.prod(sizes)
        seconds = _a_weight_of(engine, [made], _CHAIN * weights)
        found += [[rows, 2 * weights, int(transposed), name, seconds]
                  for name in (types if engine == "xla" else [dtype])]
    return found


def measure_unpacking(engine: str) -> dict[str, float]:
    """Seconds a weight of a product of one row whose matrix is kept in so many bits, and unpacked
    for it (`models/packed.py`)."""
    import tensorflow as tf

    from tfspeed.models.packed import unpack

    found = {}
    for bits, block in PACKINGS.items():
        def products(scales, *every, bits=bits):
            x = tf.ones((1, _INPUTS))
            for values in every:
                weight = tf.transpose(unpack(values, scales, bits, _INPUTS, "float32"))
                x = tf.matmul(x, weight)[:, :_INPUTS]
            return x

        scales = tf.ones((_OUTPUTS, _INPUTS // block if block else 1),
                         tf.float16 if block else tf.float32)
        # As many as one row's floats: what is read is a quarter or less of what is written.
        values = [tf.cast(tf.fill((_OUTPUTS, _INPUTS * bits // 8), i), tf.int8 if bits == 8
                          else tf.uint8) for i in range(NEAR)]
        function = tf.function(products, jit_compile=engine == "xla")
        found[str(bits)] = _a_weight_of(
            engine, [functools.partial(function, scales, *values[at:at + _CHAIN])
                     for at in range(0, NEAR, _CHAIN)], _CHAIN * _INPUTS * _OUTPUTS)
    return found


def measure_narrow(engine: str) -> list[list[float]]:
    """`[rows, seconds a weight]` of products with narrow matrices, near ones."""
    import tensorflow as tf

    inputs = _INPUTS * _OUTPUTS // _NARROW
    used = [tf.reshape(weight, (inputs, _NARROW)) for weight in _weights(False)[:NEAR]]
    function = _chain(engine, False)
    return [[rows, _a_weight_of(engine, [functools.partial(function, tf.ones((rows, inputs)),
                                                           *used)],
                                NEAR * _INPUTS * _OUTPUTS)] for rows in _NARROW_ROWS]


def _one(engine: str, rows: int, count: int, transposed: bool) -> list[Callable]:
    """Chains of products of so many rows, which go through so many matrices in turn."""
    import tensorflow as tf

    x = tf.random.stateless_normal((rows, _INPUTS), (0, 1))
    function, weights = _chain(engine, transposed), _weights(transposed)
    return [functools.partial(function, x, *(weights[(at + i) % count] for i in range(_CHAIN)))
            for at in range(0, count, _CHAIN)]


def _a_weight_of(engine: str, products: list[Callable],
                 weights: int = _INPUTS * _OUTPUTS) -> float:
    """Seconds a weight of functions that run in turn, each of so many weights."""
    def in_turn():
        for product in products:
            made = product()
        return made

    spent = _least(in_turn) / len(products)
    # What a call takes was timed at another moment, and is never nearly all.
    return max(spent / 4, spent - _call_seconds(engine)) / weights


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
def _chain(engine: str, transposed: bool):
    """Each product takes what the one before gives, cut or repeated to its inputs."""
    import tensorflow as tf

    def products(x, *weights):
        inputs = x.shape[1]
        for weight in weights:
            y = tf.matmul(x, weight, transpose_b=transposed)
            x = tf.tile(y, (1, -(-inputs // y.shape[1])))[:, :inputs]
        return x

    return tf.function(products, jit_compile=engine == "xla")


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
        dots, unpacking, narrow: see `measure`, `measure_unpacking` and `measure_narrow`.
        longer: the table of another number of threads, where 16 bits were timed as well.
    """

    def __init__(self, dots: list[list], unpacking: dict[str, float],
                 narrow: list[list[float]], longer: "Table | None" = None):
        self._columns: dict = {}
        for rows, size, transposed, dtype, seconds in _undisturbed(dots):
            columns = self._columns.setdefault((dtype, bool(transposed)), {})
            column = columns.setdefault(size, ([], []))
            column[0].append(math.log(rows))
            column[1].append(math.log(seconds))
        self._narrow = [[math.log(rows), max(0.0, seconds / self.a_weight(
            rows, NEAR * _MATRIX_BYTES) - 1)] for rows, seconds in narrow]
        self._halves = self._ratios() or (longer._halves if longer else {})
        # What a product takes longer; XLA, which unpacks as it multiplies, may take less. A matrix
        # that was just unpacked lies in the cache.
        plain = self.a_weight(1, _MATRIX_BYTES)
        self.unpacking = {int(bits): seconds - plain for bits, seconds in unpacking.items()}

    def _ratios(self) -> dict:
        """Of each type of 16 bits, transposed or not: by the logarithm of the matrix's values,
        ascending, logarithms of rows, and of how many times as long as in float32 they take where
        both come from the cache."""
        found = {}
        for (dtype, transposed), columns in self._columns.items():
            if dtype == "float32":
                continue
            for size, (at, seconds) in sorted(columns.items()):
                floats = [math.log(self.a_weight(round(math.exp(x)), _MATRIX_BYTES, transposed))
                          for x in at]
                found.setdefault((dtype, transposed), {})[math.log(size / 2)] = (
                    at, np.subtract(seconds, floats))
        return found

    def seconds(self, rows: int, weights: int, read: float, transposed: bool = False) -> float:
        """In float32.

        Args:
            read: bytes of all weights that are read in turn.
        """
        return weights * _a_weight(self, rows, read, transposed and rows <= _HEAD_ROWS[-1])

    def narrow(self, rows: int, outputs: int) -> float:
        """How many times as long a weight of a matrix with so many outputs takes."""
        if not self._narrow:
            return 1.0
        share = (1 / outputs - 1 / _OUTPUTS) / (1 / _NARROW - 1 / _OUTPUTS)
        more = float(np.interp(math.log(rows), *zip(*self._narrow, strict=True)))
        return 1 + min(_MOST_NARROW, max(0.0, share)) * more

    def a_weight(self, rows: int, read: float, transposed: bool = False) -> float:
        """In float32."""
        columns = self._columns["float32", transposed]
        near = sorted(columns)[-2]
        fast, slope = columns[near], max(0.0, (at := math.log(rows)) - columns[near][0][-1])
        found = float(np.interp(at, *fast)) + slope
        for size in columns.keys() - {near}:
            last = columns[size][0][-1]
            # From farther away it takes no less, from nearer by no more. Beyond the rows that were
            # measured there, the difference fades away.
            gap = (max if size > near else min)(0.0, float(
                np.interp(at, *columns[size]) - np.interp(min(at, last), *fast)))
            fading = max(0.0, 1 - max(0.0, at - last) / math.log(8))
            share = math.log(max(1.0, read) / near) / math.log(size / near)
            found += min(1.0, max(0.0, share)) * gap * fading
        return math.exp(found)

    def beyond(self, rows: int, weights: int, read: float, dtype: str,
               transposed: bool = False) -> float:
        """Seconds that it takes longer (or less: below 0) in a type of 16 bits, of which half as
        many bytes are waited for.

        Raises:
            TfspeedError: it was not timed.
        """
        if dtype == "float32":
            return 0.0
        if not self._halves:
            raise TfspeedError("This calibration knows nothing of products in 16 bits.",
                               type=dtype, hint="python scripts/calibrate.py makes a new one.")
        transposed = transposed and rows <= _HEAD_ROWS[-1]
        cached = _a_weight(self, rows, _MATRIX_BYTES, transposed)
        waited = _a_weight(self, rows, read, transposed) - cached
        by_size = self._halves[dtype, transposed]
        ratios = [float(np.interp(math.log(rows), *measured)) for measured in by_size.values()]
        ratio = math.exp(np.interp(math.log(weights), list(by_size), ratios))
        return weights * (cached * (ratio - 1) - waited / 2)


def _undisturbed(dots: list[list]) -> list[list]:
    """Those from nearer take no longer than those from farther away: if they did, they were
    disturbed, which makes times longer, never shorter."""
    found, least = [], {}
    for rows, size, transposed, dtype, seconds in sorted(dots, key=lambda row: (row[0], -row[1])):
        kind = rows, transposed, dtype if dtype == "float32" else (dtype, size)  # in one place
        least[kind] = min(seconds, least.get(kind, seconds))
        found.append([rows, size, transposed, dtype, least[kind]])
    return found


@functools.lru_cache(maxsize=4096)
def _a_weight(table: Table, rows: int, read: float, transposed: bool) -> float:
    return table.a_weight(rows, read, transposed)
