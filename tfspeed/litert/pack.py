"""A decoder's matrices in the form that the lowered graph reads.

The query's scale goes into the query's rows. The scales of norms stay operators of their own:
folded into the matrices they would save 1 % of a step, but they tame the channels that stand out,
and without them rounding costs four times the quality (SmolLM2, int8: perplexity 52.8, not 50.9).
"""

import dataclasses

import keras
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert import dense
from tfspeed.litert.dense import Dense, array, packed_matrix
from tfspeed.litert.folding import even_out
from tfspeed.litert.formats import Formats
from tfspeed.litert.smooth import factors, walk
from tfspeed.litert.weights import Weight, pack
from tfspeed.memory import give_back
from tfspeed.models.decoder import MLP, Attention, Block, Decoder
from tfspeed.models.packed import PackedEmbedding


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A dense layer: a matrix `[out, in]` and perhaps a bias, float32 `[out]`.

    `first`, `[rank, in]`, is what the input goes through before it where the layer is two thin
    products; `weight` is `[out, rank]` then.
    """

    weight: Weight
    bias: np.ndarray | None
    first: Weight | None = None

    @property
    def weights(self) -> list[Weight]:
        return [self.weight] if self.first is None else [self.first, self.weight]


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
    """All of a decoder's weights; `head` is the embedding itself where the two are tied and of
    one format.

    `embedding_scale`, float32 `[hidden]` or None, multiplies a row that was looked up.
    """

    embedding: Weight
    embedding_scale: np.ndarray | None
    position_embedding: Weight | None
    blocks: list[PackedBlock]
    final_norm: np.ndarray  # float32 `[2, hidden]`
    head: Product

    @property
    def weights(self) -> list[Weight]:
        """Every matrix once."""
        found = [self.embedding, *(w for b in self.blocks
                                   for p in (b.query_key_value, b.out, b.up, b.down)
                                   for w in p.weights)]
        if self.position_embedding is not None:
            found.append(self.position_embedding)
        if self.head.weight is not self.embedding:
            found += self.head.weights
        return found

    @property
    def step_bytes(self) -> int:
        """Bytes of the matrices that a step reads whole: tables of which it looks up a row are
        none of them."""
        products = [self.head, *(p for b in self.blocks
                                 for p in (b.query_key_value, b.out, b.up, b.down))]
        return sum(weight.nbytes for product in products for weight in product.weights)


class Packer:
    """Packs a `Decoder`, one layer in memory at a time.

    Args:
        calibration: int32 tokens `[windows, length]` that show what the products read, for `smooth`
            and `gptq`; without them, weights are rounded as they are.
    """

    def __init__(self, decoder: Decoder, formats: Formats, calibration=None):
        self.decoder, self.formats, self.calibration = decoder, formats, calibration
        self._check()

    def pack(self) -> PackedDecoder:
        decoder, c = self.decoder, self.decoder.config
        blocks: list[PackedBlock] = []
        hidden = None
        if self.calibration is None:
            blocks = [self._block(block, None) for block in decoder.blocks]
        else:
            def see(block, inputs):
                blocks.append(self._block(block, inputs))
                give_back()  # of the float matrices: the next block's come on top otherwise

            hidden = walk(decoder, self.calibration, see)
        final_norm = norm(decoder.final_norm)
        scale = np.full(c.hidden_dim, c.embedding_scale, np.float32)
        positions = None
        if c.positions == "learned":  # a row a token is read: nothing to win by fewer bits
            positions = pack("position_embedding", array(decoder.position_embedding.embeddings),
                             32)
        if decoder.head is None:
            embedding, head = self._tied(final_norm, scale, hidden)
        else:
            embedding = self._table(scale)
            head = Dense(decoder.head)
            if hidden is not None and head.floating:
                factor = factors(hidden, head.reads)
                final_norm /= factor
                head.scale_inputs(factor)
                hidden /= factor
            head = self._product("head", head, hidden)
        return PackedDecoder(embedding, None if (scale == 1).all() else scale, positions,
                             blocks, final_norm, head)

    def _tied(self, final_norm, scale, hidden) -> tuple[Weight, Product]:
        """The embedding, and the head that is the same table; changes norm and scale in place."""
        table = self._table(scale, floating=True)
        if isinstance(table, Weight):  # a strategy has quantized it
            return table, Product(table, None)
        if hidden is not None:
            factor = factors(hidden, table)
            final_norm /= factor
            table *= factor
            scale /= factor  # a row that is looked up must be what it was
            hidden /= factor
        embedding = packed_matrix("embedding", table, self.formats)
        if self.formats.of("head") == self.formats.of("embedding"):
            return embedding, Product(embedding, None)
        return embedding, Product(packed_matrix("head", table, self.formats, hidden), None)

    def _table(self, scale, floating: bool = False):
        """The embedding as a weight, or as float32 `[vocabulary, hidden]` where it may be."""
        layer = self.decoder.embedding
        if isinstance(layer, PackedEmbedding):
            found = dense.integers(layer, "embedding")
            if found is not None:
                if layer.channel_scale is not None:
                    scale *= array(layer.channel_scale)
                return found
        table = np.array(array(layer.embeddings))
        return table if floating else packed_matrix("embedding", table, self.formats)

    def _check(self):
        self.formats.check(["embedding", "head", "cache", *(
            f"{block.name}/{part}" for block in self.decoder.blocks for part in (
                "attention/query_key_value", "attention/out", "mlp/up", "mlp/down"))])
        for block in self.decoder.blocks:
            for layer, kind in ((block, Block), (block.attention, Attention), (block.mlp, MLP)):
                if type(layer) is not kind:
                    raise unsupported(layer)
        layers = [layer for block in self.decoder.blocks for layer in (
            block.attention.query_key_value, block.attention.out, block.mlp.up, block.mlp.down)]
        for layer in layers + [self.decoder.head] * (self.decoder.head is not None):
            if (type(layer) not in dense.KINDS
                    or layer.activation is not keras.activations.linear):
                raise unsupported(layer)

    def _block(self, block: Block, seen: dict[int, np.ndarray] | None) -> PackedBlock:
        c, attention, mlp = block.config, block.attention, block.mlp
        attention_norm = norm(block.attention_norm)
        mlp_norm = None if block.mlp_norm is None else norm(block.mlp_norm)
        fused, out, up, down = (Dense(layer) for layer in (
            attention.query_key_value, attention.out, mlp.up, mlp.down))
        if not c.qk_norm:  # where heads are normed afterwards, the scale waits for that
            fused.scale_outputs(slice(0, c.num_heads * c.head_dim), c.query_scale)
        inputs: list = [None] * 4
        if seen is not None:
            inputs = [seen[id(layer)] for layer in (
                attention.query_key_value, attention.out, mlp.up, mlp.down)]
            self._smooth(c, inputs, attention_norm, mlp_norm, [fused, out, up, down])

        def product(name, layer, seen):
            return self._product(f"{block.name}/{name}", layer, seen)

        return PackedBlock(
            attention_norm, attention_norm if mlp_norm is None else mlp_norm,
            product("attention/query_key_value", fused, inputs[0]),
            product("attention/out", out, inputs[1]),
            product("mlp/up", up, inputs[2]), product("mlp/down", down, inputs[3]),
            self._head_scale(attention) if c.qk_norm else None,
            norm(block.attention_post_norm) if c.post_norms else None,
            norm(block.mlp_post_norm) if c.post_norms else None)

    def _smooth(self, c, inputs, attention_norm, mlp_norm, layers) -> None:
        """Changes the inputs, matrices and norms of a layer, `c` its config, in place."""
        def divide(i, factor):
            inputs[i] /= factor

        even_out(c, attention_norm, mlp_norm, layers,
                 lambda i, *matrices: factors(inputs[i], *matrices), divide)

    def _head_scale(self, attention: Attention) -> np.ndarray:
        c = attention.config
        query = array(attention.query_norm.scale) * c.query_scale
        key = array(attention.key_norm.scale)
        return np.stack([query] * c.num_heads + [key] * c.num_kv_heads)[:, None]

    def _product(self, name: str, layer: Dense, inputs=None) -> Product:
        *first, weight = layer.weights(name, self.formats, inputs)
        return Product(weight, layer.bias, first[0] if first else None)


def norm(layer) -> np.ndarray:
    """Scale and bias, float32 `[2, dim]`."""
    scale = array(layer.scale)
    return np.stack([scale, array(layer.bias) if layer.kind == "layer" else 0 * scale])


def dense_product(name: str, layer, formats: Formats) -> Product:
    """Of a dense layer as it is."""
    if type(layer) not in dense.KINDS or layer.activation is not keras.activations.linear:
        raise unsupported(layer)
    found = Dense(layer)
    *first, weight = found.weights(name, formats)
    return Product(weight, found.bias, first[0] if first else None)


def unsupported(layer) -> TfspeedError:
    return TfspeedError("This layer has no LiteRT form.", layer=getattr(layer, "path", layer.name),
                        type=type(layer).__name__,
                        hint="Use --engine=xla, or leave out the strategy that made it.")
