"""Puts a matrix that was quantized, or split in two, in the place of a float one."""

import keras
import numpy as np

from tfspeed.compression.copying import renew
from tfspeed.compression.targets import Target
from tfspeed.litert.weights import Weight
from tfspeed.models.conversion import convert
from tfspeed.models.low_rank import LowRankDense
from tfspeed.models.packed import CLASSES


def can_pack(target: Target) -> bool:
    """Whether its layer has a packed kind: subclasses may do anything with their kernel."""
    return type(target.layer) in CLASSES


def pack(target: Target, weight: Weight, channel_scale: np.ndarray | None = None) -> None:
    """Turns the layer, of a copy, into a packed one.

    Args:
        weight: INT8 or INT4, of the target's shape.
        channel_scale: float32 `[in]`, see `models.packed.Packed`.
    """
    layer = target.layer
    packing = {"bits": 8 if weight.type == "INT8" else 4, "block": weight.block,
               "channel_scale": channel_scale is not None, "shape": list(target.shape),
               "order": list(target.order), "kernel": list(target.variable.shape)}
    made = CLASSES[type(layer)].from_config(layer.get_config() | {"packing": packing})
    made.build_from_config(layer.get_build_config())
    made.values.assign(weight.data.reshape(made.values.shape))
    made.scales.assign(weight.scales.reshape(made.scales.shape))
    if channel_scale is not None:
        made.channel_scale.assign(channel_scale)
    _share_bias(made, layer)
    convert(layer, made)


def split(target: Target, first: np.ndarray, second: np.ndarray) -> None:
    """Turns a Dense layer, of a copy, into two.

    Args:
        first: float32 `[rank, in]`.
        second: float32 `[out, rank]`.
    """
    layer = target.layer
    made = LowRankDense(layer.units, len(first), layer.use_bias,
                        keras.activations.serialize(layer.activation), name=layer.name,
                        dtype=layer.dtype_policy)
    made.build((None, target.shape[1]))
    renew(made.first._kernel, first.T)
    renew(made.second._kernel, second.T)
    _share_bias(made.second, layer)
    convert(layer, made)


def _share_bias(made, layer) -> None:
    if getattr(layer, "bias", None) is not None:
        made.bias._value = layer.bias._value
