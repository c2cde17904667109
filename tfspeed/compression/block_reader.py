"""Whole texts through a `Decoder` block by block: what layers read, and what a change costs."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfspeed.models.conversion import replaced_calls
from tfspeed.models.decoder import Block, Decoder

CHUNK = 2  # windows that go through a block at a time: its activations are several times theirs
ROWS = 64  # tokens whose logits are held at a time


def spread(tokens: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the windows of a text, evenly spread over it."""
    return tokens[::-(-len(tokens) // most)]


class Reader:
    """Takes whole texts through a decoder's blocks one at a time.

    Args:
        tokens: int32 `[windows, length]`.

    Attributes:
        x: what the first block reads, `[windows, length, hidden]`; the only array of its size.
    """

    def __init__(self, decoder: Decoder, tokens: np.ndarray):
        self.decoder, self._arguments = decoder, []
        seen = []

        def passes(_):
            def run(x, rope, bias, cache, index):
                seen.append(x)
                self._arguments.append((rope, bias, None, None))
                return x, None
            return run

        parts = []
        with replaced_calls(*((block, passes) for block in decoder.blocks)):
            for at in range(0, len(tokens), CHUNK):
                seen.clear()
                self._arguments.clear()
                decoder.hidden(tokens[at:at + CHUNK])
                parts.append(np.asarray(seen[0]))
        self.x = np.concatenate(parts)

    def through(self, i: int, x, block: Block | None = None, see=None,
                into: np.ndarray | None = None) -> np.ndarray:
        """What a block, or another in its place, makes of `x`; `see` gets each part's output.
        `into` may be `x` itself."""
        made = np.empty_like(x) if into is None else into
        for at, out in self.outputs(i, x, block):
            made[at:at + CHUNK] = out
            if see:
                see(out)
        return made

    def outputs(self, i: int, x, block: Block | None = None):
        """The same part by part, with the number of each part's first window."""
        block = block or self.decoder.blocks[i]
        for at in range(0, len(x), CHUNK):
            yield at, block(x[at:at + CHUNK], *self._arguments[i])[0]

    def log_p(self, x, start: int, without=()) -> np.ndarray:
        """Log-probabilities of the next token, float32 `[windows * length, vocabulary]`, of what
        block `start` reads; some blocks are left out."""
        return np.concatenate(list(self._log_p(x, start, without)))

    def divergence(self, reference: np.ndarray, x, start: int, without=()) -> float:
        """KL divergence of the same from a reference as `log_p` gives it, nats a token."""
        total, at = 0.0, 0
        for mine in self._log_p(x, start, without):
            sure = reference[at:at + len(mine)]
            total += float(np.sum(np.exp(sure) * (sure - mine)))
            at += len(mine)
        return total / at

    def _log_p(self, x, start: int, without):
        """A piece at a time: all logits of two windows are a fifth of a small model."""
        for i in range(start, len(self.decoder.blocks)):
            if i not in without:
                x = self.through(i, x)
        rows = _rows(self.decoder.final_norm(x))
        for at in range(0, len(rows), ROWS):
            logits = self.decoder.logits(rows[None, at:at + ROWS])
            yield np.asarray(tf.nn.log_softmax(logits[0]), np.float32)


class Grams:
    """Sums up what the layers that read a block's units read, each token by the size of
    what its output is added to: a norm divides by that before anybody reads it."""

    def __init__(self, block: Block, kinds: Sequence[str]):
        self.layers = {kind: layers_of(block)[kind] for kind in kinds}
        self.own_scale = block.attention.config.post_norms
        self._sums, self._count, self._rows = {}, 0, {}

    def watching(self):
        def make(name):
            def of(call):
                def run(x):
                    y = call(x)
                    self._rows[name] = _rows(x), _rows(y)
                    return y
                return run
            return of
        return replaced_calls(*((layer, make(name)) for name, layer in self.layers.items()))

    def see(self, out) -> None:
        out = _rows(out)
        for name, (x, y) in self._rows.items():
            x = x / _rms(y if self.own_scale else out)
            if self.layers[name].use_bias:
                x = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
            self._sums[name] = self._sums.get(name, 0) + x.T @ x
        self._count += len(out)

    def of(self, name: str) -> np.ndarray:
        """float32 `[in, in]`; with a bias, a constant is the last input."""
        return self._sums[name] / self._count


def layers_of(block: Block) -> dict:
    """What reads the units of each kind; `cross` where the block is an `EncoderDecoder`'s."""
    layers = {"heads": block.attention.out, "neurons": block.mlp.down}
    return layers | {"cross": block.cross.out} if hasattr(block, "cross") else layers


def _rows(x) -> np.ndarray:
    return np.asarray(x, np.float32).reshape(-1, x.shape[-1])


def _rms(x) -> np.ndarray:
    return np.maximum(np.sqrt(np.square(x).mean(1, keepdims=True)), 1e-9)


def matrix_of(dense) -> np.ndarray:
    """float32 `[out, in]`, the bias as a last column."""
    matrix = np.asarray(keras.ops.convert_to_numpy(dense.kernel), np.float32).T
    if dense.use_bias:
        bias = np.asarray(keras.ops.convert_to_numpy(dense.bias), np.float32)
        matrix = np.concatenate([matrix, bias[:, None]], 1)
    return matrix
