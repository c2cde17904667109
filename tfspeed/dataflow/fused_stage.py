"""A stage of a pipeline that runs the fused operator over its layers: see `engines/fused.py`."""

import numpy as np

from tfspeed.dataflow.stage import Calls
from tfspeed.engines import sampling as samplers
from tfspeed.engines.fused import FusedEngine
from tfspeed.engines.litert_base import loaded
from tfspeed.litert import fused_plan
from tfspeed.litert.fused_runtime import FusedProgram
from tfspeed.litert.fused_session import (
    BLOCK,
    BLOCKS,
    CALL,
    LONGEST,
    PART,
    ROWS,
    TEXT,
    TEXTS,
    WIDTH,
    control_size,
)
from tfspeed.memory import aligned

_TAKES_HIDDEN, _GIVES_HIDDEN = 1, 2  # bits of PART, see kernels/decoder.c


class _Opened:
    """A program and its arrays: calls of up to `texts` texts with `texts · length` tokens together,
    each text with one of `blocks` blocks of the cache to itself."""

    def __init__(self, stage: "FusedStage", texts: int, length: int, blocks: int, slots: int,
                 all_logits: bool):
        c, hidden = stage.config, stage.config.hidden_dim
        width = c.vocabulary_size if stage.last else hidden
        # What comes out is of each token, or of the last one of each text.
        each = length if all_logits or not stage.last else 1
        tokens = (texts, length) if stage.first else (texts, length, hidden)
        out, self.all_logits = (texts, each, width), all_logits
        cache = fused_plan.cache_type(c, stage.half, max(1, stage.layers), blocks, slots)
        size = control_size(texts, 1)
        self.tokens, self.control = aligned(tokens, np.int32), aligned((size,), np.int32)
        self.cache, self.out = aligned(*cache), aligned(out, np.float32)
        self.control[[BLOCK, BLOCKS, WIDTH]] = slots, blocks, 1
        self.control[PART] = (0 if stage.first else _TAKES_HIDDEN) | (
            0 if stage.last else _GIVES_HIDDEN)
        self.texts = self.control[CALL:].reshape(texts, TEXT + 1)
        self.room = texts, texts * length, blocks, slots
        self.program = loaded(
            lambda file: fused_plan.write(file, "run", stage.plan, tokens, size, cache, out),
            lambda path: FusedProgram(path, stage.threads, width, each))
        self.program.bind(0, [self.tokens, self.control, self.cache, *stage.plan.arrays],
                          [self.cache, self.out])

    def run(self, x: np.ndarray, slot: int, starts: np.ndarray, first_block: int) -> np.ndarray:
        """Reads tokens or hidden states, `[rows, length, …]`, into slots from `slot` on.

        Args:
            starts: the first slot that each row uses.
            first_block: of the cache, of the first row.

        Returns:
            Float32, of each token or each row, valid until the next call.
        """
        rows, length = x.shape[:2]
        self.tokens.reshape(-1)[:x.size] = np.ascontiguousarray(x).reshape(-1).view(np.int32)
        self.control[[TEXTS, ROWS, LONGEST]] = rows, rows * length, slot + length
        end = slot + length
        for i, text in enumerate(self.texts[:rows]):
            # In the order of SLOT, COUNT, START, LAST, WANTED, and the table.
            text[:] = (slot, length, starts[i], end - 1 - starts.min(),
                       length if self.all_logits else 1, first_block + i)
        self.program.run(0)
        return self.out.reshape(-1, self.out.shape[-1])

    def run_without_head(self, x: np.ndarray, *where) -> np.ndarray:
        """The same of a last stage, which gives hidden states."""
        self.control[PART] |= _GIVES_HIDDEN
        try:
            return self.run(x, *where).reshape(-1)[:x.size].reshape(-1, x.shape[-1])
        finally:
            self.control[PART] &= ~_GIVES_HIDDEN


