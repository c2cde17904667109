"""Any Keras 3 model `tokens → logits` as a `LanguageModel`: it has no cache, and it is slow."""

import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel

DEFAULT_CONTEXT = 512


class UncachedModel(LanguageModel):
    """Runs the whole text again for every token.

    The state is the text itself: `tokens` `[batch, capacity]`, each row from the left, and
    `lengths` `[batch]`. The model must be causal; padding on the right then changes nothing.
    """

    def __init__(self, name, keras_model, context_length: int = 0, tokenizer=None, source=None,
                 notes=()):
        shape = tuple(keras_model.inputs[0].shape) if getattr(keras_model, "inputs", None) else ()
        fixed = shape[1] if len(shape) > 1 else None
        context_length = context_length or fixed or DEFAULT_CONTEXT
        self._fixed = fixed
        vocabulary = _vocabulary(keras_model, fixed or 4)
        super().__init__(name, keras_model, vocabulary, context_length, tokenizer, source, [
            *notes, "It has no KV cache: every new token costs a pass over the whole text. It "
            "works, and it is slow."])

    def initial_state(self, batch, capacity):
        width = self._fixed or capacity
        return {"tokens": tf.zeros((batch, width), tf.int32),
                "lengths": tf.zeros((batch,), tf.int32)}

    def prefill(self, tokens, lengths, state):
        width = state["tokens"].shape[1]
        # Slot j of a row takes the new token j - lengths_so_far of that row, if there is one.
        new = tf.range(width)[None, :] - state["lengths"][:, None]
        source = new + (tokens.shape[1] - lengths)[:, None]
        inside = (new >= 0) & (new < lengths[:, None])
        moved = tf.gather(tokens, tf.clip_by_value(source, 0, tokens.shape[1] - 1), batch_dims=1)
        text = tf.where(inside, moved, state["tokens"])
        total = state["lengths"] + lengths
        logits = tf.gather(self.score(text), total - 1, batch_dims=1)
        return logits, {"tokens": text, "lengths": total}

    def score(self, tokens):
        length = tokens.shape[1]
        if self._fixed and length < self._fixed:
            tokens = tf.pad(tokens, [[0, 0], [0, self._fixed - length]])
        return tf.cast(self.keras_model(tokens, training=False), tf.float32)[:, :length]

    def step_bytes(self, batch, context):
        return self.weights_bytes


def _vocabulary(keras_model, length: int) -> int:
    """Runs the model once on zeros: it must take `[1, length]` ids and give logits."""
    try:
        shape = keras_model(tf.zeros((1, length), tf.int32), training=False).shape
    except Exception as error:
        raise TfspeedError(
            "A Keras model must take token ids, int32 [batch, length], and return logits "
            "[batch, length, vocabulary].", error=str(error).splitlines()[0][:200]) from error
    if len(shape) != 3 or shape[1] != length:
        raise TfspeedError(
            "A Keras model must return logits for every token, [batch, length, vocabulary].",
            output_shape=tuple(shape), input_shape=(1, length))
    return int(shape[2])
