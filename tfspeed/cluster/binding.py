"""Keeps a worker's port on one address: TensorFlow's server knows no such option (see bind.c)."""

import ipaddress
import os
import shutil
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.litert.compiler import kept_folder, small_library

_SOURCE = Path(__file__).with_name("bind.c")
ANYWHERE = "0.0.0.0"


def check(bind: str) -> None:
    """Refuses what is no IPv4 address."""
    try:
        ipaddress.IPv4Address(bind)
    except ValueError as error:
        raise TfspeedError("--bind must be an IPv4 address of this machine.", bind=bind,
                           hint="127.0.0.1 for workers of one machine; 0.0.0.0 for all of its "
                                "addresses.") from error


def environment(bind: str, folder: Path) -> dict[str, str]:
    """Variables under which a process listens on `bind` only.

    Args:
        folder: of the caller's own, where the compiled file goes if the cache cannot be written.
    """
    if bind == ANYWHERE:
        return {}
    before = os.environ.get("LD_PRELOAD", "")
    return {"TFSPEED_BIND": bind,
            "LD_PRELOAD": f"{_library(folder)} {before}".strip()}


def _library(folder: Path) -> Path:
    def lasting(path):
        """In the caller's folder, where the cache could not keep it."""
        return path if path.parent == kept_folder() else Path(shutil.copy(path, folder))

    try:
        return small_library(_SOURCE, ["-O2"], lasting)
    except TfspeedError as error:
        raise TfspeedError(
            "TensorFlow's server listens on every address of a machine; to hold it to one, a few "
            "lines of C are compiled, and no C compiler did it.", cause=str(error),
            hint="Install gcc or clang, or `pip install ziglang`; or, on a private network, give "
                 f"--bind={ANYWHERE}.") from error
