"""Reads a GGUF file into a `Checkpoint`: every quantized type that the `gguf` library knows."""

import contextlib
import gc
import math
import re
import warnings
from pathlib import Path

import gguf
import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.gguf_config import INTERLEAVED, config_from_gguf
from tfspeed.models.gguf_header import check_header
from tfspeed.models.tokenizer_gguf import pre_tokenizer_note, tokenizer_from_gguf

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
_ROW_VALUES = 2**14  # of a row that is dequantized
_MOST_FACTORS = 2**15  # one for each pair of channels of a head
_LONGEST_ARRAY = 2**22  # a vocabulary has at most a million tokens
_ARRAY, _STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING


class _Reader(gguf.GGUFReader):
    """The library's reader with arrays read at one go: ten times faster on a large vocabulary.

    `check_header` has seen that they end within the file.
    """

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != _ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        element, count, at = gguf.GGUFValueType(kind[0]), int(length[0]), orig_offs + 12
        if count > _LONGEST_ARRAY:
            raise ValueError(f"an array of {count} elements")
        if element == _STRING:
            data, values = memoryview(self.data), []
            for _ in range(count):
                start = at + 8
                at = start + int.from_bytes(data[at:start], "little")
                values.append(data[start:at])
        else:
            values = [self._get(at, self.gguf_scalar_to_np[element], count)]
            at += values[0].nbytes
        indices = list(range(2, 2 + len(values)))
        return at - orig_offs, [kind, length, *values], indices, [_ARRAY, element]


def load_gguf(path: str | Path) -> Checkpoint:
    """Reads the header and the tokenizer; tensors are dequantized one by one as they are used.

    Raises:
        TfspeedError: the file is missing, damaged, or of an architecture not supported.
    """
    path = Path(path)
    _check_file(path)
    check_header(path)
    try:
        with warnings.catch_warnings(), _no_collection():
            warnings.simplefilter("ignore")  # numpy, on overflowing sizes of a damaged file
            reader = _Reader(path)
            metadata = {key: field.contents() for key, field in reader.fields.items()}
            tensors = {t.name: t for t in reader.tensors}
    except Exception as error:  # the library raises whatever numpy raises on damaged bytes
        raise TfspeedError("This is not a readable GGUF file: its tensors or metadata are "
                           "damaged.", path=str(path),
                           cause=f"{type(error).__name__}: {error}"[:300],
                           hint="It may be truncated: compare its size, or fetch it again.",
                           ) from error
    _check_extents(reader, path)
    shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
    factors = {name: tuple(_dequantize(tensors[name]).ravel()[:_MOST_FACTORS].tolist())
               for name in _ROPE_FACTORS if name in tensors}
    config = config_from_gguf(metadata, shapes, factors)
    readers = {}
    for name, tensor in tensors.items():
        if name not in _ROPE_FACTORS:
            target, linear = _target(name, config)
            _check_shape(name, target, shapes[name], config)
            if target in readers:
                raise TfspeedError("Two tensors of the GGUF file are one of the model.",
                                   tensor=name, names=target)
            readers[target] = _reader(tensor, target, linear, config)
    with _no_collection():
        tokenizer = tokenizer_from_gguf(metadata)
    return Checkpoint(
        config, readers, name=_slug(metadata.get("general.name")) or path.stem,
        tokenizer=tokenizer, source=str(path),
        notes=pre_tokenizer_note(metadata),
        parameters=sum(math.prod(shape) for shape in shapes.values()))


@contextlib.contextmanager
def _no_collection():
    """A vocabulary is a hundred thousand new objects: Python's collector would look through all of
    TensorFlow's several times meanwhile, which takes longer than the rest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_file(path: Path) -> None:
    try:
        found, size = path.is_file(), path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError) as error:
        raise TfspeedError("The model file cannot be opened.", model=str(path),
                           cause=str(error)) from error
    if path.is_dir():
        raise TfspeedError("A GGUF model is a file, not a folder.", model=str(path))
    if not found:
        raise TfspeedError("The model file does not exist.", model=str(path))
    if not size:
        raise TfspeedError("The GGUF file is empty.", model=str(path),
                           hint="It was not fetched to its end: fetch it again.")


def _check_extents(reader, path: Path) -> None:
    """Every tensor lies within the file, and they are together no larger than it."""
    end, total = len(reader.data), 0
    for t in reader.tensors:
        size, total = int(t.n_bytes), total + int(t.n_bytes)
        inside = reader.data_offset <= int(t.data_offset) <= end - size
        if not inside or t.data.nbytes != size or total > end:
            raise TfspeedError("The GGUF file is shorter than its tensors.", path=str(path),
                               tensor=t.name, offset=int(t.data_offset), bytes=size,
                               file_bytes=end, hint="It is truncated: fetch it again.")


def _slug(name) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:80] if isinstance(name, str) \
        else ""


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
    return f"not known: {name}", False  # nothing asks for it: build_decoder will name it


def _check_shape(name: str, target: str, shape: tuple[int, ...], config) -> None:
    """A linear layer's tensor has the size that the config gives it; before anything is read."""
    c = config
    heads, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sizes = {"query": (heads, c.hidden_dim), "key": (keys, c.hidden_dim),
             "value": (keys, c.hidden_dim), "query_key_value": (c.qkv_dim, c.hidden_dim),
             "out": (c.hidden_dim, heads), "gate": (c.mlp_dim, c.hidden_dim),
             "up": (c.mlp_dim, c.hidden_dim), "gate_up": (2 * c.mlp_dim, c.hidden_dim),
             "down": (c.hidden_dim, c.mlp_dim)}
    prefix, _, part = target.rpartition(".")
    expected = sizes.get(prefix.rpartition(".")[2], shape)
    if shape != (expected[:1] if part == "bias" else expected):
        raise TfspeedError("A tensor of the GGUF file disagrees with its metadata.", tensor=name,
                           shape=shape, expected_shape=expected,
                           hint="The file is damaged, or its metadata belongs to another model.")


def _reader(tensor, target: str, linear: bool, config):
    def read() -> np.ndarray:
        array = _dequantize(tensor)
        if config.family in INTERLEAVED and re.search(r"\.(query|key)\.", target):
            array = _half_split(array, config.head_dim)
        elif config.family in INTERLEAVED and ".query_key_value." in target:
            rotated = (config.num_heads + config.num_kv_heads) * config.head_dim
            array = np.concatenate([_half_split(array[:rotated], config.head_dim),
                                    array[rotated:]])
        return array.T if linear else array

    return read


def _dequantize(tensor) -> np.ndarray:
    try:
        data, shape = tensor.data, tensor.data.shape
        if data.ndim == 2:
            # The library works on 16 rows at a time: of longer ones, three times as fast.
            most = max(1, _ROW_VALUES // int(tensor.shape[0]))
            together = next(n for n in range(min(most, shape[0]), 0, -1) if shape[0] % n == 0)
            data = data.reshape(shape[0] // together, -1)
        values = gguf.quants.dequantize(data, tensor.tensor_type)
        if data.ndim == 2:
            values = values.reshape(shape[0], -1)
        return values.astype(np.float32, copy=False)
    except Exception as error:
        raise TfspeedError("A tensor of the GGUF file cannot be dequantized.",
                           tensor=tensor.name, type=tensor.tensor_type.name,
                           cause=f"{type(error).__name__}: {error}"[:200]) from error


def _half_split(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes the conversion's reordering: rows 2i, 2i+1 of a head go back to i, i + head_dim/2."""
    heads = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return heads.swapaxes(1, 2).reshape(array.shape)
