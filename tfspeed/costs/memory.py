"""Bytes that a model needs where it runs: weights, KV cache, activations, and the peak of getting
there.

`graph` and `xla` give back new caches: for the length of a step there are two; beside that, the
scores of one layer (`xla` lays out those before and after the softmax, and the widest values, in
one piece), and the traced functions, which grow with the layers. `fused` keeps one cache, in blocks
whose size doubles from 256 slots (half as much again is held while it is copied), heads filled up
to sixteen; beside the float32 variables it holds the matrices twice, as they were packed and in
panels, and while integers are put into panels four bytes of each of the largest one's values.
`litert` holds them as they were packed, and what XNNPACK and the mapped file have of them. Before
either, integers are rounded with calibration text, once: all of it goes through a layer at a time.
"""

import dataclasses

from tfspeed.costs.computation import padded_lengths
from tfspeed.costs.fused_time import ROWS
from tfspeed.costs.matrices import up_to
from tfspeed.costs.shapes import Shape
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats

RUNTIME_BYTES = 670e6  # Python and TensorFlow with nothing loaded (BUILD.md, Export)
_SMALLEST_CACHE = 256  # slots, see engines/fused.py
# Of traced and compiled functions, and of each of their layers: measured on models of 5 to 30
# layers (BUILD.md).
_FUNCTIONS = {"graph": (85e6, 2.3e6), "xla": (100e6, 9.4e6)}
_LITERT = 20e6, 1.42, 1.78  # once, and times the packed weights: of floats, of integers
# Rounding with calibration text: its windows and their length; how many times a layer's inputs
# and outputs are held at most; and what TensorFlow keeps of having run operators one by one.
_WINDOWS, _LENGTH = 20, 256
_HELD, _KEPT = 2.05, (28e6, 0.92)
# While a strategy is applied: `quantize` beside tables and Gram matrices, and where it makes up for
# its own errors; others in all, and times the float32 weights (SmolLM2-135M and glassllm).
_QUANTIZING, _COMPENSATING = 35e6, 220e6
_APPLYING = {"low_rank": (40e6, 0.68), "prune_structured": (40e6, 0.92)}


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
        rounding: the most while they are rounded with calibration text, before that.
        kept: of it by TensorFlow, from then on.
    """

    variables: float
    packed: float
    cache: float
    activations: float
    functions: float = 0.0
    packing: float = 0.0
    rounding: float = 0.0
    kept: float = 0.0

    @property
    def total(self) -> float:
        """The most that a process has resident that has nothing else loaded."""
        running = (self.packed + self.functions + self.kept
                   + max(self.packing, self.cache + self.activations))
        return RUNTIME_BYTES + self.variables + max(self.rounding, running)


def needed(shape: Shape, engine: str, batch: int, prompt: int, new_tokens: int,
           rounded: bool = True) -> Memory:
    """Args:
        shape: as the model's layers are; the engine's name says what it packs them to.
        rounded: whether integers are yet to be rounded: they are kept on the disk afterwards.

    Raises:
        TfspeedError: nothing is known of the engine.
    """
    variables, kind = variable_bytes(shape), engine.partition(":")[0]
    if kind not in ("fused", "litert", *_FUNCTIONS) or (kind == "fused" and not shape.attention):
        raise TfspeedError("Nothing is known of this engine's memory.", engine=engine,
                           model=shape.name)
    if kind in ("fused", "litert"):
        formats = Formats.of_engine(engine)
        stored = shape.stored(formats)
        made = _litert if kind == "litert" else _fused
        found = made(shape, stored, batch, prompt, new_tokens, formats.cache_itemsize)
        return found if not (rounded and formats.quantized) else dataclasses.replace(
            found, **rounding(shape, stored))
    length, capacity = padded_lengths(prompt, new_tokens)
    cache = 4 * batch * capacity * sum(2 * a.kv_heads * a.dim for a in shape.attention)
    rows = batch * length
    scores = 4 * max((a.heads for a in shape.attention), default=0) * rows * capacity
    activations = scores + 4 * batch * shape.vocabulary
    if kind == "xla":
        widest = max((m.outputs for layer in shape.layers for m in layer), default=0)
        # All packed matrices are unpacked before the first is used (SmolLM2-135M: 590 MB more).
        activations += scores + 4 * rows * widest + 4 * sum(
            m.parameters for m in shape.matrices if m.bits <= 8)
    base, layer = _FUNCTIONS[kind]
    return Memory(variables, 0, 2 * cache, activations, base + layer * len(shape.layers))


def _fused(shape, stored, batch, prompt, new_tokens, itemsize) -> Memory:
    cache = fused_cache_bytes(shape, batch, prompt + new_tokens, itemsize)
    if prompt + new_tokens > _SMALLEST_CACHE:
        cache += cache // 2  # that which it grew from
    return Memory(variable_bytes(shape), 2 * stored.step_weight_bytes, cache,
                  _fused_scratch(shape, batch, prompt), packing=_packing(stored))


def _litert(shape, stored, batch, prompt, new_tokens, itemsize) -> Memory:
    del itemsize  # its caches are float32
    once, floats, integers = _LITERT
    times = 1 + (integers if any(m.bits <= 8 for m in stored.matrices) else floats)
    slots = _slots(prompt + new_tokens)
    cache = 4 * batch * slots * sum(2 * a.kv_heads * a.dim for a in shape.attention)
    return Memory(variable_bytes(shape), times * stored.step_weight_bytes, cache,
                  4 * batch * shape.vocabulary, functions=once)


def rounding(shape: Shape, stored: Shape) -> dict[str, float]:
    """`Memory`'s `rounding` and `kept`, where integers are made with calibration text."""
    if not any(new.bits <= 8 < old.bits for new, old in zip(stored.matrices, shape.matrices,
                                                            strict=True)):
        return {}
    widths = max(sum(m.inputs + 2 * m.outputs for m in layer) for layer in shape.layers)
    seen = 4 * _WINDOWS * min(_LENGTH, shape.context) * widths
    return {"rounding": stored.step_weight_bytes + _HELD * seen,
            "kept": _KEPT[0] + _KEPT[1] * seen}


