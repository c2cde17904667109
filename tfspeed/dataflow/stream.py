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
    rows = -(-len(prompts) // min(groups, len(prompts)))
    piece = next(p for p in range(1, rows + 1)
                 if rows % p == 0 and (p * length >= piece_tokens or p == rows))
    return Work(-(-len(prompts) // rows), rows, piece, length, new_tokens,
                bucket(length + new_tokens))


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
    """

    def __init__(self, prompts, work: Work, sampling: Sampling, stop_tokens: np.ndarray,
                 heads: float = 0.0):
        self.work, self.stop_tokens, self.sampling = work, stop_tokens, sampling
        self.batch = len(prompts)
        self.header = {"groups": work.groups, "rows": work.rows, "capacity": work.capacity,
                       "sampling": None if sampling.greedy else [
            sampling.temperature, sampling.top_k, sampling.top_p]}
        self._heads = round(heads * work.groups)
        every = np.minimum(np.arange(work.groups * work.rows), self.batch - 1)
        self.groups = [_Group(rows, work.rows // work.piece)
                       for rows in every.reshape(work.groups, work.rows)]
        self.ready: deque = deque()
        for number, group in enumerate(self.groups):
            for rows in group.rows.reshape(group.pieces, work.piece):
                tokens, lengths = pad_left([prompts[row] for row in rows], work.length)
                self._add("prefill", number, [tokens, lengths], rows, 0)

    def take(self, header: dict, tokens: np.ndarray) -> None:
        """What came back: int32 `[rows]` of the message that had this header."""
        number = header["group"]
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

    def _add(self, kind: str, number: int, arrays: list, rows: np.ndarray, count: int) -> None:
        if not self.sampling.greedy:
            arrays.append(samplers.seeds(self.sampling.seed, self.batch, count)[rows])
        header = self.header | {"kind": kind, "group": number}
        if kind == "step" and number < self._heads:
            header["head"] = False
        self.ready.append((header, arrays))
