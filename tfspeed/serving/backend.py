"""What runs a step: reads pieces of texts into a paged cache, gives logits after them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfspeed.errors import TfspeedError

_CACHE_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of a text: a single token where it decodes.

    Attributes:
        tokens: ids to read.
        start: position of the first.
        blocks: the text's table: block i holds positions [i · block, (i + 1) · block).
        total: tokens of the whole text that this is read for.
        wanted: whether the logits after its last token are.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    total: int
    wanted: bool

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Backend:
    """Attributes:
        name: of the engine it stands for.
        block: tokens a block.
        blocks: how many there are.
        max_rows: texts in one call, at most.
        max_tokens: tokens of one text in one call, at most.
        context_length: tokens of one text, at most.
        shares: whether keys and values of a token follow from the tokens before it alone, so that
            texts that begin alike may share blocks.
    """

    name = ""
    shares = True

    def __init__(self, model, block: int, blocks: int, max_rows: int, max_tokens: int):
        self.model, self.block, self.blocks = model, block, blocks
        self.max_rows, self.max_tokens = max_rows, max_tokens
        self.context_length = min(model.context_length, blocks * block)

    def read(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Reads all chunks, each of another text.

        Returns:
            float32 `[wanted chunks, vocabulary]`, in their order; valid until the next call. What
            a text gets does not depend on the others.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of the cache."""


def check(engine: str) -> None:
    """Refuses an engine that serves one text at a time."""
    if engine.partition(":")[0] not in ("graph", "xla", "fused"):
        raise TfspeedError("The engines that serve many at once are graph, xla, fused, and "
                           "fused:WEIGHTS.", engine=engine)


def create(engine: str, model, cache_tokens: int = 0, max_rows: int = 32) -> Backend:
    """The backend that stands for an engine of `tfspeed.engines`.

    Args:
        cache_tokens: tokens that the cache holds, of all texts together; 0: a whole context for
            each of `max_rows`, up to a gigabyte.
    """
    check(engine)
    kind, _, weights = engine.partition(":")
    if max_rows < 1 or cache_tokens < 0:
        raise TfspeedError("Serving needs at least one row.", max_rows=max_rows,
                           cache_tokens=cache_tokens)
    if model.reads_source:
        raise TfspeedError("A server, like a dialogue, goes on with texts; this model reads a "
                           "source first.", model=model.name,
                           hint="scripts/scenario.py has speech and translation.")
    if model.speculation is not None:
        raise TfspeedError("A server reads a token of each text in a step, and makes no drafts.",
                           strategy="speculative", hint="Leave speculative out, or use "
                           "scripts/run.py.")
    if not cache_tokens:
        config = getattr(model.keras_model, "config", None)
        token = config.cache_bytes(1, 1, 4) if hasattr(config, "cache_bytes") else 1
        cache_tokens = min(max_rows * model.context_length, _CACHE_BYTES // token)
    if kind == "fused":
        from tfspeed.serving.fused_backend import FusedBackend
        return FusedBackend(model, weights or "float32", cache_tokens, max_rows)
    from tfspeed.serving.tf_backend import TfBackend
    return TfBackend(model, kind == "xla", cache_tokens, max_rows)
