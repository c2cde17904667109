"""How much of the model's mind a change has cost: perplexity, KL divergence, top-1 agreement."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspeed.errors import TfspeedError

Score = Callable[[np.ndarray], tf.Tensor]

_BLOCK = 64  # neighbouring tokens are harder or easier together: the bootstrap draws whole blocks


def text_windows(token_ids: np.ndarray, length: int, count: int) -> np.ndarray:
    """Up to `count` stretches of `length` tokens, one after the other: int32 `[n, length]`."""
    available = min(count, len(token_ids) // length)
    if available < 1:
        raise TfspeedError("The evaluation text is too short.", tokens=len(token_ids),
                           needed=length, hint="Give a longer --eval_text.")
    return np.asarray(token_ids[:available * length], np.int32).reshape(available, length)


class Comparison:
    """Of every next-token distribution of a candidate with the baseline's, window by window: all
    logits at once would not fit."""

    def __init__(self):
        self._losses = []  # float64 [2, tokens] of each part of a window, the baseline's first
        self._sums = np.zeros(2)

    def add(self, window: np.ndarray, reference, logits) -> None:
        """Takes one window, int32 `[length]`, and what both made of it, float32 logits
        `[1, length, vocabulary]`; these may be one object.

        The last position predicts a token outside of the window and is left out. Some tokens at a
        time: comparing takes six arrays as large as the logits.
        """
        for start in range(0, len(window) - 1, _BLOCK):
            part = slice(start, min(start + _BLOCK, len(window) - 1))
            losses, sums = _compared(reference[0, part], logits[0, part],
                                     tf.constant(window[part.start + 1:part.stop + 1]))
            self._losses.append(losses.numpy().astype(np.float64))
            self._sums += sums.numpy()

    def result(self) -> dict:
        """`perplexity`, `perplexity_delta` and its interval, `kl_divergence`, `top1_agreement`,
        `baseline_perplexity` and `evaluated_tokens`."""
        losses = np.concatenate(self._losses, axis=1)
        base_loss, loss = losses.mean(axis=1).tolist()
        divergence, agreement = (self._sums / losses.shape[1]).tolist()
        divergence = max(divergence, 0.0)  # float32 sums of nothing may come out below
        return {"perplexity": _exp(loss), "baseline_perplexity": _exp(base_loss),
                "perplexity_delta": _exp(loss - base_loss) - 1.0,
                "perplexity_delta_interval": interval(losses[1] - losses[0]),
                "kl_divergence": divergence, "top1_agreement": agreement,
                "evaluated_tokens": losses.shape[1]}


def compare(baseline: Score, candidate: Score, windows: np.ndarray,
            progress: Callable[[], None] = lambda: None) -> dict:
    """Runs both over the same windows.

    Args:
        baseline, candidate: int32 `[1, length]` → float32 logits `[1, length, vocabulary]`; may
            be the same function.
        windows: int32 `[n, length]`.
        progress: called after each window.

    Returns:
        What `Comparison.result` does.
    """
    comparison = Comparison()
    for window in windows:
        reference = baseline(window[None])
        comparison.add(window, reference,
                       reference if candidate == baseline else candidate(window[None]))
        progress()
    return comparison.result()


def interval(differences: np.ndarray, draws: int = 2000) -> dict:
    """The 95 % bootstrap interval of exp(mean) - 1, `{low, high}`.

    Args:
        differences: `[tokens]`, candidate's loss less the baseline's on the same token: paired,
            the difficulty of the text, which both share, drops out.
        draws: resamplings, with replacement, of blocks of 64 tokens.
    """
    starts = np.arange(0, len(differences), _BLOCK)
    sums = np.add.reduceat(differences, starts)
    counts = np.diff([*starts, len(differences)])
    drawn = np.random.default_rng(0).integers(0, len(starts), (draws, len(starts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    return {"low": _exp(low) - 1.0, "high": _exp(high) - 1.0}


@tf.function(reduce_retracing=True)
def _compared(reference, logits, tokens):
    """Losses of some tokens, float32 `[2, tokens]`, and sums of KL divergence and agreements,
    float64 `[2]`.

    Args:
        reference, logits: `[tokens, vocabulary]`, what predicted each.
        tokens: int32 `[tokens]`.
    """
    reference, logits = (tf.cast(some, tf.float32) for some in (reference, logits))
    p, q = tf.nn.log_softmax(reference), tf.nn.log_softmax(logits)
    targets = tokens[:, None]
    losses = [-tf.gather(p, targets, batch_dims=1)[:, 0],
              -tf.gather(q, targets, batch_dims=1)[:, 0]]
    parts = (tf.reduce_sum(tf.exp(p) * (p - q), axis=-1),
             # Of the logits: their softmax rounds close ones to one value.
             tf.cast(tf.argmax(reference, axis=-1) == tf.argmax(logits, axis=-1), tf.float32))
    return tf.stack(losses), tf.stack([tf.reduce_sum(tf.cast(part, tf.float64))
                                       for part in parts])


def _exp(value: float) -> float:
    """e to a number; infinity where that is none of float64, NaN of NaN."""
    return math.inf if value >= 700 else math.exp(value)
