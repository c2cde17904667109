"""Parts of a model, each compiled by XLA on its own, so that a collective can stand in between."""

import keras
import tensorflow as tf

from tfspeed.models.conversion import named_layers


class Pieces:
    """Calls functions of a layer; where `compiled`, through XLA.

    The layer's weights are arguments of what is compiled: layers of one kind (the blocks of a
    decoder) share one program. Called while a tf.function is traced, in a replica or without any.
    """

    def __init__(self, compiled: bool):
        self.compiled = compiled
        self._functions: dict = {}
        self._kinds: dict = {}

    def __call__(self, function, layer: keras.layers.Layer, *args):
        """`function(layer, *args)`, a pure function of tensors; `function` must be one object from
        call to call, and may use no other layer's weights."""
        if not self.compiled:
            return function(layer, *args)
        if id(layer) not in self._kinds:
            self._kinds[id(layer)] = kind_of(layer)
        key = function, self._kinds[id(layer)]
        if key not in self._functions:
            self._functions[key] = _compiled(function, layer)
        return self._functions[key]([tf.convert_to_tensor(v.value) for v in layer.variables], *args)


def kind_of(layer: keras.layers.Layer) -> tuple:
    """Equal where two layers compute the same function of weights and arguments."""
    config = getattr(layer, "config", None)
    below = [(name, type(inner), str(getattr(inner, "packing", "")))
             for name, inner in named_layers(layer)]
    shapes = [(tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for v in layer.variables]
    return type(layer), config, tuple(below), tuple(shapes)


def _compiled(function, layer):
    @tf.function(jit_compile=True)
    def run(weights, *args):
        with keras.StatelessScope(state_mapping=zip(layer.variables, weights, strict=True)):
            return function(layer, *args)

    return run