def applying(strategy: str, shape: Shape, changed: Shape) -> float | None:
    """The most that a process has resident while a strategy is applied, of the shape before and
    after it; 0 where nothing is, None where it is not known."""
    before = RUNTIME_BYTES + variable_bytes(shape)
    if strategy == "baseline":
        return 0.0
    if strategy in _APPLYING:
        once, share = _APPLYING[strategy]
        return before + once + share * variable_bytes(shape)
    if strategy != "quantize":
        return None
    # The integers, and at a time a table in float32 or a layer's Gram matrices, twice.
    grams = max(sum(4 * m.inputs**2 for m in layer) for layer in shape.layers)
    four = any(m.bits == 4 for m in changed.matrices)
    return (before + variable_bytes(changed) + _QUANTIZING + four * _COMPENSATING
            + 4 * shape.head.parameters + 2 * grams)


def _packing(stored: Shape) -> float:
    return 4 * max((m.parameters for m in stored.matrices if m.bits < 16), default=0)


def variable_bytes(shape: Shape) -> int:
    """Of the Keras model's variables: a low-rank or quantized layer's own."""
    return shape.step_weight_bytes + 4 * (shape.small_values + shape.table_values)


def fused_cache_bytes(shape: Shape, batch: int, tokens: int, itemsize: int) -> int:
    """Of the cache that so many tokens a row end in."""
    # All layers have as many heads as the one with the most.
    heads = max(a.kv_heads for a in shape.attention)
    dim = up_to(shape.attention[0].dim, 16)
    return len(shape.attention) * 2 * batch * heads * _slots(tokens) * dim * itemsize


def _slots(tokens: int) -> int:
    """Of a cache that doubles until it holds so many tokens."""
    slots = _SMALLEST_CACHE
    while slots < tokens:
        slots *= 2
    return slots


def _fused_scratch(shape: Shape, batch: int, prompt: int) -> int:
    """What kernels/decoder.c reserves for a call's rows, and the logits."""
    rows = min(batch * prompt, max(ROWS, batch))
    query_key_value, out, _, down = max(shape.layers, key=lambda layer: layer[3].inputs)
    hidden, widest = shape.hidden, max(out.inputs, shape.hidden, down.inputs)
    floats = (3 * hidden + query_key_value.outputs + 2 * out.inputs + 2 * down.inputs + widest)
    return rows * (4 * floats + widest) + 4 * batch * shape.vocabulary
