"""Pieces of many texts read by one call of the fused operator, over a cache of blocks."""

import numpy as np

from tfspeed.litert.fused_plan import FusedPlan
from tfspeed.litert.fused_runtime import FusedProgram
from tfspeed.litert.fused_session import (
    BLOCK,
    BLOCKS,
    CALL,
    LONGEST,
    ROWS,
    TEXT,
    TEXTS,
    WIDTH,
    control_size,
)
from tfspeed.memory import aligned


class FusedPaged:
    """Args:
        program: with one signature.
        cache: shape and type, `[layers, 2, blocks, kv_heads, block, head_dim]`.
        texts, length: a call takes so many texts, of `texts · length` tokens together.
        width: blocks that a text's table names, at most.
    """

    def __init__(self, program: FusedProgram, plan: FusedPlan, cache: tuple, texts: int,
                 length: int, width: int, vocabulary: int):
        self._program = program
        self._tokens = aligned((texts, length), np.int32)
        self._control = aligned((control_size(texts, width),), np.int32)
        self._cache = aligned(*cache)  # pages that are never used take no memory
        self._logits = aligned((texts, 1, vocabulary), np.float32)
        self._texts = self._control[CALL:].reshape(texts, TEXT + width)
        self._block = cache[0][4]
        self._control[[BLOCK, BLOCKS, WIDTH]] = self._block, cache[0][2], width
        program.bind(0, [self._tokens, self._control, self._cache, *plan.arrays],
                     [self._cache, self._logits])

    def read(self, chunks) -> np.ndarray:
        """See `serving.backend.Backend.read`."""
        tokens, count, wanted = self._tokens.reshape(-1), 0, 0
        for text, chunk in zip(self._texts, chunks, strict=False):
            size = len(chunk.tokens)
            tokens[count:count + size] = chunk.tokens
            # In the order of SLOT, COUNT, START, LAST, WANTED.
            text[:TEXT] = chunk.start, size, 0, chunk.total - 1, chunk.wanted
            table = chunk.blocks[:-(-chunk.end // self._block)]
            text[TEXT:TEXT + len(table)] = table
            count += size
            wanted += chunk.wanted
        self._control[[TEXTS, ROWS]] = len(chunks), count
        self._control[LONGEST] = max(chunk.end for chunk in chunks)
        self._program.run(0)
        return self._logits[:wanted, 0]

    def close(self) -> None:
        self._program.close()
