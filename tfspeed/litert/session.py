"""A text being continued by a decoder's `.tflite` file: its KV caches, and how far they are filled.

A step's cost follows the cache's capacity, so caches start small and grow: the file holds a decode
signature for each size, all over the same weights.

Caches are float32. In float16 they work in place too, but the builtin operators have no product
of them: DEQUANTIZE or CAST writes a float32 copy of the whole cache at every step, and a step of
SmolLM2 in int8 takes 10.6 ms, not 6.4 (capacity 256), or 35.5, not 14.6 (capacity 2048).
"""

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.decoder import (
    cache_names,
    decode_name,
    exit_name,
    prefill_name,
    verify_name,
)
from tfspeed.litert.runtime import Buffers, Program
from tfspeed.models.config import DecoderConfig

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


def signatures(sizes: list[int], batch: int, prefills: tuple[int, ...] = PREFILLS,
               widths: tuple[int, ...] = (), exit_layers: int = 0) -> list[tuple]:
    """Every signature that a session calls: (name, batch, length, capacity, layers, logits), the
    arguments of `Lowering` and its `write`.

    Args:
        widths: of `read`.
        exit_layers: of `leave_early`; 0: it is not called.
    """
    made = []
    for size in sizes:
        made.append((decode_name(size), batch, 1, size, 0, True))
        made += [(prefill_name(length, size), batch, length, size, 0, False)
                 for length in prefills if length <= size]
        made += [(verify_name(length, size), batch, length, size, 0, True)
                 for length in widths if 1 < length <= size]
        if exit_layers:
            made.append((exit_name(size), batch, 1, size, exit_layers, True))
    return made


class DecoderSession:
    """One batch of texts being continued: their caches, and how far they are filled.

    Attributes:
        prefills: lengths of prefill signatures, ascending.
    """

    prefills = PREFILLS

    def __init__(self, program: Program, config: DecoderConfig, sizes: list[int]):
        self.program, self.config, self.sizes = program, config, sizes
        self._made: dict[str, Buffers] = {}
        self._index, self._size = 0, sizes[0]
        self._starts = np.zeros(1, np.int32)

    def fits(self, needed: int) -> bool:
        return self.sizes[-1] >= needed

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
        fits = [length for length in self.prefills
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
        self._feed(buffers, chunk, self._index)
        self._index += count
        return count

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads one token a row, int32 `[batch]`; returns logits as `begin` does."""
        if self._index == self._size:
            self._grow()
        return self._run_decode(tokens)["logits"][:, -1]

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Reads int32 `[batch, length]`, a length of the program's `widths` and no more than
        `room`; returns the logits after each, float32 `[batch, length, vocabulary]`."""
        if self._index == self._size:
            self._grow()
        buffers = self._buffers(verify_name(tokens.shape[1], self._size))
        self._feed(buffers, tokens, self._index)
        self._index += tokens.shape[1]
        return buffers["logits"]

    @property
    def filled(self) -> int:
        """Slots of what was read and not taken back, padding on the left with them."""
        return self._index

    def take_back(self, filled: int) -> None:
        """Forgets all but the first `filled`: slots beyond are masked, then written over."""
        self._index = filled

    @property
    def room(self) -> int:
        """Tokens that `read` may be given: the cache grows where single steps let it grow."""
        return next((size for size in self.sizes if size > self._index), self._index) - self._index

    def leave_early(self, tokens: np.ndarray, at: int) -> np.ndarray | None:
        """The first layers' logits `[batch, vocabulary]` after tokens int32 `[batch]`, read in
        slot `at`, from `filled` on; None beyond the cache. `read` then writes over that slot."""
        if at >= self._size:
            return None
        buffers = self._buffers(exit_name(self._size))
        self._feed(buffers, tokens[:, None], at)
        return buffers["logits"][:, -1]

    def _run_decode(self, tokens) -> Buffers:
        buffers = self._buffers(decode_name(self._size))
        self._feed(buffers, tokens[:, None], self._index)
        self._index += 1
        return buffers

    def _feed(self, buffers: Buffers, tokens, at: int):
        buffers["tokens"] = tokens
        buffers["input_pos"] = np.arange(at, at + tokens.shape[1])
        if tokens.shape[0] > 1:
            buffers["starts"] = self._starts
        buffers.run()

    def _buffers(self, name: str) -> Buffers:
        """Signatures of one capacity work on the same caches."""
        if name not in self._made:
            self._made[name] = made = self.program.buffers(name)
            decode = decode_name(self._size)
            if name == decode:
                clear(made, self.config)
            else:
                made.share(self._buffers(decode), cache_names(self.config))
        return self._made[name]

    def _grow(self) -> None:
        """Moves to the next size; every cache is copied once."""
        larger = [size for size in self.sizes if size > self._size]
        if not larger:
            raise TfspeedError("The KV cache is full.", capacity=self._size,
                               hint="Ask for the whole text at once: generate() makes room for "
                                    "the prompt and all new tokens.")
        old = self._buffers(decode_name(self._size))
        self._size = larger[0]
        new = self._buffers(decode_name(self._size))
        for name in cache_names(self.config):
            before, after = old[name], new[name]
            after[:, :, :before.shape[2]] = before
            new[name] = after


def clear(buffers: Buffers, config: DecoderConfig) -> None:
    """New memory may hold NaN, which no mask hides."""
    for name in cache_names(config):
        buffers[name] = np.zeros_like(buffers[name])
