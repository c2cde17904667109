"""Pruning neurons and channels of any functional or sequential Keras model.

A chain is a Dense or convolutional layer whose output goes through elementwise layers only into one
Dense layer: the first's outputs are the last's inputs, nobody else reads them, and they can go.
"""

import dataclasses

import keras
import numpy as np

from tfspeed.compression import calibration
from tfspeed.compression.copying import over, renew
from tfspeed.compression.structured import cheapest, columns_of, refitted, removal
from tfspeed.compression.targets import Target, find
from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel

_HEADS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_ELEMENTWISE = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU,
                keras.layers.ELU, keras.layers.Dropout)
_MIX = ("softmax", "log_softmax", "sparsemax")  # activations that read more than their own channel
_LARGEST = 0.75  # that may go from one layer


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """`first`'s outputs are what `last` reads; `step` of them go at a time."""

    first: Target
    last: Target
    step: int

    @property
    def size(self) -> int:
        """Parameters of a step."""
        out, _ = self.last.shape
        return self.step * (out + self.first.shape[1] + self.first.layer.use_bias)

    @property
    def steps(self) -> int:
        return int(_LARGEST * self.first.shape[0] / self.step)


def prune(model: LanguageModel, tokens: np.ndarray, options) -> tuple[LanguageModel, list[str]]:
    """The smaller model, and what was done.

    Raises:
        TfspeedError: the model has no chain, or too few for the fraction.
    """
    if options.what in ("heads", "layers"):
        raise TfspeedError("Only a tfspeed decoder has heads and layers that can be taken out.",
                           what=options.what, model=model.name, hint="Use what=neurons.")
    chains = _chains(model.keras_model, options)
    goal = int(np.ceil(options.fraction * model.parameters))
    most = sum(chain.size * chain.steps for chain in chains)
    if most < goal:
        raise TfspeedError(
            "There is not as much to take out as the fraction asks for: only layers whose outputs "
            "one Dense layer reads, alone and channel by channel, can shrink.",
            fraction=options.fraction, largest_fraction=int(most / model.parameters * 1000) / 1000,
            layers=[chain.first.name for chain in chains])
    curves, kept = {}, {}

    def survey(group):
        for seen in group:
            chain = by_last[id(seen.target)]
            matrix = seen.target.matrix()
            errors = removal(matrix, seen.gram, matrix.shape[1], chain.step,
                             chain.steps)[1]
            curves[chain] = errors / max(np.sum((matrix @ seen.gram) * matrix), 1e-30)

    def cut(group):
        for seen in group:
            chain, matrix = by_last[id(seen.target)], seen.target.matrix()
            gone, _ = removal(matrix, seen.gram, matrix.shape[1], chain.step, taken[chain])
            left = np.setdiff1d(np.arange(matrix.shape[1]), columns_of(gone.reshape(-1), 1))
            kept[chain] = left, refitted(matrix, seen.gram, left)

    by_last = {id(chain.last): chain for chain in chains}
    calibration.stream(model, [chain.last for chain in chains], tokens, survey)
    taken = cheapest(curves, {chain: chain.size for chain in chains}, goal)
    chosen = [chain for chain in chains if taken[chain]]
    calibration.stream(model, [chain.last for chain in chosen], tokens, cut)
    return _rebuilt(model, kept), _told(model.keras_model, chains, kept)


def _chains(keras_model, options) -> list[Chain]:
    if not hasattr(_graph(keras_model), "_nodes_by_depth"):
        raise TfspeedError(
            "Neurons can be taken out of tfspeed decoders, and functional and sequential models.",
            model=keras_model.name, type=type(keras_model).__name__,
            hint="Of other models it is not known which layers read which outputs.")
    named = {id(target.layer): target for target in find(keras_model)}
    graph, chains = _graph(keras_model), []
    found = {id(target.layer) for target in find(keras_model, options.targets)}
    for layer in graph.layers:
        last = _reader(layer, graph)
        if last is None or id(layer) not in found or not _separable(layer):
            continue
        width, step = named[id(layer)].shape[0], options.multiple
        while width < 4 * step and step > 1:
            step //= 2
        chains.append(Chain(named[id(layer)], named[id(last)], step))
    if not chains:
        raise TfspeedError(
            "No layer of this model can lose neurons: none's outputs are read by one Dense layer "
            "alone, channel by channel.", model=keras_model.name, targets=options.targets,
            hint="Recurrent, attention and residual connections keep a layer's width as it is.")
    return chains


def _graph(keras_model):
    """The functional model that a sequential one has inside."""
    return getattr(keras_model, "_functional", None) or keras_model


def _separable(layer) -> bool:
    """Whether each output of the layer can go without the others noticing."""
    plain = type(layer) in _HEADS and not _mixes(layer)
    return plain and getattr(layer, "groups", 1) == 1 and getattr(
        layer, "data_format", "channels_last") == "channels_last"


def _mixes(layer) -> bool:
    return getattr(getattr(layer, "activation", None), "__name__", "linear") in _MIX


def _reader(layer, graph):
    """The Dense layer that alone reads a layer's outputs, or None."""
    while True:
        if len(_inside(layer._inbound_nodes, graph)) != 1:
            return None  # its weights serve in two places
        nodes = _inside(layer._outbound_nodes, graph)
        if len(nodes) != 1 or any(t._keras_history.operation is layer for t in graph.outputs):
            return None
        layer = nodes[0].operation
        if type(layer) is keras.layers.Dense:
            return layer if len(_inside(layer._inbound_nodes, graph)) == 1 else None
        if type(layer) not in _ELEMENTWISE or _mixes(layer):
            return None


def _inside(nodes, graph) -> list:
    ours = {id(node) for depth in graph._nodes_by_depth.values() for node in depth}
    return [node for node in nodes if id(node) in ours]


def _rebuilt(model: LanguageModel, kept: dict) -> LanguageModel:
    """The model from its config with other widths; the weights are selected and refitted."""
    keras_model = model.keras_model
    widths = {chain.first.layer.name: len(left) for chain, (left, _) in kept.items()}
    config = keras_model.get_config()
    for entry in config["layers"]:
        entry.pop("build_config", None)  # of the old widths; layers are built as they are called
        inner = entry["config"]
        if inner.get("name") in widths:
            inner["filters" if "filters" in inner else "units"] = widths[inner["name"]]
    small = type(keras_model).from_config(config)
    if not small.built:
        small.build(keras_model.input_shape)
    firsts = {id(chain.first.layer): left for chain, (left, _) in kept.items()}
    lasts = {id(chain.last.layer): matrix for chain, (_, matrix) in kept.items()}
    for old, new in zip(_graph(keras_model).layers, _graph(small).layers, strict=True):
        arrays = [keras.ops.convert_to_numpy(v) for v in old.variables]
        if id(old) in lasts:
            arrays[0] = lasts[id(old)].T
        if id(old) in firsts:
            arrays = [array[..., firsts[id(old)]] for array in arrays]
        for variable, array in zip(new.variables, arrays, strict=True):
            renew(variable, array)
        new.trainable = old.trainable
    return over(model, small)


def _told(keras_model, chains, kept) -> list[str]:
    lines = [f"{chain.first.name}: {len(left)} of {chain.first.shape[0]} outputs are left."
             for chain, (left, _) in kept.items()]
    others = [target.name for target in find(keras_model)
              if target.layer not in [chain.first.layer for chain in chains]]
    return [*lines, f"Left alone, for their outputs are not read by one Dense layer alone: "
                    f"{', '.join(others[:8])}{', …' if len(others) > 8 else ''}."]
