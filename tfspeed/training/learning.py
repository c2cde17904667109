"""Which variables of a model learn."""

import keras

from tfspeed.compression import targets
from tfspeed.training.lora import dense_layers


def every(keras_model: keras.Model) -> list:
    """float32 variables that may learn: none of a layer that holds integers (packed weights)."""
    fixed = set()
    for _, layer in targets.named_layers(keras_model):
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        if any("int" in keras.backend.standardize_dtype(v.dtype) for v in own):
            fixed.update(id(v) for v in own)
    return [v for v in keras_model.trainable_variables if id(v) not in fixed
            and keras.backend.standardize_dtype(v.dtype) == "float32"]


def small(keras_model: keras.Model) -> list:
    """Those of `every` that learn beside adapters: norms and biases; no kernel that an adapter
    stands in for, no table, no convolution."""
    kept = {id(layer._kernel) for layer in dense_layers(keras_model).values()}
    for _, layer in targets.named_layers(keras_model):
        if type(layer) in targets.KINDS and not isinstance(layer, keras.layers.Dense):
            name = "_embeddings" if isinstance(layer, keras.layers.Embedding) else "_kernel"
            kept.add(id(getattr(layer, name)))
    return [v for v in every(keras_model) if id(v) not in kept]
