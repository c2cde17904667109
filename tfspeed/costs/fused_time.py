"""How long a call of the `fused` operator takes: a roofline, product by product.

What the operator does is known (`litert/kernels/`), so the formula follows it:

    product    the longer of reading its bytes (see `reading.py`) and its instructions: a panel of
               weights meets tiles of up to twelve rows, and a tile takes as long as its
               multiplications (`multiply` each) or, where they are few, as its sums wait for
               themselves (`wait`); while later tiles meet it, the next 8 kB are fetched
    attention  a slot's keys and values are loaded once for up to eight query rows (`load`) and
               multiplied with each (`attend`); `weigh` is the softmax; a byte of them takes
               `gather` the first time, since they lie in small pieces
    values     norms, rounding to eight bits, activations: `value` each, on one thread where there
               is a single row
    layer      barriers between the stages; `call`, `row`, `choose`: of a step, of each of its
               texts, and of looking for the largest of a text's logits; `look`: of a line of
               memory of a token's row of the embeddings

All constants are seconds, of one thread, but for `cache`, bytes that it holds, and `others`, bytes
a second that others bring into it; `fetch`, bytes a second that a thread has on its way from memory
at most; the reaches, shares of the measured bandwidths of cache and memory that products get; and,
of what comes from memory, `blunt`, how well floats are read while others are multiplied (their
kernel keeps no more than one panel ahead), and `blunt_row`, how well integers are while a single
row waits for its sums.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

from tfspeed.costs.computation import filled_step
from tfspeed.costs.matrices import Matrix, up_to
from tfspeed.costs.reading import SHARP, Reading, longer, reading, steps_after
from tfspeed.costs.shapes import Shape

KINDS = {32: "float32", 16: "float16", 8: "int8", 4: "int4"}
ROWS = 512  # tokens of a call, see engines/fused.py
_SOON = 8192  # bytes ahead that kernels/matrix.h asks for
TILES = 12, 8, 4, 2, 1  # rows of a tile of a product
_TILE = 8  # query rows that attention reads keys for together

START = {  # where a fit begins
    "call": 3e-5, "prefill": 2e-4, "row": 2e-6, "look": 1e-8, "choose": 1e-10, "layer": 5e-6,
    "value": 4e-10, "load": 5e-11, "attend": 3e-11, "weigh": 3e-10, "gather": 1e-10,
    **{f"wait_{kind}": 2.5e-11 for kind in KINDS.values()},
    **{f"multiply_{kind}": 1e-11 for kind in KINDS.values()},
    "cache": 3.2e7, "others": 1e10, "reach_cache": 1.0, "reach_memory": 1.0, "fetch": 3e10,
    "blunt": 2.0, "blunt_row_int8": 1.5, "blunt_row_int4": 3.0,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: pieces of `texts` texts, `count` tokens of each, the first at `slot`; `logits` are
    made of so many of each."""

    texts: int
    count: int
    slot: float
    logits: int = 1

    @property
    def rows(self) -> int:
        return self.texts * self.count


