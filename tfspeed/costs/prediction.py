"""Latencies before they are measured: a calibration, and the shape of a model.

    Predictor(calibration.load()).latency(shapes.of(model), "fused:int8", threads=2,
                                          workload=Load(batch=1, prompt_tokens=128, new_tokens=128))
"""

import dataclasses
from statistics import median

import numpy as np
import psutil

from tfspeed.costs import computation, recurrent_time
from tfspeed.costs.calibration import STARTS, Calibration
from tfspeed.costs.cases import ENGINES, PACKED, UNCACHED
from tfspeed.costs.communication import Link
from tfspeed.costs.compiled_time import CompiledTime
from tfspeed.costs.dot_table import Table
from tfspeed.costs.dots import ITEM_BYTES, measured
from tfspeed.costs.fused_time import FusedTime
from tfspeed.costs.litert_time import LitertTime
from tfspeed.costs.reading import reading
from tfspeed.costs.shapes import Shape
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.measure.bandwidth import MemoryReader
from tfspeed.measure.placement import PlacementReader, usual

_READINGS = 15  # of some milliseconds
_PLACEMENTS = 5


@dataclasses.dataclass(frozen=True)
class Load:
    """What is generated: `measure.experiment.Workload` without its defaults."""

    batch: int
    prompt_tokens: int
    new_tokens: int

    def whole(self, times: dict[str, float]) -> dict[str, float]:
        """`times`, of the first token and perhaps of those after it, with `e2e_s`."""
        steps = self.new_tokens - 1
        return times | {"e2e_s": times["ttft_s"] + steps * times.get("tpot_s", 0.0)}


class Bandwidth:
    """Bytes a second at which so many bytes are read again and again, between the speeds of the
    cache and of memory that were measured; the models of times ask for those two alone."""

    def __init__(self, measured: list):
        self._sizes, self._speeds = np.log(np.array(measured)).T
        self._known: dict[float, float] = {}  # a fit asks for the same sizes thousands of times

    def __call__(self, size: float) -> float:
        if size not in self._known:
            self._known[size] = float(np.exp(np.interp(np.log(size), self._sizes, self._speeds)))
        return self._known[size]


def packed(engine: str, constants: dict, bandwidth: Bandwidth,
           threads: int) -> FusedTime | LitertTime:
    """What tells the times of one of `PACKED`."""
    if engine.startswith("litert"):
        return LitertTime(constants, bandwidth, threads)
    return FusedTime(constants, bandwidth, threads, Formats.of_engine(engine).cache_itemsize)


def _read_speed(threads: int, size: int) -> float:
    """Bytes a second at which so many threads read memory now."""
    reader = MemoryReader(threads, size)
    return median(reader.read() for _ in range(_READINGS))


