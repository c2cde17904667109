"""What `sharding` must know of an encoder–decoder: its config on a replica, its cross-attention,
and T5's table of distances, of which each replica has the columns of its own heads."""

import dataclasses
import functools
from collections.abc import Iterator

import keras
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig


class ShardEncoderDecoder(EncoderDecoder):
    """An `EncoderDecoder` of a replica's size."""

    def get_config(self):
        raise TfspeedError("The parts of a sharded model are spread over replicas: it cannot be "
                           "copied, changed or saved.",
                           hint="Name tensor_parallel last: quantize+tensor_parallel.")


def shard_config(source: EncoderDecoder, shares: list) -> EncoderDecoderConfig:
    """The config on a replica.

    Args:
        shares: a `sharding.BlockShares` of each block, the encoder's first.
    """
    config = source.config
    encoder, decoder = shares[:config.encoder_layers], shares[config.encoder_layers:]
    within = [s.heads.each for s in shares]
    cross, columns = [s.cross.each for s in decoder], [s.columns.each for s in shares]
    heads, width = max(within + cross), max(columns)
    if config.positions == "relative" and {*within} != {heads}:
        raise TfspeedError("Relative positions belong to the heads of all layers, and these cannot "
                           "be split alike.", heads=within, cross=cross)

    def each(counts, most):
        return tuple(counts) if {*counts} != {most} else ()

    return dataclasses.replace(
        config, num_heads=heads, mlp_dim=width, cross_heads=each(cross, heads),
        encoder_heads=each([s.heads.each for s in encoder], heads),
        decoder_heads=each([s.heads.each for s in decoder], heads),
        encoder_mlp_dims=each([s.columns.each for s in encoder], width),
        decoder_mlp_dims=each([s.columns.each for s in decoder], width))


def tables(made: EncoderDecoder, source: EncoderDecoder, shares: list) -> Iterator[tuple]:
    """Pairs as `sharding.parts` yields them, of what belongs to heads and to no layer."""
    if source.config.positions == "relative":
        for table, original in zip(made.positions, source.positions, strict=True):
            yield table.embeddings, functools.partial(_columns, np.asarray(original.embeddings),
                                                      shares[0].heads)


def _columns(values: np.ndarray, heads, replica: int) -> np.ndarray:
    units = heads.units(replica)
    return np.where(units < 0, 0, np.take(values, units, 1)).astype(values.dtype)


def cross_matrices(block: keras.layers.Layer) -> tuple:
    """Those that are split: query, key and value by what they give, out by what it reads."""
    if not getattr(block, "crosses", False):
        return ()
    return block.cross.query, block.cross.key_value, block.cross.out
