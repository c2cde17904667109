"""How much a change of a layer's outputs costs the model, in nats: the metric in which errors of
different layers can be compared."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfspeed.compression.block_reader import ROWS, Reader
from tfspeed.compression.targets import Target
from tfspeed.memory import give_back
from tfspeed.models.conversion import replaced_calls
from tfspeed.models.decoder import Decoder
from tfspeed.models.language_model import LanguageModel


def output_costs(model: LanguageModel, targets: Sequence[Target], tokens: np.ndarray,
                 seed: int = 0) -> dict[str, np.ndarray]:
    """The diagonal of the Fisher information of each layer's outputs.

    A change `Δy` of a layer's outputs raises the KL divergence of the model's next token from what
    it was by about `½ Σ cost · Δy²`, summed over the tokens. The labels are drawn from the model's
    own prediction, so no text has to have answers. Sources: K-FAC, arXiv:1503.05671; LLM Surgeon,
    arXiv:2312.17244.

    Args:
        tokens: int32 `[windows, length]`; one window at a time is in memory, and of a decoder one
            block of it: the whole way back through SmolLM2 holds three times its weights.

    Returns:
        float64 `[out]` by the target's name, each token's inputs being scaled to RMS 1 (as
        `calibration.stream` does); without the layers that gradients do not reach.
    """
    decoder = model.keras_model
    sums = {}
    for i, window in enumerate(tokens):
        found = (_by_block(decoder, targets, window[None], (seed, i))
                 if isinstance(decoder, Decoder)
                 else _gradients(targets, lambda window=window, i=i: _loss(
                     model.score(window[None]), (seed, i)), [])[1])
        _add(sums, found)
        give_back()
    return {name: squares / tokens.size for name, squares in sums.items()}


def _by_block(decoder, targets, window, seed) -> dict[str, np.ndarray]:
    """Forwards with what each block reads kept, then backwards, each block computed again."""
    reader = Reader(decoder, window)
    read = [reader.x]
    for i in range(len(decoder.blocks)):
        read.append(reader.through(i, read[-1]))
    found, back = {}, []
    for at in range(0, window.shape[1], ROWS):
        rows = tf.constant(read[-1][:, at:at + ROWS])
        (gradient,), squares = _gradients(targets, lambda rows=rows, at=at: _loss(
            decoder.logits(decoder.final_norm(rows)), (seed[0], seed[1] + (at << 16))), [rows])
        back.append(gradient)
        _add(found, squares)
    back = tf.concat(back, 1)
    for i in reversed(range(len(decoder.blocks))):
        x = tf.constant(read[i])
        (back,), squares = _gradients(
            targets, lambda i=i, x=x: tf.concat([out for _, out in reader.outputs(i, x)], 0), [x],
            back)
        _add(found, squares)
    return found


def _add(sums, found) -> None:
    for name, squares in found.items():
        sums[name] = sums.get(name, 0.0) + squares


def _loss(logits, seed):
    """Of labels drawn from the prediction itself, summed over the tokens."""
    drawn = tf.random.stateless_uniform(tf.shape(logits), seed, 1e-9, 1.0)
    labels = tf.argmax(tf.stop_gradient(logits) - tf.math.log(-tf.math.log(drawn)), -1)
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def _gradients(targets, compute, inputs, back=None) -> tuple[list, dict[str, np.ndarray]]:
    """Of what `compute()` gives, times `back`: gradients of the inputs, and the squared ones of the
    outputs of the layers that it calls, summed over their tokens, `[out]` by name."""
    seen: dict[str, list] = {}
    with (tf.GradientTape(watch_accessed_variables=False) as tape,
          replaced_calls(*((target.layer, functools.partial(_watched, target, tape, seen))
                           for target in targets))):
        tape.watch(inputs)
        result = compute()
    outputs = {name: [out for _, out in calls] for name, calls in seen.items()}
    of_inputs, of_outputs = tape.gradient(result, (inputs, outputs), output_gradients=back)
    found = {}
    for name, gradients in of_outputs.items():
        for (size, _), gradient in zip(seen[name], gradients, strict=True):
            if gradient is not None:
                scaled = np.asarray(gradient, np.float64).reshape(len(size), -1) * size
                _add(found, {name: np.square(scaled).sum(0)})
    return of_inputs, found


def _watched(target, tape, seen, call):
    """A call whose output's gradient is asked for later."""
    def watched(x, *args, **kwargs):
        out = call(x, *args, **kwargs)
        tape.watch(out)
        size = np.sqrt(np.square(target.rows(x)).mean(1, keepdims=True))
        seen.setdefault(target.name, []).append((size, out))
        return out

    return watched
