"""Weights in eight or four bits, really stored so: RTN, GPTQ or AWQ.

What changes: every matrix (Dense, EinsumDense, Embedding, Conv) becomes integers with one scale a
row, or a block of a row: `w ≈ q · scale`. `rtn` rounds to the nearest; `gptq` takes each column's
error out of the columns to come (arXiv:2210.17323); `awq` searches a factor for each channel that
makes the ones that matter lose least (arXiv:2306.00978). For engines that round activations
too, `smooth` evens out their channels first (arXiv:2211.10438): the model computes the same.
Why it is faster: a decode step is bound by reading weights; eight bits are a quarter of float32's
bytes, four bits in blocks of 32 a seventh. `litert` and `fused` read the integers as they lie.
When it is not: under `graph` and `xla` a layer's matrix is unpacked to float each time it runs.
Memory and file shrink; a step becomes slower, not faster.
What it costs: seconds for rtn, half a minute for gptq and awq (135 M parameters); calibration text
for gptq, awq and smooth.
Exact: no. See BUILD.md for perplexities; the gate is 1 % for eight bits, 3 % for four.
"""

import dataclasses

from strategies.base import Strategy, option, some
from tfspeed import gate
from tfspeed.compression import calibration, copying, replacing, targets
from tfspeed.compression.quantizing import METHODS, Rounding
from tfspeed.compression.smoothing import BlockSmoother, head_factor
from tfspeed.errors import TfspeedError
from tfspeed.litert.weights import BLOCKS
from tfspeed.models.decoder import Decoder

_TABLES = r"^(embedding|head)$"


@dataclasses.dataclass(frozen=True)
class Options:
    bits: int = option(8, "8 or 4")
    group: int = option(-1, "values of a row that share a scale: 32, 64, 128, or 0 for the whole "
                             "row; -1: 32 for four bits, whole rows for eight")
    method: str = option("auto", "rtn, gptq or awq; auto: rtn for eight bits, gptq for four")
    targets: str = option("", "regular expression of the layers' names; default: all")
    table_bits: int = option(8, "bits of the embedding and the head, which suffer most; 4 only "
                                 "with bits=4")
    smooth: bool = option(True, "even out the channels of activations first, for engines that "
                                 "round them to eight bits (litert, fused)")


class Quantize(Strategy):
    name = "quantize"
    Options = Options

    def __init__(self, options=None):
        super().__init__(options)
        _check(self.options)

    @property
    def max_perplexity_increase(self):
        return gate.INT8 if self.options.bits == 8 else gate.INT4

    def apply(self, model, data=None):
        copy = copying.copied(model)
        rounding = Rounding(self.options.bits, self._group(), self._method(),
                            self.options.table_bits, _TABLES)
        found = targets.find(copy.keras_model, self.options.targets)
        ready = [target for target in found if replacing.can_pack(target)]
        decoder = copy.keras_model if isinstance(copy.keras_model, Decoder) else None
        smoother = None
        if decoder is not None and (self.options.smooth or self._method() == "awq"):
            smoother = BlockSmoother(decoder, rounding if self._method() == "awq" else None)
        if smoother or self._method() != "rtn":
            tokens = calibration.tokens(copy, data)
            calibration.stream(copy, ready, tokens,
                               lambda group: self._change(group, decoder, smoother, rounding))
        else:
            self._change([calibration.Observed(t, None, 0) for t in ready], decoder, None,
                         rounding)
        self._tell(model, copy, found, ready, rounding)
        return copy

    def _change(self, group, decoder, smoother, rounding) -> None:
        """Quantizes the layers of one group, see `calibration.stream`."""
        grams = {o.target.name: o.gram for o in group}
        if smoother is not None:
            smoother.smooth(group[0].target.name.split("/")[0], grams)
        for o in group:
            target, gram, factor, scale = o.target, grams[o.target.name], None, None
            matrix = target.matrix(copy=False)
            tied = decoder is not None and decoder.head is None and (
                target.layer is decoder.embedding)
            if smoother is not None and gram is not None and target.name in ("embedding", "head"):
                factor = head_factor(decoder, target, gram, matrix, smoother)
                scale = 1 / factor if tied else None
            elif decoder is None and rounding.method == "awq" and gram is not None:
                # Nothing is known of what made the input: the layer divides it itself.
                factor = rounding.factor(target.name, gram, matrix)
                scale = 1 / factor
            replacing.pack(target, rounding.weight(target.name, matrix, gram, factor), scale)

    def _group(self) -> int:
        group = self.options.group
        return group if group >= 0 else 32 if self.options.bits == 4 else 0

    def _method(self) -> str:
        if self.options.method != "auto":
            return self.options.method
        return "rtn" if self.options.bits == 8 else "gptq"

    def _tell(self, before, after, found, ready, rounding) -> None:
        layout = f"blocks of {rounding.block}" if rounding.block else "one scale a row"
        self._lines = [
            f"{len(ready)} matrices in {rounding.bits} bits ({layout}, {rounding.method}); "
            f"{before.weights_bytes / 1e6:.1f} MB became {after.weights_bytes / 1e6:.1f} MB.",
            "litert and fused read the integers as they lie; graph and xla unpack one layer's "
            "matrix at a time when it runs: less memory, no speed."]
        left = [t.name for t in found if t not in ready]
        if left:
            self._lines.append(f"Left alone, for their classes may do anything with a kernel: "
                               f"{some(left)}.")
        blind = [t.name for t in ready if not t.plain and t.kind not in ("embedding", "head")]
        if blind and rounding.method != "rtn":
            self._lines.append("Rounded to the nearest, for what they read is not observed: "
                               f"{some(blind)}.")


def _check(options: Options) -> None:
    if options.bits not in (8, 4):
        raise TfspeedError("Weights are quantized to 8 or 4 bits.", quantize_bits=options.bits)
    if options.table_bits not in (8, options.bits):
        raise TfspeedError("The embedding and the head have 8 bits, or 4 with quantize_bits=4.",
                           quantize_table_bits=options.table_bits)
    if options.group not in (-1, *BLOCKS) or (options.bits == 8 and options.group > 0):
        raise TfspeedError("Groups are of 32, 64 or 128 values, or whole rows (0); eight bits come "
                           "in whole rows only.", quantize_group=options.group,
                           quantize_bits=options.bits)
    if options.method not in ("auto", *METHODS):
        raise TfspeedError(f"quantize_method must be one of {', '.join(METHODS)}, or auto.",
                           quantize_method=options.method)
