"""Measures a machine in a minute, and fits the constants of `calibration.py` to it."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import time

import numpy as np

from tfspeed.costs import cases, compiled_time, fitting, loopback, shapes
from tfspeed.costs.calibration import STARTS, Calibration, fingerprint
from tfspeed.costs.cases import Case
from tfspeed.costs.compiled_time import CompiledTime
from tfspeed.costs.dots import Table
from tfspeed.costs.observing import Observer
from tfspeed.costs.prediction import PACKED, Bandwidth, packed
from tfspeed.litert.formats import Formats
from tfspeed.measure.progress import Progress

READS = [mb << 20 for mb in (1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 512)]  # bytes

_TRUST = 0.02, 0.1  # in what a fit begins with: in general; in the constants of other threads


def calibrate(threads: list[int], engines: list[str], bar: Progress) -> Calibration:
    """Measures and fits; each of the numbers of threads in a process of its own, the most first:
    those after it begin with its constants, and need fewer times."""
    begin, found, fits = time.perf_counter(), {}, {}
    link = loopback.measure()  # fails on a machine that is too busy: before a minute is spent
    threads = sorted(threads, reverse=True)
    plan = {count: {engine: cases.calibration(engine, count, short=count != threads[0])
                    for engine in engines} for count in threads}
    steps = sum(2 + len(chosen) for each in plan.values() for chosen in each.values())
    with bar.task("calibrating", steps) as advance, contextlib.ExitStack() as stack:
        for observer in _started(threads, stack):
            count = observer.threads
            found[count], fits[str(count)] = _one(
                observer, plan[count], found.get(threads[0], {}), advance)
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Calibration(fingerprint(), made, time.perf_counter() - begin, found, fits,
                       dataclasses.asdict(link))


def _started(threads: list[int], stack: contextlib.ExitStack) -> list[Observer]:
    """One of each, started together: importing TensorFlow takes seconds, and one that is not
    asked sleeps."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        starting = [pool.submit(Observer, count) for count in threads]
    for future in starting:
        if not future.exception():
            stack.enter_context(future.result())
    return [future.result() for future in starting]


def _one(observer: Observer, plan: dict[str, list[Case]], other: dict,
         advance) -> tuple[dict, dict]:
    """Args:
        other: the constants of another number of threads; {} where there are none.
    """
    advance(f"{observer.threads} threads: memory")
    reads, products, times, spent = [observer.bandwidth(READS)], {}, {}, {}
    for engine, chosen in plan.items():
        begin = time.perf_counter()
        advance(f"{observer.threads} threads: products of {engine}")
        products[engine] = {} if engine in PACKED else observer.products(engine, bool(other))
        times[engine] = []
        for case in chosen:
            advance(f"{observer.threads} threads: {case.engine}, {case.model}")
            times[engine].append((case, observer.observe(case)))
        if engine == "fused":
            if not other:  # those after it begin with its constants
                times[engine] = [_timed_again(observer, *pair) for pair in times[engine]]
            reads.append(observer.bandwidth(READS))
        spent[engine] = time.perf_counter() - begin
    if not other:
        reads.append(observer.bandwidth(READS))
    constants, fits = {"bandwidth": _usual(reads)}, {}
    for engine, some in times.items():
        constants[engine], fits[engine] = fit(engine, some, constants["bandwidth"],
                                              products[engine], other.get(engine))
        fits[engine]["seconds"] = spent[engine]
    return constants, fits


def _usual(reads: list[list[list[float]]]) -> list[list[float]]:
    """Of each size the median of several moments: machines that share their memory with others
    read it at half or twice the speed within minutes."""
    return [[pairs[0][0], float(np.median([speed for _, speed in pairs]))]
            for pairs in zip(*reads, strict=True)]


def _timed_again(observer: Observer, case: Case, seen: dict) -> tuple[Case, dict]:
    """With what it takes at another moment."""
    if case.model not in cases.SMALL:
        return case, seen
    again = observer.observe(case)
    return case, {name: [*seen[name], *again[name]] for name in ("ttft_s", "tpot_s")}


def fit(engine: str, times: list[tuple[Case, dict]], bandwidth: list, products: dict,
        other: dict | None) -> tuple[dict, dict]:
    """The constants of an engine, and how well they fit the times.

    Args:
        bandwidth, products: as an `Observer` gives them.
        other: the constants of another number of threads, None where there are none.
    """
    speed = Bandwidth(bandwidth)
    if engine in PACKED:
        return _fit(other or STARTS[engine], functools.partial(_packed, speed), times,
                    other is not None)
    # What corrects the table belongs to it, and so to a number of threads.
    start = other["constants"] | {name: 1.0 for name in compiled_time.START
                                  if _near_one(name)} if other else compiled_time.START
    found, fits = _fit(start, functools.partial(_compiled, Table(**products)), times,
                       other is not None)
    return {"constants": found, **products}, fits


def _packed(bandwidth, constants: dict, case: Case) -> tuple[float, float]:
    made = packed(case.engine, constants, bandwidth, case.threads)
    return made.latency(_stored(case.model, case.engine), case.batch, case.prompt_tokens,
                        case.new_tokens)


def _compiled(table: Table, constants: dict, case: Case) -> tuple[float, float]:
    return CompiledTime(constants, table).latency(
        _stored(case.model, case.engine), case.batch, case.prompt_tokens, case.new_tokens)


def _fit(start, predict, times, again: bool) -> tuple[dict, dict]:
    # The least, since what disturbs a machine makes times longer, never shorter.
    measured = np.array([np.min(seen[name]) for _, seen in times
                         for name in ("ttft_s", "tpot_s")])

    def all_of(constants):
        return np.array([seconds for case, _ in times for seconds in predict(constants, case)])

    found = fitting.fit(start, all_of, measured, _TRUST[again], _firm)
    predicted = all_of(found)
    errors = np.abs(predicted / measured - 1)
    return found, {"median_error": float(np.median(errors)),
                   "p95_error": float(np.percentile(errors, 95)), "times": len(measured),
                   "measured": [[dataclasses.asdict(case), *map(float, pair)] for (case, _), pair
                                in zip(times, measured.reshape(-1, 2), strict=True)],
                   "predicted": predicted.reshape(-1, 2).tolist()}


def _near_one(name: str) -> bool:
    """Whether a constant corrects what was measured directly."""
    return name.startswith(("products", "reach"))


def _firm(name: str) -> float:
    """How much more a constant is trusted than others. What bandwidth is measured with is as fast
    as the kernels within a few per cent: the reaches must not learn how busy memory was."""
    return 50 if name.startswith("reach") else 10 if _near_one(name) else 1


@functools.cache
def _stored(model: str, engine: str):
    return shapes.decoder(cases.MODELS[model], model).stored(Formats.of_engine(engine))