class Predictor:
    """Args:
        calibration: this machine's.
    """

    def __init__(self, calibration: Calibration):
        self._calibration = calibration
        self.link = Link(**calibration.link)
        most = calibration.threads[max(calibration.threads)]
        self._made = {threads: _Machine(constants, most)
                      for threads, constants in sorted(calibration.threads.items())}
        self.least_threads = min(self._made)  # that anything is known of

    def at_speed(self, speeds: dict[int, float]) -> "Predictor":
        """The same while so many threads read memory at another speed: machines that share theirs
        with others read it at half or twice the speed within seconds.

        Args:
            speeds: bytes a second, by the number of threads.
        """
        threads = {count: constants | ({"bandwidth": [*constants["bandwidth"][:-1], [
            UNCACHED, speeds[count]]]} if count in speeds else {})
                   for count, constants in self._calibration.threads.items()}
        return Predictor(dataclasses.replace(self._calibration, threads=threads))

    def now(self) -> "Predictor":
        """The same with the speed at which memory is read now; takes half a second. A number of
        threads that this process may not use gets the change of the most that it may."""
        calibrated = {count: machine.bandwidth(UNCACHED) for count, machine in self._made.items()}
        size = min(UNCACHED, psutil.virtual_memory().available // 4)
        found = {count: _read_speed(count, size) for count in self._made
                 if count <= available_cores()}
        change = found[max(found)] / calibrated[max(found)] if found else 1.0
        return self.at_speed({count: change * speed for count, speed in calibrated.items()} | found)

    def moved(self, threads: int) -> str:
        """A sentence where the cores of so many threads lie otherwise now than when this was
        calibrated; "" where they do not, or nobody can tell."""
        count = max((t for t in self._made if t <= min(threads, available_cores())), default=0)
        home = self._calibration.home(count)
        if not home:
            return ""
        with PlacementReader(count) as reader:
            found = usual([each for _ in range(_PLACEMENTS) if (each := reader.read())])
        if not found or found.like(home):
            return ""
        apart = (f"a cache line took {1e9 * found.turn_s:.0f} ns between them, not "
                 f"{1e9 * home.turn_s:.0f}, and " if home.turn_s else "")
        return (f"The cores lay elsewhere than when this machine was calibrated as this was "
                f"written: {apart}they multiplied {found.multiplied / home.multiplied:.2f} times "
                f"as fast. Predictions are of before; if it stays so, calibrate again.")

    def latency(self, shape: Shape, engine: str, threads: int, load: Load) -> dict[str, float]:
        """`ttft_s`, `e2e_s` and, of more than one token, `tpot_s`: the mean, as it is measured.

        Args:
            shape: as the model's layers are; what the engine packs them to is its name's matter.

        Raises:
            TfspeedError: there are no constants for it.
        """
        self._check(shape, engine)
        found = self._told(threads, lambda machine, t: machine.seconds(shape, engine, t, load))
        if load.new_tokens == 1:
            found.pop("tpot_s")
        return load.whole(found)

    def reading(self, shape: Shape, engine: str, threads: int, load: Load, count: int) -> float:
        """Seconds of a step that reads so many tokens of one text, with logits of each: what
        verifies drafts. See `latency`."""
        self._check(shape, engine)
        return self._told(threads, lambda machine, t: {
            "step": machine.reading(shape, engine, t, load, count)})["step"]

    @staticmethod
    def _check(shape: Shape, engine: str) -> None:
        kind = engine.partition(":")[0]
        if kind not in ENGINES:
            raise TfspeedError(f"Times are predicted under {', '.join(ENGINES)}.", engine=engine,
                               model=shape.name)
        if kind == "fused" and (shape.source or not shape.attention):
            raise TfspeedError("The engine fused runs decoders alone.", model=shape.name)
        if kind not in PACKED and shape.compute not in ITEM_BYTES:
            raise TfspeedError(f"Under graph and xla times are predicted of {list(ITEM_BYTES)}.",
                               type=shape.compute, engine=engine, model=shape.name)
        if kind not in PACKED and ITEM_BYTES[shape.compute] == 2 and any(
                m.bits <= 8 for m in shape.matrices):
            raise TfspeedError("Under graph and xla times of 8 and 4 bits are predicted where "
                               "float32 is computed.", type=shape.compute, engine=engine)

    def _told(self, threads: int, ask) -> dict[str, float]:
        """What `ask(machine, threads)` says, between the numbers of threads that are known."""
        known = [(t, ask(machine, t)) for t, machine in self._made.items()]
        return {name: self._between(threads, [(t, times[name]) for t, times in known])
                for name in known[0][1]}

    def sharing(self, cores: int, workers: int, shape: Shape, engine: str, load: Load) -> float:
        """How many times as long a step's reads take where `workers` processes read at once, each
        on its share of the cores: together they read no faster than all cores do."""
        formats = Formats.of_engine(engine if engine.partition(":")[0] in PACKED else "")
        read = computation.filled_step(shape.stored(formats), load.batch,
                                       load.prompt_tokens).read_bytes(4)
        alone, together = (self._between(count, [(t, m.speed(read, t)) for t, m in
                                                 self._made.items()])
                           for count in (max(1, cores // workers), cores))
        return max(1.0, workers * alone / together)

    @staticmethod
    def _between(threads: int, known: list[tuple[int, float]]) -> float:
        """On logarithmic scales; more threads than were calibrated are as many.

        Raises:
            TfspeedError: fewer than the least.
        """
        least = known[0][0]
        if threads < least:
            raise TfspeedError("Times are predicted from the least number of threads on that was "
                               "calibrated.", threads=threads, least=least,
                               hint="python scripts/calibrate.py calibrates one, and all.")
        counts, seconds = np.log(np.array(known)).T
        return float(np.exp(np.interp(np.log(threads), counts, seconds)))


class _Machine:
    """The models of one number of threads.

    Args:
        most: constants of the most threads, with which more was timed.
    """

    def __init__(self, constants: dict, most: dict):
        self.constants, self.bandwidth = constants, Bandwidth(constants["bandwidth"])
        self.tables = {kind: table(found, most.get(kind))
                       for kind, found in constants.items() if kind in ("graph", "xla")}

    def speed(self, read: float, threads: int) -> float:
        """Bytes a second in steps that read so many."""
        constants = self.constants.get("fused", STARTS["fused"])
        return 1 / reading(constants, self.bandwidth, read, threads).byte

    def seconds(self, shape: Shape, engine: str, threads: int, load: Load) -> dict[str, float]:
        made, shape = self._of(shape, engine, threads)
        if shape.attention:
            found = made.latency(shape, load.batch, load.prompt_tokens, load.new_tokens)
        else:
            found = recurrent_time.latency(made, shape, load.batch, load.prompt_tokens,
                                           engine.partition(":")[0])
        return dict(zip(("ttft_s", "tpot_s"), found, strict=True))

    def reading(self, shape: Shape, engine: str, threads: int, load: Load, count: int) -> float:
        made, shape = self._of(shape, engine, threads)
        return made.read(shape, count, load.prompt_tokens, load.new_tokens)

    def _of(self, shape: Shape, engine: str, threads: int):
        """What tells an engine's times, and the shape as that engine keeps it."""
        kind = engine.partition(":")[0]
        if kind not in self.constants:
            raise TfspeedError("This calibration knows nothing of the engine.", engine=kind)
        if kind in PACKED:
            return (packed(engine, self.constants[kind], self.bandwidth, threads),
                    shape.stored(Formats.of_engine(engine)))
        return CompiledTime(self.constants[kind]["constants"], self.tables[kind]), shape


def table(found: dict, most: dict | None) -> Table:
    """Of what is known of an engine, and of the most threads if that is more."""
    longer = Table(**measured(most)) if most else None
    return Table(**measured(found), longer=longer)
