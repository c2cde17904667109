"""Drafts of the next tokens, verified by the model in one pass: the same tokens in fewer passes.

What changes: a cheap draft guesses at the next tokens, and the model reads them all at once. Those
that it would have chosen itself stay, and its own choice after them comes on top. `lookup` drafts
what came after the same tokens before, in the prompt or the answer; `early_exit` drafts with the
model's first layers; `low_bit` with a copy of the model in four bits, under the fused engine.
Why it is faster: a step is bound by reading weights, and a pass over eight tokens reads them once.
When it is not: text that repeats nothing (lookup), a model whose first layers say little, as most
do that were not trained for it (early_exit), one in eight bits already (low_bit), a batch. Passes
and drafts are timed, right guesses counted, and drafts stop where they do not pay. Speech repeats
little: an encoder–decoder drafts by lookup or early exit, and gains nothing on it.
What it costs: nothing for lookup and early_exit; a second set of weights for low_bit.
Exact: yes. Under `fused` to the last bit; elsewhere near ties are asked for again.
Source: arXiv:2211.17192, arXiv:2302.01318; early exit, arXiv:2404.16710.
"""

import copy
import dataclasses

from strategies.base import Strategy, option
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
from tfspeed.speculation import DRAFTS, Speculation

_DEFAULT = Speculation()


@dataclasses.dataclass(frozen=True)
class Options:
    draft: str = option(_DEFAULT.draft, f"who drafts: {', '.join(DRAFTS)}")
    tokens: int = option(_DEFAULT.tokens, "tokens that are drafted at once, at most")
    exit_layer: int = option(_DEFAULT.exit_layer, "layers of a draft by early exit; 0: a quarter")
    draft_weights: str = option(_DEFAULT.draft_weights, "format of the low-bit copy, as after "
                                "--engine=fused:")
    adaptive: bool = option(_DEFAULT.adaptive, "draft only while it pays; off: always")


class Speculative(Strategy):
    name = "speculative"
    Options = Options

    def __init__(self, options=None):
        super().__init__(options)
        self._speculation = Speculation(**dataclasses.asdict(self.options))

    def apply(self, model, data=None):
        if not isinstance(model, DecoderModel | EncoderDecoderModel):
            raise TfspeedError("Speculation takes tokens back from a KV cache, which tfspeed's "
                               "decoders can.", model=model.name,
                               type=type(model.keras_model).__name__,
                               hint="Leave speculative out.")
        if model.reads_source and self.options.draft == "low_bit":
            raise TfspeedError("A low-bit draft runs under the fused engine, which has no encoder.",
                               model=model.name, hint="Use --speculative_draft=lookup.")
        self._speculation.exit_layers(model.layers)
        model = copy.copy(model)
        model.speculation = self._speculation
        return model
