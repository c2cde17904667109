"""What a row says of its prediction: `predicted` and `prediction_error`, keyed by the metric."""

import dataclasses
import functools

from tfspeed.cluster.addresses import from_environment
from tfspeed.costs import calibration, drafts, memory, origin, seq2seq_shapes, shapes, workers
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.devices import default_device
from tfspeed.errors import TfspeedError
from tfspeed.litert.packed_cache import rounded_here

_COUNTED = ("The prediction takes from this run how many drafts there were and how many of their "
            "tokens were right, which depends on the text.")
_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
_FORMULAS = workers.STRATEGIES | {"mirrored": workers.mirrored, "tensor_parallel": workers.shards}


def with_prediction(row: dict, engine, threads: int, original) -> tuple[dict, str]:
    """What is to be added to a row, and to its notes ("" for nothing).

    Args:
        row: with its strategy, latencies, `batch`, `prompt_tokens` and `new_tokens`.
        engine: that made it.
        threads: that an operator could use.
        original: the model that the strategy was applied to.
    """
    try:
        guesses = drafts.counted(row)
        predicted = _predicted(row, engine, threads, original, guesses)
    except TfspeedError as error:
        return {}, f"No prediction: {error}"
    errors = {name: value / _measured(row[name]) - 1 for name, value in predicted.items()
              if _measured(row.get(name))}
    return ({"predicted": predicted, "prediction_error": errors},
            " ".join(filter(None, (_COUNTED if guesses else "", _predictor().moved(threads)))))


def _predicted(row: dict, engine, threads: int, original, guesses) -> dict:
    spread = {part.partition("(")[0] for part in row["strategy"].split("+")} & set(_FORMULAS)
    _check(engine, spread)
    load = Load(row["batch"], row["prompt_tokens"], row["new_tokens"])
    # A pipeline's model has let go of the layers of others.
    shape = getattr(engine, "whole", None) or seq2seq_shapes.known(engine.model)
    if guesses:
        found = drafts.speculative(_predictor(), shape, engine.name, threads, load,
                                   engine.model.speculation, guesses)
    else:
        found = _latency(_predictor(), shape, engine, threads, load, spread)
    said = {name: found[name] for name in _LATENCIES if name in found}
    if shape.source or "+" in row["strategy"]:  # memory is known of one strategy, of decoders
        return said
    begin = origin.of(original)
    applying = memory.applying(row["strategy"].partition("(")[0], shapes.of(original), shape,
                               begin.tokens)
    if applying is not None:
        rounded = rounded_here(getattr(engine, "packed", None))
        need = memory.needed(shape, engine.name, *dataclasses.astuple(load), rounded,
                             begin.tokens, begin.file).total
        said["peak_rss_bytes"] = max(need, applying)
    return said


@functools.cache
def _predictor() -> Predictor:
    return Predictor(calibration.load()).now()


def _check(engine, spread: set[str]) -> None:
    """Refuses what the models know nothing of."""
    if default_device().startswith("GPU"):
        raise TfspeedError("Times are predicted of CPUs.", device=default_device())
    cluster = from_environment()
    if engine.devices and (len(spread) != 1 or (cluster and cluster.machines > 1)):
        raise TfspeedError("Times are predicted of one machine, and of one strategy that spreads a "
                           "model over it.", devices=len(engine.devices), spread=sorted(spread))


def _latency(predictor: Predictor, shape, engine, threads: int, load: Load,
             spread: set[str]) -> dict[str, float]:
    """Args:
        spread: names of the strategies that spread the model over devices, one where it is.
    """
    count = len(engine.devices)
    if not count:
        return predictor.latency(shape, engine.name, threads, load)
    # Replicas share the threads of a process; each worker has so many.
    cores = threads * count if engine.on_workers else threads
    more = {"groups": engine.microbatches} if "dataflow" in spread else {}
    return _FORMULAS[spread.pop()](predictor, shape, engine.name, cores, count, load, **more)


def _measured(value) -> float | None:
    return value["median"] if isinstance(value, dict) else value
