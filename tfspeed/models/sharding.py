"""Splits the weights of a model over replicas: whole groups of heads, and columns of the MLP.

Query, key, value, gate and up are split by what they give, out and down by what they read, so that
between them each replica goes on with its own part (Megatron, arXiv:1909.08053). Shares are equal:
what does not divide is filled up with heads and columns of zeros, which change no sum. Biases of
out and down are held by the first replica alone, and so added once.
"""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig
from tfspeed.models.conversion import convert, named_layers, unallocated
from tfspeed.models.decoder import Block, Decoder, alibi_slopes
from tfspeed.models.low_rank import LowRankDense
from tfspeed.models.packed import PackedDense
from tfspeed.models.sharding_seq2seq import (
    ShardEncoderDecoder,
    cross_matrices,
    shard_config,
    tables,
)
from tfspeed.models.unread import values

Part = Callable[[int], np.ndarray]  # of a replica


@dataclasses.dataclass(frozen=True)
class Share:
    """What each of some replicas holds of a layer's heads or columns.

    Attributes:
        count: units there are: groups of heads that share a key head, or columns.
        each: units that a replica holds, those of zeros counted.
    """

    count: int
    each: int

    def units(self, replica: int) -> np.ndarray:
        """int64 `[each]`, -1 for those of zeros."""
        units = replica * self.each + np.arange(self.each)
        return np.where(units < self.count, units, -1)


class BlockShares:
    """The shares of one block, and which rows and columns of its matrices they are.

    Attributes:
        cross: of cross-attention's heads; None without.
    """

    def __init__(self, block: Block, replicas: int):
        self.config = c = block.attention.config
        self.group = c.num_heads // c.num_kv_heads
        self.heads = _share(c.num_kv_heads, replicas, self.group * c.head_dim,
                            _alignment(block.attention.out))
        self.columns = _share(c.mlp_dim, replicas, 1, _alignment(block.mlp.down))
        self.cross = None
        if cross_matrices(block):
            self.cross_heads = block.cross.num_heads
            self.cross = _share(self.cross_heads, replicas, c.head_dim,
                                _alignment(block.cross.out))

    def cross_query(self, replica: int) -> np.ndarray:
        return _elements(self.cross.units(replica), self.config.head_dim)

    def cross_key_value(self, replica: int) -> np.ndarray:
        keys = self.cross_query(replica)
        return np.concatenate([keys, _moved(keys, self.cross_heads * self.config.head_dim)])

    def query(self, replica: int) -> np.ndarray:
        return _elements(self.heads.units(replica), self.group * self.config.head_dim)

    def query_key_value(self, replica: int) -> np.ndarray:
        c, units = self.config, self.heads.units(replica)
        keys = _elements(units, c.head_dim)
        first_key, first_value = c.num_heads * c.head_dim, c.qkv_dim - c.num_kv_heads * c.head_dim
        return np.concatenate([self.query(replica), _moved(keys, first_key),
                               _moved(keys, first_value)])

    def down(self, replica: int) -> np.ndarray:
        return self.columns.units(replica)

    def up(self, replica: int) -> np.ndarray:
        columns = self.down(replica)
        if not self.config.gated_mlp:
            return columns
        return np.concatenate([columns, _moved(columns, self.config.mlp_dim)])


class ShardDecoder(Decoder):
    """A `Decoder` of a replica's size.

    Attributes:
        all_slopes: ALiBi's, float32 `[replicas, heads]`; `replica` tells which row is meant.
    """

    all_slopes = None
    replica: Callable[[], int]

    def slopes(self):
        return keras.ops.take(keras.ops.convert_to_tensor(self.all_slopes), self.replica(), axis=0)

    def get_config(self):
        raise TfspeedError("The parts of a sharded model are spread over replicas: it cannot be "
                           "copied, changed or saved.",
                           hint="Name tensor_parallel last: quantize+tensor_parallel.")


def blocks_of(model) -> list:
    """All layers that are split."""
    return list(model.blocks) if isinstance(model, Decoder) else [*model.encoder, *model.decoder]