class FusedStage(Calls):
    """Answers the messages that `stage.Stage` does.

    Args:
        engine: what holds the packed weights; not kept.
        numbers: of its layers.
        first, last: whether it has the embedding, and final norm and head.
        head: whether it has final norm and head in any case.
    """

    def __init__(self, engine: FusedEngine, numbers, first: bool, last: bool, head: bool = False):
        super().__init__(last)
        self.config, self.layers, self.first = engine.config, len(numbers), first
        self.half, self.threads = engine.half, engine.threads
        self.plan = fused_plan.make(engine.config, engine.packed, engine.half, numbers, first, last)
        self.apart = FusedStage(engine, (), False, True) if head and not last else None
        self.weights_bytes = sum(array.nbytes for array in self.plan.arrays) + (
            self.apart.weights_bytes if self.apart else 0)
        self._opened: _Opened | None = None
        self._scorer: _Opened | None = None
        self._groups: dict[int, tuple[int, np.ndarray]] = {}  # slots filled, first slots used

    def forget(self) -> None:
        """The caches are overwritten by whoever comes next."""
        self._groups.clear()

    def rewind(self, slots: int) -> None:
        """All groups go on from so many filled slots."""
        self._groups = {group: (slots, starts) for group, (_, starts) in self._groups.items()}

    def _prefill(self, header, x, lengths, *seeds):
        rows, length = x.shape[:2]
        self._room(header, rows * length)
        before = self._groups.get(header["group"], (0, np.zeros(0, np.int32)))[1]
        starts = length - lengths
        out = self._opened.run(x, 0, starts, self._block(header) + len(before))
        self._groups[header["group"]] = length, np.concatenate([before, starts])
        return self._given(header, out, x, seeds), (lengths, *seeds)

    def _step(self, header, x, *seeds):
        slot, starts = self._groups[header["group"]]
        run = self._opened.run
        if self.last and not self._ends(header):
            run = self._opened.run_without_head
        out = run(x, slot, starts, self._block(header))
        self._groups[header["group"]] = slot + 1, starts
        return self._given(header, out, x, seeds), seeds

    def _head(self, header, x, *seeds):
        """By a stage that has nothing else, which sees each call as a new text of one token."""
        alone = header | {"group": 0, "groups": 1, "capacity": 1}
        ones = np.ones(len(x), np.int32)
        self.apart.forget()
        return self.apart(alone | {"kind": "prefill", "head": True}, [x, ones, *seeds])[1][0], ()

    def _score(self, header, x):
        rows, length = x.shape[:2]
        slots = -(-length // 16) * 16
        if self._scorer is None or self._scorer.room != (1, length, 1, slots):
            self._scorer = None  # its logits may be a gigabyte
            self._scorer = self._open(1, length, 1, slots, True)
        start = np.zeros(1, np.int32)
        made = [self._scorer.run(row[None], 0, start, 0).copy() for row in x]
        return np.stack(made).reshape(rows, length, -1), ()

    def _given(self, header, out, x, seeds) -> np.ndarray:
        """Hidden states of all tokens, or chosen tokens of all rows."""
        rows, length = x.shape[:2]
        if not self._ends(header):
            return out[:rows * length].reshape(rows, length, -1).copy()
        if not seeds:
            return out[:rows].argmax(-1).astype(np.int32)
        return samplers.sample(out[:rows], *header["sampling"], seeds[0]).numpy()

    def _block(self, header) -> int:
        return header["group"] * header["rows"]

    def _room(self, header, tokens: int) -> None:
        """Opens a program with room for all groups, where there is none that has it."""
        texts, blocks = header["rows"], header["groups"] * header["rows"]
        needed = texts, max(tokens, texts), blocks, header["capacity"]
        if self._opened and all(n <= r for n, r in zip(needed, self._opened.room, strict=True)):
            return
        self._opened = None
        self._opened = self._open(texts, -(-needed[1] // texts), *needed[2:], False)

    def _open(self, *sizes) -> _Opened:
        self.traces += 1
        return _Opened(self, *sizes)
