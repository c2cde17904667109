"""Takes out whole heads, MLP neurons and layers: the model comes out smaller and dense.

What changes: `fraction` of the model's parameters goes, in units that leave plain, smaller
matrices: neurons of the MLPs, groups of query heads with their key and value head, whole layers.
Calibration text says which: those whose loss, after a least-squares refit of the matrix that reads
them, moves the next token's distribution least for each parameter (`auto` compares neurons and
heads of all layers by that). Blocks are cut one after another, each refitted to what the ones
before it give by then.
Why it is faster: a step reads fewer bytes and multiplies less, in every engine, in proportion.
When it is not: the embedding and the head stay whole, and they are a fifth of a small model. A
model of a million parameters is not bound by its bytes (1.01x for a tenth fewer).
Of an encoder–decoder both sides shrink: neurons, heads, and heads over the source with their part
of the keys and values that the encoder makes once; never layers, nor where positions are relative
(T5) heads of self-attention.
What it costs: minutes of both cores (135 M parameters), and quality: SmolLM2 lost 18 % perplexity
for a tenth of its parameters on 6,000 calibration tokens (with less damping than now), over the
gate of 10 %. The refit lives from text: give much by `--calibration`, and follow with `distill`. By
the survey, a layer costs several times what neurons and heads of as many parameters do: `auto`
takes none.
Exact: no.
Source: ZipLM (arXiv:2302.04089), SlimGPT (arXiv:2412.18110), ShortGPT (arXiv:2403.03853, by
measured divergence in place of similarity), after optimal brain surgery (Hassibi, Stork 1993).
"""

import dataclasses
import math
import re

from strategies.base import Strategy, option
from tfspeed import gate
from tfspeed.compression import (
    calibration,
    chains,
    copying,
    decoder_pruning,
    pruning_survey,
    seq2seq_pruning,
)
from tfspeed.compression.sources import sources
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder import Decoder
from tfspeed.models.encoder_decoder import EncoderDecoder

WHAT = ("auto", "neurons", "heads", "layers")
# Of 256 tokens, where the text has as many. The refit's error on unseen text follows them: without
# a quarter of a layer's neurons (SmolLM2) 12.9 % with 24 windows, 11.8 % with 64, 10.7 % with 128.
_WINDOWS = 128
_WHOLE = "Embedding, head and norms stay whole: they have no units."


@dataclasses.dataclass(frozen=True)
class Options:
    fraction: float = option(0.1, "of the parameters of the whole model, the embedding included, "
                                   "to take out: over 0, under 0.9")
    what: str = option("auto", "neurons, heads, layers, or auto: neurons and heads")
    multiple: int = option(32, "widths of MLPs shrink by multiples of this (fewer where a layer "
                                "is narrow): kernels like 16 and 32")
    targets: str = option("", "regular expression of the places where something may go, such as "
                               "block_3/mlp, block_3/attention or block_3; default: all")


