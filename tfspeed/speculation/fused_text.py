"""A text under the `fused` engine."""

import numpy as np

from tfspeed.engines.sampling import Sampling
from tfspeed.litert.fused_exit import FusedExit
from tfspeed.litert.fused_session import FusedSession
from tfspeed.speculation.texts import Text, boundary


class FusedText(Text):
    """Several tokens give, bit by bit, what single steps give: see kernels/vectors.h.

    Args:
        engine: a `FusedEngine`, which chooses.
        session: of one row, with room for logits of as many tokens as the last of `widths`.
        leaving: for `leave_early`.
    """

    def __init__(self, engine, session: FusedSession, widths: tuple[int, ...],
                 leaving: FusedExit | None = None):
        self._engine, self._session, self._exit = engine, session, leaving
        self.widths, self.boundary = widths, boundary(engine.config)
        self._sampling = Sampling()

    def fits(self, prompt_tokens, new_tokens):
        return self._session.fits(prompt_tokens + new_tokens)

    def begin(self, prompt, sampling):
        self._sampling = sampling
        logits = self._session.begin(np.asarray([prompt], np.int32), np.zeros(1, np.int32))
        return int(self._engine.choose(logits, sampling, 0)[0])

    def read(self, tokens, count):
        logits = self._session.read(np.asarray([tokens], np.int32))[0]
        if self._sampling.greedy:
            yield from logits.argmax(-1).tolist()
            return
        for i in range(len(tokens)):  # one by one: drawn from only as far as the draft was right
            yield int(self._engine.choose(logits[i:i + 1], self._sampling, count + i)[0])

    @property
    def filled(self):
        return self._session.filled

    def take_back(self, filled):
        self._session.take_back(filled)

    def leave_early(self, token, count):
        return self._exit.draft(token, count)
