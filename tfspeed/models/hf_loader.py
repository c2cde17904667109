"""Reads a Hugging Face folder (config.json, *.safetensors, tokenizer.json) into a `Checkpoint`.

Only safetensors: a PyTorch *.bin file is a pickle, which runs whatever code it holds.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import safetensors

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.config import DecoderConfig
from tfspeed.models.hf_config import config_from_hf
from tfspeed.models.hf_weights import entries, from_hf, ignorable, prefix_of

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")


def load_hf_folder(folder: str | Path) -> Checkpoint:
    """Checks names, shapes and types of all tensors; reads each of them when it is asked for.

    Raises:
        TfspeedError: a file is missing or damaged, the weights do not fit the config, or the
            model is of a kind not supported.
    """
    from tfspeed.models.tokenizer import read_json, tokenizer_from_folder

    folder = Path(folder)
    if not folder.is_dir():
        raise TfspeedError("The model folder does not exist.", model=str(folder))
    if not (folder / "config.json").is_file():
        raise TfspeedError("A model folder needs a config.json.", model=str(folder))
    raw = read_json(folder / "config.json")
    config = config_from_hf(raw)
    files = tensor_files(folder, read_json)
    tensors, parameters = _plan(folder, config, files)
    notes = ()
    if raw.get("model_type") == "gemma3":
        notes = ("Only the text part of this Gemma 3 is used: its vision tower is not loaded.",)
    return Checkpoint(config, tensors, name=folder.resolve().name,
                      tokenizer=tokenizer_from_folder(folder), source=str(folder), notes=notes,
                      parameters=parameters)


def tensor_files(folder: Path, read_json) -> dict:
    """The open safetensors file of every tensor; `read_json` is `tokenizer.read_json`."""
    if (folder / SINGLE).is_file():
        file = _open(folder / SINGLE)
        return dict.fromkeys(file.keys(), file)
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TfspeedError(f"{INDEX} must hold a weight_map from tensors to files.",
                           folder=str(folder))
    opened = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") \
                or any(c in name for c in "/\\:\0"):
            raise TfspeedError(f"{INDEX} must name .safetensors files of its own folder.",
                               tensor=tensor[:80], file=str(name)[:80],
                               hint="Such an index would read files outside the model: do not "
                                    "trust where it came from.")
        if name not in opened:
            file = _open(folder / name)
            opened[name] = (file, set(file.keys()))
        if tensor not in opened[name][1]:
            raise TfspeedError("A shard lacks a tensor that the index says it holds.",
                               tensor=tensor[:80], file=name, folder=str(folder))
    return {tensor: opened[name][0] for tensor, name in weight_map.items()}


def _no_weights(folder: Path) -> TfspeedError:
    names = sorted(p.name for p in folder.iterdir())
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return TfspeedError(
            "This folder's weights are PyTorch pickles, which can run code as they are read, so "
            "they are never opened.", files=pickled[:4],
            hint="Take a revision with .safetensors files, or convert them where you trust them "
                 "(transformers: model.save_pretrained(folder)).")
    return TfspeedError(f"A model folder needs {SINGLE}, or {INDEX} with its shards.",
                        folder=str(folder), found=names[:12])


def _open(path: Path):
    if not path.is_file():
        raise TfspeedError("A file of the model's weights is missing.", path=str(path))
    try:
        return safetensors.safe_open(str(path), framework="numpy")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise TfspeedError("A safetensors file is damaged.", path=str(path),
                           cause=str(error)[:200],
                           hint="It may be truncated: compare its size, or fetch it again.",
                           ) from error


def _plan(folder: Path, config: DecoderConfig, files: dict) -> tuple[dict, int]:
    """Readers by checkpoint name, and how many parameters they give."""
    prefix = prefix_of(config, files)
    tensors, parameters, used = {}, 0, set()
    for entry in entries(config):
        name = prefix + entry.source
        if entry.target.startswith("head."):
            name = next((n for n in files if n == entry.source or n.endswith("." + entry.source)),
                        entry.source)
        if name not in files:
            raise no_tensor(folder, name)
        used.add(name)
        parameters += math.prod(entry.shape)
        tensors[entry.target] = _turned(checked_reader(folder, files, name, entry.shape),
                                        entry.how, config)
    check_all_used(folder, (n for n in files if n not in used and not ignorable(n, config)))
    return tensors, parameters


def no_tensor(folder: Path, name: str) -> TfspeedError:
    return TfspeedError("A tensor that config.json asks for is missing.", tensor=name,
                        folder=str(folder),
                        hint="The folder is incomplete, or its config is another model's.")


def check_all_used(folder: Path, unused: Iterable[str]) -> None:
    """Refuses weights of which some would be left."""
    if found := sorted(unused):
        raise TfspeedError("The weights hold tensors that config.json has no place for.",
                           tensors=found[:6], folder=str(folder),
                           hint="Running without them would give wrong answers.")


def checked_reader(folder: Path, files: dict, name: str, expected: tuple[int, ...]):
    """What reads a tensor of the open safetensors `files`, whose shape and type are fine."""
    file = files[name]
    try:
        view = file.get_slice(name)
        shape, dtype = tuple(view.get_shape()), view.get_dtype()
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise _unreadable(folder, name, error) from error
    if shape != expected:
        raise TfspeedError("A tensor's shape disagrees with config.json.", tensor=name,
                           expected_shape=expected, shape=shape, folder=str(folder))
    if dtype not in _DTYPES:
        raise TfspeedError(f"Weights must be of type {', '.join(_DTYPES)}.", tensor=name,
                           type=dtype, hint="Quantized checkpoints: use the original one.")

    def read():
        try:
            return file.get_tensor(name)
        except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
            raise _unreadable(folder, name, error) from error

    return read


def _turned(read: Callable, how: str, config: DecoderConfig):
    return lambda: from_hf(read(), how, config)


def _unreadable(folder: Path, name: str, error: Exception) -> TfspeedError:
    return TfspeedError("A tensor cannot be read.", tensor=name, folder=str(folder),
                        cause=f"{type(error).__name__}: {error}"[:200])
