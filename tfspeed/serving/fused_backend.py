"""The `fused` engine over a paged cache: prompts and single tokens of many texts in one call, each
weight read once for all of them."""

from tfspeed.engines.fused import FusedEngine
from tfspeed.serving.backend import Backend

_BLOCK = 64  # as many keys as the kernel scores at once
_MAX_TOKENS = 512


class FusedBackend(Backend):
    """Args:
        weights: see `FusedEngine`.
        cache_tokens: how many tokens the cache holds, of all texts together.
    """

    def __init__(self, model, weights: str, cache_tokens: int, max_rows: int):
        engine = FusedEngine(model, weights)
        super().__init__(model, _BLOCK, -(-cache_tokens // _BLOCK), max_rows, _MAX_TOKENS)
        self.name = engine.name
        # LongRoPE's angles depend on how long a text is.
        self.shares = not any(r and r.long_factors for r in (engine.config.rope,
                                                             engine.config.local_rope))
        self._paged = engine.paged(max_rows, max_rows + _MAX_TOKENS, self.blocks, _BLOCK)

    def read(self, chunks):
        return self._paged.read(chunks)

    def close(self):
        self._paged.close()
