"""Artifacts appear whole or not at all, and are known by their SHA-256."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tfspeed.errors import TfspeedError


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yields a place beside `path`, of the same ending, to write a file or a folder at. It takes
    the name `path` when the block ends, over what had it before; if the block fails, nothing of it
    is left."""
    beside = path.with_name(f".part.{os.getpid()}.{path.name}")
    older = path.with_name(f".old.{os.getpid()}.{path.name}")
    try:
        yield beside
        if path.is_dir() and beside.is_dir():  # a folder cannot be replaced in one step
            path.rename(older)
        beside.replace(path)
    except BaseException:
        if older.exists():
            older.rename(path)
        raise
    finally:
        _remove(beside)
        _remove(older)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM (of `timeout`, Docker, Slurm) raises SystemExit, so that what is
    half written is taken away. For the main thread."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def file_name(*parts: str) -> str:
    """Parts joined into one name, with nothing in it that a file system or a shell minds."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(part for part in parts if part))[:120]


def listing(path: Path) -> list[dict]:
    """`path`, `bytes` and `sha256` of a file, or of every file in a folder, in order of names.

    Paths are relative to where `path` lies, with `/` on every system.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append({"path": file.relative_to(path.parent).as_posix(),
                      "bytes": file.stat().st_size, "sha256": digest})
    return found


def check_folder(folder: Path, flag: str) -> None:
    """Makes the folder that results go to; refuses one that cannot be written in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise TfspeedError(f"--{flag} must be a folder that can be written in.",
                           **{flag: str(folder)[:200]},
                           cause=getattr(error, "strerror", None) or str(error)) from error
    if not writable:
        raise TfspeedError(f"--{flag} must be a folder that can be written in.",
                           **{flag: str(folder)})


def check_room(folder: Path, needed: int) -> None:
    """Refuses to begin what the disk has no room for."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TfspeedError("There is not enough room on the disk for the artifact.",
                           needed_mb=-(-needed // 10**6), free_mb=free // 10**6,
                           hint="Free some, or give another --out.")
