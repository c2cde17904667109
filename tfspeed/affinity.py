"""Lets this process run on some of its cores only, for a while."""

import contextlib
import os
from pathlib import Path

from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError


def check_cores(flag: str, cores: int) -> None:
    """Refuses a number of cores that there are not; 0 means all."""
    if not 0 <= cores <= available_cores():
        raise TfspeedError(f"--{flag} must be 0 (all) or at most the cores that there are, "
                           f"{available_cores()}.", **{flag: cores})
    if cores and not hasattr(os, "sched_setaffinity"):
        raise TfspeedError(f"--{flag} needs Linux: threads cannot be held to cores here.",
                           **{flag: cores})


@contextlib.contextmanager
def pinned(cores: int):
    """All threads of the process on the first `cores` of those that it may use; 0: as they are.

    TensorFlow's and XLA's threads live as long as the process and cannot be made fewer: held to one
    core they share it. Threads that are started meanwhile stay there with the one that starts them,
    and are let go with all.
    """
    if not cores:
        yield
        return
    every = os.sched_getaffinity(0)
    _hold(sorted(every)[:cores])
    try:
        yield
    finally:
        _hold(every)


@contextlib.contextmanager
def widened():
    """The calling thread, and those that it starts meanwhile, on any core of the machine: beyond
    those that a worker is held to."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _hold(cores) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
