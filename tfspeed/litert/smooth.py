"""Evens out the channels of activations, so that eight bits hold them better.

Kernels quantize each row of activations with one scale; a few channels that stand out leave the
others two or three bits. A factor a channel moves that difference into the weights, exactly in
real numbers: `W x = (W · t) (x / t)`. The division costs nothing: it goes into the norm, or into
the rows of the product, that made `x`. Source: SmoothQuant, arXiv:2211.10438, alpha 0.5.
"""

import contextlib
from pathlib import Path

import keras
import numpy as np

from tfspeed.models.decoder import Decoder

CALIBRATION_TEXT = Path(__file__).parents[1] / "data" / "calibration_text.txt"
_LARGEST = 65504.0  # of float16
_TOKENS = 1024  # at most; a few hundred show the channels that stand out


def calibration_tokens(tokenizer, vocabulary: int, context: int) -> np.ndarray:
    """int32 `[1, length]`: the project's calibration text, or random tokens without a tokenizer."""
    length = min(_TOKENS, context)
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, vocabulary, (1, min(length, 256)), np.int32)
    ids = tokenizer.encode(CALIBRATION_TEXT.read_text(encoding="utf-8"))
    return np.asarray([ids[:length]], np.int32)


def activations(decoder: Decoder, tokens: np.ndarray) -> dict[int, np.ndarray]:
    """What each dense layer of the blocks reads, float16 `[length, in]`, by `id` of the layer;
    and what the head reads, by `id` of the final norm."""
    found: dict[int, np.ndarray] = {}

    def keep(layer, x):
        values = keras.ops.convert_to_numpy(x).reshape(-1, x.shape[-1])
        found[id(layer)] = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)

    def watch(layer):
        call = layer.call

        def watched(x, *args, **kwargs):
            keep(layer, x)
            return call(x, *args, **kwargs)

        layer.call = watched

    with contextlib.ExitStack() as undo:
        for block in decoder.blocks:
            for layer in (block.attention.query_key_value, block.attention.out, block.mlp.up,
                          block.mlp.down):
                watch(layer)
                undo.callback(layer.__dict__.pop, "call")
        lengths = np.asarray([tokens.shape[1]], np.int32)
        hidden, _ = decoder.forward(tokens, lengths, decoder.initial_state(1, tokens.shape[1]))
    keep(decoder.final_norm, hidden)
    return found


def factors(inputs: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
    """`t` of each channel, float32 `[in]`, geometric mean 1.

    Args:
        inputs: largest magnitudes of the activations, `[in]`.
        matrices: the `[out, in]` matrices that read them.
    """
    weights = np.max([np.abs(m).max(0) for m in matrices], axis=0)
    factor = np.sqrt(np.maximum(inputs, 1e-5) / np.maximum(weights, 1e-5))
    return (factor / np.exp(np.log(factor).mean())).astype(np.float32)
