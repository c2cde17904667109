"""How long a prefill and a step take under `graph` and `xla`.

Products come from a table of what they take on this machine (`dots.py`), which knows too what it
takes to unpack a matrix of integers first, or to multiply a narrow one; `products` corrects that
for running among other operators, but not what 16 bits take beyond it. Between them lies a cost
each of a layer (its operators), of a query and slot in attention (`pair`: mask and softmax, for
every slot of the capacity; `mix`: an operation of its two products), of a value that goes through
the small operators (`value`), of a byte of the caches (`copy`: a step gives back new ones) and of a
call. Prefill and step have constants of their own: a prompt's operators are split over threads,
those of one token are not.

An encoder is read as a prompt is, without caches; cross-attention as attention over the source, and
as half a layer more. Nothing is fitted to either.
"""

from tfspeed.costs.computation import (
    Pass,
    encoding,
    padded_lengths,
    padded_prefill,
    padded_read,
    padded_step,
)
from tfspeed.costs.dot_table import Table
from tfspeed.costs.dots import ITEM_BYTES
from tfspeed.costs.matrices import Matrix
from tfspeed.costs.reading import LONG, steps_after
from tfspeed.costs.seq2seq_shapes import Source
from tfspeed.costs.shapes import Shape

_COSTS = {"products": 1.0, "pair": 5e-10, "mix": 1e-10, "value": 2e-10, "copy": 1e-10}
_START = {f"{name}_{kind}": cost for kind in ("prefill", "step")
          for name, cost in _COSTS.items()} | {"mix_prefill": 1.5e-11}
# Where a fit begins. XLA fuses a layer's operators, TensorFlow calls each.
STARTS = {"graph": _START | {"call_prefill": 3e-4, "layer_prefill": 7e-4, "call_step": 2e-4,
                             "layer_step": 5e-4},
          "xla": _START | {"call_prefill": 7e-4, "layer_prefill": 4e-4, "call_step": 4.5e-4,
                           "layer_step": 1.1e-4}}


class CompiledTime:
    """Args:
        constants: as in `STARTS`.
        table: seconds of products.
    """

    def __init__(self, constants: dict[str, float], table: Table):
        self.constants, self.table = constants, table

    def latency(self, shape: Shape, batch: int, prompt: int,
                new_tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and of each of those after it."""
        lengths = batch, prompt, new_tokens
        return self.prefill(shape, *lengths), self.step(shape, *lengths)

    def prefill(self, shape: Shape, batch: int, prompt: int, new_tokens: int) -> float:
        """Seconds to the first token."""
        length, capacity = padded_lengths(prompt, new_tokens)
        seconds = self._seconds("prefill", padded_prefill(shape, batch, length, capacity), batch,
                                capacity, 1)
        return seconds + (self.encode(shape.source, batch) if shape.source else 0.0)

    def encode(self, source: Source, batch: int) -> float:
        """Of the shortest sources."""
        work = encoding(source.encoder, batch, source.least)
        return self._seconds("prefill", work, batch, source.least, 1)

    def step(self, shape: Shape, batch: int, prompt: int, new_tokens: int) -> float:
        _, capacity = padded_lengths(prompt, new_tokens)
        return self._seconds("step", padded_step(shape, batch, capacity), batch, capacity,
                             steps_after(new_tokens))

    def read(self, shape: Shape, count: int, prompt: int, new_tokens: int) -> float:
        """Seconds of a pass over several tokens of one text."""
        _, capacity = padded_lengths(prompt, new_tokens)
        return self._seconds("step", padded_read(shape, count, capacity), 1, capacity,
                             steps_after(new_tokens))

    def _seconds(self, kind: str, work: Pass, batch: int, capacity: int, steps: int) -> float:
        c, shape, rows, dtype = self.constants, work.shape, work.rows, work.shape.compute
        read = work.weight_bytes
        products = (self.product(kind, shape.head, work.logits, read, dtype, True, steps)
                    if work.logits else 0.0)
        between = c[f"call_{kind}"] + c[f"value_{kind}"] * work.logits * shape.vocabulary
        for (matrices, a), count in shape.kinds.items():
            products += count * sum(self.product(kind, m, rows, read, dtype, steps=steps)
                                    for m in matrices)
            pairs = rows * (a.heads * capacity + a.source_heads * work.source)
            width = sum(m.inputs + m.outputs for m in matrices)
            cache = (2 * ITEM_BYTES[dtype] * batch * capacity * a.kv_heads * a.dim
                     if work.logits else 0)
            between += count * (
                a.layers * c[f"layer_{kind}"]
                + pairs * (c[f"pair_{kind}"] + 4 * a.dim * c[f"mix_{kind}"])
                + rows * width * c[f"value_{kind}"] + cache * c[f"copy_{kind}"])
        return products + between

    def product(self, kind: str, matrix: Matrix, rows: int, read: float, dtype: str,
                transposed: bool = False, steps: int = LONG) -> float:
        """Seconds; what floats take is corrected, what 16 bits take beyond it is computing alone.

        Args:
            kind: whose correction it is.
            read: bytes that are read in turn.
            steps: how many of them follow a prompt, see `reading.py`.
        """
        seconds = beyond = 0.0
        for inputs, outputs in matrix.parts:
            weights = inputs * outputs
            source, passes = read, steps
            if matrix.bits in self.table.unpacking:  # it was just unpacked, and lies in the cache
                source, passes = 4 * weights, LONG
            wide = 1.0 if transposed else self.table.narrow(rows, outputs)
            seconds += (self.table.seconds(rows, weights, source, transposed, passes) * wide
                        + self.table.unpacking.get(matrix.bits, 0.0) * weights)
            beyond += self.table.beyond(rows, weights, source, dtype, transposed, passes)
        return self.constants[f"products_{kind}"] * seconds + beyond
