"""A text being continued by the fused operator: the arrays that it works on, in place."""

from collections.abc import Callable

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.fused_plan import FusedPlan
from tfspeed.litert.fused_runtime import FusedProgram
from tfspeed.memory import aligned

# Fields of control, see kernels/decoder.c: of a call, and of each text before its table.
CALL, TEXT = 8, 5
TEXTS, ROWS, TIME, BLOCK, BLOCKS, WIDTH, LONGEST, PART = range(CALL)
SLOT, COUNT, START, LAST, WANTED = range(TEXT)


def control_size(texts: int, width: int) -> int:
    """Numbers of control, for texts whose tables have `width` entries."""
    return CALL + texts * (TEXT + width)


class FusedSession:
    """One batch of texts: their caches, and how far they are filled.

    Args:
        program: a signature for each of `sizes`, in that order.
        cache_type: shape and type of a cache of so many slots.
        length: tokens a row that a call takes at most.
        logits: tokens of a text, its last ones in a call, that there is room for logits of.
    """

    def __init__(self, program: FusedProgram, plan: FusedPlan, cache_type: Callable, batch: int,
                 length: int, sizes: list[int], vocabulary: int, logits: int = 1):
        self.program, self.sizes = program, sizes
        self._plan, self._cache_type = plan, cache_type
        self._tokens = aligned((batch, length), np.int32)
        self._control = aligned((control_size(batch, 1),), np.int32)
        # Every text has a block as large as the cache to itself.
        self._control[[TEXTS, BLOCKS, WIDTH]] = batch, batch, 1
        self._texts = self._control[CALL:].reshape(batch, TEXT + 1)
        self._texts[:, TEXT] = np.arange(batch)
        self._logits = aligned((batch, logits, vocabulary), np.float32)
        self._caches: dict[int, np.ndarray] = {}
        self._index, self._size = 0, sizes[0]

    def fits(self, needed: int) -> bool:
        return self.sizes[-1] >= needed

    def begin(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Reads prompts, int32 `[batch, length]` with `starts` slots of padding on the left;
        returns the logits after them, valid until the next call."""
        self._index = 0
        self._texts[:, START] = starts
        self._texts[:, LAST] = tokens.shape[1] - 1 - starts.min()  # one for all, as the model has
        self._size = next(size for size in self.sizes if size >= tokens.shape[1])
        length = self._tokens.shape[1]
        for at in range(0, tokens.shape[1], length):
            self._run(tokens[:, at:at + length], at + length >= tokens.shape[1])
        return self._wanted(1)[:, 0]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads one token a row, int32 `[batch]`; returns logits as `begin` does."""
        return self.read(tokens[:, None])[:, 0]

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Reads a few tokens a row, int32 `[batch, count]`, of which each gets the logits that
        `step` would give it; returns those, `[batch, count, vocabulary]`, valid until the next
        call."""
        count = tokens.shape[1]
        while self._index + count > self._size:
            self._grow()
        self._texts[:, LAST] = self._index + count - 1 - self._texts[:, START].min()
        self._run(tokens, count)
        return self._wanted(count)

    @property
    def filled(self) -> int:
        """Tokens of a row that the cache holds, padding among them."""
        return self._index

    @property
    def size(self) -> int:
        """Slots of a row that the cache has now."""
        return self._size

    @property
    def cache(self) -> np.ndarray:
        return self._caches[self._size]

    def take_back(self, filled: int) -> None:
        """Forgets all tokens of a row but for the first `filled`."""
        self._index = filled

    def profile(self, tokens: np.ndarray, starts: np.ndarray, steps: int) -> list[dict]:
        """`{name, calls, seconds}` of each stage in a greedy step after a prompt, the mean of
        `steps`."""
        chosen = self.begin(tokens, starts).argmax(-1).astype(np.int32)
        before = self.program.seconds
        self._control[TIME] = 1
        try:
            for _ in range(steps):
                chosen = self.step(chosen).argmax(-1).astype(np.int32)
        finally:
            self._control[TIME] = 0
        layers = len(self._plan.arrays) - 2
        return [{"name": name, "calls": 1 if name in ("embed", "head") else layers,
                 "seconds": (seconds - before[name]) / steps}
                for name, seconds in self.program.seconds.items()]

    def _wanted(self, count: int) -> np.ndarray:
        """The logits of a call that wanted `count` of each row: they lie behind each other."""
        batch, _, vocabulary = self._logits.shape
        return self._logits.reshape(-1, vocabulary)[:batch * count].reshape(batch, count, -1)

    def _run(self, tokens: np.ndarray, wanted: int) -> None:
        count = tokens.shape[1]
        if self._size not in self._caches:
            self._bind()
        self._tokens.reshape(-1)[:tokens.size] = tokens.reshape(-1)
        self._control[[ROWS, BLOCK, LONGEST]] = tokens.size, self._size, self._index + count
        self._texts[:, [SLOT, COUNT, WANTED]] = self._index, count, wanted
        self.program.run(self.sizes.index(self._size))
        self._index += count

    def _bind(self) -> None:
        """Memory for the cache of this size; the other arrays serve all sizes."""
        for size in self._caches:  # of a text before, or what `_grow` copies
            self.program.release(self.sizes.index(size))
        self._caches = {}
        shape, dtype = self._cache_type(self._size)
        self._caches = {self._size: aligned(shape, dtype)}
        cache = self._caches[self._size]
        self.program.bind(self.sizes.index(self._size),
                          [self._tokens, self._control, cache, *self._plan.arrays],
                          [cache, self._logits])

    def _grow(self) -> None:
        """Moves to the next size; the cache is copied once."""
        if self._size == self.sizes[-1]:
            raise TfspeedError("The cache is full.", capacity=self._size,
                               hint="Ask for fewer tokens.")
        old = self._caches[self._size]
        self._size = self.sizes[self.sizes.index(self._size) + 1]
        self._bind()
        new = self._caches[self._size]
        # Slots of one head lie behind each other, in keys and in values.
        flat = old.reshape(*old.shape[:4], -1)
        new.reshape(*new.shape[:4], -1)[..., :flat.shape[-1]] = flat
