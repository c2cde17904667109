"""Keeps a worker's port on one address: TensorFlow's server knows no such option (see bind.c)."""

import hashlib
import ipaddress
import os
import subprocess
import tempfile
from pathlib import Path

from tfspeed.cache import cache_folder
from tfspeed.errors import TfspeedError
from tfspeed.litert.compiler import compilers, keep, ours

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
    source = _SOURCE.read_bytes()
    failure = ""
    for command in compilers():
        key = hashlib.sha256(source + "\0".join(command).encode()).hexdigest()[:16]
        path = cache_folder() / "kernels" / f"bind-{key}.so"
        if path.is_file() and ours(path.parent) and ours(path):
            return path
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside) / "bind.so"
            done = subprocess.run([*command, "-O2", "-shared", "-fPIC", "-o", str(made),
                                   str(_SOURCE), "-ldl"], capture_output=True, text=True)
            if done.returncode == 0:
                if keep(made, path):
                    return path
                return made.replace(folder / "bind.so")
            failure = done.stderr.strip()[-300:]
    raise TfspeedError(
        "TensorFlow's server listens on every address of a machine; to hold it to one, a few "
        "lines of C are compiled, and no C compiler did it.", cause=failure or "there is none",
        hint="Install gcc or clang, or `pip install ziglang`; or, on a private network, give "
             f"--bind={ANYWHERE}.")
