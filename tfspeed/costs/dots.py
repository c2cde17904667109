"""How long one matrix product takes in `graph` and `xla`, by its rows and by where weights lie.

No formula has their kernels: another one for each number of rows, some of which copy the weights
into blocks first, which costs more where they come from memory. So a table: seconds a weight of
products of 1 to 320 rows with a matrix that the cache of some cores holds (`here`), with those that
a last-level cache holds a part of (`near`) and with some that it does not (`far`), and with a table
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

ROWS = (1, 4, 16, 32, 96, 320)
_FEW_ROWS = (1, 4, 16, 96)
HEAD_ROWS = (1, 2, 4, 16)  # XLA takes four times as long for two as for one
_INPUTS, OUTPUTS = 1024, 2560
NARROW, _NARROW_ROWS = 512, (1, 4)  # outputs, of as many weights
_NARROWED = ("graph",)
PACKINGS = {8: 0, 4: 32}  # bits, and values that share a scale, 0: a row's
HERE, NEAR, FAR = 1, 4, 28  # matrices that are used in turn: 10, 42 and 294 MB
_AGAIN = {1: (NEAR, FAR), 4: (NEAR, FAR), 96: (NEAR,), 320: (NEAR,)}  # matrices, by rows
_CHAIN = 2  # products of a function: alone, starting it is up to a quarter of its time
_ELSEWHERE_ROWS = 1, 4, 16  # of more, where weights come from is little beside multiplying
_HALF_ROWS = {False: (1, 4, 96), True: (1, 4)}  # of 16 bits; transposed or not
_SMALL = 640, 1024  # inputs and outputs
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # types that products are timed in
_SECONDS, _LEAST, _MOST = 0.02, 2, 6  # repetitions
MATRIX_BYTES = 4 * _INPUTS * OUTPUTS


def measure_all(engine: str, short: bool) -> dict:
    """What a `Table` is made from, of the products of `graph` or `xla`; the cache's size aside."""
    return {"dots": measure(engine, short), "unpacking": measure_unpacking(engine),
            "narrow": measure_narrow(engine) if engine in _NARROWED else []}


def measure_again(engine: str, short: bool) -> dict:
    """Once more those that most others are told from: at two moments a row took 129 and 166 ps a
    weight, 320 of them 3.3 and 4.2 ns."""
    return {"dots": _floats(engine, short, lambda rows: _AGAIN.get(rows, ()))}


def compile_all(engine: str, short: bool) -> None:
    """Makes the weights and the functions of most of these products."""
    for transposed, every in _every(short):
        for rows in every:
            _one(engine, rows, 1, transposed)[0]()


def _every(short: bool) -> list[tuple[bool, tuple[int, ...]]]:
    """Transposed or not, and the numbers of rows."""
    return [(False, _FEW_ROWS if short else ROWS), (True, HEAD_ROWS)]


def measured(found: dict) -> dict:
    """Of all that is known of an engine what a `Table` is made from."""
    return {name: found[name] for name in ("dots", "cache", "unpacking", "narrow")}


def measure(engine: str, short: bool) -> list[list]:
    """`[rows, bytes that are read in turn, transposed (0, 1), type, seconds a weight]` of each,
    with the threads that TensorFlow has; `short`: of fewer numbers of rows, in float32 alone."""
    found = _floats(engine, short, _counts)
    return found if short else [*found, *_halves(engine)]


def _floats(engine: str, short: bool, counts: Callable) -> list[list]:
    """Those in float32, of so many rows each with `counts(rows)` matrices."""
    return [[rows, count * MATRIX_BYTES, int(transposed), "float32",
             _a_weight_of(engine, _one(engine, rows, count, transposed),
                          _CHAIN * _INPUTS * OUTPUTS)]
            for transposed, every in _every(short) for rows in every for count in counts(rows)]


def _counts(rows: int) -> list[int]:
    """Matrices that products of so many rows are timed with, in turn."""
    return [HERE, NEAR, FAR] if rows in _ELSEWHERE_ROWS else [NEAR]


def _halves(engine: str) -> list[list]:
    """As `measure`, of products in 16 bits, each with one matrix."""
    import tensorflow as tf

    types = [name for name, size in ITEM_BYTES.items() if size == 2]
    asked = [(rows, transposed, dtype, (_INPUTS, OUTPUTS))
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

        scales = tf.ones((OUTPUTS, _INPUTS // block if block else 1),
                         tf.float16 if block else tf.float32)
        # As many as one row's floats: what is read is a quarter or less of what is written.
        values = [tf.cast(tf.fill((OUTPUTS, _INPUTS * bits // 8), i), tf.int8 if bits == 8
                          else tf.uint8) for i in range(NEAR)]
        function = tf.function(products, jit_compile=engine == "xla")
        found[str(bits)] = _a_weight_of(
            engine, [functools.partial(function, scales, *values[at:at + _CHAIN])
                     for at in range(0, NEAR, _CHAIN)], _CHAIN * _INPUTS * OUTPUTS)
    return found


def measure_narrow(engine: str) -> list[list[float]]:
    """`[rows, seconds a weight]` of products with narrow matrices, near ones."""
    import tensorflow as tf

    inputs = _INPUTS * OUTPUTS // NARROW
    used = [tf.reshape(weight, (inputs, NARROW)) for weight in _weights(False)[:NEAR]]
    function = _chain(engine, False)
    return [[rows, _a_weight_of(engine, [functools.partial(function, tf.ones((rows, inputs)),
                                                           *used)],
                                NEAR * _INPUTS * OUTPUTS)] for rows in _NARROW_ROWS]


def _one(engine: str, rows: int, count: int, transposed: bool) -> list[Callable]:
    """Chains of products of so many rows, which go through so many matrices in turn."""
    import tensorflow as tf

    x = tf.random.stateless_normal((rows, _INPUTS), (0, 1))
    function, weights = _chain(engine, transposed), _weights(transposed)
    return [functools.partial(function, x, *(weights[(at + i) % count] for i in range(_CHAIN)))
            for at in range(0, count, _CHAIN)]


def _a_weight_of(engine: str, products: list[Callable], weights: int) -> float:
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
    function = tf.function(tf.matmul, jit_compile=engine == "xla")

    def in_turn():
        for _ in range(20):
            made = function(x, x)
        return made

    return _least(in_turn) / 20


@functools.lru_cache(maxsize=2)  # graph and xla read the same
def _weights(transposed: bool):
    import tensorflow as tf
    shape = (OUTPUTS, _INPUTS) if transposed else (_INPUTS, OUTPUTS)
    one = tf.random.stateless_normal(shape, (0, 0)) * 0.05
    return [one + 0.0 for _ in range(FAR)]
