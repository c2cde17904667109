"""One encoder–decoder transformer for Whisper, BART and T5, as a Keras 3 model.

The encoder reads a source once; its keys and values for the decoder's cross-attention are what a
generation keeps (`encode`). The decoder is read with an explicit KV cache, as `Decoder` is, whose
norm, self-attention and MLP it shares; its layers are in `encoder_decoder_layers`. Sources:
arXiv:1706.03762; Whisper, arXiv:2212.04356; BART, arXiv:1910.13461; T5, arXiv:1910.10683.
"""

import warnings

import keras
from keras import ops

from tfspeed.models.conversion import ConvertibleModel
from tfspeed.models.decoder import Norm
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.encoder_decoder_layers import EncoderDecoderBlock, relative_bucket

# A text of one token sees nothing but itself.
warnings.filterwarnings("ignore", "You are using a softmax over axis -1")
MASKED = -1e9  # finite, as in `Decoder`
PADDING = -1   # of token sources, on the right


def _whole(block: EncoderDecoderBlock, *args):
    return block(*args)


@keras.saving.register_keras_serializable("tfspeed")
class EncoderDecoder(ConvertibleModel, keras.Model):
    """The model. `call((source, tokens))` scores whole texts; `encode`, then `forward`, continue
    one from a state.

    A source is float32 `[batch, frames, mels]`, or int32 tokens `[batch, length]`, padded on the
    right with `PADDING`.

    Attributes:
        numbers: which of the decoder's layers `decoder` are: all, but for a stage of a pipeline.
    """

    def __init__(self, config: EncoderDecoderConfig, initializer: str = "glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.config = c = config
        self.numbers = range(c.decoder_layers)
        policy = self.dtype_policy
        table = "zeros" if initializer == "zeros" else "uniform"

        def embedding(rows, width, name):
            layer = keras.layers.Embedding(rows, width, embeddings_initializer=table, dtype=policy,
                                           name=name)
            layer.build(None)
            return layer

        def convolution(inputs, stride, name):
            layer = keras.layers.Conv1D(c.hidden_dim, 3, stride, kernel_initializer=initializer,
                                        dtype=policy, name=name)
            layer.build((None, None, inputs))
            return layer

        def norm(name):
            return Norm(c.norm, c.norm_epsilon, c.hidden_dim, dtype=policy, name=name)

        if c.source == "audio":
            self.convolutions = [convolution(c.mels, 1, "convolution_0"),
                                 convolution(c.hidden_dim, 2, "convolution_1")]
        self.embedding = embedding(c.vocabulary_size, c.hidden_dim, "embedding")
        # Of each side: a row a position, or a row a bucket of distances.
        rows, width = ((c.source_length, c.context_length), c.hidden_dim)
        if c.positions == "relative":
            rows, width = (c.relative_buckets,) * 2, c.num_heads
        self.positions = [embedding(n, width, f"{side}_positions")
                          for n, side in zip(rows, ("encoder", "decoder"), strict=True)]
        if c.embedding_norm:
            self.embedding_norms = [norm("encoder_embedding_norm"), norm("decoder_embedding_norm")]
        self.encoder, self.decoder = (
            [EncoderDecoderBlock(c, bool(side), i, initializer, dtype=policy, name=f"{name}_{i}")
             for i in range(c.side(side).num_layers)]
            for side, name in enumerate(("encoder", "decoder")))
        if c.final_norm:
            self.final_norms = [norm("encoder_norm"), norm("decoder_norm")]
        if c.logit_bias:
            self.logit_bias = self.add_weight(shape=(c.vocabulary_size,), initializer="zeros",
                                              name="logit_bias")
        self.head = None
        if not c.tied_embeddings:
            self.head = keras.layers.Dense(c.vocabulary_size, use_bias=False, dtype=policy,
                                           kernel_initializer=initializer, name="head")
            self.head.build((None, None, c.hidden_dim))
        self.built = True

    def encode(self, source, run_block=_whole) -> dict:
        """What the decoder needs of a source: `cross`, keys and values a layer, and `bias`, float32
        `[batch, 1, 1, source]`, 0 or masked.

        Args:
            run_block: calls one block; a model whose blocks are sharded has its own.
        """
        bias = self.source_bias(source)
        return self.for_decoder(self.read_source(source, bias, run_block), bias)

    def read_source(self, source, bias, run_block=_whole):
        """The encoder's layers: its result, `[batch, source, hidden]`.

        Args:
            bias: of `source_bias`.
        """
        x = self.through_encoder(self.embed_source(source), bias, run_block)
        return self.final_norms[0](x) if self.config.final_norm else x

    def embed_source(self, source):
        """`[batch, source, hidden]`, what the encoder's first layer reads."""
        c = self.config
        if c.source == "audio":
            x = self.listen(ops.cast(source, self.compute_dtype))
        else:
            x = self.embed(ops.maximum(source, 0))
        if c.positions == "learned":
            x = x + self.positions[0](ops.arange(ops.shape(x)[1], dtype="int32"))
        return self.embedding_norms[0](x) if c.embedding_norm else x

    def through_encoder(self, x, bias, run_block=_whole):
        """Hidden states after the encoder's last layer, before its final norm."""
        places = ops.arange(ops.shape(x)[1], dtype="int32")[None]
        within = self._within(0, places, places)
        seen = within if self.config.source == "audio" else within + bias
        for block in self.encoder:
            x, _ = run_block(block, x, seen)
        return x

    def for_decoder(self, x, bias) -> dict:
        """What `encode` gives, of the encoder's result `[batch, source, hidden]`."""
        return {"cross": [block.cross.keys_values(x) for block in self.decoder], "bias": bias}

    def source_bias(self, source):
        """What hides a source's padding, float32 `[batch, 1, 1, source]`, 0 or masked."""
        if self.config.source == "tokens":
            return ops.where(source >= 0, 0.0, MASKED)[:, None, None, :]
        return ops.zeros((ops.shape(source)[0], 1, 1, (ops.shape(source)[1] + 1) // 2), "float32")

    def listen(self, frames):
        """Log-mel frames `[batch, frames, mels]` → `[batch, frames / 2, hidden]`, Whisper's two
        convolutions, padded by a frame on either side."""
        for convolution in self.convolutions:
            frames = ops.gelu(convolution(ops.pad(frames, ((0, 0), (1, 1), (0, 0)))),
                              approximate=False)
        return frames

    def embed(self, tokens):
        x = self.embedding(tokens)
        return x * ops.cast(self.config.embedding_scale, x.dtype)

    def initial_state(self, batch: int, capacity: int) -> dict:
        """Empty caches of the decoder, see `Decoder.initial_state`."""
        c = self.config.side(1)

        def cache(layer):
            shape = (batch, c.layer(layer).num_heads, capacity, c.head_dim)
            return ops.zeros(shape, self.compute_dtype)

        return {"caches": [(cache(i), cache(i)) for i in self.numbers],
                "positions": ops.full((batch, capacity), -1, "int32"),
                "lengths": ops.zeros((batch,), "int32"), "index": ops.zeros((), "int32")}

    def forward(self, tokens, lengths, state: dict, encoded: dict, run_block=_whole):
        """Reads `[batch, length]` tokens, padded on the left, into the state.

        Args:
            run_block: see `encode`.

        Returns:
            Hidden states `[batch, length, hidden]` for `logits`, and the new state.
        """
        length = ops.shape(tokens)[1]
        offset = ops.arange(length, dtype="int32")[None, :] - (length - lengths)[:, None]
        positions = ops.where(offset >= 0, state["lengths"][:, None] + offset, -1)
        slots = ops.slice_update(state["positions"], (0, state["index"]), positions)
        hidden, caches = self.read(tokens, positions, slots, state["caches"], state["index"],
                                   encoded, run_block)
        return hidden, {"caches": caches, "positions": slots, "lengths": state["lengths"] + lengths,
                        "index": state["index"] + length}

    def read(self, tokens, positions, slots, caches, index, encoded, run_block=_whole):
        """The decoder's layers, see `Decoder.read`."""
        x, filled = self.through(self.embed_tokens(tokens, positions), positions, slots, caches,
                                 index, encoded, run_block)
        return (self.final_norms[1](x) if self.config.final_norm else x), filled

    def embed_tokens(self, tokens, positions):
        """`[batch, length, hidden]`, what the decoder's first layer reads."""
        c, x = self.config, self.embed(tokens)
        if c.positions == "learned":
            x = x + self.positions[1](ops.clip(positions, 0, c.context_length - 1))
        return self.embedding_norms[1](x) if c.embedding_norm else x

    def through(self, x, positions, slots, caches, index, encoded, run_block=_whole):
        """Hidden states after the decoder's last layer, before its final norm, and the caches."""
        query, key = positions[:, :, None], slots[:, None, :]
        seen = ops.logical_and(key >= 0, key <= query)
        bias = ops.where(seen, 0.0, MASKED)[:, None] + self._within(1, positions, slots)
        filled = []
        for block, cache, cross in zip(self.decoder, caches, encoded["cross"], strict=True):
            x, cache = run_block(block, x, bias, cache, index, cross, encoded["bias"])
            filled.append(cache)
        return x, filled

    def _within(self, side: int, queries, keys):
        """What relative positions add to the scores, float32 `[batch, heads, length, capacity]`;
        0 where positions are added to what is read.

        Args:
            side: 0 of the encoder, which sees both ways; 1 of the decoder.
            queries, keys: their positions, int32 `[batch, length]` and `[batch, capacity]`.
        """
        c = self.config
        if c.positions == "learned":
            return ops.zeros((1, 1, 1, 1), "float32")
        buckets = relative_bucket(keys[:, None, :] - queries[:, :, None], c.relative_buckets,
                                  c.relative_distance, side == 0)
        return ops.cast(ops.transpose(self.positions[side](buckets), (0, 3, 1, 2)), "float32")

    def logits(self, hidden):
        """float32 `[..., vocabulary]` of hidden states `[..., hidden]`."""
        hidden = hidden * ops.cast(self.config.logit_scale, hidden.dtype)
        if self.head is None:
            table = ops.cast(self.embedding.embeddings, hidden.dtype)
            logits = ops.cast(ops.matmul(hidden, ops.transpose(table)), "float32")
        else:
            logits = ops.cast(self.head(hidden), "float32")
        return logits + ops.cast(self.logit_bias, "float32") if self.config.logit_bias else logits

    def score(self, tokens, encoded: dict):
        """float32 logits `[batch, length, vocabulary]` of whole texts `[batch, length]`."""
        return self.logits(self.hidden(tokens, encoded))

    def hidden(self, tokens, encoded: dict, run_block=_whole):
        """Of whole texts, `[batch, length, hidden]`, see `Decoder.hidden`."""
        places = ops.arange(ops.shape(tokens)[1], dtype="int32")[None, :]
        nothing = [None] * len(self.decoder)
        return self.read(tokens, places, places, nothing, None, encoded, run_block)[0]

    def call(self, inputs):
        """float32 logits of tokens after a source, see above."""
        source, tokens = inputs
        return self.score(tokens, self.encode(source))

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def _of(cls, config):
        return cls(EncoderDecoderConfig.from_dict(config.pop("config")), **config)
