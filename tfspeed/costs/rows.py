"""What a row says of its prediction: `predicted` and `prediction_error`, keyed by the metric."""

import dataclasses
import functools

from tfspeed.costs import calibration, memory, shapes, workers
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.devices import default_device
from tfspeed.errors import TfspeedError
from tfspeed.litert.packed_cache import rounded_here

_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
_SPREAD = {"mirrored", *workers.STRATEGIES}


def with_prediction(row: dict, engine, threads: int, original) -> tuple[dict, str]:
    """What is to be added to a row, and to its notes ("" for nothing).

    Args:
        row: with its strategy, latencies, `batch`, `prompt_tokens` and `new_tokens`.
        engine: that made it.
        threads: that an operator could use.
        original: the model that the strategy was applied to.
    """
    try:
        predicted = _predicted(row, engine, threads, original)
    except TfspeedError as error:
        return {}, f"No prediction: {error}"
    errors = {name: value / _measured(row[name]) - 1 for name, value in predicted.items()
              if _measured(row.get(name))}
    return {"predicted": predicted, "prediction_error": errors}, ""


def _predicted(row: dict, engine, threads: int, original) -> dict:
    _check(row, engine)
    load = Load(row["batch"], row["prompt_tokens"], row["new_tokens"])
    shape = shapes.of(engine.model)
    if engine.devices:
        found = workers.mirrored(_predictor(), shape, engine.name, threads, len(engine.devices),
                                 load)
    else:
        found = _predictor().latency(shape, engine.name, threads, load)
    said = {name: found[name] for name in _LATENCIES if name in found}
    applying = memory.applying(row["strategy"].partition("(")[0], shapes.of(original), shape)
    if applying is not None:
        rounded = rounded_here(getattr(engine, "packed", None))
        need = memory.needed(shape, engine.name, *dataclasses.astuple(load), rounded).total
        said["peak_rss_bytes"] = max(need, applying)
    return said


@functools.cache
def _predictor() -> Predictor:
    return Predictor(calibration.load())


def _check(row: dict, engine) -> None:
    """Refuses what the models know nothing of."""
    if default_device().startswith("GPU"):
        raise TfspeedError("Times are predicted of CPUs.", device=default_device())
    spread = {part.partition("(")[0] for part in row["strategy"].split("+")} & _SPREAD
    if engine.devices and spread != {"mirrored"}:
        raise TfspeedError("Times are predicted of one device or of replicas: scripts/plan.py says "
                           "what workers would bring.", devices=len(engine.devices))
    if engine.model.speculation is not None:
        raise TfspeedError("What drafts save depends on the text.")


def _measured(value) -> float | None:
    return value["median"] if isinstance(value, dict) else value
