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
from tfspeed.litert.weights import BLOCKS, Weight, pack
from tfspeed.models.decoder import Attention, Block, Decoder


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
    """All of a decoder's weights; `head` is the embedding itself where the two are tied."""

    embedding: Weight
    position_embedding: Weight | None
    blocks: list[PackedBlock]
    final_norm: np.ndarray  # float32 `[2, hidden]`
    head: Product

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
    """Packs a `Decoder`, one matrix in memory at a time."""

    def __init__(self, decoder: Decoder, formats: Formats):
        self.decoder, self.formats = decoder, formats

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
            head = self._product("head", decoder.head)
        return PackedDecoder(embedding, positions, [self._block(b) for b in decoder.blocks],
                             _norm(decoder.final_norm), head)

    def _block(self, block: Block) -> PackedBlock:
        c, attention = self.decoder.config, block.attention
        if type(block) is not Block or type(attention) is not Attention:
            raise _unsupported(block if type(block) is not Block else attention)
        norm = _norm(block.attention_norm)
        rows = np.ones((c.qkv_dim, 1), np.float32)
        if not c.qk_norm:  # where heads are normed afterwards, the scale waits for that
            rows[:c.num_heads * c.head_dim] = c.query_scale
        return PackedBlock(
            norm, norm if block.mlp_norm is None else _norm(block.mlp_norm),
            self._product(f"{block.name}/attention/query_key_value", attention.query_key_value,
                          rows),
            self._product(f"{block.name}/attention/out", attention.out),
            self._product(f"{block.name}/mlp/up", block.mlp.up),
            self._product(f"{block.name}/mlp/down", block.mlp.down),
            self._head_scale(attention) if c.qk_norm else None,
            _norm(block.attention_post_norm) if c.post_norms else None,
            _norm(block.mlp_post_norm) if c.post_norms else None)

    def _head_scale(self, attention: Attention) -> np.ndarray:
        c = self.decoder.config
        query = _array(attention.query_norm.scale) * c.query_scale
        key = _array(attention.key_norm.scale)
        return np.stack([query] * c.num_heads + [key] * c.num_kv_heads)[:, None]

    def _product(self, name: str, layer, rows=None) -> Product:
        """A dense layer; `rows`, `[out, 1]`, scales its outputs."""
        if type(layer) is not keras.layers.Dense or layer.activation is not keras.activations.linear:
            raise _unsupported(layer)
        matrix = _array(layer.kernel).T
        bias = _array(layer.bias) if layer.use_bias else None
        if rows is not None:
            matrix = matrix * rows
            bias = None if bias is None else bias * rows[:, 0]
        return Product(self._matrix(name, matrix),
                       None if bias is None else np.ascontiguousarray(bias, np.float32))

    def _matrix(self, name: str, matrix: np.ndarray) -> Weight:
        bits, block = self.formats.of(name)
        if block:  # the largest that divides the rows, a whole row where none does
            block = max(b for b in BLOCKS if b <= block and (not b or matrix.shape[1] % b == 0))
        return pack(name, matrix, bits, block)


def _norm(layer) -> np.ndarray:
    """Scale and bias, float32 `[2, dim]`."""
    scale = _array(layer.scale)
    return np.stack([scale, _array(layer.bias) if layer.kind == "layer" else 0 * scale])


def _array(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable)).astype(np.float32, copy=False)


def _unsupported(layer) -> TfspeedError:
    return TfspeedError("This layer has no LiteRT form.", layer=getattr(layer, "path", layer.name),
                        type=type(layer).__name__,
                        hint="Use --engine=xla, or leave out the strategy that made it.")