def prefill_calls(batch: int, prompt: int) -> list[Call]:
    """Those that read a prompt: 512 tokens of all rows together at most."""
    length = max(1, ROWS // batch)
    return [Call(batch, min(length, prompt - at), at, int(at + length >= prompt))
            for at in range(0, prompt, length)]


@functools.cache
def tiles(rows: int) -> list[tuple[int, int]]:
    """How many times a panel of weights is gone through for so many rows at once, see
    kernels/matrix.h: `(rows, times)`, in the order that it does it."""
    found = []
    for size in TILES:
        times, rows = divmod(rows, size)
        if times:
            found.append((size, times))
    return found


class FusedTime:
    """Args:
        constants: as in `START`.
        bandwidth: bytes a second at which all threads read so many bytes again and again.
    """

    def __init__(self, constants: dict[str, float], bandwidth: Callable[[float], float],
                 threads: int, cache_itemsize: int):
        self.constants, self.bandwidth = constants, bandwidth
        self.threads, self.itemsize = threads, cache_itemsize

    def latency(self, shape: Shape, batch: int, prompt: int,
                new_tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of one of those after it in the mean: half of the new
        tokens lie behind it then, beyond the prompt."""
        first, middle = self.prefill(shape, batch, prompt), prompt + new_tokens / 2 - 1
        return first, self.call(shape, Call(batch, 1, middle), steps_after(new_tokens), first)

    def prefill(self, shape: Shape, batch: int, prompt: int) -> float:
        """Seconds to the first token."""
        return self.constants["prefill"] + sum(self.call(shape, call, 1)
                                               for call in prefill_calls(batch, prompt))

    def read(self, shape: Shape, count: int, prompt: int, new_tokens: int) -> float:
        """Seconds of a pass over several tokens of one text, with logits of each."""
        return self.call(shape, Call(1, count, prompt + new_tokens / 2 - 1, count),
                         steps_after(new_tokens), self.prefill(shape, 1, prompt))

    def call(self, shape: Shape, call: Call, steps: int, before: float = math.inf) -> float:
        """Args:
            steps, before: see `reading`.
        """
        c, t = self.constants, self.threads
        # A call reads all weights, however many rows it has.
        read = filled_step(shape, call.texts, call.slot + 1).read_bytes(self.itemsize)
        how = reading(c, self.bandwidth, read, t, steps, before)
        # A token's row lies across a panel: of floats each of its values in a line of its own.
        lines = shape.hidden * shape.head.bits / 32
        seconds = (c["call"] + c["row"] * call.texts
                   + c["look"] * call.rows * lines / (t if call.rows > 1 else 1))
        for (matrices, attention), count in shape.kinds.items():
            products = sum(self._product(m, call.rows, how) for m in matrices)
            values = self._values(matrices, attention, call.rows)
            seconds += count * (c["layer"] + products + values
                                + self._attention(attention, call, how))
        if logits := call.texts * call.logits:
            seconds += (self._product(shape.head, logits, how)
                        + c["choose"] * logits * shape.vocabulary)
            seconds += c["value"] * 2 * shape.hidden * (logits / t if logits > 1 else 1)
        return seconds

    def _product(self, matrix: Matrix, rows: int, how: Reading) -> float:
        c, kind = self.constants, KINDS[matrix.bits]
        size = matrix.panel_values / self.threads
        wait, multiply = c[f"wait_{kind}"], c[f"multiply_{kind}"]
        spent = [(size * longer(wait, multiply * count), times) for count, times in tiles(rows)]
        first, waited = spent[0][0], matrix.nbytes * how.byte
        later = sum(seconds * times for seconds, times in spent) - first
        # The first tile waits for memory; those after it find the panel in the cache, and what is
        # fetched meanwhile is the beginning of the next one.
        panel = 16 * max(inputs for inputs, _ in matrix.parts) * matrix.bits / 8
        fetching = min(later, waited * min(1.0, _SOON / panel))
        corner = (c["blunt"] if matrix.bits > 8 else c[f"blunt_row_{kind}"] if rows == 1
                  else SHARP)
        return how.hiding(first + fetching, matrix.nbytes, corner) + later - fetching

    def _values(self, matrices, attention, rows: int) -> float:
        query_key_value, out, up, down = matrices
        # Norms and rounding of what each product reads; a single row is made ready by every
        # thread for itself. What heads and activations do is shared out always.
        ready = query_key_value.inputs + out.inputs + up.inputs + down.inputs
        shared = query_key_value.outputs + up.outputs
        alone = 1 if rows == 1 else self.threads
        return self.constants["value"] * rows * (ready / alone + shared / self.threads)

    def _attention(self, a, call: Call, how: Reading) -> float:
        c = self.constants
        dim, group = up_to(a.dim, 16), a.heads // a.kv_heads
        window = a.window or float("inf")
        # The mean slots that a token of this piece sees, its own among them.
        seen = min(window, call.slot + (call.count + 1) / 2)
        pairs = call.rows * a.heads * seen
        tile = min(_TILE, group * call.count)
        computing = pairs * (dim * 2 * (c["attend"] + c["load"] / tile) + c["weigh"])
        slots = min(window, call.slot + call.count)
        nbytes = 2 * call.texts * slots * a.kv_heads * dim * self.itemsize
        waited = nbytes * max(c["gather"] / self.threads, how.byte)
        return longer(computing / self.threads, waited)
