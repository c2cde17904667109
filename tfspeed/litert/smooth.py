"""Evens out the channels of activations, so that eight bits hold them better.

Kernels quantize each row of activations with one scale; a few channels that stand out leave the
others two or three bits. A factor a channel moves that difference into the weights, exactly in
real numbers: `W x = (W · t) (x / t)`. The division costs nothing: it goes into the norm, or into
the rows of the product, that made `x`. Source: SmoothQuant, arXiv:2211.10438; by
the root mean square of a channel, for the largest value grows with the text that is read.
"""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from tfspeed.models.conversion import replaced_calls
from tfspeed.models.decoder import Block, Decoder

CALIBRATION_TEXT = Path(__file__).parents[1] / "data" / "calibration_text.txt"
ALPHA = 0.4  # see `channel_factors`
_WINDOW, _WINDOWS = 256, 24  # fewer tokens leave GPTQ directions that it has not seen


def calibration_tokens(tokenizer, vocabulary: int, context: int) -> np.ndarray:
    """int32 `[windows, length]`: the project's calibration text, or random tokens without a
    tokenizer."""
    length = min(_WINDOW, context)
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, vocabulary, (1, length), np.int32)
    ids = tokenizer.encode(CALIBRATION_TEXT.read_text(encoding="utf-8"))
    count = min(_WINDOWS, len(ids) // length)
    return np.asarray(ids[:count * length], np.int32).reshape(count, length)


def walk(decoder: Decoder, tokens: np.ndarray,
         see: Callable[[Block, dict[int, np.ndarray]], None]) -> np.ndarray:
    """Reads tokens `[windows, length]`, layer by layer; only one layer's activations are kept.

    Args:
        see: called after each block with what its dense layers have read, float32
            `[windows * length, in]` by `id` of the layer.

    Returns:
        What the head reads, float32 `[windows * length, hidden]`.
    """
    found: dict[int, np.ndarray] = {}

    def rows(x):
        return np.array(keras.ops.convert_to_numpy(x), np.float32).reshape(-1, x.shape[-1])

    def watched(layer):
        def of(call):
            def block(*args):
                out = call(*args)
                see(layer, dict(found))
                found.clear()
                return out

            def dense(x):
                found[id(layer)] = rows(x)
                return call(x)

            return block if isinstance(layer, Block) else dense
        return of

    with replaced_calls(*((layer, watched(layer)) for block in decoder.blocks for layer in (
            block, block.attention.query_key_value, block.attention.out, block.mlp.up,
            block.mlp.down))):
        return rows(decoder.hidden(tokens))


def normalized(inputs: np.ndarray) -> np.ndarray:
    """Rows of RMS 1. A kernel gives each token a scale of its own, so each counts the same here;
    in a language model the first one can be a hundred times as large as the others."""
    return inputs / np.maximum(np.sqrt(np.square(inputs).mean(1, keepdims=True)), 1e-9)


def factors(inputs: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
    """`t` of each channel, float32 `[in]`, geometric mean 1.

    Args:
        inputs: `[tokens, in]`.
        matrices: the `[out, in]` matrices that read them.
    """
    return channel_factors(np.sqrt(np.square(normalized(inputs)).mean(0)), ALPHA, *matrices)


def channel_factors(activations: np.ndarray, alpha: float, *matrices: np.ndarray) -> np.ndarray:
    """`t` of each channel, float32 `[in]`, geometric mean 1.

    Args:
        activations: root mean square of each channel, `[in]`.
        alpha: 0: only the weights are evened out; 1: only the activations.
    """
    weights = np.max([np.maximum(m.max(0), -m.min(0)) for m in matrices], axis=0)  # no copy
    factor = np.maximum(activations, 1e-5) ** alpha / np.maximum(weights, 1e-5) ** (1 - alpha)
    return (factor / np.exp(np.log(factor).mean())).astype(np.float32)