def build(source, replicas: int):
    """A `Decoder` or `EncoderDecoder` of a replica's size; its variables have no memory, see
    `parts`.

    Raises:
        TfspeedError: the model has layers that cannot be split.
    """
    shares = [BlockShares(block, replicas) for block in blocks_of(source)]
    config, alone = source.get_config(), isinstance(source, Decoder)
    converted = config.pop("converted", None) or {}
    config["config"] = (_shard_config(source.config, shares) if alone
                        else shard_config(source, shares))
    sharded = {id(layer) for block in blocks_of(source) for layer in _matrices(block)}
    names = dict(named_layers(source))
    whole = {name: made for name, made in converted.items() if id(names[name]) not in sharded}
    with unallocated():
        made = (ShardDecoder if alone else ShardEncoderDecoder)(**config)
        made.take_over(whole)
        for block, old in zip(blocks_of(made), blocks_of(source), strict=True):
            for layer, original in zip(_matrices(block), _matrices(old), strict=True):
                _fit(layer, original)
    if alone and source.config.positions == "alibi":
        slopes = np.append(alibi_slopes(source.config.num_heads), np.float32(0))
        heads = [_elements(shares[0].heads.units(r), shares[0].group) for r in range(replicas)]
        made.all_slopes = slopes[np.asarray(heads)]  # -1, a head of zeros, takes the last
    return made


def parts(made, source, replicas: int) -> Iterator[tuple]:
    """Pairs of a Keras variable of `made` and its values: an array where all replicas hold the
    same, else a `Part`."""
    split = set()
    for variable, part in _split_parts(made, source, replicas):
        split.add(id(variable))
        yield variable, part
    for variable, original in zip(made.variables, source.variables, strict=True):
        if id(variable) not in split:
            yield variable, values(original)


def _split_parts(made, source, replicas: int) -> Iterator[tuple]:
    """Those of `parts` of which each replica has its own."""
    shares = [BlockShares(old, replicas) for old in blocks_of(source)]
    for block, old, s in zip(blocks_of(made), blocks_of(source), shares, strict=True):
        cuts = [(True, s.query_key_value), (False, s.query), (True, s.up), (False, s.down)]
        if s.cross:
            cuts += [(True, s.cross_query), (True, s.cross_key_value), (False, s.cross_query)]
        for layer, original, cut in zip(_matrices(block), _matrices(old), cuts, strict=True):
            yield from _split(layer, original, *cut)
    if not isinstance(source, Decoder):
        yield from tables(made, source, shares)


def filling(source, replicas: int) -> float:
    """The fraction of all replicas' heads and columns that are zeros, by weights."""
    real = held = 0
    for block in blocks_of(source):
        shares, c = BlockShares(block, replicas), block.attention.config
        cross = [(shares.cross, 4 * c.head_dim)] if shares.cross else []
        for share, weights in ((shares.heads, 2 * (shares.group + 1) * c.head_dim),
                               (shares.columns, 3 if c.gated_mlp else 2), *cross):
            real += weights * share.count
            held += weights * share.each * replicas
    return 1 - real / held


def _matrices(block: Block) -> tuple:
    return (block.attention.query_key_value, block.attention.out, block.mlp.up, block.mlp.down,
            *cross_matrices(block))


