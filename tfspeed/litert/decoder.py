"""Lowers a packed decoder to `.tflite` signatures: prefill and decode over explicit KV caches.

The graph is `tfspeed.models.decoder.Decoder.forward`, operator by operator, in operators that
XNNPACK takes; masks and angles are made in the graph out of the position, so that a caller hands
in tokens and a slot only. Inputs and outputs are named as LiteRT-LM's runtime expects them.
"""

import numpy as np

from tfspeed.litert.graph import Tensor, TfliteFile
from tfspeed.litert.pack import PackedBlock, PackedDecoder, Product
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import alibi_slopes

_MASKED = -1e9


def decode_name(capacity: int) -> str:
    return f"decode_{capacity}"


def prefill_name(length: int, capacity: int) -> str:
    return f"prefill_{length}_{capacity}"


def verify_name(length: int, capacity: int) -> str:
    return f"verify_{length}_{capacity}"


def exit_name(capacity: int) -> str:
    return f"exit_{capacity}"


def cache_names(config: DecoderConfig) -> list[str]:
    return [f"kv_cache_{part}_{layer}" for layer in range(config.num_layers) for part in "kv"]


class Lowering:
    """Writes one signature.

    Inputs: `tokens` int32 `[batch, length]`; `input_pos` int32 `[length]`, the slots that they
    take; for several rows `starts` int32 `[batch]`, the first slot that a row uses; and the caches,
    float32 `[batch, kv_heads, capacity, head_dim]`. Outputs: the caches, and the logits asked for.

    Args:
        layers: the first ones alone, over their caches; 0: all.
        longest: tokens that a text may have; None for the capacity.
    """

    def __init__(self, file: TfliteFile, config: DecoderConfig, packed: PackedDecoder, name: str,
                 batch: int, length: int, capacity: int, layers: int = 0,
                 longest: int | None = None):
        self.config, self.packed = config, packed
        self.batch, self.length, self.capacity = batch, length, capacity
        self.longest, self.layers = longest or capacity, layers or config.num_layers
        self.graph = file.signature(name)

    def write(self, logits: bool) -> None:
        """Args:
            logits: whether to give them, float32 `[batch, length, vocabulary]`.
        """
        c, g = self.config, self.graph
        tokens = g.input("tokens", (self.batch, self.length), np.int32)
        slots = g.input("input_pos", (self.length,), np.int32)
        starts = g.input("starts", (self.batch,), np.int32) if self.batch > 1 else None
        names = cache_names(c)[:2 * self.layers]
        caches = [g.input(name, (self.batch, c.layer(i // 2).num_kv_heads, self.capacity,
                                 c.head_dim)) for i, name in enumerate(names)]
        self._positions(slots, starts)
        zero = g.constant(np.zeros(1, np.int32))
        first = slots if self.length == 1 else g.slice(slots, 0, 0, 1)
        self.start = g.concatenate([zero, zero, first, zero], 0)

        x = self._embed(tokens, starts)
        outputs = {}
        for layer, block in enumerate(self.packed.blocks[:self.layers]):
            pair = caches[2 * layer:2 * layer + 2]
            x, pair = self._block(x, block, layer, pair)
            outputs |= zip(names[2 * layer:2 * layer + 2], pair, strict=True)
        if logits:
            x = self._norm(x, self.packed.final_norm)
            x = self._product(x, self.packed.head)
            outputs["logits"] = self._softcap(x, c.logit_softcap)
        g.finish(outputs)

    def _embed(self, tokens, starts) -> Tensor:
        c, g = self.config, self.graph
        flat = g.reshape(tokens, (self.batch * self.length,))
        x = g.embedding(flat, self.packed.embedding)
        if self.packed.embedding_scale is not None:
            x = g.mul(x, g.constant(self.packed.embedding_scale[None]))
        x = g.reshape(x, (self.batch, self.length, c.hidden_dim))
        if c.positions == "learned":
            # Padding on the left and on the right lies outside of the table.
            rows = g.minimum(g.unary("RELU", self.positions), c.context_length - 1.0)
            count = self.batch if starts is not None else 1
            rows = g.cast(g.reshape(rows, (count * self.length,)), np.int32)
            learned = g.embedding(rows, self.packed.position_embedding)
            x = g.add(x, g.reshape(learned, (count, self.length, c.hidden_dim)))
        return x

    def _positions(self, slots, starts) -> None:
        """Angles and masks, once a step."""
        c, g = self.config, self.graph
        query = g.reshape(g.cast(slots, np.float32), (1, 1, self.length, 1))
        key = g.constant(np.arange(self.capacity, dtype=np.float32).reshape(1, 1, 1, -1))
        self.positions, unused = query, None
        if starts is not None:
            first = g.reshape(g.cast(starts, np.float32), (self.batch, 1, 1, 1))
            self.positions = g.sub(query, first)
            unused = g.unary("RELU", g.sub(first, key))
        self.biases, self.angles = {}, {}
        for window in {c.window(i) for i in range(self.layers)}:
            hidden = g.unary("RELU", g.sub(key, query))  # how far a key lies in the future
            if window:
                hidden = g.add(hidden, g.unary("RELU", g.sub(g.sub(query, window - 1.0), key)))
            if unused is not None:
                hidden = g.add(hidden, unused)
            # One for all that is hidden: a bias must not grow with the distance.
            bias = g.mul(g.unary("RELU_N1_TO_1", hidden), _MASKED)
            if c.positions == "alibi":
                slopes = (alibi_slopes(c.num_heads) * c.query_scale).reshape(1, -1, 1, 1)
                bias = g.add(bias, g.mul(g.sub(key, query), g.constant(slopes)))
            self.biases[window] = bias
        for rope in {c.layer_rope(i) for i in range(self.layers)} - {None}:
            self.angles[rope] = self._rotation(rope)

    def _rotation(self, rope):
        """cos and signed sin, `[batch or 1, 1, length, rotary_dim]`."""
        c, g = self.config, self.graph
        def angles(long):
            frequencies = np.asarray(rope.inverse_frequencies(c.rotary_dim, long=long), np.float32)
            return g.mul(self.positions,
                         g.constant(np.concatenate([frequencies] * 2).reshape(1, 1, 1, -1)))

        # Which of LongRoPE's two sets holds depends on how long the text may grow.
        turned = angles(bool(rope.long_factors) and self.longest > rope.original_context)
        half = c.rotary_dim // 2
        factor = np.float32(rope.attention_factor)
        sign = np.repeat(np.float32([-factor, factor]), half).reshape(1, 1, 1, -1)
        cos = g.unary("COS", turned)
        if factor != 1:
            cos = g.mul(cos, factor)
        return cos, g.mul(g.unary("SIN", turned), g.constant(sign))

    def _block(self, x, block: PackedBlock, layer: int, pair):
        c, g = self.config, self.graph
        normed = self._norm(x, block.attention_norm)
        attended, pair = self._attention(normed, block, layer, pair)
        if c.post_norms:
            attended = self._norm(attended, block.attention_post_norm)
        if c.parallel_residual:
            if block.mlp_norm is not block.attention_norm:
                normed = self._norm(x, block.mlp_norm)
            return g.add(g.add(x, attended), self._mlp(normed, block, layer)), pair
        x = g.add(x, attended)
        out = self._mlp(self._norm(x, block.mlp_norm), block, layer)
        if c.post_norms:
            out = self._norm(out, block.mlp_post_norm)
        return g.add(x, out), pair

    def _attention(self, x, block: PackedBlock, layer: int, pair):
        c, g, batch, length = self.config.layer(layer), self.graph, self.batch, self.length
        heads, kv, dim = c.num_heads, c.num_kv_heads, c.head_dim
        fused = self._product(x, block.query_key_value)
        if length == 1:
            fused = g.reshape(fused, (batch, heads + 2 * kv, 1, dim))
        else:
            fused = g.reshape(fused, (batch, length, heads + 2 * kv, dim))
            fused = g.transpose(fused, (0, 2, 1, 3))
        turned = g.slice(fused, 1, 0, heads + kv)
        value = g.slice(fused, 1, heads + kv, kv)
        if block.head_scale is not None:
            turned = g.mul(self._by_rms(turned), g.constant(block.head_scale[None]))
        rope = c.layer_rope(layer)
        if rope:
            turned = self._rotate(turned, *self.angles[rope])
        query, key = g.slice(turned, 1, 0, heads), g.slice(turned, 1, heads, kv)
        keys = g.update_slice(pair[0], key, self.start)
        values = g.update_slice(pair[1], value, self.start)

        # The query heads that share a key head are stacked along its length.
        group = heads // kv
        query = g.reshape(query, (batch, kv, group * length, dim))
        scores = self._softcap(g.matmul(query, keys, transpose_b=True), c.attention_softcap)
        bias = self.biases[self.config.window(layer)]
        apart = length > 1 or bias.shape[1] > 1  # else one bias serves all rows of a group
        if apart:
            scores = g.reshape(scores, (batch, heads, length, self.capacity))
        weights = g.softmax(g.add(scores, bias))
        if apart:
            weights = g.reshape(weights, (batch, kv, group * length, self.capacity))
        mixed = g.matmul(weights, values)
        if length > 1:
            mixed = g.reshape(mixed, (batch, heads, length, dim))
            mixed = g.transpose(mixed, (0, 2, 1, 3))
        mixed = g.reshape(mixed, (batch, length, heads * dim))
        return self._product(mixed, block.out), (keys, values)

    def _rotate(self, x, cos, sin):
        c, g = self.config, self.graph
        half, rotary = c.rotary_dim // 2, c.rotary_dim
        part = g.slice(x, -1, 0, rotary)
        swapped = g.concatenate([g.slice(x, -1, half, half), g.slice(x, -1, 0, half)], -1)
        turned = g.add(g.mul(part, cos), g.mul(swapped, sin))
        if rotary == c.head_dim:
            return turned
        return g.concatenate([turned, g.slice(x, -1, rotary, c.head_dim - rotary)], -1)

    def _mlp(self, x, block: PackedBlock, layer: int):
        c, g = self.config.layer(layer), self.graph
        x = self._product(x, block.up)
        if not c.gated_mlp:
            return self._product(self._activation(x), block.down)
        gate, up = g.slice(x, -1, 0, c.mlp_dim), g.slice(x, -1, c.mlp_dim, c.mlp_dim)
        return self._product(g.mul(self._activation(gate), up), block.down)

    def _activation(self, x):
        g, kind = self.graph, self.config.activation
        if kind == "silu":
            return g.mul(x, g.unary("LOGISTIC", x))
        if kind == "relu":
            return g.unary("RELU", x)
        return g.gelu(x, approximate=kind == "gelu_tanh")

    def _norm(self, x, norm: np.ndarray):
        g = self.graph
        if self.config.norm == "layer":
            x = g.sub(x, g.mean(x))
        x = g.mul(self._by_rms(x), g.constant(norm[0].reshape(1, 1, -1)))
        return g.add(x, g.constant(norm[1].reshape(1, 1, -1))) if norm[1].any() else x

    def _by_rms(self, x):
        g = self.graph
        mean = g.mean(g.mul(x, x))
        return g.mul(x, g.unary("RSQRT", g.add(mean, self.config.norm_epsilon)))

    def _product(self, x, product: Product):
        if product.first is not None:
            x = self.graph.fully_connected(x, product.first, None)
        return self.graph.fully_connected(x, product.weight, product.bias)

    def _softcap(self, x, cap: float):
        if not cap:
            return x
        g = self.graph
        return g.mul(g.unary("TANH", g.mul(x, 1.0 / cap)), cap)
