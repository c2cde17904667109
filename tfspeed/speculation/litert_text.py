"""A text under the `litert` engines."""

import numpy as np

from tfspeed.engines.sampling import Sampling
from tfspeed.speculation.texts import SessionText

# A pass over several tokens rounds otherwise than a step, see `tf_text`.
_DOUBT = 1e-3


class LiteRtText(SessionText):
    """Where the likeliest token hardly leads, a plain step is asked once more.

    Args:
        engine: a `LiteRtEngine` or an `EncoderDecoderLiteRtEngine`, which chooses.
        session: a `DecoderSession` over a program with signatures of these `widths`.
    """

    def hear(self, encoded):
        self._session.hear(encoded.buffers)

    def read(self, tokens, count):
        if len(tokens) == 1:
            logits = self._session.step(np.asarray(tokens, np.int32))
            yield int(self._engine.choose(logits, self._sampling, count)[0])
            return
        start = self.filled
        logits = self._session.read(np.asarray([tokens], np.int32))[0]
        for i in range(len(tokens)):
            chosen = int(self._engine.choose(logits[i:i + 1], self._sampling, count + i)[0])
            if self._sampling.greedy and _lead(logits[i], chosen) < _DOUBT:
                self.take_back(start + i)
                yield from self.read(tokens[i:i + 1], count + i)
                return
            yield chosen

    def leave_early(self, token, count):
        made = [token]
        for at in range(self.filled, self.filled + count):
            logits = self._session.leave_early(np.asarray(made[-1:], np.int32), at)
            if logits is None:
                break
            made.append(int(self._engine.choose(logits, Sampling(), 1)[0]))
        return made[1:]

    def room(self):
        return min(self.widths[-1], self._session.room)


def _lead(logits: np.ndarray, chosen: int) -> float:
    """By how much a token's logit leads; changes it."""
    lead, logits[chosen] = logits[chosen], -np.inf
    return lead - logits.max()
