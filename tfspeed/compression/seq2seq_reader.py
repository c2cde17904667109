"""Whole texts through an `EncoderDecoder` block by block, one side after the other."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfspeed.compression.block_reader import CHUNK, ROWS
from tfspeed.compression.sources import Sources
from tfspeed.models.conversion import replaced_calls
from tfspeed.models.encoder_decoder import EncoderDecoder


@dataclasses.dataclass
class SideReader:
    """What one side's blocks read, block by block: see `block_reader.Reader`.

    Attributes:
        x: what the first block reads, float32 `[rows, length, hidden]`.
        biases: of self-attention, for each `CHUNK` of rows.
        encoded: what the encoder gave, `[sources, source, hidden]`; None of the encoder's side, as
            the others.
        of: which of them each row comes after.
        hidden: what hides their padding, `[sources, 1, 1, source]`.
    """

    blocks: list
    x: np.ndarray
    biases: list
    encoded: np.ndarray | None = None
    of: np.ndarray | None = None
    hidden: np.ndarray | None = None

    def outputs(self, i: int, x, block=None):
        """What a block, or another in its place, makes of `x`, part by part; with the number of
        each part's first row."""
        block = block or self.blocks[i]
        for at in range(0, len(x), CHUNK):
            given = ()
            if self.of is not None:
                rows = self.of[at:at + CHUNK]
                given = (None, None, block.cross.keys_values(tf.constant(self.encoded[rows])),
                         tf.constant(self.hidden[rows]))
            yield at, block(x[at:at + CHUNK], self.biases[at // CHUNK], *given)[0]

    def through(self, i: int, block=None) -> None:
        """Goes on: `x` becomes what the block makes of it."""
        for at, out in self.outputs(i, self.x, block):
            self.x[at:at + CHUNK] = out


def encoder_side(model: EncoderDecoder, sources: np.ndarray) -> SideReader:
    return _side(model.encoder, len(sources), lambda rows: model.encode(sources[rows]))


def decoder_side(model: EncoderDecoder, tokens: np.ndarray, after: Sources, hidden: np.ndarray,
                 ) -> SideReader:
    """Args:
        tokens: int32 `[windows, length]`.
        hidden: what the last block of the encoder gave, `[sources, source, hidden]`.
    """
    nothing = {"cross": [None] * len(model.decoder), "bias": None}
    made = _side(model.decoder, len(tokens), lambda rows: model.hidden(tokens[rows], nothing))
    parts = [hidden[at:at + CHUNK] for at in range(0, len(hidden), CHUNK)]
    if model.config.final_norm:
        parts = [model.final_norms[0](part) for part in parts]
    made.encoded, made.of = np.concatenate([np.asarray(part) for part in parts]), after.of
    made.hidden = np.asarray(model.source_bias(after.distinct))
    return made


def _side(blocks, count: int, read) -> SideReader:
    """What the blocks are given when `read` is called on rows."""
    seen = []

    def passes(_):
        def run(x, bias, *rest):
            seen.append((x, bias))
            return x, None
        return run

    parts, biases = [], []
    with replaced_calls(*((block, passes) for block in blocks)):
        for at in range(0, count, CHUNK):
            seen.clear()
            read(slice(at, at + CHUNK))
            x, bias = seen[0]
            parts.append(np.asarray(x))
            biases.append(bias)
    return SideReader(blocks, np.concatenate(parts), biases)


def log_p(model: EncoderDecoder, tokens: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Log-probabilities of the next token, float32 `[windows * length, vocabulary]`."""
    rows = np.array(model((sources, tokens)), np.float32)
    rows = rows.reshape(-1, rows.shape[-1])
    for at in range(0, len(rows), ROWS):
        rows[at:at + ROWS] = tf.nn.log_softmax(rows[at:at + ROWS])
    return rows


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """KL divergence of two such, nats a token."""
    return float(np.mean(np.sum(np.exp(reference) * (reference - other), -1)))
