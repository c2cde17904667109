"""What the first stage sends into a pipeline, and what comes back: groups of rows, step by step."""

from collections import deque
from collections.abc import Iterator

import numpy as np

from tfspeed.dataflow.plan import Work
from tfspeed.engines import sampling as samplers
from tfspeed.engines.base import FINISHED, bucket, pad_left
from tfspeed.engines.sampling import Sampling


def work_of(prompts, new_tokens: int, groups: int, length: int, piece_tokens: int) -> Work:
    """How a batch is run in at most `groups` groups, prompts padded to `length`. The rows of a
    group are filled up to the others' by repeating one, so that all groups have one shape.

    Args:
        piece_tokens: that a call reads of prompts, at least.
    """
    count, rows = grouped(len(prompts), groups).shape
    return Work(count, rows, piece_of(rows, length, piece_tokens), length, new_tokens,
                bucket(length + new_tokens))


def grouped(batch: int, groups: int) -> np.ndarray:
    """Which rows of a batch each of at most `groups` groups has, int `[groups, rows]`."""
    rows = -(-batch // min(groups, batch))
    count = -(-batch // rows)
    return np.minimum(np.arange(count * rows), batch - 1).reshape(count, rows)


def piece_of(rows: int, length: int, tokens: int) -> int:
    """How many of a group's rows are read at once: a share of them that has so many tokens."""
    return next(p for p in range(1, rows + 1)
                if rows % p == 0 and (p * length >= tokens or p == rows))


class _Group:
    """Some rows of the batch.

    Attributes:
        made: int32 `[rows]` for each token so far.
        finished: bool `[rows]`, which have met a stop token.
    """

    def __init__(self, rows: np.ndarray, pieces: int):
        self.rows, self.pieces = rows, pieces
        self.first: list[np.ndarray] = []
        self.made: list[np.ndarray] = []
        self.finished = np.zeros(len(rows), bool)

    def column(self, count: int) -> np.ndarray | None:
        """Token `count` of its rows, if there is one already."""
        if count < len(self.made):
            return self.made[count]
        return np.full(len(self.rows), FINISHED, np.int32) if self.finished.all() else None


class Stream:
    """One generation. `ready` holds what the first stage is to run next, prompts before steps.

    Args:
        heads: the share of the groups whose steps end in the first stage.
        source: what stages know a source by that was heard before; None: there is none.
    """

    def __init__(self, prompts, work: Work, sampling: Sampling, stop_tokens: np.ndarray,
                 heads: float = 0.0, source: int | None = None):
        self.work, self.stop_tokens, self.sampling = work, stop_tokens, sampling
        self.batch = len(prompts)
        self.header = {"groups": work.groups, "rows": work.rows, "capacity": work.capacity,
                       "sampling": None if sampling.greedy else [
            sampling.temperature, sampling.top_k, sampling.top_p]}
        if source is not None:
            self.header["source"] = source
        self._heads = round(heads * work.groups)
        self.groups = [_Group(rows, work.rows // work.piece)
                       for rows in grouped(self.batch, work.groups)]
        self.ready: deque = deque()
        for number, group in enumerate(self.groups):
            for i, rows in enumerate(group.rows.reshape(group.pieces, work.piece)):
                tokens, lengths = pad_left([prompts[row] for row in rows], work.length)
                self._add("prefill", number, [tokens, lengths], rows, 0, begin=i * work.piece)

    def take(self, header: dict, arrays: list[np.ndarray]) -> None:
        """What came back: int32 `[rows]` of the message that had this header."""
        number, tokens = header["group"], arrays[0]
        group = self.groups[number]
        if header["kind"] == "prefill":
            group.first.append(tokens)
            if len(group.first) < group.pieces:
                return
            tokens = np.concatenate(group.first)
        group.made.append(np.where(group.finished, FINISHED, tokens).astype(np.int32))
        group.finished |= np.isin(tokens, self.stop_tokens)
        count = len(group.made)
        if count < self.work.new_tokens and not group.finished.all():
            self._add("step", number, [tokens[:, None]], group.rows, count)

    def columns(self) -> Iterator[np.ndarray | None]:
        """int32 `[batch]` of one token after the other, None as long as it has not come."""
        for count in range(self.work.new_tokens):
            for group in self.groups:
                while group.column(count) is None:
                    yield None
            column = np.concatenate([group.column(count) for group in self.groups])[:self.batch]
            if (column == FINISHED).all():
                return
            yield column

    def _add(self, kind: str, number: int, arrays: list, rows: np.ndarray, count: int,
             **more) -> None:
        if not self.sampling.greedy:
            arrays.append(samplers.seeds(self.sampling.seed, self.batch, count)[rows])
        header = self.header | {"kind": kind, "group": number, **more}
        if kind == "step" and number < self._heads:
            header["head"] = False
        self.ready.append((header, arrays))


class Round:
    """Messages that need nothing of each other, each once round the ring.

    Attributes:
        answers: what came back, in their order.
    """

    def __init__(self, messages):
        self.ready: deque = deque(messages)
        self.answers: list[np.ndarray] = []
        self._wanted = len(self.ready)

    def take(self, header: dict, arrays: list[np.ndarray]) -> None:
        self.answers.append(arrays[0])

    def columns(self) -> Iterator[None]:
        """None as long as not all have come back."""
        while len(self.answers) < self._wanted:
            yield None


class Hearing(Round):
    """A source's pieces: what the encoder makes of one goes round once more, for all to hear."""

    def take(self, header, arrays):
        if header["kind"] == "encode":
            self.ready.appendleft((header | {"kind": "hear"}, arrays))
        else:
            super().take(header, arrays)
