"""What every loader of decoder weights gives: a config, and tensors under one set of names.

Names (kernels are `[in, out]`, as Keras has them; `i` counts layers):
    embedding.weight `[vocabulary, hidden]`, position_embedding.weight, final_norm.scale|bias,
    head.kernel|bias, and for each layer `blocks.i.`: attention_norm, mlp_norm,
    attention_post_norm, mlp_post_norm, query_norm, key_norm `.scale|bias`;
    query_key_value `.kernel|bias`, or query, key and value apart; out; gate_up, or gate and up
    apart; up (not gated); down.
"""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import tensorflow as tf

from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.memory import aligned, lent
from tfspeed.models.config import DecoderConfig
from tfspeed.models.conversion import unallocated
from tfspeed.models.decoder import Decoder
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.unread import later

_FUSED = {"query_key_value": ("query", "key", "value"), "key_value": ("key", "value"),
          "gate_up": ("gate", "up")}


@dataclasses.dataclass
class Checkpoint:
    """Weights on their way from a file into a `Decoder`.

    `tensors` maps a name to a function that reads the tensor, so that few are held twice.
    It may be called on any thread.
    """

    config: DecoderConfig | EncoderDecoderConfig
    tensors: Mapping[str, Callable[[], np.ndarray]]
    name: str
    tokenizer: object = None
    source: str | None = None
    notes: tuple[str, ...] = ()
    parameters: int | None = None  # that the file holds, where it says so before it is read


def named_variables(decoder: Decoder) -> dict:
    """Every variable of a decoder under its checkpoint name."""
    found = {"embedding.weight": decoder.embedding.embeddings}
    if decoder.config.positions == "learned":
        found["position_embedding.weight"] = decoder.position_embedding.embeddings

    def add(prefix, layer):
        if layer is None:
            return
        for part in ("kernel", "scale", "bias"):
            if getattr(layer, part, None) is not None:
                found[f"{prefix}.{part}"] = getattr(layer, part)

    add("final_norm", decoder.final_norm)
    add("head", decoder.head)
    for i, block in enumerate(decoder.blocks):
        at = f"blocks.{i}."
        for name in ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm"):
            add(at + name, getattr(block, name))
        add(at + "query_key_value", block.attention.query_key_value)
        add(at + "query_norm", getattr(block.attention, "query_norm", None))
        add(at + "key_norm", getattr(block.attention, "key_norm", None))
        add(at + "out", block.attention.out)
        add(at + block.mlp.up.name, block.mlp.up)
        add(at + "down", block.mlp.down)
    return found


def build_decoder(checkpoint: Checkpoint, dtype: str = "float32", unread: bool = False) -> Decoder:
    """Makes a decoder and fills it. Every tensor must be there and have its shape.

    Args:
        unread: leaves the values where they are: see `unread.values`.
    """
    return filled_model(
        checkpoint, lambda: Decoder(checkpoint.config, dtype=dtype, name="decoder"),
        named_variables, unread)


def filled_model(checkpoint: Checkpoint, make: Callable, names: Callable, unread: bool = False):
    """A model that gets its memory as it is filled, see `build_decoder`.

    Args:
        names: its variables by their checkpoint names.
    """
    asked, held = checkpoint.config.parameter_count, checkpoint.parameters
    if held is not None and asked > held:
        # Before anything is allocated: a damaged config can ask for terabytes.
        raise TfspeedError(
            f"The config of {checkpoint.name} describes more parameters than the file holds.",
            config=asked, file=held, hint="The file is incomplete, or its metadata is damaged.")
    with unallocated():
        model = make()
    variables, unused = names(model), set(checkpoint.tensors)
    for name in variables:
        unused -= set(_sources(name, checkpoint.tensors))
    if unused:
        raise TfspeedError(
            f"{checkpoint.name} holds tensors that its config has no place for.",
            tensors=sorted(unused)[:6],
            hint="Running without them would give wrong answers; the config must match.")

    def fill(name, variable):
        return _filled(checkpoint, name, tuple(variable.shape), variable.dtype)

    if unread:
        for name, variable in variables.items():
            later(variable, partial(fill, name, variable))
        return model
    with ThreadPoolExecutor(available_cores()) as pool:
        # In order, so that of several faults the first is told.
        for variable, value in zip(variables.values(), pool.map(fill, variables,
                                                                variables.values()), strict=True):
            variable._initialize(value)
    return model


def _filled(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: str):
    """What fills a variable of this name, shape and type: memory that it takes over."""
    sources = _sources(name, checkpoint.tensors)
    value, at, shapes = aligned(shape, np.float32), 0, []
    for source in sources:  # one at a time: few are held twice
        array = _read(checkpoint, source)
        end = at + array.shape[-1]
        if array.shape[:-1] == shape[:-1] and end <= shape[-1]:
            value[..., at:end] = array
        shapes.append(array.shape)
        at = end
    if len({s[:-1] for s in shapes}) > 1:
        raise TfspeedError(
            f"Tensors of {checkpoint.name} that are used as one disagree in shape.",
            tensors=sources, shapes=shapes, hint="The file is damaged.")
    found = (*shapes[0][:-1], at)
    if found != shape:
        raise TfspeedError(
            f"Tensor {name} of {checkpoint.name} disagrees with the config.",
            expected_shape=shape, shape=found,
            hint="The file is damaged, or its metadata belongs to another model.")
    return tf.cast(lent(value), dtype)


def _sources(name: str, tensors) -> list[str]:
    """The tensors that fill a variable: itself, or the parts of a fused one."""
    if name in tensors:
        return [name]
    prefix, layer, part = name.rsplit(".", 2) if name.count(".") > 1 else ("", *name.split("."))
    parts = [f"{prefix}.{source}.{part}" for source in _FUSED.get(layer, ())]
    missing = [p for p in parts if p not in tensors] if parts else [name]
    if missing:
        raise TfspeedError("A tensor that the config asks for is missing from the checkpoint.",
                           missing=missing, hint="The file is incomplete, or not of this family.")
    return parts


def _read(checkpoint: Checkpoint, name: str) -> np.ndarray:
    array = np.asarray(checkpoint.tensors[name]())
    if array.ndim == 0:
        raise TfspeedError(f"Tensor {name} of {checkpoint.name} is a scalar.", shape=array.shape)
    return array