class PruneStructured(Strategy):
    name = "prune_structured"
    Options = Options
    max_perplexity_increase = gate.STRUCTURAL

    def __init__(self, options=None):
        super().__init__(options)
        o = self.options
        if not 0 < o.fraction < 0.9:
            raise TfspeedError("--prune_structured_fraction must be over 0 and under 0.9.",
                               fraction=o.fraction)
        if o.what not in WHAT:
            raise TfspeedError(f"--prune_structured_what must be one of {', '.join(WHAT)}.",
                               what=o.what)
        if o.multiple < 1:
            raise TfspeedError("--prune_structured_multiple must be at least 1.",
                               multiple=o.multiple)
        try:
            re.compile(o.targets)
        except re.error as error:
            raise TfspeedError("Layers are chosen by a regular expression.", targets=o.targets,
                               cause=str(error)) from error

    def apply(self, model, data=None):
        copying.check_finite(model.keras_model)
        tokens = calibration.tokens(model, data, windows=_WINDOWS)
        if isinstance(model.keras_model, Decoder):
            decoder, lines = self._decoder(model.keras_model, tokens)
            made = copying.over(model, decoder)
        elif isinstance(model.keras_model, EncoderDecoder):
            both, lines = self._both_sides(model, tokens)
            made = copying.over(model, both)
        else:
            made, lines = chains.prune(model, tokens, self.options)
        before, after = model.parameters, made.parameters
        step = [m.step_bytes(1, 256) for m in (model, made)]
        self._lines = [
            f"{before - after:,} of {before:,} parameters went, {1 - after / before:.1%}.", *lines,
            f"A step with 256 tokens behind it reads {step[1] / 1e6:.1f} MB of weights and cache, "
            f"not {step[0] / 1e6:.1f}, {1 - step[1] / step[0]:.1%} less."]
        return made

    def _both_sides(self, model, tokens):
        o, both, left_alone = self.options, model.keras_model, []
        if o.what == "layers":
            raise TfspeedError("Of an encoder–decoder heads and neurons can go, no layers.",
                               what=o.what)
        after = sources(model, tokens)
        decoder_pruning.check(seq2seq_pruning.blocks_of(both))
        kinds = {"neurons": ("neurons",), "heads": ("heads", "cross")}.get(
            o.what, seq2seq_pruning.KINDS)
        if both.config.positions == "relative" and "heads" in kinds:
            left_alone.append("Heads of self-attention stay: relative positions belong to the "
                              "heads of all layers.")
            kinds = [kind for kind in kinds if kind != "heads"]
        places = seq2seq_pruning.allowed(both, kinds, o.targets)
        self._check_places(places, left_alone, "encoder_0/mlp, encoder_0/attention and "
                                               "decoder_0/cross")
        goal = math.ceil(o.fraction * both.config.parameter_count)
        self._check_reach(seq2seq_pruning.reach(both, places, o.multiple), goal,
                          both.config.parameter_count)
        curves = seq2seq_pruning.survey(both, tokens, after, places, o.multiple)
        cut = seq2seq_pruning.choose(both, curves, goal, o.multiple)
        made = seq2seq_pruning.build(both, cut, tokens, after, o.multiple)
        return made, [*_removed_of_sides(both.config, made.config), *left_alone]

    def _decoder(self, decoder, tokens):
        o, c = self.options, decoder.config
        decoder_pruning.check(decoder.blocks)
        wanted = {kind: pruning_survey.allowed_layers(c, kind, o.targets)
                  for kind in {"auto": ("neurons", "heads")}.get(o.what, (o.what,))}
        left_alone = []
        if c.positions == "alibi" and "heads" in wanted:
            left_alone.append("Heads stay: ALiBi's slopes belong to the heads of a whole layer.")
            wanted.pop("heads")
        self._check_places(any(wanted.values()), left_alone,
                           "block_0/mlp, block_0/attention and block_0")
        goal = math.ceil(o.fraction * c.parameter_count)
        self._check_reach(pruning_survey.reach(c, wanted, o.multiple), goal, c.parameter_count)
        cut = self._cut(decoder, tokens, wanted, goal)
        made = decoder_pruning.build(decoder, cut, tokens, o.multiple)
        return made, [*_removed(c, made.config, cut), *left_alone]

    def _cut(self, decoder, tokens, wanted, goal):
        """What to take out; the survey's own memory is gone before the cut takes any."""
        survey = pruning_survey.Survey(decoder, tokens)
        if self.options.what == "layers":
            return pruning_survey.Cut({}, {}, pruning_survey.choose_layers(
                survey, wanted["layers"], goal))
        survey.units(wanted, self.options.multiple)
        return pruning_survey.choose_units(survey, goal)

    def _check_places(self, places, left_alone, names: str) -> None:
        if not places:
            raise TfspeedError("Nothing of the model may be taken out.", what=self.options.what,
                               targets=self.options.targets,
                               hint=" ".join(left_alone) or f"Places are called {names}.")

    def _check_reach(self, most: int, goal: int, parameters: int) -> None:
        """Before anything slow: is there as much as shall go?"""
        if most < goal:
            raise TfspeedError(
                "There is not as much to take out as the fraction asks for: something must stay "
                "in each layer.", fraction=self.options.fraction, what=self.options.what,
                largest_fraction=math.floor(most / parameters * 1000) / 1000,
                hint="Ask for less, or allow more by --prune_structured_what or _targets.")


def _removed(before, after, cut) -> list[str]:
    """What went, by kind."""
    layers = range(before.num_layers)
    lines = []
    if cut.layers:
        lines.append(f"Layers: {len(cut.layers)} of {before.num_layers} went ("
                     f"{', '.join(map(str, cut.layers))}).")
    left = range(after.num_layers)
    for what, size, places in (
            ("Neurons", lambda c, i: c.layer(i).mlp_dim, cut.neurons),
            ("Groups of heads", lambda c, i: c.layer(i).num_kv_heads, cut.heads)):
        if places:
            whole = sum(size(before, i) for i in layers)
            sizes = [size(after, i) for i in left]
            lines.append(f"{what}: {whole - sum(sizes):,} of {whole:,} went, from {len(places)} of "
                         f"{before.num_layers} layers; {min(sizes)} to {max(sizes)} a layer are "
                         "left.")
    return [*lines, _WHOLE]


def _removed_of_sides(before, after) -> list[str]:
    """What went of an encoder–decoder, by kind and side."""
    def heads(c, side):
        return [c.side(side).layer(i).num_heads for i in range(c.side(side).num_layers)]

    def widths(c, side):
        return [c.side(side).layer(i).mlp_dim for i in range(c.side(side).num_layers)]

    lines = []
    for what, sizes in (
            ("Neurons of the encoder", lambda c: widths(c, 0)),
            ("Heads of the encoder", lambda c: heads(c, 0)),
            ("Neurons of the decoder", lambda c: widths(c, 1)),
            ("Heads of the decoder", lambda c: heads(c, 1)),
            ("Heads over the source", lambda c: [c.cross(i) for i in range(c.decoder_layers)])):
        whole, left = sizes(before), sizes(after)
        if whole != left:
            lines.append(f"{what}: {sum(whole) - sum(left):,} of {sum(whole):,} went; {min(left)} "
                         f"to {max(left)} a layer are left.")
    return [*lines, _WHOLE]
