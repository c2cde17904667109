"""Lowers a packed encoder–decoder to `.tflite` signatures: `encode` once a source, then prefill and
decode over KV caches in place and over the keys and values that `encode` gave."""

import dataclasses
import math

import numpy as np

from tfspeed.litert.decoder import Lowering
from tfspeed.litert.graph import Tensor, TfliteFile
from tfspeed.litert.pack import PackedBlock
from tfspeed.litert.pack_seq2seq import PackedEncoderDecoder
from tfspeed.models.config import DecoderConfig
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig

ENCODE = "encode"
SMALLEST = 64       # slots of the first cache: an answer is short
PREFILLS = (4, 32)  # Whisper's prompt has four tokens, the last of them read by decode
BIAS = "source_bias"  # of token sources: 0, or -1e9 over padding, float32 `[batch, 1, 1, source]`


def cross_names(config: EncoderDecoderConfig) -> list[str]:
    return [f"cross_{part}_{layer}" for layer in range(config.decoder_layers) for part in "kv"]


def given_names(config: EncoderDecoderConfig) -> list[str]:
    """Inputs of prefill and decode that belong to a source."""
    return cross_names(config) + [BIAS] * (config.source == "tokens")


def decoder_config(config: EncoderDecoderConfig) -> DecoderConfig:
    """What `Lowering` must know of the decoder."""
    return dataclasses.replace(
        config.side(1), positions="learned" if config.positions == "learned" else "none",
        embedding_scale=config.embedding_scale)


