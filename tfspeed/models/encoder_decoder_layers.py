"""The layers of an `EncoderDecoder`: cross-attention, the block of either side, T5's distances."""

import math

import keras
from keras import ops

from tfspeed.models.decoder import MLP, Attention, Norm
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig


class CrossAttention(keras.layers.Layer):
    """Queries of the decoder over keys and values of the encoder, which are made once."""

    def __init__(self, config: EncoderDecoderConfig, num_heads: int,
                 initializer: str = "glorot_uniform", **kwargs):
        super().__init__(autocast=False, **kwargs)  # see decoder.Attention
        self.config, self.num_heads = config, num_heads
        c, width = config, self.out_width

        def dense(units, inputs, name):
            layer = keras.layers.Dense(units, use_bias=c.biases, kernel_initializer=initializer,
                                       dtype=self.dtype_policy, name=name)
            layer.build((None, None, inputs))
            return layer

        self.query = dense(width, c.hidden_dim, "query")
        self.key_value = dense(2 * width, c.hidden_dim, "key_value")
        self.out = dense(c.hidden_dim, width, "out")
        self.built = True

    def keys_values(self, encoded):
        """Of `[batch, source, hidden]`, each `[batch, heads, source, head_dim]`."""
        heads = self._heads(self.key_value(encoded))
        return heads[:, :self.num_heads], heads[:, self.num_heads:]

    def call(self, x, keys, values, bias):
        """Args:
            bias: added to the scores, float32 `[batch, 1, 1, source]`, or None.
        """
        query = self._heads(self.query(x)) * self.config.query_scale
        scores = ops.cast(ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2))), "float32")
        scores = scores if bias is None else scores + bias
        mixed = ops.matmul(ops.cast(ops.softmax(scores, axis=-1), values.dtype), values)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))
        return self.out(ops.reshape(mixed, (*ops.shape(mixed)[:2], self.out_width)))

    @property
    def out_width(self) -> int:
        return self.num_heads * self.config.head_dim

    def _heads(self, x):
        batch, length = ops.shape(x)[0], ops.shape(x)[1]
        return ops.transpose(ops.reshape(x, (batch, length, -1, self.config.head_dim)),
                             (0, 2, 1, 3))


class EncoderDecoderBlock(keras.layers.Layer):
    """One layer of either side: self-attention, cross-attention in the decoder, MLP."""

    def __init__(self, config: EncoderDecoderConfig, cross: bool, layer: int,
                 initializer: str = "glorot_uniform", **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = c = config
        policy, own = self.dtype_policy, config.side(int(cross)).layer(layer)
        # Cross-attention only in the decoder; a plain attribute tells which side this is.
        self.crosses = cross

        def norm(name):
            return Norm(c.norm, c.norm_epsilon, c.hidden_dim, dtype=policy, name=name)

        self.attention_norm = norm("attention_norm")
        self.attention = Attention(own, initializer, dtype=policy, name="attention")
        if cross:
            self.cross_norm = norm("cross_norm")
            self.cross = CrossAttention(c, c.cross(layer), initializer, dtype=policy,
                                        name="cross")
        self.mlp_norm = norm("mlp_norm")
        self.mlp = MLP(own, initializer, dtype=policy, name="mlp")
        self.built = True

    def call(self, x, bias, cache=None, index=None, keys_values=None, source_bias=None):
        """Args:
            bias: of self-attention, float32 `[batch, 1 or heads, length, capacity]`.
            cache, index: see `decoder.Attention`.
            keys_values: of the encoder, see `CrossAttention`; only in the decoder.
            source_bias: hides padding of the source.

        Returns:
            `[batch, length, hidden]`, and the cache.
        """
        pre = self.config.pre_norm
        attended, cache = self.attention(self.attention_norm(x) if pre else x, None, bias, cache,
                                         index)
        x = x + attended if pre else self.attention_norm(x + attended)
        if self.crosses:
            attended = self.cross(self.cross_norm(x) if pre else x, *keys_values, source_bias)
            x = x + attended if pre else self.cross_norm(x + attended)
        out = self.mlp(self.mlp_norm(x) if pre else x)
        return (x + out if pre else self.mlp_norm(x + out)), cache


def relative_bucket(distance, buckets: int, largest: int, both_ways: bool):
    """T5's bucket of `key - query`, int32 of any shape: exact while near, logarithmic beyond."""
    bucket = 0
    if both_ways:
        buckets //= 2
        bucket = ops.where(distance > 0, buckets, 0)
        distance = ops.abs(distance)
    else:
        distance = ops.maximum(-distance, 0)
    near = buckets // 2
    far = ops.log(ops.cast(ops.maximum(distance, 1), "float32") / near)
    far = far / math.log(largest / near) * (buckets - near)
    far = ops.minimum(near + ops.cast(far, "int32"), buckets - 1)
    return bucket + ops.where(distance < near, distance, far)
