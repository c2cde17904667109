"""A packed decoder as the fused operator takes it: a plan, a shared blob, and a blob a layer.

The structures mirror `kernels/plan.h` field by field.
"""

import ctypes
import dataclasses
from collections.abc import Sequence

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.pack import PackedBlock, PackedDecoder, Product
from tfspeed.litert.panels import LANES, Blob, Matrix
from tfspeed.memory import aligned, pieces
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import alibi_slopes

OPERATOR = "tfspeed.decoder"
_ACTIVATIONS = {name: i for i, name in enumerate(("silu", "gelu", "gelu_tanh", "relu"))}
_POSITIONS = {name: i for i, name in enumerate(("rope", "learned", "alibi", "none"))}
_LARGEST = 2**31 - 1  # offsets and shapes have 32 bits
_INT, _FLOAT = ctypes.c_int32, ctypes.c_float


class _Layer(ctypes.Structure):
    _fields_ = [*((name, Matrix) for name in (
                    "query_key_value", "out", "gate", "up", "down", "query_key_value_first",
                    "out_first", "gate_up_first", "down_first")),
                *((name, _INT) for name in ("attention_norm", "mlp_norm", "attention_post_norm",
                                            "mlp_post_norm", "head_scale", "window", "rope",
                                            "mlp", "heads", "kv_heads"))]


class _Rope(ctypes.Structure):
    _fields_ = [("factor", _FLOAT), ("original", _INT), ("frequencies", _INT),
                ("long_frequencies", _INT)]


class _Plan(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in (
            "layers", "hidden", "heads", "kv_heads", "dim", "mlp", "vocabulary", "rotary",
            "layer_norm", "activation", "gated", "positions", "parallel", "half_cache",
            "context", "rank")),
        *((name, _FLOAT) for name in ("epsilon", "attention_softcap", "logit_softcap")),
        ("embedding", Matrix), ("head", Matrix), ("head_first", Matrix),
        *((name, _INT) for name in ("embedding_scale", "position_embedding", "final_norm",
                                    "slopes")),
        ("ropes", _Rope * 2)]


SIZES = (ctypes.sizeof(_Plan), ctypes.sizeof(_Layer))  # what kernels/decoder.c must agree with


@dataclasses.dataclass(frozen=True, eq=False)
class FusedPlan:
    """`arrays`: the plan, int32 `[n]`; a blob, uint8, of embedding, head, final norm and angles;
    and a blob a layer."""

    arrays: list[np.ndarray]


def make(config: DecoderConfig, packed: PackedDecoder, half_cache: bool,
         numbers: Sequence[int] | None = None, first: bool = True, last: bool = True) -> FusedPlan:
    """Args:
        half_cache: whether keys and values are kept in float16.
        numbers: of the layers that it has; None: all.
        first, last: whether it has the embedding, and final norm and head.
    """
    c, shared = config, Blob()
    numbers = range(c.num_layers) if numbers is None else numbers
    ropes = list(dict.fromkeys(c.layer_rope(i) for i in range(c.num_layers)
                               if c.layer_rope(i)))
    tied = packed.head.weight is packed.embedding and packed.head.bias is None
    embedding = shared.matrix(packed.embedding) if first or (last and tied) else Matrix()
    head = embedding
    if last and not tied:
        head = shared.matrix(packed.head.weight, bias=packed.head.bias)
    positions = packed.position_embedding if first else None
    plan = _Plan(
        layers=len(numbers), hidden=c.hidden_dim, heads=c.num_heads, kv_heads=c.num_kv_heads,
        dim=c.head_dim, mlp=c.mlp_dim, vocabulary=c.vocabulary_size,
        rotary=c.rotary_dim if c.positions == "rope" else 0, layer_norm=c.norm == "layer",
        activation=_ACTIVATIONS[c.activation], gated=c.gated_mlp,
        positions=_POSITIONS[c.positions], parallel=c.parallel_residual, half_cache=half_cache,
        context=c.context_length, rank=_rank(packed), epsilon=c.norm_epsilon,
        attention_softcap=c.attention_softcap, logit_softcap=c.logit_softcap,
        embedding=embedding, head=head,
        head_first=_first(packed.head, shared) if last else Matrix(),
        embedding_scale=shared.add(packed.embedding_scale if first else None),
        position_embedding=shared.add(None if positions is None else positions.data),
        final_norm=shared.add(packed.final_norm if last else None),
        slopes=shared.add(alibi_slopes(c.num_heads) * np.float32(c.query_scale)))
    for i in range(2):
        plan.ropes[i] = _rope(c, ropes[i], shared) if i < len(ropes) else _Rope(1, 0, -1, -1)
    layers, blobs = (_Layer * len(numbers))(), []
    for i, number in enumerate(numbers):
        blob, rope = Blob(), c.layer_rope(number)
        layers[i] = _layer(c.layer(number), packed.blocks[number], blob, c.window(number),
                           ropes.index(rope) if rope else -1)
        blobs.append(blob)
    for blob in (shared, *blobs):
        if blob.size > _LARGEST:
            raise TfspeedError("The fused engine takes matrices of up to 2 GB together in a layer.",
                               bytes=blob.size, hint="Use fewer bits, or --engine=litert.")
    words = np.frombuffer(bytes(plan) + bytes(layers), np.int32)
    own, *places = pieces([words.nbytes, shared.size, *(blob.size for blob in blobs)])
    own = own.view(np.int32)
    own[:] = words
    for blob, place in zip((shared, *blobs), places, strict=True):
        blob.write(place)
    return FusedPlan([own, *places])