def _share(count: int, replicas: int, width: int, alignment: int) -> Share:
    """Equal shares of `count` units, each `width` wide, that end where `alignment` allows."""
    each = -(-count // replicas)
    while each * width % alignment:
        each += 1
    return Share(count, each)


def _alignment(layer) -> int:
    """Where a layer's columns may be cut: not inside a block of one scale, nor inside a byte."""
    if isinstance(layer, LowRankDense):
        layer = layer.first
    packing = getattr(layer, "packing", None)
    if packing is None:
        return 1
    return packing["block"] or (2 if packing["bits"] == 4 else 1)


def _elements(units: np.ndarray, width: int) -> np.ndarray:
    """The elements of units that are `width` wide; -1 stays -1."""
    elements = units[:, None] * width + np.arange(width)
    return np.where(units[:, None] < 0, -1, elements).ravel()


def _moved(elements: np.ndarray, start: int) -> np.ndarray:
    return np.where(elements < 0, -1, elements + start)


def _shard_config(config: DecoderConfig, shares: list[BlockShares]) -> DecoderConfig:
    heads, columns = [s.heads.each for s in shares], [s.columns.each for s in shares]
    return dataclasses.replace(
        config, num_heads=shares[0].group * max(heads), num_kv_heads=max(heads),
        mlp_dim=max(columns),
        layer_kv_heads=tuple(heads) if len(set(heads)) > 1 else (),
        mlp_dims=tuple(columns) if len(set(columns)) > 1 else ())


def _fit(layer, source) -> None:
    """Makes a Dense layer of a replica's size of the kind that `source` is."""
    kind = type(source)
    if kind not in (keras.layers.Dense, PackedDense, LowRankDense) or (
            getattr(source, "quantization_mode", None)):
        raise TfspeedError("tensor_parallel cannot split a layer of this kind.",
                           layer=source.path, kind=kind.__name__,
                           hint="Compress with quantize or low_rank, or leave it out.")
    if kind is keras.layers.Dense:
        return
    width, units = layer._kernel.shape
    config = source.get_config()
    config.pop("converted", None)
    config["units"] = units
    if kind is PackedDense:
        config["packing"] = {**config["packing"], "shape": [units, width],
                             "kernel": [width, units]}
    made = kind.from_config(config)
    made.build((None, None, width))
    if kind is LowRankDense:
        _fit(made.first, source.first)
        _fit(made.second, source.second)
    convert(layer, made)


def _split(made, source, by_out: bool, indices: Part) -> Iterator[tuple]:
    """Pairs as `parts` yields them, of one layer.

    Args:
        by_out: whether `indices` are of what the layer gives, not of what it reads.
    """
    if isinstance(source, LowRankDense):  # B (A x): B's rows are split, or A's columns
        split, whole = ("second", "first") if by_out else ("first", "second")
        yield from _split(getattr(made, split), getattr(source, split), by_out, indices)
        yield from _whole(getattr(made, whole), getattr(source, whole))
        return
    if isinstance(source, PackedDense):
        yield from _split_packed(made, source, by_out, indices)
    else:
        yield made._kernel, _cut(source._kernel, 1 if by_out else 0, indices)
    if source.bias is not None:
        yield made.bias, _cut(source.bias, 0, indices) if by_out else _once(source.bias)


def _split_packed(made, source, by_out: bool, indices: Part) -> Iterator[tuple]:
    scale = source.channel_scale
    if by_out:
        yield made.values, _cut(source.values, 0, indices)
        yield made.scales, _cut(source.scales, 0, indices)
        if scale is not None:
            yield made.channel_scale, values(scale)
        return
    bits, block = source.packing["bits"], source.packing["block"]
    yield made.values, _cut(source.values, 1, indices, 2 if bits == 4 else 1)
    yield made.scales, _cut(source.scales, 1, indices, block) if block else values(source.scales)
    if scale is not None:
        yield made.channel_scale, _cut(scale, 0, indices)


def _whole(made, source) -> Iterator[tuple]:
    for variable, original in zip(made.variables, source.variables, strict=True):
        yield variable, _once(original) if original is source.bias else values(original)


def _cut(variable, axis: int, indices: Part, step: int = 1) -> Part:
    """Those elements along an axis; `step` of them, neighbours, lie in one."""
    def part(replica):
        wanted = indices(replica)[::step] // step  # -1 stays -1
        taken = np.take(values(variable), wanted, axis)
        taken[(slice(None),) * axis + (wanted < 0,)] = 0
        return taken

    return part


def _once(variable) -> Part:
    """What is added up over the replicas, and must be there once."""
    def part(replica):
        if replica:
            return np.zeros(variable.shape, variable.dtype)
        return values(variable)

    return part
