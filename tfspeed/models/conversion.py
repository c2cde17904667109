"""Layers that become layers of another kind in place, in any Keras 3 model, and are saved so; or
that run another function for a while.

A layer is known to its parents, to the graph of a functional model and to whoever holds it: it
keeps its identity and takes over the class and the content of another.
"""

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.common import global_state
from keras.src.utils.tracking import TrackedList

# Keras's list of variables made in a StatelessScope; it has no public name (pinned: keras 3.15.1).
_PENDING = "uninitialized_variables"
_OF_THE_PLACE = ("_inbound_nodes", "_outbound_nodes", "_path", "_parent_path")


@contextlib.contextmanager
def unallocated():
    """Variables that are made inside have a shape and no memory; give each a value afterwards."""
    pending = list(global_state.get_global_attribute(_PENDING, None) or ())
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(_PENDING, pending)


def convert(layer: keras.layers.Layer, made: keras.layers.Layer) -> None:
    """Makes `layer` what `made`, a built layer with the same inputs and outputs, is.

    `made` must not be used any more.
    """
    kept = {name: layer.__dict__[name] for name in _OF_THE_PLACE if name in layer.__dict__}
    for value in kept.values():
        if isinstance(value, TrackedList):  # the old layer's tracker would keep its variables
            value.tracker = made._tracker
    object.__setattr__(layer, "__class__", type(made))
    object.__setattr__(layer, "__dict__", made.__dict__)
    layer.__dict__.update(kept)


@contextlib.contextmanager
def replaced_calls(*pairs):
    """Replaces `call` of layers for a while: pairs of a layer and what makes the new one of the
    old one."""
    with contextlib.ExitStack() as undo:
        for layer, make in pairs:
            layer.call = make(layer.call)
            undo.callback(layer.__dict__.pop, "call")
        yield


def named_layers(root: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer below another once, parents first, with its names from there down, joined by
    `/`."""
    seen, used = set(), set()

    def below(layer, at):
        for child in layer._layers:
            if id(child) in seen:
                continue
            seen.add(id(child))
            name = f"{at}/{child.name}" if at else child.name
            count, plain = 1, name
            while name in used:
                count, name = count + 1, f"{plain}_{count}"
            used.add(name)
            yield name, child
            yield from below(child, name)

    yield from below(root, "")


class Converted:
    """Of layers that `convert` may put in place of others: they are saved with their model."""


class Convertible:
    """Of models and layers that build their own layers: those that were converted since are part
    of the config, so that a file or a copy has them too."""

    def get_config(self):
        config, found = super().get_config(), {}
        for name, layer in named_layers(self):
            if any(name.startswith(f"{outer}/") for outer in found):
                continue  # saved by the one that it lies in
            if isinstance(layer, Converted):
                found[name] = keras.saving.serialize_keras_object(layer)
        return {**config, "converted": found} if found else config

    def take_over(self, converted: dict | None) -> None:
        """Converts the layers that a config says.

        Args:
            converted: of `get_config`.
        """
        layers = dict(named_layers(self)) if converted else {}
        for name, config in (converted or {}).items():
            convert(layers[name], keras.saving.deserialize_keras_object(config))


class ConvertibleModel(Convertible):
    """Of models, which have all of their layers once they are made."""

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        converted = config.pop("converted", None)
        made = cls._of(config)
        made.take_over(converted)
        return made

    @classmethod
    def _of(cls, config: dict):
        """The model as it was before anything was converted."""
        return cls(**config)
