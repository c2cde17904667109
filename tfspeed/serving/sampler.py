"""The next token of one row, on the host: rows of a batch differ in all that can be asked for.

What is kept is what `engines.sampling.sample` keeps; numbers come from a stream of the request's
own, by its seed and the number of the token, so that no row depends on its neighbours.
"""

import numpy as np

from tfspeed.engines.sampling import Sampling
from tfspeed.serving.request import Token

_FIRST = 256  # likeliest tokens that are sorted at first: they make up p nearly always


def choose(logits: np.ndarray, sampling: Sampling, count: int) -> int:
    """A token by float32 logits `[vocabulary]`, the `count`-th of its text."""
    if sampling.greedy:
        return int(logits.argmax())
    # From 0 down, so that a tiny temperature leaves the best one and no NaN.
    scaled = (logits - logits.max()) / max(np.float32(sampling.temperature), np.float32(1e-30))
    ids = _kept(scaled, sampling)
    weights = np.exp((scaled if ids is None else scaled[ids]).astype(np.float64))
    ends = weights.cumsum()
    key = np.array([sampling.seed, count], np.uint64)
    draw = np.random.Generator(np.random.Philox(key=key)).random() * ends[-1]
    at = min(int(ends.searchsorted(draw, side="right")), len(ends) - 1)
    return at if ids is None else int(ids[at])


def _kept(scaled: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    """Ids that top_k and top_p leave; None for all."""
    ids = None
    if 0 < sampling.top_k < len(scaled):
        threshold = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        ids = np.flatnonzero(scaled >= threshold)
    if sampling.top_p >= 1:
        return ids
    kept = scaled if ids is None else scaled[ids]
    weights = np.exp(kept.astype(np.float64))
    wanted, size = sampling.top_p * weights.sum(), _FIRST
    while True:
        size = min(size, len(weights))
        best = np.argpartition(weights, -size)[-size:]
        ordered = np.sort(weights[best])[::-1]
        # A token stays if those before it have not reached p: the first always does.
        before = np.concatenate([[0.0], ordered.cumsum()[:-1]])
        inside = int(((before < wanted) | (np.arange(size) == 0)).sum())
        if inside < size or size == len(weights):
            break
        size *= 8
    left = np.flatnonzero(weights >= ordered[inside - 1])
    return left if ids is None else ids[left]


def told(logits: np.ndarray, token: int, top: int | None) -> Token:
    """The token with its log-probability and those of the `top` likeliest, None for neither."""
    if top is None:
        return Token(token)
    logits = logits.astype(np.float64)
    most = logits.max()
    total = most + np.log(np.exp(logits - most).sum())
    best = np.argpartition(-logits, top)[:top] if top < len(logits) else np.arange(len(logits))
    best = best[np.argsort(-logits[best], kind="stable")]
    return Token(token, float(logits[token] - total),
                 tuple((int(i), float(logits[i] - total)) for i in best))
