"""A text that an engine continues, and can take tokens back from: what verifies drafts."""

from collections.abc import Iterator

import numpy as np

from tfspeed.engines.sampling import Sampling


class Text:
    """Attributes:
        widths: numbers of tokens that `read` takes, ascending.
        boundary: position that no call may reach across (LongRoPE's angles change there), or 0.
    """

    widths: tuple[int, ...] = (1,)
    boundary = 0

    def fits(self, prompt_tokens: int, new_tokens: int) -> bool:
        """Whether it can be used for so many tokens."""
        raise NotImplementedError

    def hear(self, encoded) -> None:
        """What begins from now on goes on from a source, see `Engine.encode`."""
        raise NotImplementedError

    def begin(self, prompt: list[int], sampling: Sampling) -> int:
        """Forgets what was read before, reads a prompt and chooses the token after it."""
        raise NotImplementedError

    def read(self, tokens: list[int], count: int) -> Iterator[int]:
        """Reads tokens and chooses one after each: what the engine would choose after reading them
        one by one, `count` being how many it had chosen. May end early, to be asked again."""
        raise NotImplementedError

    @property
    def filled(self) -> int:
        """Tokens that have been read and not taken back."""
        raise NotImplementedError

    def take_back(self, filled: int) -> None:
        """Forgets all tokens but for the first `filled`."""
        raise NotImplementedError

    def leave_early(self, token: int, count: int) -> list[int]:
        """The first layers' greedy guess at `count` tokens or fewer that follow `token`, which has
        not been read. Changes nothing that `read` looks at."""
        raise NotImplementedError

    def room(self) -> int:
        """Tokens that the next call may read."""
        most = self.widths[-1]
        return min(most, self.boundary - self.filled) if self.filled < self.boundary else most


class SessionText(Text):
    """A text over a session of LiteRT's.

    Args:
        engine: which chooses.
        session: of one row.
    """

    def __init__(self, engine, session, widths: tuple[int, ...]):
        self._engine, self._session, self.widths = engine, session, widths
        self._sampling = Sampling()

    def fits(self, prompt_tokens, new_tokens):
        return self._session.fits(prompt_tokens + new_tokens)

    def begin(self, prompt, sampling):
        self._sampling = sampling
        logits = self._session.begin(np.asarray([prompt], np.int32), np.zeros(1, np.int32))
        return int(self._engine.choose(logits, sampling, 0)[0])

    @property
    def filled(self):
        return self._session.filled

    def take_back(self, filled):
        self._session.take_back(filled)


def boundary(config) -> int:
    """Of a decoder's texts, see `Text`."""
    ropes = [config.layer_rope(i) for i in range(config.num_layers)]
    return max((r.original_context for r in ropes if r and r.long_factors), default=0)
