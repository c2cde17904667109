"""Reads a GGUF file into a `Checkpoint`: every quantized type that the `gguf` library knows."""

import re
import warnings
from pathlib import Path

import gguf
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.gguf_config import config_from_gguf
from tfspeed.models.gguf_header import check_header
from tfspeed.models.tokenizer_gguf import tokenizer_from_gguf

_GLOBAL = {"token_embd.weight": "embedding.weight",
           "position_embd.weight": "position_embedding.weight",
           "output_norm.weight": "final_norm.scale", "output_norm.bias": "final_norm.bias",
           "output.weight": "head.kernel", "output.bias": "head.bias"}
_NORMS = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm", "attn_q_norm": "query_norm",
          "attn_k_norm": "key_norm", "post_attention_norm": "attention_post_norm",
          "post_ffw_norm": "mlp_post_norm"}
_LINEAR = {"attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_qkv": "query_key_value",
           "attn_output": "out", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
_ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_INTERLEAVED = ("llama", "smollm3")  # their conversion reorders q and k for interleaved RoPE


def load_gguf(path: str | Path) -> Checkpoint:
    """Reads the header and the tokenizer; tensors are dequantized one by one as they are used.

    Raises:
        TfspeedError: the file is missing, damaged, or of an architecture not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise TfspeedError("The model file does not exist.", model=str(path))
    check_header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy, on overflowing sizes of a damaged file
            reader = gguf.GGUFReader(path)
            metadata = {key: field.contents() for key, field in reader.fields.items()}
            tensors = {t.name: t for t in reader.tensors}
    except Exception as error:  # the library raises whatever numpy raises on damaged bytes
        raise TfspeedError("The GGUF file is damaged: its tensors or metadata cannot be read.",
                           path=str(path), cause=f"{type(error).__name__}: {error}"[:300],
                           hint="It may be truncated: compare its size, or fetch it again.",
                           ) from error
    shapes = {name: _shape(t, path) for name, t in tensors.items()}
    factors = {name: tuple(_dequantize(tensors[name]).ravel().tolist())
               for name in _ROPE_FACTORS if name in tensors}
    config = config_from_gguf(metadata, shapes, factors)
    readers = {}
    for name, tensor in tensors.items():
        if name not in _ROPE_FACTORS:
            target, linear = _target(name, config)
            readers[target] = _reader(tensor, target, linear, config)
    name = metadata.get("general.name")
    return Checkpoint(
        config, readers, name=name if isinstance(name, str) and name else path.stem,
        tokenizer=tokenizer_from_gguf(metadata), source=str(path),
        parameters=sum(int(np.prod(shape)) for shape in shapes.values()))


def _shape(tensor, path) -> tuple[int, ...]:
    if tensor.data.nbytes != int(tensor.n_bytes):
        raise TfspeedError("The GGUF file ends in the middle of a tensor.", path=str(path),
                           tensor=tensor.name, hint="It is truncated: fetch it again.")
    return tuple(int(n) for n in tensor.shape[::-1])


def _target(name: str, config) -> tuple[str, bool]:
    """Checkpoint name of a GGUF tensor, and whether it is a linear layer's weight."""
    if name in _GLOBAL:
        return _GLOBAL[name], name == "output.weight"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    layer, part = (match[2], match[3]) if match else ("", "")
    if layer in _LINEAR:
        ours = _LINEAR[layer]
        if layer == "ffn_up" and config.family == "phi3":
            ours = "gate_up"
        return f"blocks.{int(match[1])}.{ours}.{'kernel' if part == 'weight' else part}", \
            part == "weight"
    if layer in _NORMS or layer == "attn_norm_2":
        ours = _NORMS.get(layer, "attention_norm")
        if config.family == "falcon" and not config.shared_norm and layer == "attn_norm":
            ours = "mlp_norm"  # Falcon 40B: attn_norm_2 is the one before attention
        return f"blocks.{int(match[1])}.{ours}.{'scale' if part == 'weight' else part}", False
    return name, False  # nothing asks for it: build_decoder will name it


def _reader(tensor, target: str, linear: bool, config):
    def read() -> np.ndarray:
        array = _dequantize(tensor)
        if config.family in _INTERLEAVED and re.search(r"\.(query|key)\.", target):
            array = _half_split(array, config.head_dim)
        return array.T if linear else array

    return read


def _dequantize(tensor) -> np.ndarray:
    try:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    except Exception as error:
        raise TfspeedError("A tensor of the GGUF file cannot be dequantized.",
                           tensor=tensor.name, type=tensor.tensor_type.name,
                           cause=str(error)[:200]) from error


def _half_split(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes the conversion's reordering: rows 2i, 2i+1 of a head go back to i, i + head_dim/2."""
    if array.shape[0] % head_dim or head_dim % 2:
        raise TfspeedError("A query or key tensor does not divide into heads.",
                           shape=array.shape, head_dim=head_dim)
    heads = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return heads.swapaxes(1, 2).reshape(array.shape)
