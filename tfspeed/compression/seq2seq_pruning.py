"""Takes heads and neurons out of an `EncoderDecoder`, as `pruning_survey` and `decoder_pruning` do
of a `Decoder`: a survey of what they cost, the cheapest ones' choice, the cut block by block.

Units are the neurons of MLPs, the heads of self-attention, and those of cross-attention (`cross`)
with the part of the encoder's keys and values that is theirs.
"""

import dataclasses
import re

import numpy as np

from tfspeed.compression.block_reader import Grams, layers_of, spread
from tfspeed.compression.copying import rebuilt, share
from tfspeed.compression.decoder_pruning import assign, fill, kept_units, select, share_named
from tfspeed.compression.pruning_survey import PLACES, curve, steps_of, unit
from tfspeed.compression.seq2seq_reader import decoder_side, divergence, encoder_side, log_p
from tfspeed.compression.sources import Sources
from tfspeed.compression.structured import cheapest, columns_of
from tfspeed.memory import give_back
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig

KINDS = ("neurons", "heads", "cross")
_WINDOWS, _TRIALS = 24, 2  # of calibration text for the survey, and of these for KL divergences


def allowed(model: EncoderDecoder, kinds, pattern: str) -> list[tuple[str, str]]:
    """Kind and block of the places that a pattern matches, such as `decoder_2/cross`."""
    return [(kind, block.name) for block in blocks_of(model) for kind in kinds
            if (kind != "cross" or block.crosses)
            and re.search(pattern, f"{block.name}/{PLACES[kind]}")]


def blocks_of(model: EncoderDecoder) -> list:
    return [*model.encoder, *model.decoder]


def reach(model: EncoderDecoder, places, multiple: int) -> int:
    """The most parameters that can go from these places."""
    named = {block.name: block for block in blocks_of(model)}
    return sum(_most(kind, named[name], multiple) * _size(kind, named[name], multiple)
               for kind, name in places)


def survey(model: EncoderDecoder, tokens: np.ndarray, after: Sources, places, multiple: int,
           ) -> dict[tuple[str, str], np.ndarray]:
    """What each step out of a place costs, nats a token: see `pruning_survey.Survey`."""
    tokens, after = _spread(tokens, after)
    text = spread(tokens, _TRIALS)
    heard = after.rows(spread(np.arange(len(tokens)), _TRIALS))
    sure, curves = log_p(model, text, heard), {}

    def look(block, kind, gram):
        found = curve(block, kind, gram, multiple,
                      lambda: divergence(sure, log_p(model, text, heard)))
        if found is not None:
            curves[kind, block.name] = found

    _walk(model, model, tokens, after, places, look)
    return curves


def choose(model: EncoderDecoder, curves: dict, goal: int, multiple: int) -> dict:
    """Steps by place: the cheapest that free at least `goal` parameters, as far as there are."""
    named = {block.name: block for block in blocks_of(model)}
    sizes = {(kind, name): _size(kind, named[name], multiple) for kind, name in curves}
    return {place: steps for place, steps in cheapest(curves, sizes, goal).items() if steps}


def build(model: EncoderDecoder, cut: dict, tokens: np.ndarray, after: Sources, multiple: int,
          ) -> EncoderDecoder:
    """The smaller model; what it has in common with the other one shares its memory."""
    config = pruned_config(model, cut, multiple)
    made = rebuilt(model, model.get_config() | {"config": config.to_dict()})
    share_named(made, model, "embedding", "head")
    for name in ("convolutions", "positions", "embedding_norms", "final_norms"):
        for new, old in zip(getattr(made, name, ()), getattr(model, name, ()), strict=True):
            share(new, old)
    if config.logit_bias:
        made.logit_bias._value = model.logit_bias._value
    kept: dict[str, dict] = {}

    def refit(block, kind, gram):
        kept.setdefault(block.name, {})[kind] = kept_units(
            kind, block, gram, cut[kind, block.name], multiple)

    def finish(block, new):
        _fill(new, block, kept.pop(block.name, {}))

    _walk(model, made, tokens, after, list(cut), refit, finish)
    return made


def pruned_config(model: EncoderDecoder, cut: dict, multiple: int) -> EncoderDecoderConfig:
    changes: dict[str, tuple] = {}
    for kind, blocks, name in (("neurons", model.encoder, "encoder_mlp_dims"),
                               ("neurons", model.decoder, "decoder_mlp_dims"),
                               ("heads", model.encoder, "encoder_heads"),
                               ("heads", model.decoder, "decoder_heads"),
                               ("cross", model.decoder, "cross_heads")):
        if any((kind, block.name) in cut for block in blocks):
            changes[name] = tuple(
                _units(kind, block, multiple) - cut.get((kind, block.name), 0)
                * unit(block.attention.config, kind, multiple)[1] for block in blocks)
    return dataclasses.replace(model.config, **changes)


def _walk(model, made, tokens, after: Sources, places, change, finish=None) -> None:
    """Both sides block by block: `change(block, kind, gram)` at each place with what the unit's
    reader reads, then `finish(block, new)`; what follows reads what the new block makes."""
    kinds: dict[str, list[str]] = {}
    for kind, name in places:
        kinds.setdefault(name, []).append(kind)

    def side(reader, new):
        for i, (block, other) in enumerate(zip(reader.blocks, new, strict=True)):
            if block.name in kinds:
                grams = Grams(block, kinds[block.name])
                with grams.watching():
                    for _, out in reader.outputs(i, reader.x):
                        grams.see(out)
                for kind in kinds[block.name]:
                    change(block, kind, grams.of(kind))
            if finish is not None:
                finish(block, other)
            reader.through(i, other)
            give_back()  # what the block took for a while
        return reader.x

    hidden = side(encoder_side(model, after.distinct), made.encoder)
    side(decoder_side(model, tokens, after, hidden), made.decoder)


def _fill(new, old, kept: dict) -> None:
    fill(new, old, kept)
    if not old.crosses:
        return
    share_named(new, old, "cross_norm")
    if "cross" not in kept:
        share(new.cross, old.cross)
        return
    heads, matrix = kept["cross"]
    columns = columns_of(heads, old.cross.config.head_dim)
    select(new.cross.query, old.cross.query, columns)
    select(new.cross.key_value, old.cross.key_value,
           np.concatenate([columns, old.cross.out_width + columns]))
    assign(new.cross.out, matrix)


def _spread(tokens: np.ndarray, after: Sources) -> tuple[np.ndarray, Sources]:
    """At most `_WINDOWS`, and no other sources than theirs."""
    chosen = spread(np.arange(len(tokens)), _WINDOWS)
    used, of = np.unique(after.of[chosen], return_inverse=True)
    return tokens[chosen], Sources(after.distinct[used], of)


def _units(kind: str, block, multiple: int) -> int:
    width = unit(block.attention.config, kind, multiple)[0]
    return layers_of(block)[kind].kernel.shape[0] // width


def _size(kind: str, block, multiple: int) -> int:
    """Parameters of a step."""
    return unit(block.attention.config, kind, multiple)[2]


def _most(kind: str, block, multiple: int) -> int:
    """Steps that may be taken."""
    step = unit(block.attention.config, kind, multiple)[1]
    return steps_of(_units(kind, block, multiple), step, kind)
