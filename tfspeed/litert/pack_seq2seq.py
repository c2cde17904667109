"""An encoder–decoder's matrices in the form that the lowered graphs read.

Weights are rounded as they are: in layer norms, biases and GELU no channel stands out as in a
decoder with RMS norms, and int8 changes no word of the clips that it was measured on.
"""

import dataclasses

import keras
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.litert import dense
from tfspeed.litert.dense import Dense, array, packed_matrix
from tfspeed.litert.formats import Formats
from tfspeed.litert.pack import PackedBlock, PackedDecoder, Product, norm, unsupported
from tfspeed.litert.weights import Weight, pack
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.encoder_decoder_layers import (
    CrossAttention,
    EncoderDecoderBlock,
    relative_bucket,
)
from tfspeed.models.packed import Packed, PackedConv1D, PackedEmbedding


@dataclasses.dataclass(frozen=True, eq=False)
class PackedCross:
    """Cross-attention of a layer; the norm is float32 `[2, hidden]`, scale and bias."""

    norm: np.ndarray
    query: Product
    key_value: Product
    out: Product


@dataclasses.dataclass(frozen=True, eq=False)
class PackedEncoderDecoder:
    """All weights. `decoder` has the embedding, which a token source shares, and the head; its
    `final_norm` is None where there is none.

    Attributes:
        convolutions: products over three neighbouring frames, `[hidden, 3 · in]`; [] for tokens.
        positions: of the encoder, float32 `[source, hidden]`; None where they are relative.
        distances: where they are, what the encoder adds to its scores for keys from `source - 1`
            before a query to as many behind it, float32 `[heads, 2 · source - 1]`, and what the
            decoder adds for keys 0 to `context - 1` before, `[heads, context]`.
        embedding_norms: of both sides, or None.
        encoder_norm: float32 `[2, hidden]`, or None.
    """

    convolutions: list[Product]
    positions: np.ndarray | None
    distances: tuple[np.ndarray, np.ndarray] | None
    encoder: list[PackedBlock]
    encoder_norm: np.ndarray | None
    embedding_norms: tuple[np.ndarray, np.ndarray] | None
    decoder: PackedDecoder
    cross: list[PackedCross]
    logit_bias: np.ndarray | None

    @property
    def weights(self) -> list[Weight]:
        """Every matrix once."""
        products = [*self.convolutions,
                    *(p for b in self.encoder for p in (b.query_key_value, b.out, b.up, b.down)),
                    *(p for c in self.cross for p in (c.query, c.key_value, c.out))]
        return self.decoder.weights + [w for p in products for w in p.weights]

    @property
    def step_bytes(self) -> int:
        """Of the matrices that a decode step reads."""
        products = [p for c in self.cross for p in (c.query, c.out)]
        return self.decoder.step_bytes + sum(w.nbytes for p in products for w in p.weights)


