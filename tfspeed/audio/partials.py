"""Speech to text while it is spoken: a text so far, again and again."""

import dataclasses
import time
from collections.abc import Iterable, Iterator

import numpy as np

from tfspeed.audio.log_mel import RATE
from tfspeed.audio.transcriber import Transcriber
from tfspeed.audio.windows import cut
from tfspeed.measure.words import words


@dataclasses.dataclass(frozen=True)
class Partial:
    """A stream's text so far.

    Attributes:
        revision: results that the stream had before this one.
        open_text: the part of it that may still change: that of the last window.
        revised: whether a word of the one before is another now, or gone.
        end: whether it is the last.
        heard_s: seconds of sound that it is of.
        work_s: seconds that it took.
    """

    revision: int
    text: str
    open_text: str
    revised: bool
    end: bool
    heard_s: float
    work_s: float


def stream(made: Transcriber, blocks: Iterable[np.ndarray], chunk_s: float = 1.0,
           ) -> Iterator[Partial]:
    """A result for every `chunk_s` of sound, which takes the place of the one before; the last
    has `end`."""
    chunk = max(1, int(chunk_s * RATE))
    heard, settled, last = np.zeros(0, np.float32), "", ""
    read, done, revision, seconds = 0, 0, 0, 0.0
    for block in _ended(blocks):
        if block is not None:
            heard, read = np.concatenate([heard, block]), read + len(block)
            if read - done < chunk:
                continue
        while len(heard) > made.window_samples:
            end = cut(heard[:made.window_samples])
            start = time.perf_counter()
            settled = _joined(settled, made.window(heard[:end]).text)
            seconds += time.perf_counter() - start
            heard = heard[end:]
        start = time.perf_counter()
        now = made.window(heard).text
        text = _joined(settled, now)
        seconds += time.perf_counter() - start
        yield Partial(revision, text, now, takes_back(last, text), block is None, read / RATE,
                      seconds)
        last, done, revision, seconds = text, read, revision + 1, 0.0


def takes_back(before: str, after: str) -> bool:
    """Whether a text is not just more of the one before."""
    first, second = words(before), words(after)
    return second[:len(first)] != first


def _joined(before: str, after: str) -> str:
    return f"{before} {after}".strip()


def _ended(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
    """The same, then None."""
    yield from blocks
    yield None
