"""A KerasHub CausalLM of any family as a `LanguageModel`, through KerasHub's own cache."""

import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.keras_hub_weights import context_length
from tfspeed.models.language_model import LanguageModel, variable_bytes


class KerasHubCachedModel(LanguageModel):
    """Runs `call_with_cache` of a KerasHub model; `keras_model` is the `CausalLM`.

    The state is `cache`, KerasHub's nest of tensors, and `index`, how many tokens it holds.
    KerasHub's attention masks no padding on the left, so the rows of a batch have one length.
    """

    pads = False

    def __init__(self, name: str, causal_lm, tokenizer=None, source=None, notes=(),
                 reason: str = ""):
        """`reason`: why no Decoder can take its place; default, that its family is not known."""
        backbone, kind = causal_lm.backbone, type(causal_lm).__name__
        reason = reason or (f"Family {kind.removesuffix('CausalLM')} is not known to tfspeed's "
                            "Decoder.")
        super().__init__(name, causal_lm, int(backbone.vocabulary_size),
                         context_length(backbone), tokenizer, source, [
            f"{reason} It runs through KerasHub's own cache; strategies that need the Decoder do "
            "not apply.", *notes])
        try:
            specs = self._cache_specs(1, 8)
        except Exception as error:
            raise TfspeedError("This KerasHub model has no cache that can be made from token ids "
                               "alone.", model=kind,
                               cause=(str(error).splitlines() or [""])[0][:200]) from error
        sizes = [spec.shape.num_elements() * spec.dtype.size for spec in tf.nest.flatten(specs)]
        self._bytes_per_token = sum(sizes) // 8

    def _cache_specs(self, batch: int, capacity: int):
        """Shapes and types of a cache, by tracing KerasHub's function without running it."""
        build = tf.function(lambda tokens: self.keras_model._build_cache(tokens)[1])
        traced = build.get_concrete_function(tf.TensorSpec((batch, capacity), tf.int32))
        return traced.structured_outputs

    def initial_state(self, batch, capacity):
        with tf.init_scope():
            # A table of learned positions ends with the context.
            specs = self._cache_specs(batch, min(capacity, self.context_length))
        return {"cache": tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), specs),
                "index": tf.zeros((), tf.int32)}

    def prefill(self, tokens, lengths, state):
        """See `LanguageModel`; no row is padded, so `lengths` says nothing new."""
        logits, _, cache = self.keras_model.call_with_cache(tokens, state["cache"],
                                                            state["index"])
        return tf.cast(logits[:, -1], tf.float32), {
            "cache": cache, "index": state["index"] + tf.shape(tokens)[1]}

    def score(self, tokens):
        tokens = tf.convert_to_tensor(tokens, tf.int32)  # Keras takes no mix with NumPy
        inputs = {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
        return tf.cast(self.keras_model(inputs, training=False), tf.float32)

    def step_bytes(self, batch, context):
        table = getattr(self.keras_model.backbone, "token_embedding", None)
        looked_up = 0
        if table is not None and not getattr(table, "tie_weights", True):
            looked_up = variable_bytes(table.embeddings)
        return self.weights_bytes - looked_up + batch * context * self._bytes_per_token
