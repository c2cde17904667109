"""One decoder-only transformer for all families, as a Keras 3 model with an explicit KV cache.

Read it top to bottom: norms, rotary positions, attention over the cache, the block, the model.
Every matrix product is a plain `keras.layers.Dense`, so that a strategy finds it. Query, key and
value are one product, gate and up another: fewer and larger operators, the same numbers.
"""

import keras
import numpy as np
from keras import ops

from tfspeed.models.config import DecoderConfig, RopeConfig
from tfspeed.models.conversion import ConvertibleModel

_ACTIVATIONS = {
    "silu": ops.silu,
    "relu": ops.relu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
}
_MASKED = -1e9  # finite: a row that sees nothing (padding) must not turn into NaN


class Norm(keras.layers.Layer):
    """RMS norm (arXiv:1910.07467) or layer norm over the last axis, computed in float32."""

    def __init__(self, kind: str, epsilon: float, dim: int, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.epsilon = kind, epsilon
        self.scale = self.add_weight(shape=(dim,), initializer="ones", name="scale")
        if kind == "layer":
            self.bias = self.add_weight(shape=(dim,), initializer="zeros", name="bias")
        self.built = True

    def call(self, x):
        dtype, x = x.dtype, ops.cast(x, "float32")
        if self.kind == "layer":
            x = x - ops.mean(x, axis=-1, keepdims=True)
        x = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
        x = x * ops.cast(self.scale, "float32")
        if self.kind == "layer":
            x = x + ops.cast(self.bias, "float32")
        return ops.cast(x, dtype)


def rotation(positions, config: RopeConfig, rotary_dim: int):
    """cos and sin of the rotary angles.

    Args:
        positions: int32 `[batch, length]`.

    Returns:
        Two float32 tensors `[batch, 1, length, rotary_dim / 2]`.
    """
    frequencies = ops.convert_to_tensor(config.inverse_frequencies(rotary_dim))
    if config.long_factors:
        long = ops.convert_to_tensor(config.inverse_frequencies(rotary_dim, long=True))
        # A row at a time: what else is in its batch must not change its tokens.
        past = ops.max(positions, axis=1) >= config.original_context
        frequencies = ops.where(past[:, None, None, None], long, frequencies)
    angles = ops.cast(positions, "float32")[:, None, :, None] * frequencies
    return ops.cos(angles) * config.attention_factor, ops.sin(angles) * config.attention_factor


def rotate(x, cos, sin):
    """Rotates the first channels of each head; x is `[batch, heads, length, head_dim]`.

    Channel i is paired with channel i + rotary_dim / 2 (the half-split form of GPT-NeoX).
    """
    half = cos.shape[-1]
    cos, sin = ops.cast(cos, x.dtype), ops.cast(sin, x.dtype)
    first, second, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rest.shape[-1]:
        parts.append(rest)
    return ops.concatenate(parts, axis=-1)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """One slope a head, float32 `[heads]` (ALiBi, arXiv:2108.12409)."""
    def powers(n):
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    whole = 2 ** int(np.log2(num_heads))
    slopes = powers(whole) + powers(2 * whole)[0::2][:num_heads - whole]
    return np.asarray(slopes, dtype=np.float32)


class Attention(keras.layers.Layer):
    """Grouped-query attention over a cache (arXiv:2305.13245)."""

    def __init__(self, config: DecoderConfig, initializer: str = "glorot_uniform", **kwargs):
        # Keras must not cast the float32 bias and angles to the type of the weights.
        super().__init__(autocast=False, **kwargs)
        self.config = c = config
        policy = self.dtype_policy
        self.query_key_value = keras.layers.Dense(
            c.qkv_dim, use_bias=c.qkv_bias, kernel_initializer=initializer, dtype=policy,
            name="query_key_value")
        self.query_key_value.build((None, None, c.hidden_dim))
        self.out = keras.layers.Dense(
            c.hidden_dim, use_bias=c.attention_out_bias, kernel_initializer=initializer,
            dtype=policy, name="out")
        self.out.build((None, None, c.num_heads * c.head_dim))
        if c.qk_norm:
            self.query_norm = Norm("rms", c.norm_epsilon, c.head_dim, dtype=policy,
                                   name="query_norm")
            self.key_norm = Norm("rms", c.norm_epsilon, c.head_dim, dtype=policy, name="key_norm")
        self.built = True

    def call(self, x, rope, bias, cache, index):
        """Args:
            x: `[batch, length, hidden]`.
            rope: cos and sin, or None.
            bias: added to the scores, float32 `[batch, 1 or heads, length, capacity]`.
            cache: keys and values, each `[batch, kv_heads, capacity, head_dim]`; None: the
                tokens see nothing but each other.
            index: slot that the first of the new tokens takes, int32 scalar.

        Returns:
            `[batch, length, hidden]` and the new cache, None where there was none.
        """
        c = self.config
        batch, length = ops.shape(x)[0], ops.shape(x)[1]
        heads = ops.reshape(self.query_key_value(x), (batch, length, -1, c.head_dim))
        heads = ops.transpose(heads, (0, 2, 1, 3))
        query = heads[:, :c.num_heads]
        key = heads[:, c.num_heads:c.num_heads + c.num_kv_heads]
        value = heads[:, c.num_heads + c.num_kv_heads:]
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            query, key = rotate(query, *rope), rotate(key, *rope)
        keys, values = key, value
        if cache is not None:
            keys = ops.slice_update(cache[0], (0, 0, index, 0), key)
            values = ops.slice_update(cache[1], (0, 0, index, 0), value)

        # The query heads that share a key head are stacked along its length: one plain batched
        # product, no repeated keys.
        group = c.num_heads // c.num_kv_heads
        query = ops.reshape(query * c.query_scale,
                            (batch, c.num_kv_heads, group * length, c.head_dim))
        scores = ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2)))
        scores = ops.cast(scores, "float32")
        if c.attention_softcap:
            scores = c.attention_softcap * ops.tanh(scores / c.attention_softcap)
        capacity = ops.shape(keys)[2]
        scores = ops.reshape(scores, (batch, c.num_heads, length, capacity)) + bias
        weights = ops.cast(ops.softmax(scores, axis=-1), values.dtype)
        weights = ops.reshape(weights, (batch, c.num_kv_heads, group * length, capacity))
        mixed = ops.reshape(ops.matmul(weights, values),
                            (batch, c.num_heads, length, c.head_dim))
        mixed = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)),
                            (batch, length, c.num_heads * c.head_dim))
        return self.out(mixed), None if cache is None else (keys, values)


