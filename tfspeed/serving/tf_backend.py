"""The `graph` and `xla` engines over a paged cache.

A step gathers the used blocks of its texts, so its cost follows what is used, not what there is;
the model sees them as one cache with the new tokens at its end. Sizes are rounded up to a few
(`traces` counts what was made), so later steps retrace nothing.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfspeed.engines.base import pad_left
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder import Decoder
from tfspeed.serving.backend import Backend, Chunk

_BLOCK = 32
_MAX_TOKENS = 512


class TfBackend(Backend):
    """Args:
        cache_tokens: how many tokens the cache holds, of all texts together.
    """

    def __init__(self, model, jit_compile: bool, cache_tokens: int, max_rows: int):
        if not isinstance(model.keras_model, Decoder):
            raise TfspeedError("Serving needs one of tfspeed's decoders.", model=model.name,
                               type=type(model.keras_model).__name__)
        if model.placement.devices:
            raise TfspeedError("Serving runs on one device: a strategy that places replicas cannot "
                               "be served.", devices=model.placement.devices)
        decoder, c = model.keras_model, model.keras_model.config
        super().__init__(model, _BLOCK, -(-cache_tokens // _BLOCK), max_rows, _MAX_TOKENS)
        self.name = "xla" if jit_compile else "graph"
        # LongRoPE turns every key anew where a text passes this length: none may.
        long = [r.original_context for r in (c.rope, c.local_rope) if r and r.long_factors]
        self.context_length = min([self.context_length, *long])
        self.traces = 0
        # One slot more, in a block that nobody is given: padding is written there.
        slots = (self.blocks + 1) * _BLOCK
        self._pools = [tuple(tf.Variable(tf.zeros((slots, block.config.num_kv_heads, c.head_dim),
                                                  decoder.compute_dtype), trainable=False)
                             for _ in range(2)) for block in decoder.blocks]
        self._widest = -(-self.context_length // _BLOCK)
        self._jit_compile, self._functions = jit_compile, {}

    def read(self, chunks: Sequence[Chunk]) -> np.ndarray:
        rows: dict[int, np.ndarray] = {}
        single = [i for i, chunk in enumerate(chunks) if len(chunk.tokens) == 1]
        longer = [[i] for i, chunk in enumerate(chunks) if len(chunk.tokens) > 1]
        for group in ([single] if single else []) + longer:
            found = self._group([chunks[i] for i in group])
            rows.update(zip(group, found, strict=True))
        wanted = [rows[i] for i, chunk in enumerate(chunks) if chunk.wanted]
        return np.stack(wanted) if wanted else np.zeros((0, self.model.vocabulary_size))

    def close(self):
        self._pools, self._functions = [], {}

    def _group(self, chunks: list[Chunk]) -> np.ndarray:
        """Logits of chunks that are padded to one size."""
        length = max(len(chunk.tokens) for chunk in chunks)
        length = 1 if length == 1 else _size(length, 16, _MAX_TOKENS)
        tokens, lengths = pad_left([c.tokens for c in chunks], length)
        batch = _size(len(chunks), 1, self.max_rows)
        width = _size(max(-(-chunk.start // _BLOCK) for chunk in chunks), 4, self._widest)
        tables = np.full((batch, width), self.blocks, np.int32)
        slots = np.full((batch, tokens.shape[1]), self.blocks * _BLOCK, np.int32)
        for row, chunk in enumerate(chunks):
            before = chunk.blocks[:-(-chunk.start // _BLOCK)]
            tables[row, :len(before)] = before
            at = np.arange(chunk.start, chunk.end)
            slots[row, tokens.shape[1] - len(at):] = (
                np.asarray(chunk.blocks)[at // _BLOCK] * _BLOCK + at % _BLOCK)
        rest = batch - len(chunks)
        starts = np.asarray([c.start for c in chunks] + [0] * rest, np.int32)
        lengths = np.concatenate([lengths, np.zeros(rest, np.int32)])
        tokens = np.concatenate([tokens, np.zeros((rest, tokens.shape[1]), np.int32)])
        run = self._function(batch, tokens.shape[1], width)
        logits = run(*map(tf.constant, (tokens, lengths, starts, tables, slots)))
        return logits.numpy()[:len(chunks)]

    def _function(self, *sizes: int):
        """What reads chunks of these sizes: batch, length, blocks. One each: TensorFlow warns of a
        function that is traced often."""
        if sizes not in self._functions:
            model = tf.function(self._forward, jit_compile=self._jit_compile)
            self._functions[sizes] = tf.function(lambda *args: self._paged(model, *args))
        return self._functions[sizes]

    def _paged(self, model, tokens, lengths, starts, tables, slots):
        """Gathers, runs the model, writes the new keys and values where they belong."""
        batch, width = tables.shape
        used = tf.reshape(tables[:, :, None] * _BLOCK + tf.range(_BLOCK), (batch, width * _BLOCK))
        before = [tuple(tf.gather(pool, used) for pool in pair) for pair in self._pools]
        logits, new = model(tokens, lengths, starts, before)
        for pair, made in zip(self._pools, new, strict=True):
            for pool, values in zip(pair, made, strict=True):
                pool.scatter_update(tf.IndexedSlices(
                    tf.reshape(values, (-1, *values.shape[2:])), tf.reshape(slots, (-1,))))
        return logits

    def _forward(self, tokens, lengths, starts, before):
        """float32 logits `[batch, vocabulary]`, and of each layer keys and values of the new
        tokens, `[batch, length, kv_heads, head_dim]`."""
        self.traces += 1  # Python code runs once a trace
        decoder, length = self.model.keras_model, tokens.shape[1]
        used = before[0][0].shape[1]
        offset = tf.range(length) - (length - lengths)[:, None]
        positions = tf.where(offset >= 0, starts[:, None] + offset, -1)
        held = tf.range(used)[None, :]
        held = tf.where(held < starts[:, None], held, -1)
        caches = [tuple(tf.pad(tf.transpose(x, (0, 2, 1, 3)), ((0, 0), (0, 0), (0, length), (0, 0)))
                        for x in pair) for pair in before]
        hidden, caches = decoder.read(tokens, positions, tf.concat([held, positions], 1), caches,
                                      tf.constant(used))
        new = [tuple(tf.transpose(x[:, :, used:], (0, 2, 1, 3)) for x in pair) for pair in caches]
        return decoder.logits(hidden[:, -1]), new


def _size(count: int, least: int, most: int) -> int:
    """`count` rounded up to `least` times a power of four, but not over `most`: XLA takes ten
    seconds and more for each size of a small model, and there are three of them."""
    size = least
    while size < count:
        size *= 4
    return max(count, min(size, most))
