"""Peak resident memory of a stretch of work."""

import gc
import threading
from pathlib import Path

import psutil

from tfspeed.memory import give_back

# Documentation/filesystems/proc.rst: writing 5 there resets the high-water mark.
_CLEAR_REFS, _RESET_PEAK = Path("/proc/self/clear_refs"), "5"


class PeakMemory:
    """`with PeakMemory() as memory: …`, then `start_rss`, `peak_rss` and `end_rss` in bytes.

    On Linux the kernel's own high-water mark, reset at the start; elsewhere a thread that looks
    a hundred times a second.
    """

    def __enter__(self):
        gc.collect()
        give_back()  # what is measured next must ask for its own
        self._process = psutil.Process()
        self.start_rss = self.peak_rss = self.end_rss = self._process.memory_info().rss
        self._watch = None
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:
            self._done = threading.Event()
            self._watch = threading.Thread(target=self._look, daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *_):
        self.end_rss = self._process.memory_info().rss
        if self._watch is not None:
            self._done.set()
            self._watch.join()
            peak = self.peak_rss
        else:
            peak = _high_water_mark()
        self.peak_rss = max(self.start_rss, self.end_rss, peak)

    def _look(self):
        while not self._done.wait(0.01):
            self.peak_rss = max(self.peak_rss, self._process.memory_info().rss)


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
