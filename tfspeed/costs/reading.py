"""How fast the weights of a step are read, out of a cache that others use too.

A last-level cache that a virtual machine shares with others holds what any of them read last, and
a line that comes in takes the place of another, as good as any. So what a step read is still there
when the next one wants it with the likelihood

    exp(-(what the step itself had to bring in + what others brought in meanwhile) / cache)

From step to step that share comes to rest; it need not be measured at each size. With two threads
of a 2-core EPYC VM, 32 MB of cache, a step of 26 MB took 0.42 ms, one of 33 MB 0.71 and one of 48
MB 1.24: 10 to 12 GB/s by others explain all of them, and that one thread, which takes longer, finds
less. A prompt takes so long that others drive out nearly all of what was there: the steps after it
begin with memory, and the first fifteen of them took 4 to 30 % longer in the mean than those that
followed (6 to 50 MB, four formats, two engines: BUILD.md).
"""

import dataclasses
import math
from collections.abc import Callable

from tfspeed.costs.cases import CACHED, UNCACHED

LONG, _PASSES = 256, 64  # steps of a text; those after which the cache has what it will have
SHARP = 4


def steps_after(new_tokens: int) -> int:
    """Steps that follow a prompt, which gives the first of so many tokens; one where it is all."""
    return max(1, new_tokens - 1)


def longer(computing: float, waiting: float, corner: float = SHARP) -> float:
    """Of the two, which hide each other but for little at the corner of the roofline; the sharper
    that is, the better (at 1 not at all)."""
    return (computing**corner + waiting**corner)**(1 / corner)


def hits(share: float, steps: int, missed: float = 0.0, found: float = 0.0,
         begin: float = 0.0) -> float:
    """How much of a step's bytes the cache has in the mean of so many steps after a prompt.

    Args:
        share: the step's bytes by the cache's.
        missed, found: bytes that others bring in while one is read from memory, or the cache.
        begin: how much of the step's bytes is there before the first step.
    """
    near, total = begin, 0.0
    for _ in range(min(steps, _PASSES)):
        total += near
        near = math.exp(-share * ((1 - near) * (1 + missed) + near * found))
    return (total + max(0, steps - _PASSES) * near) / steps


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the bytes of a step are read: how many of them the cache has, and seconds a byte of it
    and of memory."""

    near: float
    cached: float
    memory: float

    @property
    def byte(self) -> float:
        """Seconds, in the mean."""
        return self.near * self.cached + (1 - self.near) * self.memory

    def hiding(self, computing: float, nbytes: float, corner: float = SHARP) -> float:
        """Seconds of what computes while it reads.

        Args:
            corner: see `longer`; of what memory gives. What the cache gives comes soon enough.
        """
        return (self.near * longer(computing, nbytes * self.cached)
                + (1 - self.near) * longer(computing, nbytes * self.memory, corner))


def reading(constants: dict[str, float], bandwidth: Callable[[float], float], read: float,
            threads: int, steps: int = LONG, before: float = math.inf) -> Reading:
    """How products read in steps of `read` bytes.

    A loop that only reads loses all of them at once where they no longer fit; kernels, whose
    threads wait for each other, do not. Nor do kernels ask for as much at once as that loop: alone
    a thread reads at 21 to 25 GB/s where the loop reads at 31, whatever memory could give.

    Args:
        steps: how many follow a prompt.
        before: seconds that it took.
    """
    cache, others = constants["cache"], constants["others"]
    cached = 1 / (constants["reach_cache"] * bandwidth(CACHED))
    memory = longer(1 / (constants["reach_memory"] * bandwidth(UNCACHED)),
                    1 / (constants["fetch"] * threads))
    begin = math.exp(-(read + others * before) / cache)
    return Reading(hits(read / cache, steps, others * memory, others * cached, begin), cached,
                   memory)