class MLP(keras.layers.Layer):
    """Gated (SwiGLU and its kin, arXiv:2002.05202) or plain feed-forward layer."""

    def __init__(self, config: DecoderConfig, initializer: str = "glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.config = c = config
        width = 2 * c.mlp_dim if c.gated_mlp else c.mlp_dim
        self.up = keras.layers.Dense(width, use_bias=c.mlp_bias, kernel_initializer=initializer,
                                     dtype=self.dtype_policy,
                                     name="gate_up" if c.gated_mlp else "up")
        self.up.build((None, None, c.hidden_dim))
        self.down = keras.layers.Dense(c.hidden_dim, use_bias=c.mlp_bias,
                                       kernel_initializer=initializer,
                                       dtype=self.dtype_policy, name="down")
        self.down.build((None, None, c.mlp_dim))
        self.built = True

    def call(self, x):
        c, x = self.config, self.up(x)
        activation = _ACTIVATIONS[c.activation]
        if c.gated_mlp:
            x = activation(x[..., :c.mlp_dim]) * x[..., c.mlp_dim:]
        else:
            x = activation(x)
        return self.down(x)


class Block(keras.layers.Layer):
    """One layer: norm, attention, norm, MLP, residuals."""

    def __init__(self, config: DecoderConfig, initializer: str = "glorot_uniform", **kwargs):
        super().__init__(autocast=False, **kwargs)  # see Attention
        self.config = c = config
        policy = self.dtype_policy

        def norm(name):
            return Norm(c.norm, c.norm_epsilon, c.hidden_dim, dtype=policy, name=name)

        self.attention_norm = norm("attention_norm")
        self.attention = Attention(c, initializer, dtype=policy, name="attention")
        self.mlp_norm = None if c.shared_norm else norm("mlp_norm")
        self.mlp = MLP(c, initializer, dtype=policy, name="mlp")
        self.attention_post_norm = norm("attention_post_norm") if c.post_norms else None
        self.mlp_post_norm = norm("mlp_post_norm") if c.post_norms else None
        self.built = True

    def call(self, x, rope, bias, cache, index):
        normed = self.attention_norm(x)
        attended, cache = self.attention(normed, rope, bias, cache, index)
        if self.attention_post_norm:
            attended = self.attention_post_norm(attended)
        if self.config.parallel_residual:
            normed = normed if self.mlp_norm is None else self.mlp_norm(x)
            return x + attended + self.mlp(normed), cache
        x = x + attended
        out = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_post_norm(out) if self.mlp_post_norm else out), cache


