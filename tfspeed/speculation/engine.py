"""Any engine that can take tokens back, with drafts: the same tokens in fewer passes."""

import numpy as np

from tfspeed.engines.base import Engine
from tfspeed.engines.wrapping import Wrapping, given
from tfspeed.errors import TfspeedError
from tfspeed.speculation import Speculation
from tfspeed.speculation.account import Account
from tfspeed.speculation.drafts import CopyDrafter, Drafter, ExitDrafter, LookupDrafter
from tfspeed.speculation.generation import Counts, Generation
from tfspeed.speculation.texts import Text

_NOTES = {"lookup": "what came after the same tokens before",
          "early_exit": "the model's first {layers} layers", "low_bit": "its copy in {weights}"}


class SpeculativeEngine(Wrapping):
    """Continues one text at a time with drafts; several at once as the engine inside does.

    After each drafted token the model chooses as it does without drafts: the likeliest token, or
    under sampling the one that it draws there, with the same random numbers. So a drafted token is
    kept with its probability, as rejection sampling (arXiv:2211.17192) keeps a certain guess.

    Args:
        inner: the engine without drafts.
    """

    def __init__(self, inner: Engine, speculation: Speculation):
        if inner.open_text is None:
            raise TfspeedError(f"The engine {inner.name} cannot take tokens back, which "
                               "speculation needs.", engine=inner.name,
                               hint="Leave speculative out.")
        if inner.devices:
            raise TfspeedError("Speculation continues a text on one device.",
                               devices=list(inner.devices),
                               hint="Leave mirrored or tensor_parallel out.")
        super().__init__(inner)
        self._speculation = speculation
        self._exit_layer = speculation.exit_layers(inner.model.layers)
        self._widths = speculation.widths(inner.pass_widths)
        self._texts: list[Text] = []
        self._copy: Engine | None = None
        if speculation.draft == "low_bit":
            self._copy = low_bit_copy(inner, speculation.draft_weights)
        self._drafters = [self._drafter()]
        first = self._drafters[0]
        self._account = Account(self._widths, first.first, first.calibration)
        self._counts = Counts()
        what = _NOTES[speculation.draft].format(layers=self._exit_layer,
                                                weights=speculation.draft_weights)
        self.notes.append(f"Drafts of up to {self._widths[-1] - 1} tokens are {what}; a batch of "
                          "several texts runs without drafts.")

    @property
    def weights_bytes(self):
        return self.inner.weights_bytes + (self._copy.weights_bytes if self._copy else 0)

    def start_counting(self):
        self._counts = Counts()

    def counted(self):
        return self._counts.summary()

    def _generate(self, prompts, new_tokens, sampling, stop_tokens, encoded=None):
        if len(prompts) > 1 or new_tokens == 1:
            yield from self.inner.generate(prompts, new_tokens, sampling, stop_tokens,
                                           **given(encoded))
            return
        stops, count = set(stop_tokens.tolist()), 0
        # Of their own, while others generate.
        text = self._text(len(prompts[0]), new_tokens)
        drafter = self._drafters.pop() if self._drafters else self._drafter()
        if encoded is not None:
            text.hear(encoded)
        generation = Generation(text, drafter, self._account, self._counts,
                                self._speculation.adaptive)
        try:
            chosen = generation.begin(prompts[0], sampling)
            while True:
                for token in chosen:
                    count += 1
                    yield np.asarray([token], np.int32)
                    if token in stops:
                        return
                if count == new_tokens:
                    return
                chosen = generation.go_on(chosen, count, new_tokens - count)
        finally:
            self._texts.append(text)
            self._drafters.append(drafter)

    def _text(self, prompt_tokens: int, new_tokens: int) -> Text:
        text = self._texts.pop() if self._texts else None
        if text is None or not text.fits(prompt_tokens, new_tokens):
            text = self.inner.open_text(prompt_tokens, new_tokens, self._widths, self._exit_layer)
        return text

    def _drafter(self) -> Drafter:
        if self._speculation.draft == "lookup":
            return LookupDrafter()
        if self._speculation.draft == "early_exit":
            return ExitDrafter()
        return CopyDrafter(lambda *tokens: self._copy.open_text(
            *tokens, self._copy.pass_widths[:-1], 0))


def low_bit_copy(inner: Engine, weights: str) -> Engine:
    """The model once more, under the fused engine, in few bits.

    Raises:
        TfspeedError: it already runs in these; there is no C compiler.
    """
    if inner.name == f"fused:{weights}":
        raise TfspeedError("The low-bit copy would be the model itself.", engine=inner.name,
                           hint="Use --engine=fused:int8, or --speculative_draft=lookup.")
    from tfspeed.engines.fused import FusedEngine
    return FusedEngine(inner.model, weights)
