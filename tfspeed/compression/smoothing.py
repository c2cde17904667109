"""Evens out the channels of a decoder's activations in the model itself, so that it computes the
same."""

import numpy as np

from tfspeed.compression.copying import renew
from tfspeed.compression.quantizing import Rounding
from tfspeed.litert.dense import Dense, array
from tfspeed.litert.folding import even_out
from tfspeed.litert.smooth import ALPHA, channel_factors
from tfspeed.models.decoder import Block, Decoder
from tfspeed.models.low_rank import LowRankDense


class BlockSmoother:
    """Moves factors between the norms and the products of a copy's blocks.

    Args:
        awq: what searches the factors; None: those of SmoothQuant.
    """

    def __init__(self, decoder: Decoder, awq: Rounding | None):
        self.decoder, self.awq = decoder, awq
        self.blocks = {block.name: block for block in decoder.blocks}

    def factor(self, name: str, gram: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
        """`t` of each channel, float32 `[in]`."""
        if self.awq is not None:
            return self.awq.factor(name, gram, *matrices)
        return channel_factors(np.sqrt(np.diag(gram)), ALPHA, *matrices)

    def smooth(self, name: str, grams: dict[str, np.ndarray]) -> None:
        """Changes the block of this name, if it is one, and the Gram matrices of its inputs, by
        the layers' names."""
        block = self.blocks.get(name)
        if block is None:
            return
        layers = _layers(block)
        inputs = [_input(f"{name}/{path}", layer) for path, layer in layers.items()]
        read = [Dense(layer) for layer in layers.values()]
        norms = [block.attention_norm] + [block.mlp_norm] * (block.mlp_norm is not None)
        pairs = [np.stack([array(norm.scale), array(norm.bias) if norm.kind == "layer"
                           else 0 * array(norm.scale)]) for norm in norms]

        def divide(i, factor):
            if inputs[i] in grams:
                grams[inputs[i]] = grams[inputs[i]] / np.outer(factor, factor)

        def factor_of(i, *matrices):
            gram = grams.get(inputs[i])
            if gram is None:  # not among the targets: it stays as it is
                return np.ones(matrices[0].shape[1], np.float32)
            return self.factor(inputs[i], gram, *matrices)

        even_out(block.config, pairs[0], pairs[1] if len(pairs) > 1 else None, read, factor_of,
                 divide)
        for norm, pair in zip(norms, pairs, strict=True):
            renew(norm.scale, pair[0])
            if norm.kind == "layer":
                renew(norm.bias, pair[1])
        for layer, dense in zip(layers.values(), read, strict=True):
            _write(layer, dense)


def head_factor(decoder: Decoder, target, gram, matrix, smoother: BlockSmoother) -> np.ndarray:
    """`t` of the output layer's inputs, whose inverse goes into the final norm."""
    factor = smoother.factor(target.name, gram, matrix)
    norm = decoder.final_norm
    renew(norm.scale, array(norm.scale) / factor)
    if norm.kind == "layer":
        renew(norm.bias, array(norm.bias) / factor)
    return factor


def _layers(block: Block) -> dict:
    attention, mlp = block.attention, block.mlp
    return {"attention/query_key_value": attention.query_key_value, "attention/out": attention.out,
            f"mlp/{mlp.up.name}": mlp.up, "mlp/down": mlp.down}


def _input(name: str, layer) -> str:
    """The name of the target that reads a layer's input."""
    return f"{name}/first" if isinstance(layer, LowRankDense) else name


def _write(layer, dense: Dense) -> None:
    """Puts scaled matrices back into a float layer."""
    if not dense.floating:
        return
    parts = [layer.first, layer.second] if isinstance(layer, LowRankDense) else [layer]
    for part, matrix in zip(parts, dense.parts, strict=True):
        renew(part._kernel, matrix.T)
    if dense.bias is not None:
        renew(parts[-1].bias, dense.bias)
