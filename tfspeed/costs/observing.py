"""Starts `observer.py` in a process of its own, asks it, and gives up on one that is silent."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tfspeed.asked_process import AskedProcess
from tfspeed.costs.cases import METRICS, Case
from tfspeed.errors import TfspeedError
from tfspeed.measure.placement import Placement, usual

_SILENT_S = 300
_AGREE = 1.25
_START = "import sys; sys.path.insert(0, sys.argv[2]); from tfspeed.costs import observer; " \
         "observer.main(int(sys.argv[1]))"


def by_round(seen: list[dict], metric: str) -> list[float]:
    """What `Observer.observe` saw in several rounds: of each round the median."""
    return [float(np.median(times[metric])) for times in seen]


def repeats(seen: list[dict]) -> bool:
    """Whether two of some rounds agree: one in six of small models took twice as long."""
    def agree(rounds: list[float]) -> bool:
        return any(b < _AGREE * a for a, b in itertools.pairwise(sorted(rounds)))

    return all(agree(by_round(seen, metric)) for metric in METRICS)


def usual_memory(seen: list[dict]) -> float:
    """Bytes a second at which memory was read around them, in the median of several rounds."""
    return float(np.median([np.mean(times["memory"]) for times in seen]))


def every_round(times: dict[str, dict[Case, list[dict]]]) -> list[dict]:
    """Those of all cases of all engines."""
    return [seen for every in times.values() for rounds in every.values() for seen in rounds]


def placement(seen: list[dict]) -> Placement | None:
    """Where the cores lay most of the time."""
    return usual([each for times in seen for each in _placements(times)])


def at_home(seen: list[dict], home: Placement | None) -> list[dict]:
    """The rounds in which the cores lay as in `home`; all of them where there is none."""
    return only_at_home(seen, home) or seen


def only_at_home(seen: list[dict], home: Placement | None) -> list[dict]:
    """The same, and none where there is none."""
    return [times for times in seen if is_at_home(times, home)]


def is_at_home(times: dict, home: Placement | None) -> bool:
    """Whether the cores lay there before and after; also where it is not known."""
    return home is None or all(each.like(home) for each in _placements(times))


def _placements(times: dict) -> list[Placement]:
    return [Placement(**each) for each in times["placement"]]


class Observer:
    """A context manager: times cases with so many threads."""

    def __init__(self, threads: int):
        self.threads = threads
        root = str(Path(__file__).resolve().parents[2])
        self._process = AskedProcess([sys.executable, "-c", _START, str(threads), root],
                                     self._ended, _SILENT_S, {})

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; what is asked of it ends with an error."""
        self._process.close()

    def bandwidth(self, size: int) -> dict:
        """`{"bandwidth": bytes a second, "placement": […]}` of so many bytes."""
        return self.ask({"bandwidth": size})

    def products(self, engine: str, short: bool = False) -> dict:
        """See `dots.measure_all`."""
        return self.ask({"products": engine, "short": short})

    def products_again(self, engine: str, short: bool) -> dict:
        """See `dots.measure_again`."""
        return self.ask({"again": engine, "short": short})

    def prepare(self, cases: list[Case], products: str = "", short: bool = False) -> None:
        """Makes their models and compiles them, in place of those before; and the products of an
        engine."""
        self.ask({"prepare": [dataclasses.asdict(case) for case in cases], "dots": products,
                  "short": short})

    def observe(self, case: Case) -> dict:
        """`{"ttft_s": […], "tpot_s": […], "memory": […], "placement": […]}`: seconds of a
        generation, or some short ones, and around them bytes a second at which memory was read, and
        where the cores lay."""
        return self.ask({"case": dataclasses.asdict(case)})

    def in_turns(self, cases: list[Case], rounds: int,
                 home: Placement | None = None) -> Iterator[tuple[Case, dict]]:
        """Each case and what `observe` sees of it, so many times: all of them, then all again,
        since what disturbs a machine lasts longer than a generation; and as often again at most
        where most of the times the cores lay elsewhere than in `home`."""
        for count in range(1, len(cases) + 1):  # each may take as long as one question may
            self.prepare(cases[:count])
        missing = dict.fromkeys(cases, rounds // 2 + 1)
        for count in range(2 * rounds):
            for case in cases:
                if count < rounds or missing[case] > 0:
                    seen = self.observe(case)
                    missing[case] -= is_at_home(seen, home)
                    yield case, seen

    def ask(self, question: dict) -> dict:
        answer = self._process.ask(question, _SILENT_S)
        if "error" in answer:
            raise TfspeedError(answer["error"])
        return answer

    def _ended(self, exit_code: int, said: str) -> TfspeedError:
        del exit_code
        return TfspeedError("The process that times models has ended or is silent.",
                            threads=self.threads, said=said[-300:])


@contextlib.contextmanager
def starting(threads: list[int]) -> Iterator[Callable[[], list[Observer]]]:
    """Starts one of each, together: importing TensorFlow takes seconds, and one that is not asked
    sleeps. Gives what waits for them; closes them all at the end."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(threads)) as pool:
        futures = []
        for count in threads:
            futures.append(pool.submit(Observer, count))
            stack.callback(_close, futures[-1])

        def started() -> list[Observer]:
            failed = [future for future in futures if future.exception()]
            return [future.result() for future in failed or futures]

        yield started


def _close(future) -> None:
    if not future.exception():
        future.result().close()
