"""The constants of `calibration.py` from what was measured: fits of the times' models to them."""

import dataclasses
import functools

import numpy as np

from tfspeed.costs import cases, compiled_time, fitting, shapes
from tfspeed.costs.calibration import STARTS
from tfspeed.costs.cases import CACHED, METRICS, PACKED, UNCACHED, Case
from tfspeed.costs.compiled_time import CompiledTime
from tfspeed.costs.dot_table import Table
from tfspeed.costs.observing import (
    at_home,
    by_round,
    every_round,
    only_at_home,
    placement,
    usual_memory,
)
from tfspeed.costs.prediction import Bandwidth, packed, table
from tfspeed.devices import last_level_cache_bytes
from tfspeed.litert.formats import Formats

# In what a fit begins with: in general, and in the constants of other threads. Few times tell
# what TensorFlow's many operators cost.
_TRUST_PACKED, _TRUST_COMPILED = (0.05, 0.1), (0.1, 0.1)
_ONE_READING = 0.03  # standard error of the logarithm, where no second reading tells it
_OWN = "products", "reach", "blunt"  # constants of a number of threads


def fitted(seen, other: dict) -> tuple[dict, dict]:
    """The constants of a number of threads, and how well they fit.

    Args:
        seen: a `calibrating.Seen`.
        other: the constants of another number of threads; {} where there are none.
    """
    home = placement(every_round(seen.times))
    cases_seen = {engine: {case: at_home(moments, home) for case, moments in every.items()}
                  for engine, every in seen.times.items()}
    memory = usual_memory(every_round(cases_seen))
    cached = float(np.median([each["bandwidth"] for each in at_home(seen.reads, home)]))
    constants = {"bandwidth": [[CACHED, cached], [UNCACHED, memory]],
                 "placement": home and dataclasses.asdict(home)}
    fits = {}
    for engine, times in cases_seen.items():
        constants[engine], fits[engine] = fit(
            engine, [(case, _in_the_middle(moments)) for case, moments in times.items()],
            constants["bandwidth"],
            _middle_products(at_home(seen.products[engine], home),
                             only_at_home(seen.again[engine], home)),
            other.get(engine))
        fits[engine]["elsewhere"] = sum(not only_at_home(moments, home)
                                        for moments in seen.times[engine].values())
    return constants, fits


def _in_the_middle(moments: list[dict]) -> dict[str, float]:
    """Of each round the median, as where predictions are checked: the least of six generations is
    less than what one takes. Of several the median again."""
    rounds = {name: by_round(moments, name) for name in METRICS}
    return {name: float(np.median(seen)) for name, seen in rounds.items()} | {
        "memory": usual_memory(moments),
        "spread": [_doubt(np.log(seen)) for seen in rounds.values()]}


def _doubt(seen) -> float:
    """The standard error of some readings, of logarithms; what most have where there is one."""
    return float(np.std(seen) / (len(seen) - 1)**0.5) if len(seen) > 1 else _ONE_READING


def _middle_products(moments: list[dict], again: list[dict]) -> dict:
    """The median of each product; {} where none was timed.

    Args:
        again: some of their dots, timed once more.
    """
    if not moments:
        return {}
    more: dict[tuple, list[float]] = {}
    for *what, seconds in (row for found in again for row in found["dots"]):
        more.setdefault(tuple(what), []).append(seconds)
    tables = {name: [[*rows[0][:-1], float(np.median([*(row[-1] for row in rows),
                                                      *more.get(tuple(rows[0][:-1]), [])]))]
                     for rows in zip(*(found[name] for found in moments), strict=True)]
              for name in ("dots", "narrow")}
    return tables | {"cache": last_level_cache_bytes(), "unpacking": {
        bits: float(np.median([found["unpacking"][bits] for found in moments]))
        for bits in moments[0]["unpacking"]}}


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
        start = _begin(STARTS[engine] | {"cache": last_level_cache_bytes()}, other)
        return _fit(start, functools.partial(_packed, speeds), times,
                    _TRUST_PACKED[other is not None])
    start = _begin(compiled_time.STARTS[engine], other and other["constants"])
    found, fits = _fit(start, functools.partial(_compiled, table(products, other)), times,
                       _TRUST_COMPILED[other is not None])
    return {"constants": found, **products}, fits


def _begin(start: dict, other: dict | None) -> dict:
    """Where a fit begins: with the constants of other threads, but for those that correct what was
    measured with these, or say what threads hide from each other."""
    return start if other is None else other | {name: value for name, value in start.items()
                                                if name.startswith(_OWN)}


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

    found = fitting.fit(start, all_of, measured, trust, _firm,
                        np.array([spread for _, seen in times for spread in seen["spread"]]))
    predicted = all_of(found)
    errors = np.abs(predicted / measured - 1)
    return found, {"median_error": float(np.median(errors)), "mean_error": float(np.mean(errors)),
                   "p95_error": float(np.percentile(errors, 95)), "times": len(measured),
                   "measured": [[dataclasses.asdict(case), *map(float, pair)] for (case, _), pair
                                in zip(times, measured.reshape(-1, 2), strict=True)],
                   "predicted": predicted.reshape(-1, 2).tolist()}


def _firm(name: str) -> float:
    """How much more a constant is trusted than others. What bandwidth is measured with is as fast
    as the kernels within a few per cent: the reaches must not learn how busy memory was, nor
    `fetch`, of which many threads together tell little, nor the cache, which others use as well,
    what they take of it."""
    if name.startswith("reach"):
        return 50
    return 10 if name in ("fetch", "cache") else 3 if name.startswith("products") else 1


@functools.cache
def _stored(model: str, engine: str):
    return shapes.decoder(cases.MODELS[model], model).stored(Formats.of_engine(engine))
