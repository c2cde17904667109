"""Operations and bytes of a prefill and of a decode step, in closed form.

Counted are dot products (a multiply-add is two operations), as `traced.py` counts them in the graph
that TensorFlow runs; norms, softmax and activations are a few per cent more. Two kinds of engines:
`graph` and `xla` read prompts padded to a bucket, and attend over the whole capacity of the cache;
`fused` reads what there is and attends over what is filled.
"""

import dataclasses

from tfspeed.costs.shapes import Shape
from tfspeed.engines.base import bucket


@dataclasses.dataclass(frozen=True)
class Pass:
    """One call.

    Attributes:
        rows: tokens that go through the layers, padding among them.
        logits: of those, the ones that go through the head.
        pairs: of a query head and a slot that it is multiplied with, in each layer.
        slots: of the cache that are read, of all texts, in each layer.
        source: positions that cross-attention looks at.
    """

    shape: Shape
    rows: int
    logits: int
    pairs: tuple[int, ...]
    slots: tuple[int, ...]
    source: int = 0

    @property
    def flops(self) -> int:
        """Of matrices, and of scores and weighted sums."""
        products = sum(m.flops(self.rows) for layer in self.shape.layers for m in layer)
        attended = sum(4 * pairs * a.dim for pairs, a in
                       zip(self.pairs, self.shape.attention, strict=True))
        looked = 4 * self.rows * self.source * sum(a.source_heads * a.dim
                                                   for a in self.shape.attention)
        return products + attended + looked + self.shape.head.flops(self.logits)

    @property
    def weight_bytes(self) -> int:
        """Of the matrices: each is read once, whatever the number of rows."""
        return self.shape.step_weight_bytes

    def cache_bytes(self, itemsize: int) -> int:
        """Of keys and values, or of a recurrent state, that are read."""
        attended = sum(2 * slots * a.kv_heads * a.dim for slots, a in
                       zip(self.slots, self.shape.attention, strict=True))
        if not self.shape.attention:
            attended = self.rows * self.shape.state_values
        attended += 2 * self.logits * self.source * sum(a.source_heads * a.dim
                                                        for a in self.shape.attention)
        return itemsize * attended

    def read_bytes(self, cache_itemsize: int) -> int:
        """Of weights and cache."""
        return self.weight_bytes + self.cache_bytes(cache_itemsize)


def padded_lengths(prompt: int, new_tokens: int) -> tuple[int, int]:
    """Tokens that `graph` and `xla` read of a prompt, and slots of their cache."""
    length = bucket(prompt)
    return length, bucket(length + new_tokens)


def padded_prefill(shape: Shape, batch: int, length: int, capacity: int) -> Pass:
    """Every token is multiplied with every slot."""
    rows = batch * length
    return Pass(shape, rows, batch, *_whole(shape, batch, rows, capacity),
                shape.source.least if shape.source else 0)


def padded_step(shape: Shape, batch: int, capacity: int) -> Pass:
    return padded_prefill(shape, batch, 1, capacity)


def padded_read(shape: Shape, count: int, capacity: int) -> Pass:
    """Tokens of one text that follow one another, with logits of each: what verifies drafts."""
    return dataclasses.replace(padded_prefill(shape, 1, count, capacity), logits=count)


def encoding(encoder: Shape, batch: int, length: int) -> Pass:
    """Of sources of so many positions, each of which sees all."""
    rows = batch * length
    return Pass(encoder, rows, 0, *_whole(encoder, batch, rows, length))


def filled_prefill(shape: Shape, batch: int, length: int) -> Pass:
    """A token is multiplied with the slots before it, and its own."""
    pairs, slots = [], []
    for a in shape.attention:
        window = min(a.window or length, length)
        seen = window * (window + 1) // 2 + (length - window) * window
        pairs.append(batch * a.heads * seen)
        slots.append(batch * length)
    return Pass(shape, batch * length, batch, tuple(pairs), tuple(slots))


def filled_step(shape: Shape, batch: int, context: float) -> Pass:
    """With `context` tokens a row, the new one among them."""
    seen = [min(context, a.window or context) for a in shape.attention]
    return Pass(shape, batch, batch,
                tuple(batch * a.heads * s for a, s in zip(shape.attention, seen, strict=True)),
                tuple(batch * s for s in seen), shape.source.length if shape.source else 0)


def _whole(shape: Shape, batch: int, rows: int, capacity: int):
    return (tuple(rows * a.heads * capacity for a in shape.attention),
            tuple(batch * capacity for _ in shape.attention))
