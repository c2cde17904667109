"""The constants of `calibration.py` from what was measured: fits of the times' models to them."""

import dataclasses
import functools

import numpy as np

from tfspeed.costs import cases, compiled_time, fitting, litert_time, shapes
from tfspeed.costs.calibration import STARTS
from tfspeed.costs.cases import METRICS, PACKED, UNCACHED, Case
from tfspeed.costs.compiled_time import CompiledTime
from tfspeed.costs.dot_table import Table
from tfspeed.costs.observing import usual_memory
from tfspeed.costs.prediction import Bandwidth, packed
from tfspeed.litert.formats import Formats

# In what a fit begins with: in general, and in the constants of other threads. Few times tell
# what TensorFlow's many operators cost.
_TRUST_PACKED, _TRUST_COMPILED = (0.05, 0.1), (0.1, 0.1)
_OWN = "products", "reach", "cache", "blunt"  # constants of a number of threads


def fitted(seen, other: dict) -> tuple[dict, dict]:
    """The constants of a number of threads, and how well they fit.

    Args:
        seen: a `calibrating.Seen`.
        other: the constants of another number of threads; {} where there are none.
    """
    constants, fits = {"bandwidth": [*_usual(seen.reads), [UNCACHED, _memory(seen)]]}, {}
    for engine, times in seen.times.items():
        constants[engine], fits[engine] = fit(
            engine, [(case, _in_the_middle(moments)) for case, moments in times.items()],
            constants["bandwidth"], _middle_products(seen.products[engine]), other.get(engine))
    return constants, fits


def _in_the_middle(moments: list[dict]) -> dict[str, float]:
    """Of a round the least, since what disturbs a machine makes times longer, never shorter; of
    several the median, since memory that is shared is fast in one and slow in another."""
    return {name: float(np.median([np.min(times[name]) for times in moments]))
            for name in METRICS} | {"memory": usual_memory(moments)}


def _memory(seen) -> float:
    """Bytes a second over all that was timed."""
    return usual_memory([times for every in seen.times.values() for moments in every.values()
                         for times in moments])


def _middle_products(moments: list[dict]) -> dict:
    """The median of each product; {} where none was timed."""
    if not moments:
        return {}
    tables = {name: [[*row[0][:-1], float(np.median([entry[-1] for entry in row]))]
                     for row in zip(*(found[name] for found in moments), strict=True)]
              for name in ("dots", "narrow")}
    return tables | {"unpacking": {
        bits: float(np.median([found["unpacking"][bits] for found in moments]))
        for bits in moments[0]["unpacking"]}}


def _usual(reads: list[list[list[float]]]) -> list[list[float]]:
    """Of each size the median of several moments: machines that share their memory with others
    read it at half or twice the speed within minutes."""
    return [[pairs[0][0], float(np.median([speed for _, speed in pairs]))]
            for pairs in zip(*reads, strict=True)]


def fit(engine: str, times: list[tuple[Case, dict[str, float]]], bandwidth: list, products: dict,
        other: dict | None) -> tuple[dict, dict]:
    """The constants of an engine, and how well they fit the times.

    Args:
        bandwidth, products: as an `Observer` gives them.
        other: the constants of another number of threads, None where there are none.
    """
    if engine in PACKED:
        speeds = {case: Bandwidth([*bandwidth[:-1], [UNCACHED, seen["memory"]]])
                  for case, seen in times}
        return _best_tile(_begin(STARTS[engine], other), functools.partial(_packed, speeds), times,
                          other is not None)
    start = _begin(compiled_time.STARTS[engine], other and other["constants"])
    found, fits = _fit(start, functools.partial(_compiled, Table(**products)), times,
                       _TRUST_COMPILED[other is not None])
    return {"constants": found, **products}, fits


def _begin(start: dict, other: dict | None) -> dict:
    """Where a fit begins: with the constants of other threads, but for those that correct what was
    measured with these, or say what threads share."""
    return start if other is None else other | {name: value for name, value in start.items()
                                                if name.startswith(_OWN)}


def _best_tile(start: dict, predict, times, again: bool) -> tuple[dict, dict]:
    """The fit with the tile that suits the times best, where kernels have an unknown one: a whole
    number, in which no fit can go a small step."""
    tile, trust = start.get("tile"), _TRUST_PACKED[again]
    if tile is None:
        return _fit(start, predict, times, trust)
    rest = {name: value for name, value in start.items() if name != "tile"}
    found = []
    for size in (tile,) if again else litert_time.TILES:
        constants, fits = _fit(rest, lambda constants, case, size=size: predict(
            constants | {"tile": size}, case), times, trust)
        found.append((constants | {"tile": size}, fits))
    return min(found, key=lambda each: each[1]["mean_error"])


def _packed(speeds: dict, constants: dict, case: Case) -> tuple[float, float]:
    made = packed(case.engine, constants, speeds[case], case.threads)
    return made.latency(_stored(case.model, case.engine), case.batch, case.prompt_tokens,
                        case.new_tokens)


def _compiled(table: Table, constants: dict, case: Case) -> tuple[float, float]:
    return CompiledTime(constants, table).latency(
        _stored(case.model, case.engine), case.batch, case.prompt_tokens, case.new_tokens)


def _fit(start, predict, times, trust: float) -> tuple[dict, dict]:
    measured = np.array([seen[name] for _, seen in times for name in METRICS])

    def all_of(constants):
        return np.array([seconds for case, _ in times for seconds in predict(constants, case)])

    found = fitting.fit(start, all_of, measured, trust, _firm)
    predicted = all_of(found)
    errors = np.abs(predicted / measured - 1)
    return found, {"median_error": float(np.median(errors)), "mean_error": float(np.mean(errors)),
                   "p95_error": float(np.percentile(errors, 95)), "times": len(measured),
                   "measured": [[dataclasses.asdict(case), *map(float, pair)] for (case, _), pair
                                in zip(times, measured.reshape(-1, 2), strict=True)],
                   "predicted": predicted.reshape(-1, 2).tolist()}


def _firm(name: str) -> float:
    """How much more a constant is trusted than others. What bandwidth is measured with is as fast
    as the kernels within a few per cent: the reaches must not learn how busy memory was."""
    return 50 if name.startswith("reach") else 3 if name.startswith("products") else 1


@functools.cache
def _stored(model: str, engine: str):
    return shapes.decoder(cases.MODELS[model], model).stored(Formats.of_engine(engine))