def _whole(block: Block, *args):
    return block(*args)


@keras.saving.register_keras_serializable("tfspeed")
class Decoder(ConvertibleModel, keras.Model):
    """The model. `call(tokens)` scores a whole text; `forward` continues one from a state.

    Args:
        initializer: of all matrices; `zeros` takes no time where a checkpoint will fill them.

    Attributes:
        numbers: which layers of the config `blocks` are: all, but for a stage of a pipeline.
    """

    def __init__(self, config: DecoderConfig, initializer: str = "glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.config = c = config
        self.numbers = range(c.num_layers)
        policy = self.dtype_policy
        table = "zeros" if initializer == "zeros" else "uniform"
        self.embedding = keras.layers.Embedding(
            c.vocabulary_size, c.hidden_dim, embeddings_initializer=table, dtype=policy,
            name="embedding")
        self.embedding.build(None)
        if c.positions == "learned":
            self.position_embedding = keras.layers.Embedding(
                c.context_length, c.hidden_dim, embeddings_initializer=table, dtype=policy,
                name="position_embedding")
            self.position_embedding.build(None)
        self.blocks = [Block(c.layer(i), initializer, dtype=policy, name=f"block_{i}")
                       for i in range(c.num_layers)]
        self.final_norm = Norm(c.norm, c.norm_epsilon, c.hidden_dim, dtype=policy,
                               name="final_norm")
        self.head = None
        if not c.tied_embeddings:
            self.head = keras.layers.Dense(c.vocabulary_size, use_bias=c.head_bias,
                                           kernel_initializer=initializer, dtype=policy,
                                           name="head")
            self.head.build((None, None, c.hidden_dim))
        self.built = True

    def initial_state(self, batch: int, capacity: int) -> dict:
        """Empty caches: `caches` is one (keys, values) pair a layer, each `[batch, kv_heads,
        capacity, head_dim]`; `positions` `[batch, capacity]` says which position a slot holds
        (-1: none), `lengths` `[batch]` how many tokens each row has read, `index` the next free
        slot."""
        c = self.config

        def cache(block):
            shape = (batch, block.config.num_kv_heads, capacity, c.head_dim)
            return ops.zeros(shape, self.compute_dtype), ops.zeros(shape, self.compute_dtype)

        return {
            "caches": [cache(block) for block in self.blocks],
            "positions": ops.full((batch, capacity), -1, "int32"),
            "lengths": ops.zeros((batch,), "int32"),
            "index": ops.zeros((), "int32"),
        }

    def forward(self, tokens, lengths, state: dict, run_block=_whole):
        """Reads `[batch, length]` tokens, padded on the left, into the state.

        Args:
            run_block: calls one block; a model whose blocks are sharded has its own.

        Returns:
            Hidden states after the final norm, `[batch, length, hidden]`, and the new state.
        """
        length = ops.shape(tokens)[1]
        offset = ops.arange(length, dtype="int32")[None, :] - (length - lengths)[:, None]
        positions = ops.where(offset >= 0, state["lengths"][:, None] + offset, -1)
        slots = ops.slice_update(state["positions"], (0, state["index"]), positions)
        hidden, caches = self.read(tokens, positions, slots, state["caches"], state["index"],
                                   run_block)
        new_state = {"caches": caches, "positions": slots, "lengths": state["lengths"] + lengths,
                     "index": state["index"] + length}
        return hidden, new_state

    def hidden(self, tokens, run_block=_whole):
        """Hidden states after the final norm, `[batch, length, hidden]`, of whole texts `[batch,
        length]`. No cache is written: it costs time, and TensorFlow has no gradient for it."""
        positions = ops.arange(ops.shape(tokens)[1], dtype="int32")[None, :]
        nothing = [None] * len(self.blocks)
        return self.read(tokens, positions, positions, nothing, None, run_block)[0]

    def read(self, tokens, positions, slots, caches, index, run_block=_whole):
        """The layers: hidden states after the final norm, and the new caches.

        Args:
            positions: int32 `[batch, length]` of the tokens; -1: padding.
            slots: int32 `[batch, capacity]`, the positions that the caches hold, the tokens'
                own among them; -1: nothing.
            caches: as in `initial_state`, or None for each layer.
            index: see `Attention`.
            run_block: see `forward`.
        """
        x, filled = self.through(self.embed(tokens, positions), positions, slots, caches, index,
                                 run_block)
        return self.final_norm(x), filled

    def embed(self, tokens, positions):
        """`[batch, length, hidden]`, what the first layer reads."""
        c, x = self.config, self.embedding(tokens)
        if c.embedding_scale != 1.0:
            x = x * ops.cast(c.embedding_scale, x.dtype)
        if c.positions == "learned":
            x = x + self.position_embedding(ops.maximum(positions, 0))
        return x

    def through(self, x, positions, slots, caches, index, run_block=_whole):
        """Hidden states after the last layer, before the final norm, and the new caches."""
        c = self.config
        # Layers of one kind share their angles and their mask.
        ropes = {rope: rotation(positions, rope, c.rotary_dim)
                 for rope in {c.layer_rope(i) for i in self.numbers} if rope}
        biases = {window: self._bias(positions, slots, window)
                  for window in {c.window(i) for i in self.numbers}}
        filled = []
        for i, block, cache in zip(self.numbers, self.blocks, caches, strict=True):
            x, cache = run_block(block, x, ropes.get(c.layer_rope(i)), biases[c.window(i)], cache,
                                 index)
            filled.append(cache)
        return x, filled

    def _bias(self, positions, slots, window: int):
        """What is added to the scores, float32 `[batch, 1 or heads, length, capacity]`."""
        query, key = positions[:, :, None], slots[:, None, :]
        seen = ops.logical_and(key >= 0, key <= query)
        if window:
            seen = ops.logical_and(seen, query - key < window)
        bias = ops.where(seen, 0.0, _MASKED)[:, None]
        if self.config.positions == "alibi":
            # Falcon scales the bias with the scores.
            slopes = ops.convert_to_tensor(self.slopes()) * self.config.query_scale
            distance = ops.cast(key - query, "float32")[:, None]
            bias = bias + slopes[None, :, None, None] * distance
        return bias

    def slopes(self):
        """ALiBi's, one a head."""
        return alibi_slopes(self.config.num_heads)

    def logits(self, hidden):
        """float32 `[..., vocabulary]` of hidden states `[..., hidden]`."""
        if self.head is None:
            # The table is used as it lies, [vocabulary, hidden].
            table = ops.cast(self.embedding.embeddings, hidden.dtype)
            logits = ops.matmul(hidden, ops.transpose(table))
        else:
            logits = self.head(hidden)
        logits = ops.cast(logits, "float32")
        if self.config.logit_softcap:
            logits = self.config.logit_softcap * ops.tanh(logits / self.config.logit_softcap)
        return logits

    def call(self, tokens):
        """float32 logits `[batch, length, vocabulary]` of int32 tokens `[batch, length]`."""
        return self.logits(self.hidden(tokens))

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def _of(cls, config):
        return cls(DecoderConfig.from_dict(config.pop("config")), **config)
