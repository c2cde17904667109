"""A `Decoder` as a `LanguageModel`: the state is its KV cache."""

import tensorflow as tf

from tfspeed.models.checkpoint import Checkpoint, build_decoder
from tfspeed.models.decoder import Decoder
from tfspeed.models.language_model import LanguageModel, variable_bytes


class DecoderModel(LanguageModel):
    """See `LanguageModel`; `keras_model` is a `Decoder`, `config` its `DecoderConfig`."""

    def __init__(self, name: str, decoder: Decoder, tokenizer=None, source=None, notes=()):
        config = decoder.config
        super().__init__(name, decoder, config.vocabulary_size, config.context_length,
                         tokenizer, source, notes)

    @property
    def config(self):
        return self.keras_model.config

    @property
    def layers(self) -> int:
        return self.config.num_layers

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, dtype: str = "float32",
                        unread: bool = False) -> "DecoderModel":
        return cls(checkpoint.name, build_decoder(checkpoint, dtype, unread), checkpoint.tokenizer,
                   checkpoint.source, checkpoint.notes)

    def initial_state(self, batch, capacity):
        return self.keras_model.initial_state(batch, capacity)

    def prefill(self, tokens, lengths, state):
        hidden, state = self.keras_model.forward(tokens, lengths, state)
        return self.keras_model.logits(hidden[:, -1]), state

    def read(self, tokens, positions, slots, caches, index, layers: int = 0):
        """float32 logits after each token, `[batch, length, vocabulary]`, and the new caches.

        Args:
            tokens, positions, slots, caches, index: see `Decoder.read`.
            layers: those after so many are left out; 0: none is.
        """
        decoder = self.keras_model
        hidden, caches = decoder.read(tokens, positions, slots, caches, index,
                                      first_blocks(decoder.blocks, layers, 2))
        return decoder.logits(hidden), caches

    def score(self, tokens):
        return self.keras_model(tokens)

    def step_bytes(self, batch, context):
        decoder, c = self.keras_model, self.config
        looked_up = [] if decoder.head is None else list(decoder.embedding.weights)
        if c.positions == "learned":
            looked_up.append(decoder.position_embedding.embeddings)
        weights = self.weights_bytes - sum(variable_bytes(v) for v in looked_up)
        itemsize = tf.as_dtype(decoder.compute_dtype).size
        return weights + c.cache_bytes(batch, context, itemsize)


def first_blocks(blocks, count: int, cache: int):
    """A `run_block` that leaves out all blocks but the first `count`; 0: it leaves out none.

    Args:
        cache: which argument after x is a block's cache.
    """
    kept = {id(block) for block in blocks[:count or len(blocks)]}

    def run(block, x, *args):
        return block(x, *args) if id(block) in kept else (x, args[cache])

    return run
