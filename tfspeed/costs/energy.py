"""Joules of a run: counted by the processor (RAPL) or the GPU (NVML) where they can be read, else
estimated from how busy the cores were and a stated model of their power, with its interval.

    with Meter() as meter:
        …
    meter.reading(tokens=1000)      {"energy_j_per_token": …, "energy_source": "rapl", …}

An estimate is one: where no counter can be read, nothing here is printed without the word, its
interval and the model. Its two constants are those of a server core: what it draws when idle, and
how much more when busy; the interval is what published measurements of servers span (SPECpower:
1 to 4 W a core idle, 3 to 12 W more at full load).
"""

import dataclasses
import time
from pathlib import Path

import psutil

from tfspeed.devices import available_cores

POWERCAP = Path("/sys/class/powercap")
_IDLE_W = 2.0, 1.0, 4.0  # a core: the estimate, and between what
_BUSY_W = 6.0, 3.0, 12.0  # a core that works, on top of that
UNREADABLE = ("No energy counter can be read here (RAPL: {rapl}; NVML: {nvml}): energy is an "
              "estimate, {idle:g} W a core and {busy:g} W more while it works; what such models "
              "span is its interval.")


@dataclasses.dataclass(frozen=True)
class Counter:
    """One that counts up in joules, and begins anew after `wraps` (0: never)."""

    source: str
    read: object
    wraps: float = 0.0

    def spent(self, before: float, after: float) -> float:
        return after - before + (self.wraps if after < before else 0.0)


def counters() -> tuple[list[Counter], dict[str, str]]:
    """Those that can be read, and of each kind why there is none."""
    found, why = [], {}
    packages = sorted(POWERCAP.glob("intel-rapl:?")) + sorted(POWERCAP.glob("intel-rapl:??"))
    for package in packages:
        try:
            int((package / "energy_uj").read_text())
            wraps = int((package / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError) as error:
            why["rapl"] = getattr(error, "strerror", None) or str(error)
            continue
        found.append(Counter("rapl", lambda path=package / "energy_uj":
                             int(path.read_text()) / 1e6, wraps))
    if not packages:
        why["rapl"] = f"no {POWERCAP}/intel-rapl:*"
    try:
        found += _gpus()
    except ImportError:
        why["nvml"] = "pynvml is not installed"
    except Exception as error:  # NVML's own errors, which only its package names
        why["nvml"] = str(error)[:80]
    return found, why


def _gpus() -> list[Counter]:
    import pynvml
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [Counter("nvml", lambda handle=handle:
                    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
            for handle in handles]


class Meter:
    """Measures, or estimates, what runs inside; can be entered again and adds up."""

    def __init__(self):
        self._counters, self.why = counters()
        self.seconds = self.core_seconds = 0.0
        self._joules = [0.0] * len(self._counters)

    def __enter__(self) -> "Meter":
        self._begin = time.perf_counter(), _core_seconds(), [c.read() for c in self._counters]
        return self

    def __exit__(self, *error) -> None:
        start, busy, before = self._begin
        self.seconds += time.perf_counter() - start
        self.core_seconds += _core_seconds() - busy
        for i, (counter, value) in enumerate(zip(self._counters, before, strict=True)):
            self._joules[i] += counter.spent(value, counter.read())

    def reading(self, tokens: int) -> dict:
        """`energy_j_per_token`, `energy_tokens_per_j`, `energy_source`; of an estimate its
        interval and the power model as well. {} where nothing ran."""
        if not tokens or not self.seconds:
            return {}
        if self._counters:
            joules = sum(self._joules)
            sources = "+".join(sorted({c.source for c in self._counters}))
            return _per_token(joules, tokens) | {"energy_source": sources}
        estimate, low, high = (self._estimated(i) for i in range(3))
        return _per_token(estimate, tokens) | {
            "energy_source": "estimate",
            "energy_j_per_token_interval": {"low": low / tokens, "high": high / tokens},
            "energy_model": {"idle_w_per_core": _IDLE_W[0], "busy_w_per_core": _BUSY_W[0]}}

    def _estimated(self, which: int) -> float:
        return (available_cores() * _IDLE_W[which] * self.seconds
                + _BUSY_W[which] * self.core_seconds)

    def note(self, reading: dict) -> str:
        """The one line that says that an estimate is one; "" for what was counted."""
        if reading.get("energy_source") != "estimate":
            return ""
        return UNREADABLE.format(rapl=self.why.get("rapl", "none"),
                                 nvml=self.why.get("nvml", "none"), idle=_IDLE_W[0],
                                 busy=_BUSY_W[0])


def _per_token(joules: float, tokens: int) -> dict:
    return {"energy_j_per_token": joules / tokens,
            "energy_tokens_per_j": tokens / joules if joules > 0 else None}


def _core_seconds() -> float:
    """That this process has kept cores busy."""
    times = psutil.Process().cpu_times()
    return times.user + times.system
