"""A model's packed weights, kept on disk: rounding with calibration takes tens of seconds.

The key is a digest of all that the result follows from (weights, config, calibration tokens,
formats, the packing code itself), so that a file is never stale. `TFSPEED_PACKED_CACHE_GB` limits
the folder's size (4), 0 keeps nothing.
"""

import contextlib
import hashlib
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tfspeed.cache import cache_folder
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.pack import PackedDecoder, Packer
from tfspeed.litert.packed_file import read_packed, write_packed
from tfspeed.litert.smooth import calibration_tokens
from tfspeed.measure.progress import Progress
from tfspeed.memory import values
from tfspeed.models.decoder import Decoder
from tfspeed.models.language_model import LanguageModel

LIMIT = "TFSPEED_PACKED_CACHE_GB"
_LIMIT_GB = 4.0
_CODE = ("dense.py", "folding.py", "formats.py", "gptq.py", "pack.py", "packed_file.py",
         "smooth.py", "weights.py", "../compression/hessian.py")
_ROUNDING_S = 2e-7  # a parameter in four bits, on two cores
_WORTH_SAYING_S = 5
_ROUNDED: weakref.WeakSet = weakref.WeakSet()  # what this process has rounded itself
_ABANDONED_S = 3600  # a part that is older belongs to a process that was killed


def packed(model: LanguageModel, formats: Formats) -> PackedDecoder:
    """The weights of a model over a `Decoder`, calibrated where the formats quantize; from the
    cache if they are there."""
    decoder = model.keras_model
    if not isinstance(decoder, Decoder):
        raise TfspeedError("The litert engine runs tfspeed's decoders and recurrent models only.",
                           model=model.name, type=type(decoder).__name__,
                           hint="Use --engine=xla.")
    if not formats.quantized or model.made_up:
        return Packer(decoder, formats).pack()  # as fast as reading it
    calibration = calibration_tokens(model.tokenizer, model.vocabulary_size,
                                     model.context_length)
    packer = Packer(decoder, formats, calibration)
    limit = _limit_bytes()
    if not limit:
        _say_estimate(model, formats)
        return _rounded(packer)
    path = _path(packer)
    found = read_packed(path)
    if found is None:
        _say_estimate(model, formats)
        found = _rounded(packer)
        with contextlib.suppress(OSError):  # a full or read-only disk: no cache
            _save(path, found, limit)
    else:
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used goes first
    return found


def kept(model: LanguageModel, formats: Formats) -> bool:
    """Whether the packed weights of a model over a `Decoder` are on the disk."""
    folder = cache_folder() / "packed"
    if not formats.quantized or model.made_up or not _limit_bytes() or not any(
            folder.glob("*.packed")):
        return False  # hashing all weights takes a second
    calibration = calibration_tokens(model.tokenizer, model.vocabulary_size,
                                     model.context_length)
    return _path(Packer(model.keras_model, formats, calibration)).is_file()


def rounded_here(packed: PackedDecoder) -> bool:
    """Whether this process has rounded it with calibration text, which takes memory, and has not
    read it from the disk."""
    return packed in _ROUNDED


def _path(packer: Packer) -> Path:
    name = digest(packer.decoder, packer.formats, packer.calibration)
    return cache_folder() / "packed" / f"{name}.packed"


def _rounded(packer: Packer) -> PackedDecoder:
    made = packer.pack()
    _ROUNDED.add(made)
    return made


def _say_estimate(model: LanguageModel, formats: Formats) -> None:
    seconds = _ROUNDING_S * model.parameters
    if "int4" in formats.spelled and seconds > _WORTH_SAYING_S:
        Progress().say(f"Rounding the weights of {model.name} to four bits takes about "
                       f"{seconds:.0f} s, the first time.")


def digest(decoder: Decoder, formats: Formats, calibration: np.ndarray) -> str:
    """Of everything that packed weights follow from."""
    def of_variable(variable):
        array = np.ascontiguousarray(values(variable))
        return f"{array.dtype}{array.shape}".encode() + hashlib.sha256(
            array.reshape(-1).view(np.uint8)).digest()

    made = hashlib.sha256()
    for name in _CODE:
        made.update((Path(__file__).parent / name).read_bytes())
    converted = decoder.get_config().get("converted")
    made.update(repr((formats.spelled, decoder.config, converted, calibration.shape)).encode())
    made.update(np.ascontiguousarray(calibration))
    with ThreadPoolExecutor(available_cores()) as pool:
        for part in pool.map(of_variable, decoder.weights):
            made.update(part)
    return made.hexdigest()[:40]


def _limit_bytes() -> int:
    spelled = os.environ.get(LIMIT) or str(_LIMIT_GB)
    try:
        limit = float(spelled)
        if limit >= 0:
            return int(min(limit, 1e6) * 1e9)
    except ValueError:
        pass
    raise TfspeedError(f"{LIMIT} is a size in GB, or 0 for no cache.", **{LIMIT: spelled})


def _save(path: Path, found: PackedDecoder, limit: int) -> None:
    """Writes beside the path, then renames: a reader never sees half of a file."""
    if sum(weight.nbytes for weight in found.weights) > limit:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_packed(beside, found)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _shrink(path.parent, limit, keep=path)


def _shrink(folder: Path, limit: int, keep: Path) -> None:
    """Removes the oldest files until the folder is within its limit."""
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes too
            stat = file.stat()
            if file.suffix == ".part" and time.time() - stat.st_mtime > _ABANDONED_S:
                file.unlink()
            elif file.suffix == ".packed":
                files.append((stat.st_mtime, stat.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= limit:
            return
        if file != keep:
            with contextlib.suppress(OSError):
                file.unlink()
            total -= size
