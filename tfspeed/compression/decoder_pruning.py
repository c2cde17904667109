"""Takes whole neurons, groups of heads and layers out of a `Decoder`.

The cut goes block by block, each refitted to what the pruned ones before it give by then.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfspeed.compression.block_reader import Grams, Reader, layers_of, matrix_of
from tfspeed.compression.copying import rebuilt, renew, share
from tfspeed.compression.pruning_survey import Cut, unit
from tfspeed.compression.structured import columns_of, refitted, removal
from tfspeed.errors import TfspeedError
from tfspeed.memory import give_back
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import Block, Decoder


def check(blocks) -> None:
    """Refuses layers that are no plain products any more."""
    for block in blocks:
        crossing = block.cross if hasattr(block, "cross") else None
        for layer in (block.attention.query_key_value, block.attention.out, block.mlp.up,
                      block.mlp.down, *((crossing.query, crossing.key_value, crossing.out)
                                        if crossing else ())):
            if type(layer) is not keras.layers.Dense:
                raise TfspeedError("Pruning whole units needs the float weights.",
                                   layer=layer.path, type=type(layer).__name__,
                                   hint="Name prune_structured before the strategy that packs or "
                                        "splits the layers.")


def pruned_config(c: DecoderConfig, cut: Cut, steps: dict) -> DecoderConfig:
    """The config that is left. `steps`: neurons of a step by layer."""
    left = [i for i in range(c.num_layers) if i not in cut.layers]
    widths = [c.layer(i).mlp_dim - cut.neurons.get(i, 0) * steps[i] for i in left]
    kv_heads = [c.layer(i).num_kv_heads - cut.heads.get(i, 0) for i in left]
    group = c.num_heads // c.num_kv_heads
    flags = {name: tuple(getattr(c, name)[i] for i in left)
             for name in ("rope_layers", "sliding_layers") if getattr(c, name)}
    return dataclasses.replace(
        c, num_layers=len(left), mlp_dim=max(widths), num_kv_heads=max(kv_heads),
        num_heads=max(kv_heads) * group, **flags,
        mlp_dims=tuple(widths) if len(set(widths)) > 1 else (),
        layer_kv_heads=tuple(kv_heads) if len(set(kv_heads)) > 1 else ())


def build(decoder: Decoder, cut: Cut, tokens: np.ndarray, multiple: int) -> Decoder:
    """The smaller decoder; what it has in common with the other one shares its memory."""
    c = decoder.config
    steps = {i: unit(c.layer(i), "neurons", multiple)[1] for i in range(c.num_layers)}
    config = pruned_config(c, cut, steps)
    made = rebuilt(decoder, decoder.get_config() | {"config": config.to_dict()})
    share_named(made, decoder, "embedding", "position_embedding", "final_norm", "head")
    reader = Reader(decoder, tokens)
    blocks = iter(made.blocks)
    last = max([*cut.heads, *cut.neurons], default=-1)  # behind it nothing is refitted
    for i, block in enumerate(decoder.blocks):
        if i in cut.layers:
            continue
        new, kept = next(blocks), {}
        kinds = [k for k, gone in (("heads", cut.heads), ("neurons", cut.neurons)) if i in gone]
        if kinds:
            grams = Grams(block, kinds)
            with grams.watching():
                for _, out in reader.outputs(i, reader.x):
                    grams.see(out)
            for kind in kinds:
                kept[kind] = kept_units(kind, block, grams.of(kind), getattr(cut, kind)[i],
                                        multiple)
        fill(new, block, kept)
        if i < last:
            reader.through(i, reader.x, new, into=reader.x)
        give_back()  # what the block took for a while: the next one's comes on top otherwise
    return made


def kept_units(kind, block, gram, steps, multiple) -> tuple[np.ndarray, np.ndarray]:
    """The units that stay, and the refitted matrix over their columns (and the bias)."""
    width, step, _ = unit(block.attention.config, kind, multiple)
    dense = layers_of(block)[kind]
    matrix = matrix_of(dense)
    units = dense.kernel.shape[0] // width
    gone = removal(matrix, gram, units, step, steps)[0].reshape(-1)
    columns = np.setdiff1d(np.arange(len(gram)), columns_of(gone, width))
    return np.setdiff1d(np.arange(units), gone), refitted(matrix, gram, columns)


def fill(new: Block, old: Block, kept: dict) -> None:
    """Gives a smaller block what is left of another's weights, of `kept_units` by kind."""
    share_named(new, old, "attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")
    share_named(new.attention, old.attention, "query_norm", "key_norm")
    c = old.attention.config
    if "heads" in kept:
        groups, matrix = kept["heads"]
        query = columns_of(groups, c.num_heads // c.num_kv_heads * c.head_dim)
        key = c.num_heads * c.head_dim + columns_of(groups, c.head_dim)
        value = key + c.num_kv_heads * c.head_dim
        select(new.attention.query_key_value, old.attention.query_key_value,
               np.concatenate([query, key, value]))
        assign(new.attention.out, matrix)
    else:
        share_named(new.attention, old.attention, "query_key_value", "out")
    if "neurons" in kept:
        neurons, matrix = kept["neurons"]
        select(new.mlp.up, old.mlp.up,
               np.concatenate([neurons, c.mlp_dim + neurons]) if c.gated_mlp else neurons)
        assign(new.mlp.down, matrix)
    else:
        share_named(new.mlp, old.mlp, "up", "down")


def share_named(new, old, *names: str) -> None:
    """Shares the layers of these names, where there are such."""
    for name in names:
        if getattr(old, name, None) is not None:
            share(getattr(new, name), getattr(old, name))


def select(new, old, outputs: np.ndarray) -> None:
    """Of a Dense layer some outputs."""
    renew(new._kernel, tf.gather(old.kernel, outputs, axis=1))
    if old.use_bias:
        renew(new.bias, tf.gather(old.bias, outputs))


def assign(dense, matrix: np.ndarray) -> None:
    """Takes `[out, in]`, the bias as a last column."""
    inputs = dense.kernel.shape[0]
    renew(dense._kernel, matrix[:, :inputs].T)
    if dense.use_bias:
        renew(dense.bias, matrix[:, -1])