class CrossLowering(Lowering):
    """Writes prefill or decode, see `Lowering`; more inputs: `given_names`."""

    def __init__(self, file: TfliteFile, config: EncoderDecoderConfig,
                 packed: PackedEncoderDecoder, name: str, batch: int, length: int, capacity: int,
                 layers: int = 0):
        super().__init__(file, decoder_config(config), packed.decoder, name, batch, length,
                         capacity, layers)
        self.whole, self.parts = config, packed

    def _positions(self, slots, starts):
        super()._positions(slots, starts)
        c, g = self.whole, self.graph
        self.given = [g.input(name, (self.batch, c.cross(i // 2), c.source_length, c.head_dim))
                      for i, name in enumerate(cross_names(c)[:2 * self.layers])]
        self.source_bias = None
        if c.source == "tokens":
            self.source_bias = g.input(BIAS, (self.batch, 1, 1, c.source_length))
        if self.parts.distances is not None:
            self.biases = {window: g.add(bias, self._distances(slots))
                           for window, bias in self.biases.items()}

    def _distances(self, slots) -> Tensor:
        """What T5 adds to the scores by how far before a token a key lies, float32 `[1, heads,
        length, capacity]`; padding on the left moves both, and changes nothing."""
        g, shape = self.graph, (self.length, self.capacity)
        query = g.reshape(g.cast(slots, np.float32), (self.length, 1))
        key = g.constant(np.arange(self.capacity, dtype=np.float32)[None])
        behind = g.minimum(g.unary("RELU", g.sub(query, key)), self.whole.context_length - 1.0)
        behind = g.cast(g.reshape(behind, (math.prod(shape),)), np.int32)
        table = g.constant(self.parts.distances[1])
        return g.reshape(g.gather(table, behind, 1), (1, self.whole.num_heads, *shape))

    def _embed(self, tokens, starts):
        x = super()._embed(tokens, starts)
        norms = self.parts.embedding_norms
        return x if norms is None else self._norm(x, norms[1])

    def _block(self, x, block: PackedBlock, layer: int, pair):
        g, pre, cross = self.graph, self.whole.pre_norm, self.parts.cross[layer]
        attended, pair = self._attention(self._norm(x, block.attention_norm) if pre else x, block,
                                         layer, pair)
        x = g.add(x, attended) if pre else self._norm(g.add(x, attended), block.attention_norm)
        attended = self._cross(self._norm(x, cross.norm) if pre else x, layer)
        x = g.add(x, attended) if pre else self._norm(g.add(x, attended), cross.norm)
        out = self._mlp(self._norm(x, block.mlp_norm) if pre else x, block, layer)
        x = g.add(x, out)
        return (x if pre else self._norm(x, block.mlp_norm)), pair

    def _cross(self, x, layer: int) -> Tensor:
        c, g, batch, length = self.whole, self.graph, self.batch, self.length
        cross, keys, values = self.parts.cross[layer], *self.given[2 * layer:2 * layer + 2]
        heads = c.cross(layer)
        query = g.reshape(self._product(x, cross.query), (batch, length, heads, c.head_dim))
        query = (g.reshape(query, (batch, heads, 1, c.head_dim)) if length == 1
                 else g.transpose(query, (0, 2, 1, 3)))
        scores = g.matmul(query, keys, transpose_b=True)
        if self.source_bias is not None:
            scores = g.add(scores, self.source_bias)
        mixed = g.matmul(g.softmax(scores), values)
        if length > 1:
            mixed = g.transpose(mixed, (0, 2, 1, 3))
        mixed = g.reshape(mixed, (batch, length, heads * c.head_dim))
        return self._product(mixed, cross.out)

    def _norm(self, x, norm):
        return x if norm is None else super()._norm(x, norm)

    def _softcap(self, x, cap):
        """The end of the logits as well: BART adds a bias to them."""
        x = super()._softcap(x, cap)
        bias = self.parts.logit_bias
        if bias is not None and x.shape[-1] == len(bias) and len(x.shape) == 3:
            return self.graph.add(x, self.graph.constant(bias.reshape(1, 1, -1)))
        return x


class EncodeLowering(Lowering):
    """Writes `encode`. Inputs: `frames` float32 `[batch, frames, mels]`, or `source` int32 `[batch,
    source]` and `source_bias`. Outputs: `cross_names`, float32 `[batch, heads, source, dim]`."""

    def __init__(self, file: TfliteFile, config: EncoderDecoderConfig,
                 packed: PackedEncoderDecoder, batch: int):
        super().__init__(file, config.side(0), packed.decoder, ENCODE, batch,
                         config.source_length, 1)
        self.whole, self.parts, self.bias = config, packed, None

    def write(self, logits: bool = False) -> None:
        c, g, pre = self.whole, self.graph, self.whole.pre_norm
        x = self._source()
        if self.parts.positions is not None:
            x = g.add(x, g.constant(self.parts.positions[None]))
        if self.parts.distances is not None:
            added = self._distances()
            self.bias = added if self.bias is None else g.add(added, self.bias)
        if self.parts.embedding_norms is not None:
            x = self._norm(x, self.parts.embedding_norms[0])
        for layer, block in enumerate(self.parts.encoder):
            out = self._within(self._norm(x, block.attention_norm) if pre else x, block, layer)
            x = g.add(x, out) if pre else self._norm(g.add(x, out), block.attention_norm)
            out = self._mlp(self._norm(x, block.mlp_norm) if pre else x, block, layer)
            x = g.add(x, out) if pre else self._norm(g.add(x, out), block.mlp_norm)
        if self.parts.encoder_norm is not None:
            x = self._norm(x, self.parts.encoder_norm)
        outputs = {}
        for layer, cross in enumerate(self.parts.cross):
            heads = c.cross(layer)
            both = self._heads(self._product(x, cross.key_value), 2 * heads)
            for at, part in enumerate("kv"):
                outputs[f"cross_{part}_{layer}"] = g.slice(both, 1, at * heads, heads)
        g.finish(outputs)

    def _source(self) -> Tensor:
        """`[batch, source, hidden]`, without positions."""
        c, g, batch = self.whole, self.graph, self.batch
        if c.source == "tokens":
            tokens = g.input("source", (batch, c.source_length), np.int32)
            self.bias = g.input(BIAS, (batch, 1, 1, c.source_length))
            x = g.embedding(g.reshape(tokens, (batch * c.source_length,)), self.packed.embedding)
            if self.packed.embedding_scale is not None:
                x = g.mul(x, g.constant(self.packed.embedding_scale[None]))
            return g.reshape(x, (batch, c.source_length, c.hidden_dim))
        frames = g.input("frames", (batch, c.source_frames, c.mels))
        count = c.source_frames
        # A convolution is a product over three frames behind each other.
        padded = self._padded(frames)
        x = g.concatenate([g.slice(padded, 1, i, count) for i in range(3)], -1)
        x = g.gelu(self._product(x, self.parts.convolutions[0]), approximate=False)
        padded, half = self._padded(x), (batch, count // 2, 2 * c.hidden_dim)
        both = g.reshape(g.slice(padded, 1, 0, count), half)
        third = g.slice(g.reshape(g.slice(padded, 1, 2, count), half), -1, 0, c.hidden_dim)
        x = self._product(g.concatenate([both, third], -1), self.parts.convolutions[1])
        return g.gelu(x, approximate=False)

    def _distances(self) -> Tensor:
        """What T5 adds to the scores, float32 `[1, heads, source, source]`. Gathered in the graph:
        as a constant it would be larger than many a matrix."""
        g, length = self.graph, self.whole.source_length
        places = np.arange(length, dtype=np.float32)
        rows = g.sub(g.constant(places[None] + (length - 1)), g.constant(places[:, None]))
        rows = g.cast(g.reshape(rows, (length * length,)), np.int32)
        table = g.constant(self.parts.distances[0])
        return g.reshape(g.gather(table, rows, 1), (1, self.whole.num_heads, length, length))

    def _padded(self, x: Tensor) -> Tensor:
        """A row of zeros on either side."""
        zeros = self.graph.constant(np.zeros((self.batch, 1, x.shape[-1]), np.float32))
        return self.graph.concatenate([zeros, x, zeros], 1)

    def _heads(self, x: Tensor, count: int) -> Tensor:
        g, c = self.graph, self.whole
        x = g.reshape(x, (self.batch, c.source_length, count, c.head_dim))
        return g.transpose(x, (0, 2, 1, 3))

    def _within(self, x: Tensor, block: PackedBlock, layer: int) -> Tensor:
        """Self-attention in which every position sees every other."""
        c, g, count = self.whole, self.graph, self.config.layer(layer).num_heads
        heads = self._heads(self._product(x, block.query_key_value), 3 * count)
        query, key, value = (g.slice(heads, 1, i * count, count) for i in range(3))
        scores = g.matmul(query, key, transpose_b=True)
        if self.bias is not None:
            scores = g.add(scores, self.bias)
        mixed = g.transpose(g.matmul(g.softmax(scores), value), (0, 2, 1, 3))
        mixed = g.reshape(mixed, (self.batch, c.source_length, count * c.head_dim))
        return self._product(mixed, block.out)


def write(file: TfliteFile, config: EncoderDecoderConfig, packed: PackedEncoderDecoder, batch: int,
          signatures: list[tuple]) -> None:
    """All signatures of an encoder–decoder, over one set of weights: `encode`, and those of its
    decoder, see `session.signatures`."""
    EncodeLowering(file, config, packed, batch).write()
    for *signature, logits in signatures:
        CrossLowering(file, config, packed, *signature).write(logits)
