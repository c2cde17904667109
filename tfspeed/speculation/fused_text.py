"""A text under the `fused` engine."""

import numpy as np

from tfspeed.litert.fused_exit import FusedExit
from tfspeed.litert.fused_session import FusedSession
from tfspeed.speculation.texts import SessionText, boundary


class FusedText(SessionText):
    """Several tokens give, bit by bit, what single steps give: see kernels/vectors.h.

    Args:
        engine: a `FusedEngine`.
        session: with room for logits of as many tokens as the last of `widths`.
        leaving: for `leave_early`.
    """

    def __init__(self, engine, session: FusedSession, widths: tuple[int, ...],
                 leaving: FusedExit | None = None):
        super().__init__(engine, session, widths)
        self._exit, self.boundary = leaving, boundary(engine.config)

    def read(self, tokens, count):
        logits = self._session.read(np.asarray([tokens], np.int32))[0]
        if self._sampling.greedy:
            yield from logits.argmax(-1).tolist()
            return
        for i in range(len(tokens)):  # one by one: drawn from only as far as the draft was right
            yield int(self._engine.choose(logits[i:i + 1], self._sampling, count + i)[0])

    def leave_early(self, token, count):
        return self._exit.draft(token, count)
