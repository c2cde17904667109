"""The `litert` engine: a decoder as one `.tflite` file, run by LiteRT with its KV cache in place.

Why it is faster: XNNPACK's matrix-vector kernels read int8 or int4 weights at the speed of memory,
the step is one static graph, and a token moves 4 bytes in and one row of logits out. A step's cost
follows the cache's capacity, so caches start small and grow: the file holds a decode signature for
each size, all over the same weights.
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfspeed.devices import available_cores
from tfspeed.engines import sampling as samplers
from tfspeed.engines.base import FINISHED, Engine, pad_left
from tfspeed.errors import TfspeedError
from tfspeed.litert.decoder import Lowering, cache_names, decode_name, prefill_name
from tfspeed.litert.formats import Formats
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.packed_cache import packed
from tfspeed.litert.runtime import Buffers, Program
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import Decoder

CAPACITIES = (256, 512)  # the smallest caches; larger ones double
PREFILLS = (32, 128, 512)  # lengths of prefill signatures


def capacities(config: DecoderConfig, needed: int) -> list[int]:
    """The sizes that a cache grows through until `needed` tokens fit."""
    sizes, size = [], CAPACITIES[0]
    while not sizes or sizes[-1] < needed:
        sizes.append(size)
        size *= 2
    for rope in (config.rope, config.local_rope):
        # LongRoPE changes its angles where a text outgrows the original context.
        if rope and rope.long_factors and rope.original_context < sizes[-1]:
            sizes.append(rope.original_context)
    return sorted(set(sizes))


class LiteRtEngine(Engine):
    """Args:
        weights: how the matrices are stored, see `litert.formats.Formats`.
    """

    def __init__(self, model, weights: str = "float32"):
        super().__init__(f"litert:{weights}", model)
        decoder = model.keras_model
        if not isinstance(decoder, Decoder):
            raise TfspeedError("The litert engine runs tfspeed's decoders only.",
                               model=model.name, type=type(decoder).__name__,
                               hint="Use --engine=xla.")
        self.config = decoder.config
        self._packed = packed(model, Formats(weights))
        self._threads = tf.config.threading.get_intra_op_parallelism_threads() or available_cores()
        self._sessions: dict[int, _Session] = {}
        self._scorers: dict[int, tuple[Program, Buffers]] = {}
        self._sample = tf.function(samplers.sample)
        if model.placement.devices:
            self.notes.append("LiteRT runs the model once, on all cores: replicas do not apply.")

    @property
    def weights_bytes(self) -> int:
        return sum(weight.nbytes for weight in self._packed.weights)

    @property
    def dtype(self) -> str:
        """The type of most bytes of weights."""
        sizes: dict[str, int] = {}
        for weight in self._packed.weights:
            sizes[weight.type.lower()] = sizes.get(weight.type.lower(), 0) + weight.nbytes
        return max(sizes, key=sizes.get)

    def step_bytes(self, batch, context):
        looked_up = [self._packed.position_embedding]
        if self._packed.head.weight is not self._packed.embedding:
            looked_up.append(self._packed.embedding)
        c = self.config
        tokens_seen = sum(min(context, c.window(i) or context) for i in range(c.num_layers))
        return (self.weights_bytes - sum(w.nbytes for w in looked_up if w is not None)
                + 2 * batch * tokens_seen * c.num_kv_heads * c.head_dim * 4)

    def score(self, tokens):
        tokens = np.asarray(tokens, np.int32)
        length = tokens.shape[1]
        if length not in self._scorers:
            program = self._load([("score", 1, length, length, True)])
            buffers = program.buffers("score")
            _clear(buffers, self.config)
            buffers["input_pos"] = np.arange(length)
            self._scorers[length] = program, buffers
        _, buffers = self._scorers[length]
        rows = []
        for row in tokens:
            buffers["tokens"] = row
            buffers.run()
            rows.append(buffers["logits"])
        return np.concatenate(rows)

    def _generate(self, prompts, new_tokens, sampling, stop_tokens):
        width, batch = max(map(len, prompts)), len(prompts)
        tokens, lengths = pad_left(prompts, width)
        session = self._session(batch, width + new_tokens)
        try:
            logits = session.begin(tokens, width - lengths)
            finished = np.zeros(batch, bool)
            for count in range(new_tokens):
                chosen = self._choose(logits, sampling, count)
                yield np.where(finished, FINISHED, chosen)
                finished |= np.isin(chosen, stop_tokens)
                if count == new_tokens - 1 or finished.all():
                    return
                logits = session.step(chosen)
        finally:
            self._sessions.setdefault(batch, session)

    def _choose(self, logits, sampling, count):
        """int32 `[batch]` from float32 `[batch, vocabulary]`."""
        if sampling.greedy:
            return logits.argmax(-1).astype(np.int32)
        return self._sample(
            logits, tf.constant(sampling.temperature, tf.float32), tf.constant(sampling.top_k),
            tf.constant(sampling.top_p, tf.float32),
            tf.constant(samplers.seeds(sampling.seed, len(logits), count))).numpy()

    def _session(self, batch: int, needed: int) -> "_Session":
        """A session that no other generation uses, with room for `needed` tokens."""
        session = self._sessions.pop(batch, None)
        if session is None or session.sizes[-1] < needed:
            sizes = capacities(self.config, needed)
            signatures = [(decode_name(size), batch, 1, size, True) for size in sizes]
            signatures += [(prefill_name(length, size), batch, length, size, False)
                           for size in sizes for length in PREFILLS if length <= size]
            session = _Session(self._load(signatures), self.config, sizes)
        return session

    def _load(self, signatures) -> Program:
        """Writes a file of (name, batch, length, capacity, logits) signatures and loads it."""
        self.traces += 1
        file = TfliteFile("tfspeed")
        for name, batch, length, capacity, logits in signatures:
            Lowering(file, self.config, self._packed, name, batch, length, capacity).write(logits)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            file.write(path)
            return Program(path, self._threads)  # it stays mapped when its name is gone


class _Session:
    """One batch of texts being continued: their caches, and how far they are filled."""

    def __init__(self, program: Program, config: DecoderConfig, sizes: list[int]):
        self.program, self.config, self.sizes = program, config, sizes
        self._made: dict[str, Buffers] = {}
        self._index, self._size = 0, sizes[0]
        self._starts = np.zeros(1, np.int32)

    def begin(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Reads prompts, int32 `[batch, length]` with `starts` slots of padding on the left;
        returns the logits after them, float32 `[batch, vocabulary]`."""
        self._index, self._starts = 0, starts
        # Old keys stay where they lie: what is masked is finite, and that is enough.
        self._size = next(s for s in self.sizes if s >= min(tokens.shape[1], self.sizes[-1]))
        at, last = 0, tokens.shape[1] - 1  # the last token goes through decode, for its logits
        while at < last:
            at += self._prefill(tokens[:, at:last])
        return self.step(tokens[:, last])

    def _prefill(self, tokens: np.ndarray) -> int:
        """Reads as many tokens as one signature takes; says how many those were."""
        left = tokens.shape[1]
        fits = [length for length in PREFILLS
                if length <= self._size and self._index + length <= self._size]
        if not fits:  # a tail shorter than every signature, at the end of the cache
            self._run_decode(tokens[:, 0])
            return 1
        length = next((n for n in fits if n >= left), fits[-1])
        count = min(length, left)
        # Padding on the right: its keys are overwritten before any query may see them.
        chunk = np.zeros((tokens.shape[0], length), np.int32)
        chunk[:, :count] = tokens[:, :count]
        buffers = self._buffers(prefill_name(length, self._size))
        self._feed(buffers, chunk)
        self._index += count
        return count

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads one token a row, int32 `[batch]`; returns logits as `begin` does."""
        if self._index == self._size:
            self._grow()
        return self._run_decode(tokens)["logits"][:, -1]

    def _run_decode(self, tokens) -> Buffers:
        buffers = self._buffers(decode_name(self._size))
        self._feed(buffers, tokens[:, None])
        self._index += 1
        return buffers

    def _feed(self, buffers: Buffers, tokens):
        buffers["tokens"] = tokens
        buffers["input_pos"] = np.arange(self._index, self._index + tokens.shape[1])
        if tokens.shape[0] > 1:
            buffers["starts"] = self._starts
        buffers.run()

    def _buffers(self, name: str) -> Buffers:
        """Signatures of one capacity work on the same caches."""
        if name not in self._made:
            self._made[name] = made = self.program.buffers(name)
            decode = decode_name(self._size)
            if name == decode:
                _clear(made, self.config)
            else:
                made.share(self._buffers(decode), cache_names(self.config))
        return self._made[name]

    def _grow(self) -> None:
        """Moves to the next size; every cache is copied once."""
        old = self._buffers(decode_name(self._size))
        self._size = self.sizes[self.sizes.index(self._size) + 1]
        new = self._buffers(decode_name(self._size))
        for name in cache_names(self.config):
            before, after = old[name], new[name]
            after[:, :, :before.shape[2]] = before
            new[name] = after


def _clear(buffers: Buffers, config: DecoderConfig) -> None:
    """New memory may hold NaN, which no mask hides."""
    for name in cache_names(config):
        buffers[name] = np.zeros_like(buffers[name])
