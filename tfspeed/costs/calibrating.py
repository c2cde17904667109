"""Measures a machine in a minute; `constants` fits the models of times to it."""

import dataclasses
import datetime
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tfspeed.costs import cases, loopback, observing
from tfspeed.costs.cases import CACHED, PACKED, Case
from tfspeed.costs.observing import Observer
from tfspeed.measure.progress import Progress

_ROUNDS, _AGAIN = 2, 2  # in which all is timed once; for what they did not tell


def calibrate(threads: list[int], engines: list[str], bar: Progress, moments: int = 1):
    """Measures and fits; each of the numbers of threads in a process of its own. What takes a
    core only, making and compiling models, they do at once; they are timed one after the other.

    Args:
        moments: how often all is timed; of several, the median of each time counts.

    Returns:
        A `Calibration`.
    """
    begin = time.perf_counter()
    link = loopback.measure()  # fails on a machine that is too busy: before a minute is spent
    threads = sorted(threads, reverse=True)  # those after the most begin with its constants
    plan = {count: {engine: cases.calibration(engine, count, short=count != threads[0])
                    for engine in engines} for count in threads}
    seen = {count: Seen(engines) for count in threads}
    steps = sum(1 + sum((engine not in PACKED) + _ROUNDS * (1 + len(plan[count][engine]))
                        for count in threads) for engine in engines)
    with bar.task("calibrating", moments * steps) as advance, \
            observing.starting(threads) as started:
        # They import TensorFlow, while the others do.
        from tfspeed.costs import calibration, constants
        from tfspeed.litert import compiler
        calibration.check_writable()
        if "fused" in engines:
            compiler.library()  # the first time it is compiled: once, not by each of them
        _measure(started(), plan, engines * moments, seen, advance)
    found, fits = {}, {}
    for count in threads:
        found[count], fits[str(count)] = constants.fitted(seen[count],
                                                          found.get(threads[0], {}))
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return calibration.Calibration(calibration.fingerprint(), made, time.perf_counter() - begin,
                                   found, fits, dataclasses.asdict(link))


def _measure(observers: list[Observer], plan: dict[int, dict[str, list[Case]]],
             engines: list[str], seen: dict[int, "Seen"], advance) -> None:
    """All engines in their order, each by all observers in turns, of which the first has the most
    to do. What disturbs a machine lasts longer than a generation: so nothing is timed twice at
    once, but all of it, then all again."""
    first = observers[0]
    for engine in engines:
        advance(f"preparing {engine}")
        _at_once(lambda each, engine=engine: each.prepare(
            plan[each.threads][engine], "" if engine in PACKED else engine, each is not first),
            observers)
        if engine not in PACKED:
            for observer in observers:
                advance(f"{observer.threads} threads: products of {engine}")
                seen[observer.threads].products[engine].append(
                    observer.products(engine, short=observer is not first))
        for observer in observers * _ROUNDS:
            _look(observer, engine, observer is not first, plan[observer.threads][engine],
                  seen[observer.threads], advance)
        for observer in observers:
            _look_again(observer, engine, observer is not first, seen[observer.threads], advance)


def _at_once(ask: Callable[[Observer], object], observers: list[Observer]) -> None:
    with ThreadPoolExecutor(len(observers)) as pool:
        try:
            for future in wait([pool.submit(ask, each) for each in observers],
                               return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            for each in observers:  # or the pool would wait for those that are still busy
                each.close()
            raise


class Seen:
    """What was measured with a number of threads, a list of moments each: how fast the cache is
    read, and by engine the products, some of them again, and the times of each case."""

    def __init__(self, engines: list[str]):
        self.reads: list = []
        self.products: dict[str, list] = {engine: [] for engine in engines}
        self.again: dict[str, list] = {engine: [] for engine in engines}
        self.times: dict[str, dict[Case, list]] = {engine: {} for engine in engines}


def _look(observer: Observer, engine: str, short: bool, chosen: list[Case], seen: Seen,
          advance) -> None:
    """What one round brings of an engine."""
    advance(f"{observer.threads} threads: memory")
    if engine in PACKED or not seen.reads:  # the table of products has its own
        seen.reads.append(observer.bandwidth(CACHED))
    for case in chosen:
        advance(f"{observer.threads} threads: {case.engine}, {case.model}")
        seen.times[engine].setdefault(case, []).append(observer.observe(case))
    if engine not in PACKED:
        seen.again[engine].append(observer.products_again(engine, short))


def _look_again(observer: Observer, engine: str, short: bool, seen: Seen, advance) -> None:
    """What was timed while the cores lay elsewhere only, as far as is known by now, is timed once
    more; and so is what no two rounds agree on, twice at most."""
    home = observing.placement(observing.every_round(seen.times))
    products = seen.products[engine]
    if products and not observing.only_at_home(products, home):
        advance(f"{observer.threads} threads: products of {engine} again")
        products.append(observer.products(engine, short))
    for case, moments in seen.times[engine].items():
        for _ in range(_AGAIN):
            if observing.repeats(observing.only_at_home(moments, home)):
                break
            advance(f"{observer.threads} threads: {case.engine}, {case.model} again")
            moments.append(observer.observe(case))
