"""A session's first layers as a model of their own, over the session's own cache.

Keys and values of the first layers are the same whatever comes after them: nothing is read twice,
and what is written for a guess is written over when the session reads the token in its place.
"""

import numpy as np

from tfspeed.litert.fused_session import FusedSession


class FusedExit(FusedSession):
    """Args:
        session: of one row.
        program, plan, cache_type: as the session's, of fewer layers; a call takes one token.
    """

    def __init__(self, session: FusedSession, program, plan, cache_type, vocabulary: int):
        super().__init__(program, plan, cache_type, 1, 1, session.sizes, vocabulary)
        self._session, self._shared = session, None

    def draft(self, token: int, count: int) -> list[int]:
        """The greedy guess at `count` tokens after `token`, which the session reads next; fewer
        where its cache ends."""
        session, made = self._session, [token]
        self._index, self._size = session.filled, session.size
        if self._shared is not session.cache:
            self._caches, self._shared = {}, session.cache
        while len(made) <= count and self._index < self._size:
            logits = self.step(np.asarray(made[-1:], np.int32))
            made.append(int(logits[0].argmax()))
        return made[1:]

    def _bind(self):
        layers = self._cache_type(self._size)[0][0]
        cache = self._shared[:layers]
        for size in self.sizes:
            self.program.release(self.sizes.index(size))
        self._caches = {self._size: cache}
        self.program.bind(self.sizes.index(self._size),
                          [self._tokens, self._control, cache, *self._plan.arrays],
                          [cache, self._logits])
