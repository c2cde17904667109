"""Compiles the fused operator for this processor, once, and keeps it.

The kernels are plain C of a few hundred lines; compiled where they run, they use every instruction
that the processor has. Any C compiler does: `cc`, `gcc`, `clang`, or the one in the PyPI package
`ziglang`; where one fails, the next is tried. `CC` and `CFLAGS` are heeded.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfspeed.cache import cache_folder
from tfspeed.devices import cpu_model
from tfspeed.errors import TfspeedError
from tfspeed.litert import fused_plan

SOURCES = Path(__file__).parent / "kernels"
_FLAGS = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-fno-math-errno",
          # So that loops become vectors. Sums keep their order: see kernels/vectors.h.
          "-fno-trapping-math", "-fno-signed-zeros"]


def compilers() -> list[list[str]]:
    """The commands of the C compilers that are here, the preferred one first."""
    wanted = os.environ.get("CC")
    if wanted:
        command = shlex.split(wanted)
        return [command] if command and shutil.which(command[0]) else []
    found: dict[str, list[str]] = {}  # by what they are: cc is most often one of the others
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            found.setdefault(os.path.realpath(path), [path])
    commands = list(found.values())
    if importlib.util.find_spec("ziglang"):
        commands.append([sys.executable, "-m", "ziglang", "cc"])
    return commands


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        TfspeedError: there is no compiler, or every one fails.
    """
    if not compilers():
        raise TfspeedError("The fused engine compiles its kernels, and needs a C compiler for "
                           "that.", CC=os.environ.get("CC"),
                           hint="Install gcc or clang, or `pip install ziglang`; "
                                "--engine=litert needs none.")
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    loaded, failures = _obtained("kernels", lambda command: _key(command, flags),
                                 lambda command, path: _compile(command, flags, path), _load)
    if loaded is not None:
        return loaded
    command, said = failures[0]
    raise TfspeedError("The fused engine's kernels could not be compiled.", command=command,
                       hint=("They need gcc 12 or clang 15: set CC, or `pip install ziglang`. "
                             if "_Float16" in said else "") + said[-300:])


def small_library(source: Path, flags: list[str], use: Callable[[Path], Any]):
    """What `use` makes of a file of a few lines of C, compiled once and kept. Where it could not be
    kept, the path that `use` is given is gone afterwards.

    Raises:
        TfspeedError: there is no compiler, or every one fails.
    """
    def key(command):
        parts = "\0".join([*command, *flags, _processor()]).encode()
        return hashlib.sha256(parts + source.read_bytes()).hexdigest()[:16]

    def build(command, path):
        return _run([*command, *flags, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"])

    made, failures = _obtained(source.stem, key, build, use)
    if made is None:
        raise TfspeedError(f"{source.name} could not be compiled.",
                           cause=failures[0][1][-300:] if failures else "there is no C compiler",
                           hint="Install gcc or clang, or `pip install ziglang`.")
    return made


def loops(source: Path) -> ctypes.CDLL | None:
    """A file of loops, compiled for this processor; None where that cannot be done, and what they
    tell has to be told otherwise or not at all."""
    try:
        return small_library(source, ["-O3", "-march=native"], lambda path: ctypes.CDLL(str(path)))
    except (TfspeedError, OSError):
        return None


def _obtained(stem: str, key: Callable, build: Callable, use: Callable):
    """What `use` makes of a library that was kept, or else of one that is compiled now.

    Args:
        key: of a compiler's command, of all that the library follows from.
        build: compiles with a command to a path; gives the command and what it said if that fails.

    Returns:
        That, or None; and the failures of the compilers that were tried.
    """
    commands, failures = compilers(), []
    kept = [kept_folder() / f"{stem}-{key(command)}.so" for command in commands]
    for path in kept:
        if path.is_file() and ours(path.parent) and ours(path):
            return use(path), failures
    for command, path in zip(commands, kept, strict=True):
        # Of this call alone; what is loaded may be removed.
        with tempfile.TemporaryDirectory(prefix="tfspeed") as folder:
            made = Path(folder) / path.name
            failure = build(command, made)
            if failure is None:
                return use(path if keep(made, path) else made), failures
            failures.append(failure)
    return None, failures


def kept_folder() -> Path:
    """Where compiled libraries lie."""
    return cache_folder() / "kernels"


def _key(command: list[str], flags: list[str]) -> str:
    """Of all that compiled kernels follow from."""
    key = hashlib.sha256("\0".join([*command, *_FLAGS, *flags, _processor()]).encode())
    for source in sorted(SOURCES.iterdir()):
        key.update(source.read_bytes())
    return key.hexdigest()[:16]


def _load(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise TfspeedError("The fused engine's compiled kernels could not be loaded.",
                           path=str(path), cause=str(error)[:200],
                           hint="Its folder may forbid programs: set XDG_CACHE_HOME.") from error
    sizes = (ctypes.c_int32 * 3).in_dll(loaded, "tfspeed_sizes")
    if tuple(sizes[:2]) != fused_plan.SIZES:
        raise TfspeedError("The kernels disagree with the plan.", kernels=list(sizes[:2]),
                           plan=list(fused_plan.SIZES), hint="This is a bug of tfspeed.")
    return loaded


def ours(path: Path) -> bool:
    """Whether a file or folder is there that nobody else can write: it will be run as code."""
    try:
        found = path.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def keep(made: Path, path: Path) -> bool:
    """Copies beside the path, then renames: a reader never sees half of a file. Gives whether the
    folder could be written, by us alone."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not ours(path.parent):
            return False
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            beside = Path(folder) / path.name
            shutil.copyfile(made, beside)
            beside.chmod(0o600)
            os.replace(beside, path)
        return True
    except OSError:
        return False


def _processor() -> str:
    """What -march=native follows from; a virtual machine's name alone says little."""
    told = ("flags", "Features", "CPU implementer", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), cpu_model(),
                      *sorted({line for line in lines if line.startswith(told)})])


def _compile(compiler: list[str], flags: list[str], path: Path) -> tuple[str, str] | None:
    """Compiles the kernels to `path`; gives the command and what it said where that fails."""
    # Some compilers call it -mcpu: without either, the code is right, and slow.
    for native in (["-march=native"], ["-mcpu=native"], []):
        failure = _run([*compiler, *_FLAGS, *native, *flags, "-o", str(path),
                        str(SOURCES / "decoder.c"), "-lm", "-lpthread"])
        if failure is None:
            return None
    return failure


def _run(command: list[str]) -> tuple[str, str] | None:
    """The command and what it said, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else (" ".join(command), done.stderr.strip())
