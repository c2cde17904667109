"""Zeros in the weights, where they cost least: magnitude (TFMOT), Wanda or SparseGPT.

What changes: a share of each matrix (Dense, EinsumDense, Conv) becomes zero, anywhere, as m of
every n neighbours (2:4), or in blocks. `magnitude` zeroes the smallest weights, by TFMOT's engine;
`wanda` the smallest `|W| · ‖x‖` of each output; `sparsegpt` what costs the outputs least, and lets
the other weights make up for it. Embedding, head and norms are left alone.
Why it is faster: on its own it is not. A file with zeros deflates to less (half of the weights:
about six tenths), and hardware with sparse units (2:4) or sparse kernels gains.
When it is not: every engine here multiplies zeros as any other number: no token comes sooner.
What it costs: seconds for magnitude, half a minute for wanda, a minute for sparsegpt (135 M
parameters, 2 cores), calibration text for the last two; minutes to hours with `steps`.
Exact: no. Half of the weights gone cost a small model dearly: see BUILD.md; the gate is 10 %.
Source: arXiv:1710.01878 (magnitude), arXiv:2306.11695 (Wanda), arXiv:2301.00774 (SparseGPT).
"""

import dataclasses

import numpy as np

from strategies.base import Strategy, option, some
from tfspeed import gate
from tfspeed.compression import calibration, copying, sparse, targets, tfmot_pruning
from tfspeed.compression.filesize import deflated_share
from tfspeed.compression.patterns import Pattern
from tfspeed.errors import TfspeedError
from tfspeed.training import TrainOptions, text, train

_WINDOW = 256  # tokens, of the training
METHODS = {"wanda": sparse.wanda, "sparsegpt": sparse.sparsegpt}


@dataclasses.dataclass(frozen=True)
class Options:
    method: str = option("sparsegpt", "magnitude, wanda or sparsegpt")
    sparsity: float = option(0.5, "share of the weights that become zero; m:n patterns set it")
    pattern: str = option("unstructured", "unstructured; m:n, m zeros in every n inputs of an "
                                           "output (2:4); RxC, blocks of R outputs and C inputs")
    steps: int = option(0, "of training (the model as it was is the teacher) after pruning, or "
                            "while it goes on; 0: none; prune+distill has more to choose")
    schedule: str = option("constant", "constant: prune, then train with the masks held; "
                                        "polynomial: the zeros grow in number during training "
                                        "(magnitude only)")
    targets: str = option("", "regular expression of the layers' names; default: all but "
                               "embeddings and head")


class Prune(Strategy):
    name = "prune"
    Options = Options

    def __init__(self, options=None):
        super().__init__(options)
        o = self.options
        if o.method not in ("magnitude", *METHODS):
            raise TfspeedError("prune_method must be magnitude, wanda or sparsegpt.",
                               prune_method=o.method)
        if not 0 < o.sparsity < 1:
            raise TfspeedError("prune_sparsity is a share between 0 and 1: 0.5 is half of the "
                               "weights.", prune_sparsity=o.sparsity)
        if o.steps < 0:
            raise TfspeedError("prune_steps is a number of training steps.", prune_steps=o.steps)
        if o.schedule not in ("constant", "polynomial"):
            raise TfspeedError("prune_schedule must be constant or polynomial.",
                               prune_schedule=o.schedule)
        if o.schedule == "polynomial" and (o.method != "magnitude" or o.steps < 4):
            raise TfspeedError("A polynomial schedule prunes by magnitude during training.",
                               prune_method=o.method, prune_steps=o.steps,
                               hint="Give --prune_method=magnitude and --prune_steps, at least 4.")
        self.pattern = Pattern.parse(o.pattern)
        self.sparsity = self.pattern.sparsity(o.sparsity)

    @property
    def max_perplexity_increase(self):
        return gate.STRUCTURAL

    def apply(self, model, data=None):
        o, copy = self.options, copying.copied(model)
        found = targets.inner(copy, o.targets)
        for target in found:
            self.pattern.check(target.name, target.shape)
        blind: list[str] = []
        if o.method != "magnitude":
            calibration.stream(copy, found, calibration.tokens(copy, data),
                               lambda group: blind.extend(self._prune(group)))
        elif o.schedule == "constant":
            self._prune([calibration.Observed(target, None, 0) for target in found])
        trained = self._train(model, copy, found, data) if o.steps else None
        self._tell(found, blind, trained)
        return copy

    def _prune(self, group) -> list[str]:
        """Changes the layers of one group; returns those pruned by magnitude for want of a Gram
        matrix."""
        for o in group:
            matrix = o.target.matrix()
            if o.gram is None:
                matrix = tfmot_pruning.magnitude(matrix, self.pattern, self.sparsity)
            else:
                matrix = METHODS[self.options.method](matrix, o.gram, self.pattern, self.sparsity)
            o.target.assign(matrix)
        return [o.target.name for o in group if o.gram is None]

    def _train(self, model, copy, found, data) -> dict:
        """Teaches the copy the original's distributions, its zeros held or growing."""
        batch, length = TrainOptions.batch, min(_WINDOW, copy.context_length)
        budget = self.options.steps * batch * length
        tokens = text.windows(copy, data, budget, length)
        growing = self.options.schedule == "polynomial"
        masks = tfmot_pruning.Masks(found, self.pattern, self.sparsity, self.options.steps, growing)
        return train(copy, model, tokens, TrainOptions(tokens=budget, batch=batch), masks)

    def _tell(self, found, blind, trained) -> None:
        zeros: dict[str, list[float]] = {}
        before = after = 0.0
        for target in found:
            stored = target.unfolded(target.matrix())
            zeros.setdefault(target.kind, []).append(np.mean(stored == 0))
            before += stored.nbytes
            after += stored.nbytes * deflated_share(stored)
        kinds = ", ".join(f"{kind} {np.mean(shares):.1%}" for kind, shares in zeros.items())
        self._lines = [
            f"Zeros in {len(found)} matrices, {self.options.method}, {self.options.pattern}: "
            f"{kinds}. All else was left alone.",
            f"Deflated, these matrices take about {after / 1e6:.1f} MB of {before / 1e6:.1f} MB; "
            "in memory as much as before.",
            "Zeros alone make no engine here faster: its kernels multiply them as any number."]
        if trained:
            self._lines.append(f"Trained for {trained['steps']} steps: loss "
                               f"{trained['loss_first']:.3f} → {trained['loss_last']:.3f}.")
        if blind:
            self._lines.append("By magnitude, for what they read is not observed: "
                               f"{some(blind)}.")

