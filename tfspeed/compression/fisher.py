"""How much a change of a layer's outputs costs the model, in nats: the metric in which errors of
different layers can be compared."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfspeed.compression.targets import Target
from tfspeed.models.conversion import replaced_calls
from tfspeed.models.language_model import LanguageModel


def output_costs(model: LanguageModel, targets: Sequence[Target], tokens: np.ndarray,
                 seed: int = 0) -> dict[str, np.ndarray]:
    """The diagonal of the Fisher information of each layer's outputs.

    A change `Δy` of a layer's outputs raises the KL divergence of the model's next token from what
    it was by about `½ Σ cost · Δy²`, summed over the tokens. The labels are drawn from the model's
    own prediction, so no text has to have answers. Sources: K-FAC, arXiv:1503.05671; LLM Surgeon,
    arXiv:2312.17244.

    Args:
        tokens: int32 `[windows, length]`; one window at a time is in memory.

    Returns:
        float64 `[out]` by the target's name, each token's inputs being scaled to RMS 1 (as
        `calibration.stream` does); without the layers that gradients do not reach.
    """
    sums = {}
    for i, window in enumerate(tokens):
        for name, found in _gradients(model, targets, window[None], (seed, i)).items():
            sums[name] = sums.get(name, 0.0) + found / tokens.size
    return sums


def _gradients(model, targets, window, seed) -> dict[str, np.ndarray]:
    """Squared gradients of a window, summed over its tokens, `[out]` by name."""
    seen: dict[str, list] = {}
    with (tf.GradientTape(watch_accessed_variables=False) as tape,
          replaced_calls(*((target.layer, functools.partial(_watched, target, tape, seen))
                           for target in targets))):
        logits = model.score(window)
        drawn = tf.random.stateless_uniform(tf.shape(logits), seed, 1e-9, 1.0)
        labels = tf.argmax(tf.stop_gradient(logits) - tf.math.log(-tf.math.log(drawn)), -1)
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    added = {name: [zero for _, zero in calls] for name, calls in seen.items()}
    found = {}
    for name, gradients in tape.gradient(loss, added).items():
        for (scale, _), gradient in zip(seen[name], gradients, strict=True):
            if gradient is not None:
                scaled = np.asarray(gradient, np.float64).reshape(len(scale), -1) * scale
                found[name] = found.get(name, 0.0) + np.square(scaled).sum(0)
    return found


def _watched(target, tape, seen, call):
    """A call that adds zeros to the output: their gradient is the output's."""
    def watched(x, *args, **kwargs):
        out = call(x, *args, **kwargs)
        zero = tf.zeros_like(out)
        tape.watch(zero)
        size = np.sqrt(np.square(target.rows(x)).mean(1, keepdims=True))
        seen.setdefault(target.name, []).append((size, zero))
        return out + zero

    return watched
