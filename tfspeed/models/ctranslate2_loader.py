"""Reads a Whisper that CTranslate2 has converted (model.bin, tokenizer.json, config.json) into a
`Checkpoint`."""

import dataclasses
from pathlib import Path

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models import ctranslate2_file
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.whisper_tokens import suppressed_of, whisper_tokenizer

# Theirs, of a layer of either side, to ours.
_LAYER = {"self_attention/layer_norm": "attention_norm", "ffn/layer_norm": "mlp_norm",
          "self_attention/linear_0": "attention.query_key_value",
          "self_attention/linear_1": "attention.out", "ffn/linear_0": "mlp.up",
          "ffn/linear_1": "mlp.down", "attention/layer_norm": "cross_norm",
          "attention/linear_0": "cross.query", "attention/linear_1": "cross.key_value",
          "attention/linear_2": "cross.out"}
_PARTS = {"weight": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias"}
_FLOATS = ("float32", "float16", "bfloat16")


def is_ctranslate2(folder: Path) -> bool:
    return ctranslate2_file.looks_like(folder / "model.bin")


def load_ctranslate2(folder: Path) -> Checkpoint:
    """Raises:
        TfspeedError: it is no Whisper, in integers, or damaged.
    """
    file = ctranslate2_file.read(folder / "model.bin")
    if file.spec != "WhisperSpec":
        raise TfspeedError("Of CTranslate2's models, Whisper's are read.", path=str(file.path),
                           spec=file.spec)
    integers = [n for n, t in file.tensors.items() if n.endswith("weight")
                and t.dtype.name not in _FLOATS]
    if integers:
        raise TfspeedError("CTranslate2's weights must be floats: tfspeed rounds them itself.",
                           path=str(file.path), tensor=integers[0],
                           type=file.tensors[integers[0]].dtype.name,
                           hint="Convert without --quantization, or with float16.")
    tokenizer = whisper_tokenizer(folder)
    config = dataclasses.replace(_config(file), **suppressed_of(folder, tokenizer))
    return Checkpoint(config, _tensors(file), name=folder.resolve().name, tokenizer=tokenizer,
                      source=str(folder), parameters=sum(
                          t.size for n, t in file.tensors.items() if t.dtype.name in _FLOATS))


def _config(file) -> EncoderDecoderConfig:
    tensors = file.tensors

    def shape(name):
        if name not in tensors:
            raise TfspeedError("A tensor is missing from model.bin.", tensor=name,
                               path=str(file.path))
        return tensors[name].shape

    def layers(side):
        found = {int(n.split("/")[1][6:]) for n in tensors if n.startswith(f"{side}/layer_")
                 and n.split("/")[1][6:].isdigit()}
        return len(found)

    heads = tensors.get("encoder/num_heads")
    hidden, mels, _ = shape("encoder/conv1/weight")
    if heads is None or heads.size != 1 or int(heads) < 1 or hidden % int(heads):
        raise TfspeedError("model.bin does not say how many heads the model has.",
                           path=str(file.path), num_heads=None if heads is None else heads.tolist())
    return EncoderDecoderConfig(
        vocabulary_size=shape("decoder/embeddings/weight")[0], encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"), hidden_dim=hidden, num_heads=int(heads),
        head_dim=hidden // int(heads), mlp_dim=shape("encoder/layer_0/ffn/linear_0/weight")[0],
        context_length=shape("decoder/position_encodings/encodings")[0],
        source_length=shape("encoder/position_encodings/encodings")[0], mels=mels)


def _tensors(file) -> dict:
    """Readers by our names."""
    found = {}
    for name, values in file.tensors.items():
        ours = _named(name)
        if ours is not None:
            found[ours] = _reader(values, ours)
    return found


def _named(name: str) -> str | None:
    """Our name of a tensor; None for a number of the config, or an alias."""
    fixed = {"decoder/embeddings/weight": "embedding.weight",
             "encoder/position_encodings/encodings": "encoder.positions.weight",
             "decoder/position_encodings/encodings": "decoder.positions.weight"}
    if name in fixed:
        return fixed[name]
    side, *path, part = name.split("/")
    if not path or part not in _PARTS or path == ["projection"]:
        return None
    if path[0] in ("conv1", "conv2"):
        return f"convolution_{int(path[0][4]) - 1}.{_PARTS[part]}"
    if path == ["layer_norm"]:
        return f"{side}.norm.{_PARTS[part]}"
    layer = _LAYER.get("/".join(path[1:]))
    return None if layer is None else f"{side}.{path[0][6:]}.{layer}.{_PARTS[part]}"


def _reader(values: np.ndarray, name: str):
    def read():
        return values.transpose() if name.endswith(".kernel") else values  # [out, in(, 3)]

    return read
