"""Bytes that a model needs where it runs: weights, KV cache, activations, and the peak of getting
there.

`graph` and `xla` give back new caches: for the length of a step there are two; beside that, the
scores of one layer (`xla` lays out those before and after the softmax, and the widest values, in
one piece), and the traced functions, which grow with the layers. `fused` keeps one cache, in blocks
whose size doubles from 256 slots (half as much again is held while it is copied), heads filled up
to sixteen; beside the float32 variables it holds the matrices twice, as they were packed and in
panels, and while integers are put into panels four bytes of each of the largest one's values.
`litert` holds them as they were packed, once more as XNNPACK keeps them, and the embedding twice
besides: in the mapped file and unpacked for looking rows up. Before either, integers are rounded
with calibration text, once: all of it goes through a layer at a time. What is on the disk already
is mapped, and its pages count like any others. TensorFlow never gives back what its tensors took.
"""

import dataclasses

from tfspeed.costs.cases import PACKED
from tfspeed.costs.computation import padded_lengths
from tfspeed.costs.fused_time import ROWS
from tfspeed.costs.matrices import up_to
from tfspeed.costs.shapes import Shape
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.session import PREFILLS

RUNTIME_BYTES = 627e6  # Python and TensorFlow with nothing loaded: 383 of it their mapped code
# What loading leaves: a share of the variables in regions that TensorFlow's allocator has taken
# and not filled, and bytes of each token of a tokenizer.
_LEFT, _TOKEN = 0.06, 500
_SMALLEST_CACHE = 256  # slots, see engines/fused.py
# Of traced and compiled functions, and of each of their layers: measured on models of 5 to 30
# layers (BUILD.md).
_FUNCTIONS = {"graph": (88e6, 2.9e6), "xla": (125e6, 7.5e6)}
_LITERT, _ARENAS = 21e6, 3  # of its libraries and graphs; copies of a prefill's widest layer
CALIBRATION_TOKENS = 20 * 256  # the project's own text in SmolLM2's tokens
# Operators run one by one: their code, and their tensors over those that live at once, since freed
# pieces of one size do not hold another.
_EAGER, _SPREAD = 11e6, 1.45
_BUILDING = 25e6  # the model again, without its weights, while a strategy is applied
_CHUNK = 2 * 256  # tokens that strategies read at a time, see compression/block_reader.py
_SOLVING = 5  # float64 copies of the largest Gram matrix while it is inverted
_SAMPLED = 10, 64  # float32 copies of the logits, of how many tokens, while labels are drawn
_JUDGED = 2 * 256  # tokens whose logits a survey keeps


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
        left: of loading, see `_LEFT`.
        file: of the model, mapped while it is loaded.
    """

    variables: float
    packed: float
    cache: float
    activations: float
    functions: float = 0.0
    packing: float = 0.0
    rounding: float = 0.0
    kept: float = 0.0
    left: float = 0.0
    file: float = 0.0

    @property
    def total(self) -> float:
        """The most that a process has resident that has nothing else loaded."""
        running = (self.packed + self.functions + self.kept
                   + max(self.packing, self.cache + self.activations))
        return (RUNTIME_BYTES + self.variables + self.left
                + max(self.file, self.rounding, running))


def needed(shape: Shape, engine: str, batch: int, prompt: int, new_tokens: int,
           rounded: bool = True, tokens: int = CALIBRATION_TOKENS, file: float = 0.0) -> Memory:
    """Args:
        shape: as the model's layers are; the engine's name says what it packs them to.
        rounded: whether integers are yet to be rounded: they are kept on the disk afterwards.
        tokens: of the text that they are rounded with.
        file: bytes of the model's files.

    Raises:
        TfspeedError: nothing is known of the engine.
    """
    variables, kind = variable_bytes(shape), engine.partition(":")[0]
    if kind not in (*PACKED, *_FUNCTIONS) or (kind == "fused" and not shape.attention):
        raise TfspeedError("Nothing is known of this engine's memory.", engine=engine,
                           model=shape.name)
    if kind in PACKED:
        formats = Formats.of_engine(engine)
        stored = shape.stored(formats)
        made = _litert if kind == "litert" else _fused
        found = made(shape, stored, batch, prompt, new_tokens, formats.cache_itemsize)
        found = dataclasses.replace(found, left=left(shape), file=file)
        return found if not (rounded and formats.quantized) else dataclasses.replace(
            found, **rounding(shape, stored, tokens))
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
    return Memory(variables, 0, 2 * cache, activations, base + layer * len(shape.layers),
                  left=left(shape), file=file)


def _fused(shape, stored, batch, prompt, new_tokens, itemsize) -> Memory:
    cache = fused_cache_bytes(shape, batch, prompt + new_tokens, itemsize)
    if prompt + new_tokens > _SMALLEST_CACHE:
        cache += cache // 2  # that which it grew from
    packed = 2 * (stored.step_weight_bytes + _table_bytes(stored))
    return Memory(variable_bytes(shape), packed, cache,
                  _fused_scratch(shape, batch, prompt), packing=_packing(stored))


def _litert(shape, stored, batch, prompt, new_tokens, itemsize) -> Memory:
    del itemsize  # its caches are float32
    slots = _slots(prompt + new_tokens)
    cache = 4 * batch * slots * sum(2 * a.kv_heads * a.dim for a in shape.attention)
    length = max(n for n in PREFILLS if n <= slots)
    packed = stored.step_weight_bytes + _table_bytes(stored)
    return Memory(variable_bytes(shape), packed, cache,
                  litert_running(shape, stored, batch, length))


def litert_running(shape: Shape, stored: Shape, batch: int, length: int, logits: int = 1) -> float:
    """What LiteRT holds of a file of these weights, caches left out, beside what it was written
    from: XNNPACK's copy, the tables, and arenas for calls of so many tokens.

    Args:
        logits: tokens of a row that there are logits of.
    """
    widest = max(sum(m.outputs for m in layer) for layer in shape.layers) + shape.hidden
    arenas = 4 * batch * (_ARENAS * length * widest + logits * shape.vocabulary)
    return (_LITERT + stored.step_weight_bytes + 2 * stored.head.nbytes + 4 * _positions(stored)
            + arenas)


def rounding(shape: Shape, stored: Shape, tokens: int = CALIBRATION_TOKENS) -> dict[str, float]:
    """`Memory`'s `rounding` and `kept`, where integers are made with calibration text."""
    if not any(new.bits <= 8 < old.bits for new, old in zip(stored.matrices, shape.matrices,
                                                            strict=True)):
        return {}
    # What the layer's matrices read, and twice the widest of it while its channels are compared.
    read = max(sum(m.inputs for m in layer) + 2 * max(m.inputs for m in layer)
               for layer in shape.layers)
    kept = eager(shape, tokens)
    return {"rounding": stored.step_weight_bytes + kept + 4 * tokens * read + _layer_bytes(shape),
            "kept": kept}


