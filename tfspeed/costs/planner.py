"""Searches what could be run with the cost models, within budgets; nothing is run.

A point is a strategy, a format, an engine, threads, a batch and workers; its latencies are
predicted, its memory computed. How much perplexity it costs no formula knows: see `qualities.py`.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable

from tfspeed.costs import memory, workers
from tfspeed.costs.budget import Budget
from tfspeed.costs.origin import Origin
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.qualities import Quality
from tfspeed.costs.shapes import Shape, decoder
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats

BATCHES = 1, 2, 4, 8, 16, 32
DOUBT = 0.15  # within which two predictions are the same; see BUILD.md for their errors


@dataclasses.dataclass(frozen=True)
class Point:
    quality: Quality
    threads: int
    workers: int
    load: Load
    ttft_s: float
    tpot_s: float
    e2e_s: float
    memory_bytes: float

    @property
    def output_tokens_per_s(self) -> float:
        return self.load.batch * self.load.new_tokens / self.e2e_s

    def value(self, bound: str) -> float:
        """What is compared with a bound of the budget; infinite where it is not known."""
        increase = self.quality.increase
        return {"ttft_ms": 1e3 * self.ttft_s, "tpot_ms": 1e3 * self.tpot_s,
                "max_perplexity_increase": math.inf if increase is None else increase,
                "ram_gb": self.memory_bytes / 1e9}[bound]

    def meets(self, budget: Budget, but: str = "") -> bool:
        return all(self.value(name) <= bound for name, bound in budget.bounds.items()
                   if name != but)

    @property
    def strategy(self) -> str:
        """As `--strategy` takes it."""
        parts = [self.quality.strategy] if self.quality.strategy != "baseline" else []
        parts += ["multi_worker"] if self.workers > 1 else []
        return "+".join(parts) or "baseline"

    @property
    def label(self) -> str:
        """As rows name the strategy: with the options that are not the defaults."""
        return self.strategy.replace(self.quality.strategy, self.quality.made().label, 1)

    def command(self, model: str, limit: float | None = None) -> str:
        """What measures it; `limit` on perplexity, where there is one, is its gate as well."""
        options = "".join(f" --{name}={value}" for name, value in self.quality.options)
        if limit is not None:  # a gate is a fraction
            options += f" --max_perplexity_increase={limit if limit < 1 else math.inf:g}"
        more = f" --workers={self.workers}" if self.workers > 1 else f" --threads={self.threads}"
        return (f"python scripts/run.py --model={shlex.quote(model)} --strategy={self.strategy}"
                f"{options} --engine={self.quality.engine}{more} --batch={self.load.batch} "
                f"--prompt_tokens={self.load.prompt_tokens} --new_tokens={self.load.new_tokens}")


def search(shape: Shape, predictor: Predictor, known: list[Quality], loads: list[Load],
           threads: list[int], most_workers: int, cores: int,
           origin: Origin | None = None) -> list[Point]:
    """Every point whose times can be predicted.

    Args:
        origin: of the model whose shape it is, where it is known.

    Raises:
        TfspeedError: those of none can.
    """
    found, unknown, origin = [], None, origin or Origin()
    for quality in known:
        try:
            changed = reshaped(shape, quality)
            held = memory.applying(quality.strategy, shape, changed, origin.tokens) or 0

            def peak(load, quality=quality, changed=changed, held=held):
                return max(held, _needed(changed, quality, load, origin))

            for load in loads:
                found += _alone(changed, predictor, quality, load, threads, peak)
                for number in range(2, min(most_workers, cores // predictor.least_threads,
                                           load.batch) + 1):
                    found.append(_together(changed, predictor, quality, load, number, cores,
                                           peak))
        except TfspeedError as error:
            unknown = unknown or error
    if unknown and not found:
        raise unknown
    return found


def _needed(shape, quality, load, origin) -> float:
    # What a strategy makes of the weights is rounded anew.
    rounded = quality.strategy != "baseline" or quality.engine not in origin.kept
    return memory.needed(shape, quality.engine, *dataclasses.astuple(load), rounded,
                         origin.tokens, origin.file).total


def _alone(shape, predictor, quality, load, threads, peak) -> list[Point]:
    return [_point(quality, count, 1, load,
                   predictor.latency(shape, quality.engine, count, load), peak(load))
            for count in threads]


def _together(shape, predictor, quality, load, number, cores, peak) -> Point:
    """Of `number` workers that share the cores and the batch."""
    times = workers.multi_worker(predictor, shape, quality.engine, cores, number, load)
    part = dataclasses.replace(load, batch=-(-load.batch // number))
    return _point(quality, cores // number, number, load, times, number * peak(part))


def _point(quality, threads, number, load, times, need) -> Point:
    return Point(quality, threads, number, load, times["ttft_s"], times.get("tpot_s", 0.0),
                 times["e2e_s"], need)


def reshaped(shape: Shape, quality: Quality) -> Shape:
    """What a strategy will make of a model's shape.

    Raises:
        TfspeedError: it cannot take away so much, or another one has been at work already.
    """
    options = dict(quality.options)
    if quality.strategy == "baseline":
        return shape
    if any(m.rank or m.bits < 32 for m in shape.matrices):
        raise TfspeedError("What a strategy does is predicted of float32 models that none has "
                           "changed yet.", strategy=quality.strategy, model=shape.name)
    if quality.strategy == "quantize":
        return shape.stored(Formats("int4" if options.get("quantize_bits") == 4 else "int8"))
    if quality.strategy == "low_rank":
        layers = sum(m.parameters for layer in shape.layers for m in layer)
        taken = options["low_rank_fraction"] * shape.parameters / layers
        return shape.thinned(1 - taken)
    if quality.strategy == "prune_structured":
        # As neurons: what heads it takes as well costs as much.
        c = shape.config
        layers = sum(m.parameters for layer in shape.layers for m in layer[2:])
        kept = 1 - options["prune_structured_fraction"] * shape.parameters / layers
        if kept <= 0:
            raise TfspeedError("The layers do not have so many parameters.", model=shape.name)
        dims = tuple(max(32, round(kept * width / 32) * 32)
                     for width in (c.mlp_dims or (c.mlp_dim,) * c.num_layers))
        return decoder(dataclasses.replace(c, mlp_dim=max(dims), mlp_dims=dims), shape.name)
    return shape


def front(points: list[Point]) -> list[Point]:
    """Those that no other beats in tokens a second, time per token, perplexity and memory."""
    def costs(p: Point):
        return (-p.output_tokens_per_s, p.tpot_s, p.value("max_perplexity_increase"),
                p.memory_bytes)

    kept: list[Point] = []
    for point in sorted(points, key=costs):
        if not any(all(a <= b for a, b in zip(costs(other), costs(point), strict=True))
                   for other in kept):
            kept.append(point)
    return kept


def contenders(points: list[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The one that costs least, and others that a prediction cannot tell from it, the best first;
    three at most, none of none: it is for a measurement to say which of them to use."""
    found = sorted(points, key=lambda p: (cost(p), p.memory_bytes))
    return [p for p in found[:3] if cost(p) <= (1 + DOUBT) * cost(found[0])]
