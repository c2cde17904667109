"""A decoder's matrices in the form that the lowered graph reads.

The query's scale goes into the query's rows. The scales of norms stay operators of their own:
folded into the matrices they would save 1 % of a step, but they tame the channels that stand out,
and without them rounding costs four times the quality (SmolLM2, int8: perplexity 52.8, not 50.9).
"""

import dataclasses

import keras
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.gptq import pack_int4
from tfspeed.litert.smooth import activations, factors
from tfspeed.litert.weights import BLOCKS, Weight, pack
from tfspeed.models.decoder import MLP, Attention, Block, Decoder


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A dense layer: a matrix `[out, in]` and perhaps a bias, float32 `[out]`."""

    weight: Weight
    bias: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class PackedBlock:
    """One layer; norms are float32 `[2, hidden]`, scale and bias."""

    attention_norm: np.ndarray
    mlp_norm: np.ndarray
    query_key_value: Product
    out: Product
    up: Product
    down: Product
    head_scale: np.ndarray | None  # of query and key norms, float32 `[heads + kv_heads, 1, dim]`
    attention_post_norm: np.ndarray | None
    mlp_post_norm: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class PackedDecoder:
    """All of a decoder's weights; `head` is the embedding itself where the two are tied.

    `head_split`, float32 `[2, hidden]`, takes the input of a quantized head apart into the
    channels that stand out and the others, so that each gets a scale of its own: the head reads
    its weights once for both rows. None where the head is in floats.
    """

    embedding: Weight
    position_embedding: Weight | None
    blocks: list[PackedBlock]
    final_norm: np.ndarray  # float32 `[2, hidden]`
    head: Product
    head_split: np.ndarray | None

    @property
    def weights(self) -> list[Weight]:
        """Every matrix once."""
        found = [self.embedding, *(p.weight for b in self.blocks
                                   for p in (b.query_key_value, b.out, b.up, b.down))]
        if self.position_embedding is not None:
            found.append(self.position_embedding)
        if self.head.weight is not self.embedding:
            found.append(self.head.weight)
        return found


class Packer:
    """Packs a `Decoder`, one layer in memory at a time.

    Args:
        calibration: int32 tokens `[1, length]` that show what the products read, for `smooth`
            and `gptq`; without them, weights are rounded as they are.
    """

    def __init__(self, decoder: Decoder, formats: Formats, calibration=None):
        self.decoder, self.formats = decoder, formats
        self._check()
        self._inputs = None if calibration is None else activations(decoder, calibration)

    def pack(self) -> PackedDecoder:
        decoder, c = self.decoder, self.decoder.config
        table = _array(decoder.embedding.embeddings)
        embedding = self._matrix("embedding", table)
        positions = None
        if c.positions == "learned":  # a row a token is read: nothing to win by fewer bits
            positions = pack("position_embedding", _array(decoder.position_embedding.embeddings),
                             32)
        if decoder.head is None:
            head = Product(embedding, None)
        else:
            matrix, bias = _dense(decoder.head)
            head = Product(self._matrix("head", matrix), bias)
        split = None
        if self._inputs is not None and head.weight.scales is not None:
            split = _split(self._inputs.pop(id(decoder.final_norm)))
        return PackedDecoder(embedding, positions, [self._block(b) for b in decoder.blocks],
                             _norm(decoder.final_norm), head, split)

    def _check(self):
        for block in self.decoder.blocks:
            for layer, kind in ((block, Block), (block.attention, Attention), (block.mlp, MLP)):
                if type(layer) is not kind:
                    raise _unsupported(layer)
        dense = [layer for block in self.decoder.blocks for layer in (
            block.attention.query_key_value, block.attention.out, block.mlp.up, block.mlp.down)]
        for layer in dense + [self.decoder.head] * (self.decoder.head is not None):
            if (type(layer) is not keras.layers.Dense
                    or layer.activation is not keras.activations.linear):
                raise _unsupported(layer)

    def _block(self, block: Block) -> PackedBlock:
        c, attention, mlp = self.decoder.config, block.attention, block.mlp
        attention_norm = _norm(block.attention_norm)
        mlp_norm = None if block.mlp_norm is None else _norm(block.mlp_norm)
        fused, out, up, down = (_dense(layer) for layer in (
            attention.query_key_value, attention.out, mlp.up, mlp.down))
        if not c.qk_norm:  # where heads are normed afterwards, the scale waits for that
            _scale_rows(fused, slice(0, c.num_heads * c.head_dim), c.query_scale)
        inputs: list = [None] * 4
        if self._inputs is not None:
            inputs = [self._inputs.pop(id(layer)).astype(np.float32) for layer in (
                attention.query_key_value, attention.out, mlp.up, mlp.down)]
            self._smooth(inputs, attention_norm, mlp_norm, fused, out, up, down)

        def product(name, dense, seen):
            matrix, bias = dense
            return Product(self._matrix(f"{block.name}/{name}", matrix, seen), bias)

        return PackedBlock(
            attention_norm, attention_norm if mlp_norm is None else mlp_norm,
            product("attention/query_key_value", fused, inputs[0]),
            product("attention/out", out, inputs[1]),
            product("mlp/up", up, inputs[2]), product("mlp/down", down, inputs[3]),
            self._head_scale(attention) if c.qk_norm else None,
            _norm(block.attention_post_norm) if c.post_norms else None,
            _norm(block.mlp_post_norm) if c.post_norms else None)

    def _smooth(self, inputs, attention_norm, mlp_norm, fused, out, up, down) -> None:
        """Changes the inputs, matrices and norms of a layer in place."""
        c = self.decoder.config
        pairs = [(attention_norm, (0, fused), (2, up))] if mlp_norm is None else [
            (attention_norm, (0, fused)), (mlp_norm, (2, up))]
        for norm, *readers in pairs:
            seen = np.max([np.abs(inputs[i]).max(0) for i, _ in readers], axis=0)
            factor = factors(seen, *(matrix for _, (matrix, _) in readers))
            norm /= factor
            for i, (matrix, _) in readers:
                matrix *= factor
                inputs[i] /= factor
        # Query heads that share a value head share its factors.
        group = (c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
        single = np.log(factors(np.abs(inputs[1]).max(0), out[0])).reshape(group)
        factor = np.exp(single.mean(1, keepdims=True))
        rows = slice((c.num_heads + c.num_kv_heads) * c.head_dim, None)
        _scale_rows(fused, rows, 1 / factor.reshape(-1, 1))
        factor = np.broadcast_to(factor, group).reshape(-1)
        out[0][...] *= factor
        inputs[1] /= factor
        if c.gated_mlp:  # a plain activation is not linear in its input
            factor = factors(np.abs(inputs[3]).max(0), down[0])
            down[0][...] *= factor
            inputs[3] /= factor
            _scale_rows(up, slice(c.mlp_dim, None), 1 / factor[:, None])

    def _head_scale(self, attention: Attention) -> np.ndarray:
        c = self.decoder.config
        query = _array(attention.query_norm.scale) * c.query_scale
        key = _array(attention.key_norm.scale)
        return np.stack([query] * c.num_heads + [key] * c.num_kv_heads)[:, None]

    def _matrix(self, name: str, matrix: np.ndarray, inputs=None) -> Weight:
        bits, block = self.formats.of(name)
        if block:  # the largest that divides the rows, a whole row where none does
            block = max(b for b in BLOCKS if b <= block and (not b or matrix.shape[1] % b == 0))
        if bits == 4 and inputs is not None:
            return pack_int4(name, matrix, block, inputs)
        return pack(name, matrix, bits, block)


def _split(hidden: np.ndarray) -> np.ndarray:
    """Ones in the first row for channels that stand out, in the second for the others."""
    highest = np.abs(hidden).max(0)
    outstanding = highest > 3 * np.median(highest)
    return np.stack([outstanding, ~outstanding]).astype(np.float32)


def _dense(layer) -> tuple[np.ndarray, np.ndarray | None]:
    """A matrix `[out, in]` and perhaps a bias `[out]`, both free to be changed."""
    return (np.array(_array(layer.kernel).T, order="C"),
            np.array(_array(layer.bias)) if layer.use_bias else None)


def _scale_rows(dense, rows: slice, factor) -> None:
    """Multiplies some outputs of a dense layer; `factor` is a scalar or `[rows, 1]`."""
    matrix, bias = dense
    matrix[rows] *= factor
    if bias is not None:
        bias[rows] *= np.reshape(factor, -1)


def _norm(layer) -> np.ndarray:
    """Scale and bias, float32 `[2, dim]`."""
    scale = _array(layer.scale)
    return np.stack([scale, _array(layer.bias) if layer.kind == "layer" else 0 * scale])


def _array(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def _unsupported(layer) -> TfspeedError:
    return TfspeedError("This layer has no LiteRT form.", layer=getattr(layer, "path", layer.name),
                        type=type(layer).__name__,
                        hint="Use --engine=xla, or leave out the strategy that made it.")
