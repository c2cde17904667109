"""Dense layers as two thin products (truncated SVD, whitened by what the layers read).

What changes: a matrix W [out, in] becomes B [out, r] times A [r, in], the pair of rank r that moves
the layer's outputs on calibration text least. Each layer's rank comes from one budget: directions
go where a parameter saved costs the model's prediction least. Layers are split one after another,
so that later ones are fitted to what earlier ones have become.
Why it is faster: a decode step reads r · (out + in) weights of the layer, not out · in. At
`fraction=0.1` SmolLM2-135M reads 484 MB a token in float32 instead of 538 (int8: 121, not 135).
When it is not: a rank saves nothing before it is under out · in / (out + in), which is 288 for
SmolLM2's square 576 x 576 matrices and 485 for its 3072 x 576 ones: a square matrix must lose half
of its directions before a byte is saved. A layer that is split is one operator (or one wait of the
threads) more, which a small model's step feels. Matrices where it would not pay are left whole,
and the report names them. `prune_structured` gives up as many weights for a little less quality,
and adds no operator.
What it costs: five to seven minutes for 135 M parameters on two cores that others used too, and
quality, over the gate of 10 % already at `fraction=0.1`: follow with `distill`.
Exact: no; the report states each kind's error. See BUILD.md for perplexities.
Source: SVD-LLM, arXiv:2403.07378 (whitening).
"""

import dataclasses

import keras

from strategies.base import Strategy, option
from tfspeed import gate
from tfspeed.compression import (
    block_reader,
    calibration,
    copying,
    fisher,
    low_rank,
    replacing,
    targets,
)
from tfspeed.compression.hessian import relative_error
from tfspeed.compression.low_rank import Spectrum
from tfspeed.errors import TfspeedError

_ALL_BUT_HEADS = r"^(?!(.*/)?(head|logits|lm_head)$)"
_KINDS = tuple(kind for kind in targets.KINDS if kind is not keras.layers.Embedding)
_WINDOWS = 8  # of calibration text, for what outputs cost


@dataclasses.dataclass(frozen=True)
class Options:
    fraction: float = option(0.1, "share of the whole model's parameters to take away, over 0 and "
                                   "under 0.9")
    targets: str = option("", "regular expression of the names of Dense layers; default: all but "
                               "the output layer")
    multiple: int = option(16, "ranks are multiples of it, finer in narrow layers: kernels "
                                "compute sixteen rows at a time")
    whiten: bool = option(True, "fit to what the layers read in the calibration text; false: "
                                 "plain SVD, which destroys language models")


class LowRank(Strategy):
    name = "low_rank"
    Options = Options
    max_perplexity_increase = gate.STRUCTURAL

    def __init__(self, options=None):
        super().__init__(options)
        if not 0 < self.options.fraction < 0.9:
            raise TfspeedError("low_rank_fraction is a share of the parameters, over 0 and under "
                               "0.9.",
                               low_rank_fraction=self.options.fraction)
        if self.options.multiple < 1:
            raise TfspeedError("Ranks are multiples of a whole number from 1 on.",
                               low_rank_multiple=self.options.multiple)

    def apply(self, model, data=None):
        copy = copying.copied(model)
        every = targets.find(copy.keras_model, self.options.targets or _ALL_BUT_HEADS, _KINDS)
        found = [t for t in every if _can_split(t)]
        tokens = calibration.tokens(copy, data) if self.options.whiten else None
        spectra = self._spectra(copy, found, tokens)
        goal = max(1, round(self.options.fraction * model.parameters))
        self._check(spectra, goal, model.parameters)
        ranks = low_rank.ranks(spectra, goal)
        errors = self._split(copy, [t for t in found if t.name in ranks], ranks, tokens)
        self._tell(model, copy, every, spectra, ranks, errors)
        return copy

    def _spectra(self, copy, found, tokens) -> dict[str, Spectrum]:
        """By name; layers whose inputs are not seen have none."""
        spectra = {}
        costs = {} if tokens is None else fisher.output_costs(
            copy, found, block_reader.spread(tokens, _WINDOWS))

        def survey(group):
            for o in group:
                if o.gram is None and tokens is not None:
                    continue
                directions, energies = low_rank.decomposed(o.target.matrix(), o.gram)
                # Nats where gradients reach the layer, or everywhere the share of its outputs.
                scale = 1 / max(energies.sum(), 1e-30)
                if costs:
                    cost = costs.get(o.target.name)
                    if cost is None:
                        continue
                    scale = (cost @ directions ** 2) @ energies * scale
                spectra[o.target.name] = Spectrum(
                    o.target.shape, scale * energies,
                    low_rank.fitting(self.options.multiple, o.target.shape))

        _read(copy, found, tokens, survey)
        return spectra

    def _split(self, copy, chosen, ranks, tokens) -> dict[str, float]:
        """Splits the layers; gives the share of each one's outputs that moved."""
        errors = {}

        def change(group):
            for o in group:
                matrix = o.target.matrix()
                first, second = low_rank.halves(matrix, o.gram, ranks[o.target.name])
                if o.gram is not None:
                    errors[o.target.name] = relative_error(second @ first - matrix, matrix, o.gram)
                replacing.split(o.target, first, second)

        _read(copy, chosen, tokens, change)
        return errors

    def _check(self, spectra, goal, parameters) -> None:
        most = low_rank.reach(spectra)
        if most < goal:
            raise TfspeedError(
                "No ranks of these layers save as many parameters.",
                low_rank_fraction=self.options.fraction, layers=len(spectra),
                most=round(most / parameters, 4),
                hint="Ask for a smaller fraction, or for more layers by --low_rank_targets.")

    def _tell(self, before, after, every, spectra, ranks, errors) -> None:
        self._lines = [f"{before.parameters / 1e6:.2f} M parameters became "
                       f"{after.parameters / 1e6:.2f} M: {len(ranks)} of {len(every)} layers are "
                       "two thin products."]
        for kind in dict.fromkeys(t.kind for t in every):
            named = [t.name for t in every if t.kind == kind]
            split = [n for n in named if n in ranks]
            if split:
                low, high = min(ranks[n] for n in split), max(ranks[n] for n in split)
                shares = [errors[n] for n in split if n in errors]
                self._lines.append(
                    f"{kind} ({_sizes(spectra[n] for n in split)}): {len(split)} of {len(named)}, "
                    f"ranks {low} to {high}"
                    + (f", outputs moved by {100 * sum(shares) / len(shares):.0f} % in the mean."
                       if shares else "."))
        for names, why in (
                ([n for n in spectra if n not in ranks], "Whole, for less rank costs more there"),
                ([t.name for t in every if t.name not in spectra],
                 "Left alone, for they are no plain Dense layers, or not read")):
            if names:
                self._lines.append(f"{why}: {', '.join(names[:6])}"
                                   f"{f' … ({len(names)})' if len(names) > 6 else ''}.")


def _can_split(target) -> bool:
    """Subclasses, and layers that Keras has quantized, may do anything with their kernel."""
    layer = target.layer
    return type(layer) is keras.layers.Dense and not getattr(layer, "quantization_mode", None)


def _read(copy, found, tokens, change) -> None:
    """Hands over the layers with their Gram matrices, or without tokens as they are."""
    if tokens is None:
        for target in found:
            change([calibration.Observed(target, None, 0)])
    elif found:
        calibration.stream(copy, found, tokens, change)


def _sizes(spectra) -> str:
    return ", ".join(dict.fromkeys(f"{s.shape[0]} x {s.shape[1]}" for s in spectra))
