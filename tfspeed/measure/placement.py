"""Where the cores of this process lie just now, as seen from what they do; in two milliseconds.

A virtual machine's cores are threads of its host, which moves them: on a 2-core Zen 4 VM within
seconds between two cores that share a last-level cache (a line takes 26 ns from one to the other,
both together multiply at twice the speed of one), two that do not (157 ns; memory is read a fifth
faster then, and there are two caches), and two threads of one core (31 ns, and together no more
than one). A model's times differ by up to 65 % between them, so what was timed in one says little
about another.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import os
import statistics
from pathlib import Path

import numpy as np

from tfspeed.memory import aligned

_SOURCE = Path(__file__).with_name("placement.c")
_SECONDS = 0.001  # of multiplying
_LINE = 128  # bytes: two lines, which some processors fetch together
_FARTHER, _SLOWER = 2.0, 0.7  # times as long, and as fast: of another placement


@dataclasses.dataclass(frozen=True)
class Placement:
    """Attributes:
        turn_s: seconds that a cache line takes from the first core to the last; 0: there is one.
        multiplied: multiplications and additions of vectors a second, of all of them together.
    """

    turn_s: float
    multiplied: float

    def like(self, other: "Placement") -> bool:
        """Whether the cores lie as in another reading: as far apart, and not two on one core."""
        near, far = sorted((self.turn_s, other.turn_s))
        slow, fast = sorted((self.multiplied, other.multiplied))
        return far <= _FARTHER * near and slow >= _SLOWER * fast


def usual(readings: list[Placement]) -> Placement | None:
    """The median of those that are like the most of them; None of none."""
    if not readings:
        return None
    alike = max(([each for each in readings if each.like(one)] for one in readings), key=len)
    return Placement(statistics.median(each.turn_s for each in alike),
                     statistics.median(each.multiplied for each in alike))


class PlacementReader:
    """Reads how the cores of this process lie that so many threads would use.

    Args:
        threads: the first and the last of as many cores pass the line; all of them multiply.
    """

    def __init__(self, threads: int):
        self._library = _library()
        self._pools = [concurrent.futures.ThreadPoolExecutor(1, initializer=_hold,
                                                             initargs=(core,))
                       for core in (_cores(threads) if self._library else ())]
        self.read()  # starts the threads

    def __enter__(self) -> "PlacementReader":
        return self

    def __exit__(self, *error) -> None:
        for pool in self._pools:
            pool.shutdown()

    def read(self) -> Placement | None:
        """None where that cannot be told: without a C compiler, or if a thread did not run."""
        if not self._library:
            return None
        turn, pools = 0.0, self._pools
        if len(pools) > 1:
            line = _line()
            turns = [pool.submit(self._library.tfspeed_turn, line.ctypes.data, second)
                     for second, pool in enumerate((pools[0], pools[-1]))]
            turn = min(each.result() for each in turns)
            if not turn:
                return None
        line = _line()
        rates = [each.result() for each in [
            pool.submit(self._library.tfspeed_multiply, line.ctypes.data, len(pools), _SECONDS)
            for pool in pools]]
        return Placement(turn, sum(rates)) if all(rates) else None


@functools.cache
def _library():
    from tfspeed.litert.compiler import loops  # which imports TensorFlow
    made = loops(_SOURCE)
    if made is None:
        return None
    made.tfspeed_turn.argtypes = [ctypes.c_void_p, ctypes.c_int]
    made.tfspeed_multiply.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_double]
    made.tfspeed_turn.restype = made.tfspeed_multiply.restype = ctypes.c_double
    return made


def _cores(threads: int) -> list[int | None]:
    """Those to hold the threads to; None for each where that cannot be done."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * threads
    mine = sorted(os.sched_getaffinity(0))
    return mine[:threads] if len(mine) >= threads else [None] * threads


def _hold(core: int | None) -> None:
    """Holds this thread to a core, or two could wait for each other on one; where that is not
    allowed they may, and nothing is told."""
    if core is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})


def _line() -> np.ndarray:
    return aligned((_LINE // 8,), np.int64)
