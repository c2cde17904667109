"""What this machine's constants are, kept in the cache folder: made by `scripts/calibrate.py`.

A file of another machine, another number of cores or other kernels is refused: its times are not
those of this one.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import tempfile
from pathlib import Path

from tfspeed.cache import cache_folder
from tfspeed.costs import compiled_time, fused_time, litert_time
from tfspeed.costs.communication import Link
from tfspeed.costs.dots import PACKINGS
from tfspeed.devices import cpu_model, job_cores
from tfspeed.errors import TfspeedError
from tfspeed.export.files import appearing
from tfspeed.measure.placement import Placement

HINT = "python scripts/calibrate.py"
_ROOT = Path(__file__).parents[1]
_SOURCES = ("litert/kernels/*", "measure/placement.c", "measure/read.c", "costs/reading.py",
            "costs/fused_time.py", "costs/compiled_time.py", "costs/litert_time.py",
            "costs/dots.py", "costs/dot_table.py")
_VERSION = 3
STARTS = {"fused": fused_time.START, "litert": litert_time.START}  # others: `compiled_time`


class NoCalibration(TfspeedError):
    """There is none that can be used; says why and how to make one."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Attributes:
        fingerprint: of the machine and the code that it was made on.
        made: when, ISO 8601.
        seconds: that making it took.
        threads: by the number of threads, `{"bandwidth": [[bytes, bytes a second], …],
            "placement": a `Placement` as a dictionary or None, "fused" and "litert": {constants},
            "graph" and "xla": {"constants", "dots", "cache", "unpacking",
            "narrow"}}`.
        fits: by threads and engine, the times that it was fitted to (`measured`: what, seconds of
            the first token, of those after it), what the constants say, and the errors.
    """

    fingerprint: dict
    made: str
    seconds: float
    threads: dict[int, dict]
    fits: dict
    link: dict  # between two processes, see `communication.Link`

    def home(self, threads: int) -> Placement | None:
        """Where the cores lay that so many threads use; None where that was not told."""
        found = self.threads.get(threads, {}).get("placement")
        return Placement(**found) if found else None


def path() -> Path:
    return cache_folder() / "calibration.json"


@functools.cache
def fingerprint() -> dict:
    """What a calibration depends on."""
    made = hashlib.sha256()
    for pattern in _SOURCES:
        for source in sorted(_ROOT.glob(pattern)):
            made.update(source.read_bytes())
    return {"version": _VERSION, "cpu": cpu_model(), "cores": job_cores(),
            "tensorflow": importlib.metadata.version("tensorflow"),
            "litert": importlib.metadata.version("ai-edge-litert"),
            "kernels": made.hexdigest()[:16]}


def check_writable() -> None:
    """Refuses a cache folder that cannot be written in, before a minute is spent."""
    with _telling(), tempfile.TemporaryFile(dir=_folder()):
        pass


def save(calibration: Calibration) -> Path:
    """Writes it whole or not at all."""
    with _telling(), appearing(_folder() / path().name) as beside:
        beside.write_text(json.dumps(dataclasses.asdict(calibration), indent=1) + "\n",
                          encoding="utf-8")
    return path()


def _folder() -> Path:
    folder = path().parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _telling():
    try:
        yield
    except OSError as error:
        raise TfspeedError("The calibration cannot be written.", path=str(path()),
                           cause=error.strerror, hint="Set XDG_CACHE_HOME to another folder."
                           ) from error


def load() -> Calibration:
    """The calibration of this machine.

    Raises:
        NoCalibration: there is none, it cannot be read, or it is of another machine.
    """
    source = path()
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        made = Calibration(**(found | {"threads": {int(t): c for t, c in
                                                   found["threads"].items()}}))
        other = {name: made.fingerprint.get(name) for name, value in fingerprint().items()
                 if made.fingerprint.get(name) != value}
        if not other:
            _check(made)
    except FileNotFoundError as error:
        raise NoCalibration("This machine has not been calibrated.",
                            hint=f"{HINT} does it in a minute.") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoCalibration("The calibration cannot be read.", path=str(source),
                            hint=f"{HINT} makes a new one.") from error
    if other:
        here = {name: fingerprint()[name] for name in other}
        raise NoCalibration("The calibration is of another machine or other kernels, whose times "
                            "are not these.", calibrated=other, here=here,
                            hint=f"{HINT} makes a new one.")
    return made


def _check(made: Calibration) -> None:
    """Raises an error where something is missing, or no number above 0."""
    numbers = list(dataclasses.asdict(Link(**made.link)).values())[1:]
    for count, constants in made.threads.items():
        home = made.home(count)
        if home and not (home.multiplied > 0 <= home.turn_s):
            raise ValueError("no placement of cores")
        tables = [constants["bandwidth"]]
        for engine in set(constants) - {"bandwidth", "placement"}:
            found, start = constants[engine], STARTS.get(engine)
            if engine not in STARTS:
                tables += [found["dots"], found["narrow"]]
                numbers += [found["cache"], *(found["unpacking"][str(bits)] for bits in PACKINGS)]
                found, start = found["constants"], compiled_time.STARTS[engine]
            numbers += [found[name] for name in start]
        # Of each row of a table the first tells how large, the last how fast.
        numbers += [value for table in tables for row in table for value in (row[0], row[-1])]
    if not made.threads or not all(value > 0 for value in numbers):
        raise ValueError("a constant is missing, or no number above 0")
