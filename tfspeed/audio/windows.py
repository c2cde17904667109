"""Where a long recording is cut into windows."""

from collections.abc import Iterable, Iterator

import numpy as np

from tfspeed.audio.log_mel import RATE

_LOOK_BACK = 0.2  # share of a window in which the place to cut it is sought
_QUIET_S = 0.2    # stretch whose loudness decides


def windows(blocks: Iterable[np.ndarray], longest: int) -> Iterator[np.ndarray]:
    """The samples of each window of a recording; each ends where it is quietest within its
    last fifth, so that few words are cut."""
    waiting = np.zeros(0, np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while len(waiting) > longest:
            end = cut(waiting[:longest])
            yield waiting[:end]
            waiting = waiting[end:]
    if len(waiting):
        yield waiting


def cut(samples: np.ndarray) -> int:
    """Where a full window ends: in the middle of the quietest stretch of its last fifth."""
    stretch, begin = int(_QUIET_S * RATE), int(len(samples) * (1 - _LOOK_BACK))
    energy = np.concatenate([[0], np.cumsum(np.square(samples[begin:], dtype=np.float64))])
    if len(energy) <= stretch:
        return len(samples)
    return begin + int(np.argmin(energy[stretch:] - energy[:-stretch])) + stretch // 2