def first_layers(plan: FusedPlan, count: int) -> FusedPlan:
    """The same weights, of `count` layers only: what comes after them is the final norm."""
    words, shared, *blobs = plan.arrays
    head, layer = SIZES
    kept = bytearray(words.tobytes()[:head + count * layer])
    _Plan.from_buffer(kept).layers = count
    own = aligned((len(kept) // 4,), np.int32)
    own[:] = np.frombuffer(kept, np.int32)
    return FusedPlan([own, shared, *blobs[:count]])


def cache_type(config: DecoderConfig, half: bool, layers: int, blocks: int, block: int) -> tuple:
    """Shape and type of a cache, `[layers, 2, blocks, kv_heads, block, head_dim]`, heads padded to
    whole vectors."""
    dim = -(-config.head_dim // LANES) * LANES
    return ((layers, 2, blocks, config.num_kv_heads, block, dim),
            np.float16 if half else np.float32)


def write(file, name: str, plan: FusedPlan, tokens: tuple, control: int, cache: tuple,
          out: tuple) -> None:
    """A signature of a `TfliteFile`: the operator over a plan.

    Args:
        tokens: shape of its first input.
        control: numbers of its second.
        cache: shape and type, see `cache_type`.
        out: shape of what it gives beside the cache.
    """
    graph = file.signature(name)
    inputs = [graph.input("tokens", tokens, np.int32), graph.input("control", (control,), np.int32),
              graph.input("cache", *cache)]
    # Weights come in as inputs: one copy in memory, whatever the number of files.
    inputs += [graph.input(f"weights_{i}", a.shape, a.dtype) for i, a in enumerate(plan.arrays)]
    made = graph.custom(OPERATOR, inputs, [cache, (out, np.float32)])
    graph.finish(dict(zip(("new_cache", "logits"), made, strict=True)))


def _rope(c, rope, shared) -> _Rope:
    long = rope.inverse_frequencies(c.rotary_dim, long=True) if rope.long_factors else None
    return _Rope(rope.attention_factor, rope.original_context,
                 shared.add(rope.inverse_frequencies(c.rotary_dim)), shared.add(long))


def _rank(packed: PackedDecoder) -> int:
    """The largest of all products that are two thin ones."""
    products = [packed.head, *(p for b in packed.blocks
                               for p in (b.query_key_value, b.out, b.up, b.down))]
    return max(0 if p.first is None else p.first.shape[0] for p in products)


def _first(product: Product, blob: Blob) -> Matrix:
    """What a product reads through; no rows where it is a single one."""
    return Matrix() if product.first is None else blob.matrix(product.first)


def _layer(c: DecoderConfig, block: PackedBlock, blob: Blob, window: int, rope: int) -> _Layer:
    def whole(product, rows=slice(None)):
        return blob.matrix(product.weight, rows, product.bias)

    attention_norm = blob.add(block.attention_norm)
    shared_norm = block.mlp_norm is block.attention_norm
    gate = whole(block.up, slice(0, c.mlp_dim))
    return _Layer(
        query_key_value=whole(block.query_key_value), out=whole(block.out), gate=gate,
        up=whole(block.up, slice(c.mlp_dim, None)) if c.gated_mlp else gate,
        down=whole(block.down), query_key_value_first=_first(block.query_key_value, blob),
        out_first=_first(block.out, blob), gate_up_first=_first(block.up, blob),
        down_first=_first(block.down, blob), attention_norm=attention_norm,
        mlp_norm=attention_norm if shared_norm else blob.add(block.mlp_norm),
        attention_post_norm=blob.add(block.attention_post_norm),
        mlp_post_norm=blob.add(block.mlp_post_norm), head_scale=blob.add(block.head_scale),
        window=window, rope=rope, mlp=c.mlp_dim, heads=c.num_heads, kv_heads=c.num_kv_heads)
