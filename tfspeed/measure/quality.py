"""How much of the model's mind a change has cost: perplexity, KL divergence, top-1 agreement."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspeed.errors import TfspeedError

Score = Callable[[np.ndarray], tf.Tensor]


def text_windows(token_ids: np.ndarray, length: int, count: int) -> np.ndarray:
    """Up to `count` stretches of `length` tokens, one after the other: int32 `[n, length]`."""
    available = min(count, len(token_ids) // length)
    if available < 1:
        raise TfspeedError("The evaluation text is too short.", tokens=len(token_ids),
                           needed=length, hint="Give a longer --eval_text.")
    return np.asarray(token_ids[:available * length], np.int32).reshape(available, length)


def compare(baseline: Score, candidate: Score, windows: np.ndarray,
            progress: Callable[[], None] = lambda: None) -> dict:
    """Runs both over the same windows and compares every next-token distribution.

    Args:
        baseline, candidate: int32 `[1, length]` → float32 logits `[1, length, vocabulary]`; may
            be the same function.
        windows: int32 `[n, length]`. Taken one at a time: all logits at once would not fit.
        progress: called after each window.

    Returns:
        `perplexity`, `perplexity_delta`, `kl_divergence`, `top1_agreement`, `baseline_perplexity`
        and `evaluated_tokens`.
    """
    sums = np.zeros(4)
    for window in windows:
        tokens = window[None]
        reference = baseline(tokens)
        logits = reference if candidate is baseline else candidate(tokens)
        sums += _sums(reference, logits, tf.constant(tokens)).numpy()
        progress()
    count = windows.shape[0] * (windows.shape[1] - 1)
    base_loss, loss, divergence, agreement = (sums / count).tolist()
    divergence = max(divergence, 0.0)  # float32 sums of nothing may come out below
    return {"perplexity": _exp(loss), "baseline_perplexity": _exp(base_loss),
            "perplexity_delta": _exp(loss - base_loss) - 1.0, "kl_divergence": divergence,
            "top1_agreement": agreement, "evaluated_tokens": count}


@tf.function(reduce_retracing=True)
def _sums(reference, logits, tokens):
    """Sums over a window, float64 `[4]`: both losses, KL divergence, agreements.

    The last position predicts a token outside of the window and is left out.
    """
    p = tf.nn.log_softmax(tf.cast(reference[0, :-1], tf.float32))
    q = tf.nn.log_softmax(tf.cast(logits[0, :-1], tf.float32))
    targets = tokens[0, 1:, None]
    parts = (-tf.gather(p, targets, batch_dims=1), -tf.gather(q, targets, batch_dims=1),
             tf.reduce_sum(tf.exp(p) * (p - q), axis=-1),
             tf.cast(tf.argmax(p, axis=-1) == tf.argmax(q, axis=-1), tf.float32))
    return tf.stack([tf.reduce_sum(tf.cast(part, tf.float64)) for part in parts])


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
