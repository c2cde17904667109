"""How long a prefill and a step take under `litert`: a roofline of XNNPACK's products, and what
lies between them.

What is run is known (`litert/decoder.py`, `litert/session.py`), so the formula follows it: prompts
go through signatures of fixed lengths, padded, their last token through a step; attention reads the
whole capacity of the cache, which grows.

    product    the longer of reading its bytes and its multiplications: `wait` a weight where there
               is one row. More go through a matrix in tiles of up to so many rows (`TILES`): each
               takes `start` a weight, and `multiply` for each of its rows; the first one reads,
               those after it find the weights nearby. Integers are read `drag` times as long as
               their bytes should take. Halves are floats once LiteRT has loaded them.
    attention  `pair`: softmax of a query and a slot; `mix`: an operation of its products; `copy`: a
               byte of keys and values, which XNNPACK packs anew for every product, beside what
               moves through memory for it
    values     the small operators: `value` each
    layer      starts and barriers of a layer's operators; `call`: of a signature; `mask`: what a
               row and a slot take to be told apart, once a call; `choose`: of one logit that is
               handed over and compared

An encoder is read as a prefill whose last layer is whole, and cross-attention as attention over the
source, and as half a layer more: XNNPACK packs those keys and values anew for every product, too.

Seconds of one thread, but for the layer, the call, its mask and what is handed over; `cache`,
`others`, `fetch` and the reaches are as in `fused_time.py`. Steps and prefills have constants of
their own where small operators are split over threads in one, and not in the other.
"""

import math
from collections import Counter
from collections.abc import Callable

from tfspeed.costs.fused_time import KINDS
from tfspeed.costs.matrices import Attention, Matrix
from tfspeed.costs.reading import Reading, reading, steps_after
from tfspeed.costs.seq2seq_shapes import Source
from tfspeed.costs.shapes import Shape
from tfspeed.litert import seq2seq
from tfspeed.litert.session import PREFILLS, capacities

_FLOAT_BYTES = 4
_CORNER = 2
_MOVED = 2  # bytes for each one packed: it is read, and written to a place that is used again

START = {  # where a fit begins
    "call": 2e-5, "mask": 1e-9, "choose": 4e-10, "pair": 1e-9, "mix": 3e-11, "copy": 1e-10,
    **{f"{name}_{kind}": cost for kind in ("prefill", "step")
       for name, cost in (("layer", 5e-5), ("value", 5e-10))},
    **{f"wait_{kind}": 3e-11 for kind in ("float32", "int8", "int4")},
    **{f"multiply_{kind}": cost for kind, cost in (("float32", 1.5e-11), ("int8", 3.5e-12),
                                                   ("int4", 5e-12))},
    **{f"start_{kind}": cost for kind, cost in (("float32", 2e-11), ("int8", 2e-11),
                                                ("int4", 7e-11))},
    "cache": 3.2e7, "others": 1e10, "reach_cache": 1.0, "reach_memory": 1.0, "fetch": 6e10,
    "drag": 1.1,
}
# Rows of XNNPACK's kernels with AVX-512, as steps of 1 to 16 texts showed: 8, 6 and 9 of them took
# half as long again as one fewer. Too little is timed to tell those of other processors.
TILES = {"float32": 7, "int8": 5, "int4": 8}


