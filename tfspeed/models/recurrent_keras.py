"""Reads a user's own Keras model of recurrent layers as a `Recurrent`, which keeps its state.

Taken over is a chain: Embedding, SimpleRNN, LSTM or GRU layers of one kind as Keras makes them by
default, Dense with one output a token of the vocabulary. All else runs as it is, without a cache.
"""

import keras
import numpy as np

from tfspeed.models.recurrent import CELLS, Recurrent

_NOTHING = (keras.layers.InputLayer, keras.layers.Dropout, keras.layers.SpatialDropout1D)
_USUAL = {"return_sequences": True, "return_state": False, "go_backwards": False,
          "stateful": False, "activation": "tanh", "use_bias": True,
          "recurrent_activation": "sigmoid", "reset_after": True}


def recurrent_of(model: keras.Model) -> Recurrent | None:
    """The same model with its state kept, weights copied; None where it is another kind."""
    layers = _chain(model)
    if len(layers) < 3 or any(layer.dtype_policy.name != "float32" for layer in layers):
        return None
    table, *middle, head = layers
    kinds = [name for name, kind in CELLS.items() if type(middle[0]) is kind]
    if (type(table) is not keras.layers.Embedding or table.mask_zero or not kinds
            or not all(_usual(layer, CELLS[kinds[0]]) for layer in middle)
            or type(head) is not keras.layers.Dense or head.units != table.input_dim
            or head.activation not in (keras.activations.linear, keras.activations.softmax)
            or getattr(head, "quantization_mode", None)
            or getattr(table, "quantization_mode", None)):
        return None
    dims = [layer.units for layer in middle]
    made = Recurrent(table.input_dim, dims[0], len(dims), kinds[0],
                     embedding_dim=table.output_dim, layer_dims=tuple(dims), tied_embeddings=False,
                     name=model.name)
    made.embedding.set_weights(table.get_weights())
    for ours, theirs in zip(made.layers_, middle, strict=True):
        ours.set_weights(theirs.get_weights())
    bias = [] if head.use_bias else [np.zeros(head.units, np.float32)]
    made.head.set_weights(head.get_weights() + bias)
    return made


def _chain(model: keras.Model) -> list[keras.layers.Layer]:
    """Its layers where each reads what the one before gives, without those that change nothing;
    [] for other models."""
    if not isinstance(model, keras.Sequential):
        try:
            at, = model.inputs
            for layer in model.layers:
                if not isinstance(layer, keras.layers.InputLayer):
                    if layer.input is not at:
                        return []
                    at = layer.output
            if len(model.outputs) != 1 or model.outputs[0] is not at:
                return []
        except (AttributeError, TypeError, ValueError):  # not functional, or a layer used twice
            return []
    return [layer for layer in model.layers if not isinstance(layer, _NOTHING)] if model.built \
        else []


def _usual(layer, kind) -> bool:
    found = layer.get_config()
    return type(layer) is kind and all(found.get(name, value) == value
                                       for name, value in _USUAL.items())
