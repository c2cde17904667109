"""Compiles the fused operator for this processor, once, and keeps it.

The kernels are plain C of a few hundred lines; compiled where they run, they use every instruction
that the processor has. Any C compiler does: `cc`, `gcc`, `clang`, or the one in the PyPI package
`ziglang`. `CC` and `CFLAGS` are heeded.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tfspeed.cache import cache_folder
from tfspeed.devices import cpu_model
from tfspeed.errors import TfspeedError
from tfspeed.litert import fused_plan

SOURCES = Path(__file__).parent / "kernels"
_FLAGS = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-fno-math-errno",
          # Sums may be taken in any order, so that loops over them become vectors.
          "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]


def find_compiler() -> list[str]:
    """The command of a C compiler; [] where there is none."""
    wanted = os.environ.get("CC")
    if wanted:
        command = shlex.split(wanted)
        return command if command and shutil.which(command[0]) else []
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return []


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        TfspeedError: there is no compiler, or it fails.
    """
    compiler = find_compiler()
    if not compiler:
        raise TfspeedError("The fused engine compiles its kernels, and needs a C compiler for "
                           "that.", CC=os.environ.get("CC"),
                           hint="Install gcc or clang, or `pip install ziglang`; "
                                "--engine=litert needs none.")
    sources = sorted(SOURCES.iterdir())
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    key = hashlib.sha256("\0".join([*compiler, *_FLAGS, *flags, _processor()]).encode())
    for source in sources:
        key.update(source.read_bytes())
    path = cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.exists():
        path = _compile(compiler, flags, path)
    loaded = ctypes.CDLL(str(path))
    sizes = (ctypes.c_int32 * 3).in_dll(loaded, "tfspeed_sizes")
    if tuple(sizes[:2]) != fused_plan.SIZES:
        raise TfspeedError("The kernels disagree with the plan.", kernels=list(sizes[:2]),
                           plan=list(fused_plan.SIZES), hint="This is a bug of tfspeed.")
    return loaded


def _processor() -> str:
    """What -march=native follows from; a virtual machine's name alone says little."""
    told = ("flags", "Features", "CPU implementer", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), cpu_model(),
                      *sorted({line for line in lines if line.startswith(told)})])


def _compile(compiler: list[str], flags: list[str], path: Path) -> Path:
    """Compiles to `path`, or to a temporary file where that cannot be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        path = Path(tempfile.mkdtemp()) / path.name
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # of this call alone
        beside = Path(folder) / path.name
        # Some compilers call it -mcpu: without either, the code is right, and slow.
        for native in (["-march=native"], ["-mcpu=native"], []):
            command = [*compiler, *_FLAGS, *native, *flags, "-o", str(beside),
                       str(SOURCES / "decoder.c"), "-lm", "-lpthread"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                os.replace(beside, path)
                return path
    raise TfspeedError("The fused engine's kernels could not be compiled.",
                       command=" ".join(command), hint=done.stderr.strip()[-300:])