def pack_encoder_decoder(model: EncoderDecoder, formats: Formats) -> PackedEncoderDecoder:
    """Raises:
        TfspeedError: a layer has no LiteRT form.
    """
    c = model.config
    for block in (*model.encoder, *model.decoder):
        if type(block) is not EncoderDecoderBlock or (
                block.crosses and type(block.cross) is not CrossAttention):
            raise unsupported(block)
    formats.check(["embedding", "head", *(
        f"{block.name}/{part}" for block in (*model.encoder, *model.decoder) for part in (
            "attention/query_key_value", "attention/out", "mlp/up", "mlp/down",
            *(("cross/query", "cross/key_value", "cross/out") if block.crosses else ()))),
        *(f"convolution_{i}" for i in range(
            len(model.convolutions) if c.source == "audio" else 0))])

    def product(name, layer, queries=0):
        if (type(layer) not in dense.KINDS or layer.activation is not keras.activations.linear):
            raise unsupported(layer)
        found = Dense(layer)
        if queries:
            found.scale_outputs(slice(0, queries * c.head_dim), c.query_scale)
        *first, weight = found.weights(name, formats)
        return Product(weight, found.bias, first[0] if first else None)

    def block(layer):
        at, attention, mlp = layer.name, layer.attention, layer.mlp
        return PackedBlock(
            norm(layer.attention_norm), norm(layer.mlp_norm),
            product(f"{at}/attention/query_key_value", attention.query_key_value,
                    attention.config.num_heads),
            product(f"{at}/attention/out", attention.out), product(f"{at}/mlp/up", mlp.up),
            product(f"{at}/mlp/down", mlp.down), None, None, None)

    def cross(layer):
        at, own = layer.name, layer.cross
        return PackedCross(norm(layer.cross_norm),
                           product(f"{at}/cross/query", own.query, own.num_heads),
                           product(f"{at}/cross/key_value", own.key_value),
                           product(f"{at}/cross/out", own.out))

    embedding = _table(model.embedding, formats)
    tables = [array(p.embeddings) if not isinstance(p, PackedEmbedding) else array(p.unpacked())
              for p in model.positions]
    head = Product(embedding, None)
    if model.head is not None:
        head = product("head", model.head)
    elif formats.of("head") != formats.of("embedding") and not isinstance(model.embedding, Packed):
        head = Product(packed_matrix("head", array(model.embedding.embeddings), formats), None)
    scale = np.full(c.hidden_dim, c.embedding_scale, np.float32)
    if getattr(model.embedding, "channel_scale", None) is not None:
        raise unsupported(model.embedding)
    final = [norm(n) for n in model.final_norms] if c.final_norm else [None, None]
    if c.logit_scale != 1:  # what the head reads is what the norm gives
        if final[1] is None:
            raise TfspeedError("Scaled logits without a final norm have no LiteRT form.",
                               model=model.name, hint="Use --engine=xla.")
        final[1] = final[1] * np.float32(c.logit_scale)
    learned = c.positions == "learned"
    decoder = PackedDecoder(
        embedding, None if c.embedding_scale == 1 else scale,
        pack("position_embedding", tables[1], 32) if learned else None,
        [block(b) for b in model.decoder], final[1], head)
    return PackedEncoderDecoder(
        [_convolution(f"convolution_{i}", layer, formats)
         for i, layer in enumerate(model.convolutions if c.source == "audio" else ())],
        tables[0] if learned else None, None if learned else _distances(c, *tables),
        [block(b) for b in model.encoder], final[0],
        tuple(map(norm, model.embedding_norms)) if c.embedding_norm else None, decoder,
        [cross(b) for b in model.decoder],
        array(model.logit_bias) if c.logit_bias else None)


def _distances(c: EncoderDecoderConfig, encoder, decoder) -> tuple[np.ndarray, np.ndarray]:
    """See `PackedEncoderDecoder`, of tables `[buckets, heads]`."""
    def added(table, distances, both_ways):
        buckets = relative_bucket(distances, c.relative_buckets, c.relative_distance, both_ways)
        return np.ascontiguousarray(table[np.asarray(buckets)].T)

    return (added(encoder, np.arange(1 - c.source_length, c.source_length, dtype=np.int32), True),
            added(decoder, -np.arange(c.context_length, dtype=np.int32), False))


def _table(layer, formats: Formats) -> Weight:
    if isinstance(layer, PackedEmbedding):
        found = dense.integers(layer, "embedding")
        if found is not None:
            return found
        return packed_matrix("embedding", array(layer.unpacked()), formats)
    return packed_matrix("embedding", array(layer.embeddings), formats)


def _convolution(name: str, layer, formats: Formats) -> Product:
    """As a product over three frames behind each other."""
    bias = array(layer.bias)
    if isinstance(layer, PackedConv1D):
        found = None if layer.channel_scale is not None else dense.integers(layer, name)
        if found is not None:
            return Product(found, bias)
    elif type(layer) is not keras.layers.Conv1D:
        raise unsupported(layer)
    kernel = array(layer.kernel)  # [3, in, out]
    return Product(packed_matrix(name, kernel.reshape(-1, kernel.shape[2]).T.copy(), formats), bias)
