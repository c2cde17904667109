"""Bytes that a model needs where it runs: weights, KV cache, activations, and the peak of getting
there.

`graph` and `xla` give back new caches: for the length of a step there are two; beside that, the
scores of one layer (`xla` lays out those before and after the softmax, and the widest values, in
one piece), and the traced functions, which grow with the layers. `fused` keeps one cache, in blocks
whose size doubles from 256 slots (half as much again is held while it is copied), heads filled up
to sixteen; beside the float32 variables it holds the matrices twice, as they were packed and in
panels, and while integers are put into panels four bytes of each of the largest one's values.
"""

import dataclasses

from tfspeed.costs.computation import padded_lengths
from tfspeed.costs.fused_time import ROWS
from tfspeed.costs.matrices import up_to
from tfspeed.costs.shapes import Shape
from tfspeed.litert.formats import Formats

RUNTIME_BYTES = 670e6  # Python and TensorFlow with nothing loaded (BUILD.md, Export)
_SMALLEST_CACHE = 256  # slots, see engines/fused.py
# Of traced and compiled functions, and of each of their layers: measured on models of 5 to 30
# layers (BUILD.md).
_FUNCTIONS = {"graph": (85e6, 2.3e6), "xla": (100e6, 9.4e6)}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        variables: what the Keras model holds.
        packed: the matrices as the engine keeps them beside that; 0 where it reads the variables.
        cache: keys and values of all rows, at their most.
        activations: what a call needs besides.
        functions: what was traced and compiled.
        packing: what is held before there is a cache, while matrices are packed.
    """

    variables: float
    packed: float
    cache: float
    activations: float
    functions: float = 0.0
    packing: float = 0.0

    @property
    def total(self) -> float:
        """The most that a process has resident that has nothing else loaded."""
        return (RUNTIME_BYTES + self.variables + self.packed + self.functions
                + max(self.packing, self.cache + self.activations))


def needed(shape: Shape, engine: str, batch: int, prompt: int, new_tokens: int) -> Memory:
    """Args:
        shape: as the model's layers are; the engine's name says what it packs them to.
    """
    variables, kind = variable_bytes(shape), engine.partition(":")[0]
    if kind == "fused":
        formats = Formats.of_engine(engine)
        stored = shape.stored(formats)
        cache = fused_cache_bytes(shape, batch, prompt + new_tokens, formats.cache_itemsize)
        if prompt + new_tokens > _SMALLEST_CACHE:
            cache += cache // 2  # that which it grew from
        return Memory(variables, 2 * stored.step_weight_bytes, cache,
                      _fused_scratch(shape, batch, prompt), packing=_packing(stored))
    length, capacity = padded_lengths(prompt, new_tokens)
    cache = 4 * batch * capacity * sum(2 * a.kv_heads * a.dim for a in shape.attention)
    rows = batch * length
    scores = 4 * max((a.heads for a in shape.attention), default=0) * rows * capacity
    activations = scores + 4 * batch * shape.vocabulary
    if kind == "xla":
        widest = max((m.outputs for layer in shape.layers for m in layer), default=0)
        activations += scores + 4 * rows * widest
    base, layer = _FUNCTIONS.get(kind, (0, 0))
    return Memory(variables, 0, 2 * cache, activations, base + layer * len(shape.layers))


def _packing(stored: Shape) -> float:
    return 4 * max((m.parameters for m in stored.matrices if m.bits < 16), default=0)


def variable_bytes(shape: Shape) -> int:
    """Of the Keras model's variables: a low-rank or quantized layer's own."""
    return shape.step_weight_bytes + 4 * (shape.small_values + shape.table_values)


def fused_cache_bytes(shape: Shape, batch: int, tokens: int, itemsize: int) -> int:
    """Of the cache that so many tokens a row end in."""
    slots = _SMALLEST_CACHE
    while slots < tokens:
        slots *= 2
    # All layers have as many heads as the one with the most.
    heads = max(a.kv_heads for a in shape.attention)
    dim = up_to(shape.attention[0].dim, 16)
    return len(shape.attention) * 2 * batch * heads * slots * dim * itemsize


def _fused_scratch(shape: Shape, batch: int, prompt: int) -> int:
    """What kernels/decoder.c reserves for a call's rows, and the logits."""
    rows = min(batch * prompt, max(ROWS, batch))
    query_key_value, out, _, down = max(shape.layers, key=lambda layer: layer[3].inputs)
    hidden, widest = shape.hidden, max(out.inputs, shape.hidden, down.inputs)
    floats = (3 * hidden + query_key_value.outputs + 2 * out.inputs + 2 * down.inputs + widest)
    return rows * (4 * floats + widest) + 4 * batch * shape.vocabulary