class LitertTime:
    """Args:
        constants: as in `START`.
        bandwidth: bytes a second at which all threads read so many bytes again and again.
    """

    def __init__(self, constants: dict[str, float], bandwidth: Callable[[float], float],
                 threads: int):
        self.constants, self.bandwidth, self.threads = constants, bandwidth, threads

    def latency(self, shape: Shape, batch: int, prompt: int,
                new_tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of one of those after it in the mean."""
        sizes = _sizes(shape, prompt + new_tokens)
        slots = range(prompt, prompt + steps_after(new_tokens))
        steps = Counter(next(size for size in sizes if size > slot) for slot in slots)
        first = self.prefill(shape, batch, prompt, sizes)
        spent = sum(count * self.call(shape, batch, 1, size, len(slots), first)
                    for size, count in steps.items())
        return first, spent / len(slots)

    def prefill(self, shape: Shape, batch: int, prompt: int, sizes: list[int]) -> float:
        """Seconds to the first token; `sizes`: capacities that the cache grows through."""
        size = next(s for s in sizes if s >= prompt)
        lengths = seq2seq.PREFILLS if shape.source else PREFILLS
        return (sum(self.call(shape, batch, length, size, 1)
                    for length in pieces(prompt - 1, size, lengths))
                + self.call(shape, batch, 1, size, 1) + self.encode(shape.source, batch))

    def encode(self, source: Source | None, batch: int) -> float:
        if source is None:
            return 0.0
        c, encoder, rows = self.constants, source.encoder, batch * source.length
        how = reading(c, self.bandwidth, sum(map(_nbytes, encoder.matrices)), self.threads, 1)
        return c["call"] + sum(
            count * self._layer("prefill", matrices, a, batch, rows, source.length, 0, how)
            for (matrices, a), count in encoder.kinds.items())

    def read(self, shape: Shape, count: int, prompt: int, new_tokens: int) -> float:
        """Seconds of a pass over several tokens of one text, with logits of each."""
        sizes = _sizes(shape, prompt + new_tokens)
        size = next(s for s in sizes if s > prompt + new_tokens / 2)
        return self.call(shape, 1, count, size, steps_after(new_tokens),
                         self.prefill(shape, 1, prompt, sizes), chooses=True)

    def call(self, shape: Shape, batch: int, length: int, capacity: int, steps: int,
             before: float = math.inf, chooses: bool = False) -> float:
        """Of a signature; that of a single token gives logits, and one that `chooses` them of
        each.

        Args:
            steps, before: see `reading`.
        """
        c, rows = self.constants, batch * length
        chooses = chooses or length == 1
        kind = "step" if chooses else "prefill"
        looked = shape.source.length if shape.source else 0
        cache = 8 * batch * sum(capacity * a.kv_heads * a.dim + looked * a.source_heads * a.dim
                                for a in shape.attention)
        read = sum(map(_nbytes, shape.matrices)) + cache
        how = reading(c, self.bandwidth, read, self.threads, steps, before)
        seconds = c["call"] + c["mask"] * rows * capacity
        # Of the last layer a prefill keeps keys and values; XNNPACK leaves out what nobody reads.
        layers = shape if chooses else shape.but_last
        for (matrices, a), count in layers.kinds.items():
            seconds += count * self._layer(kind, matrices, a, batch, rows, capacity, looked, how)
        if chooses:
            seconds += (self.product(shape.head, rows, how)
                        + c["choose"] * rows * shape.vocabulary)
        else:
            last = shape.layers[-1][0]
            seconds += (self.product(last, rows, how) + c["value_prefill"] / self.threads
                        * rows * (last.inputs + last.outputs))
        return seconds

    def _layer(self, kind: str, matrices, a: Attention, batch: int, rows: int, capacity: int,
               looked: int, how: Reading) -> float:
        """Args:
            looked: positions of a source.
        """
        c = self.constants
        products = sum(self.product(m, rows, how) for m in matrices)
        width = sum(m.inputs + m.outputs for m in matrices)
        pairs = rows * (capacity * a.heads + looked * a.source_heads)
        cache = 8 * batch * a.dim * (capacity * a.kv_heads + looked * a.source_heads)
        between = (rows * width * c[f"value_{kind}"] + cache * c["copy"]
                   + pairs * (c["pair"] + 4 * a.dim * c["mix"]))
        return (a.layers * c[f"layer_{kind}"] + products + between / self.threads
                + _MOVED * cache * how.byte)

    def product(self, matrix: Matrix, rows: int, how: Reading) -> float:
        c, kind = self.constants, KINDS[32 if matrix.bits > 8 else matrix.bits]
        weights = matrix.parameters / self.threads
        nbytes = _nbytes(matrix) * (c["drag"] if matrix.bits <= 8 else 1)
        if rows == 1:
            return how.hiding(weights * c[f"wait_{kind}"], nbytes, _CORNER)
        tiles = math.ceil(rows / TILES[kind])
        tile = weights * (c[f"start_{kind}"] + c[f"multiply_{kind}"] * rows / tiles)
        first = min(tiles, self.threads)  # each thread reads with one of them
        return how.hiding(first * tile, nbytes, _CORNER) + (tiles - first) * tile


def _sizes(shape: Shape, needed: int) -> list[int]:
    """Capacities that a cache grows through."""
    smallest = [seq2seq.SMALLEST] if shape.source else []
    return smallest + capacities(shape.config, needed)


def pieces(tokens: int, capacity: int, lengths: tuple[int, ...] = PREFILLS) -> list[int]:
    """Lengths of the signatures, out of `lengths`, that so many tokens of a prompt go through."""
    found, fits = [], [length for length in lengths if length <= capacity]
    while tokens > 0:
        found.append(next((n for n in fits if n >= tokens), fits[-1]))
        tokens -= found[-1]
    return found


def _nbytes(matrix: Matrix) -> int:
    return matrix.parameters * _FLOAT_BYTES if matrix.bits > 8 else matrix.nbytes
