"""How the next token is chosen from logits, inside the compiled step."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tfspeed.errors import TfspeedError

_ROW = 0x9E3779B1  # what a row's seed is away from that of the row before


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0 (the default), else sampled.

    `top_k` keeps the k likeliest tokens (0: all), `top_p` the smallest set of likeliest tokens
    whose probability reaches p (nucleus sampling, arXiv:1904.09751). The same seed gives the same
    tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise TfspeedError("temperature must be 0 (greedy) or more.",
                               temperature=self.temperature)
        if not 0 <= self.top_k < 2**31:
            raise TfspeedError("top_k must lie in [0, 2**31), 0 for all tokens.",
                               top_k=self.top_k)
        if not 0 < self.top_p <= 1:
            raise TfspeedError("top_p must lie in (0, 1].", top_p=self.top_p)
        if not 0 <= self.seed < 2**31:
            raise TfspeedError("seed must lie in [0, 2**31).", seed=self.seed)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def shifted(self, rows: int) -> "Sampling":
        """That of a batch whose first row is row `rows` of another batch."""
        return dataclasses.replace(self, seed=(self.seed + _ROW * rows) % 2**31)


def greedy(logits):
    """int32 `[batch]`, the likeliest token of float32 logits `[batch, vocabulary]`."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def seeds(seed: int, batch: int, count: int) -> np.ndarray:
    """One seed a row for token `count`, int32 `[batch, 2]`: a row draws the same numbers wherever
    it is placed, so that sharding a batch does not change what is sampled."""
    rows = (seed + _ROW * np.arange(batch, dtype=np.int64)) % 2**31
    return np.stack([rows, np.full(batch, count)], axis=1).astype(np.int32)


def sample(logits, temperature, top_k, top_p, row_seeds):
    """Draws int32 `[batch]` from float32 logits `[batch, vocabulary]`.

    All parameters are tensors, so that changing one retraces nothing: `temperature` and `top_p`
    float32 scalars, `top_k` an int32 scalar, `row_seeds` int32 `[batch, 2]`.
    """
    # From 0 down, so that a tiny temperature makes -inf of the others and no NaN of the best.
    logits = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / tf.maximum(
        temperature, 1e-30)
    ordered = tf.sort(logits, axis=-1, direction="DESCENDING")
    vocabulary = tf.shape(logits)[-1]
    rank = tf.range(vocabulary)[None, :]
    kept = tf.where(top_k > 0, top_k, vocabulary)
    probabilities = tf.nn.softmax(tf.where(rank < kept, ordered, -math.inf), axis=-1)
    # A token stays if the probability before it has not reached p: the first always does, also
    # where p is too small for a float32.
    before = tf.cumsum(probabilities, axis=-1, exclusive=True)
    inside = ((before < top_p) | (rank == 0)) & (rank < kept)
    count = tf.reduce_sum(tf.cast(inside, tf.int32), axis=-1, keepdims=True)
    threshold = tf.reduce_sum(tf.where(rank == count - 1, ordered, 0.0), axis=-1, keepdims=True)
    logits = tf.where(logits >= threshold, logits, -math.inf)
    # Gumbel's trick: XLA has no categorical sampler, and an argmax is what greedy does too.
    width = logits.shape[-1:]
    uniform = tf.map_fn(lambda s: tf.random.stateless_uniform(width, s, minval=1e-20), row_seeds,
                        fn_output_signature=tf.float32)
    return greedy(logits - tf.math.log(-tf.math.log(uniform)))