def eager(shape: Shape, tokens: int) -> float:
    """What TensorFlow takes to run a layer over so many tokens operator by operator: what the MLP
    makes at a time, `up`, its halves or what they become, beside what the layer read."""
    widest = max(2 * shape.hidden + 3 * max(m.outputs for m in layer) for layer in shape.layers)
    return _EAGER + _SPREAD * 4 * tokens * widest


def applying(strategy: str, shape: Shape, changed: Shape,
             tokens: int = CALIBRATION_TOKENS) -> float | None:
    """The most that a process has resident while a strategy is applied, of the shape before and
    after it; 0 where nothing is, None where it is not known."""
    if strategy == "baseline":
        return 0.0
    before = RUNTIME_BYTES + variable_bytes(shape) + left(shape) + _BUILDING
    grams = 4 * max(sum(m.inputs**2 for m in layer) for layer in shape.layers)
    solving = _SOLVING * 8 * max(m.inputs**2 for layer in shape.layers for m in layer)
    # The text itself, what a part of it takes, and Gram matrices: sums and means.
    reading = 4 * tokens * shape.hidden + eager(shape, _CHUNK) + 2 * grams
    if strategy == "quantize":
        four = any(m.bits == 4 for m in changed.matrices)
        return (before + reading + variable_bytes(changed) + 4 * shape.head.parameters
                + four * solving)
    made = sum(new.nbytes for new, old in zip(changed.matrices, shape.matrices, strict=True)
               if new != old)
    if strategy == "low_rank":
        copies, rows = _SAMPLED
        return before + reading + made + copies * 4 * rows * shape.vocabulary + _layer_bytes(shape)
    if strategy == "prune_structured":
        return before + reading + solving + max(made, 4 * _JUDGED * shape.vocabulary)
    return None


def left(shape: Shape) -> float:
    """Bytes that loading leaves behind, see `_LEFT`."""
    return _LEFT * variable_bytes(shape) + _TOKEN * shape.vocabulary


def _layer_bytes(shape: Shape) -> int:
    """Of the largest layer's matrices in float32."""
    return 4 * max(sum(m.parameters for m in layer) for layer in shape.layers)


def _packing(stored: Shape) -> float:
    return 4 * max((m.parameters for m in stored.matrices if m.bits < 16), default=0)


def _table_bytes(stored: Shape) -> float:
    """Of tables that no product reads: positions in float32, an embedding of its own like the
    head."""
    positions, head = _positions(stored), stored.head
    return 4 * positions + (stored.table_values - positions) * head.nbytes / head.parameters


def _positions(shape: Shape) -> int:
    """Values of a table of positions."""
    c = shape.config
    return c.context_length * c.hidden_dim if c and c.positions == "learned" else 0


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
