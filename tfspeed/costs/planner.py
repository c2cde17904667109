"""Searches what could be run with the cost models, within budgets; nothing is run.

A point is a strategy, a format, an engine, threads, a batch and workers; its latencies are
predicted, its memory computed. How much perplexity it costs no formula knows: that comes from rows
that were measured, or else from `data/quality_priors.json`, which says of which model and is only
a prior for another.
"""

import dataclasses
import json
import math
from pathlib import Path

from tfspeed.costs import memory, workers
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.shapes import Shape, decoder
from tfspeed.errors import TfspeedError

PRIORS = Path(__file__).parents[1] / "data" / "quality_priors.json"
BATCHES = 1, 2, 4, 8, 16, 32


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a point must keep to; None: anything."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    max_perplexity_increase: float | None = None
    ram_gb: float | None = None

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise TfspeedError(f"--{name} must be above 0.", **{name: value})

    @property
    def bounds(self) -> dict[str, float]:
        """Those that are set."""
        return {name: value for name, value in dataclasses.asdict(self).items()
                if value is not None}


@dataclasses.dataclass(frozen=True)
class Quality:
    """How much perplexity rises, a fraction; None: not known. `source` says of what."""

    strategy: str
    options: tuple[tuple[str, object], ...]
    engine: str
    increase: float | None
    source: str


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

    def command(self, model: str) -> str:
        """What measures it."""
        options = "".join(f" --{name}={value}" for name, value in self.quality.options)
        more = f" --workers={self.workers}" if self.workers > 1 else f" --threads={self.threads}"
        engine = self.quality.engine
        return (f"python scripts/run.py --model={model} --strategy={self.strategy}{options} "
                f"--engine={engine}{more} --batch={self.load.batch} "
                f"--prompt_tokens={self.load.prompt_tokens} --new_tokens={self.load.new_tokens}")


def qualities(rows: list[dict] = (), model: str = "") -> list[Quality]:
    """The priors; where rows measured the same of this model, what they found."""
    try:
        told = json.loads(PRIORS.read_text(encoding="utf-8"))["priors"]
    except (OSError, ValueError, KeyError) as error:
        raise TfspeedError("The quality priors cannot be read.", path=str(PRIORS)) from error
    found = []
    for prior in told:
        options = tuple(prior.get("options", {}).items())
        increase, source = prior["perplexity_increase"], f"prior: {prior['source']}"
        label = _label(prior["strategy"], options)
        for row in rows:
            if (row["model"], row["strategy"], row["engine"]) == (model, label, prior["engine"]):
                increase, source = row.get("perplexity_delta", increase), "measured"
        found.append(Quality(prior["strategy"], options, prior["engine"], increase, source))
    return found


def _label(strategy: str, options) -> str:
    """As rows name it: with the options that are not the defaults."""
    from strategies import find
    cls = find(strategy).Options
    defaults = {f"{strategy}_{field.name}": field.default for field in dataclasses.fields(cls)}
    changed = [f"{name.removeprefix(strategy + '_')}={value}" for name, value in options
               if defaults[name] != value]
    return strategy + (f"({','.join(changed)})" if changed else "")


def search(shape: Shape, predictor: Predictor, known: list[Quality], loads: list[Load],
           threads: list[int], most_workers: int, cores: int) -> list[Point]:
    """Every point that there are constants for."""
    found = []
    for quality in known:
        changed = reshaped(shape, quality)
        for load in loads:
            need = memory.needed(changed, quality.engine, load.batch, load.prompt_tokens,
                                 load.new_tokens).total
            for count in threads:
                times = predictor.latency(changed, quality.engine, count, load)
                found.append(_point(quality, count, 1, load, times, need))
            for number in range(2, most_workers + 1):
                if number > cores or load.batch < number:
                    continue
                times = workers.multi_worker(predictor, changed, quality.engine, cores, number,
                                             load)
                each = dataclasses.replace(load, batch=-(-load.batch // number))
                need = number * memory.needed(changed, quality.engine, each.batch,
                                              load.prompt_tokens, load.new_tokens).total
                found.append(_point(quality, cores // number, number, load, times, need))
    return found


def _point(quality, threads, number, load, times, need) -> Point:
    return Point(quality, threads, number, load, times["ttft_s"], times.get("tpot_s", 0.0),
                 times["e2e_s"], need)


def reshaped(shape: Shape, quality: Quality) -> Shape:
    """What a strategy will make of a model's shape."""
    options = dict(quality.options)
    if quality.strategy == "low_rank":
        layers = sum(m.parameters for layer in shape.layers for m in layer)
        taken = options["low_rank_fraction"] * shape.parameters / layers
        return shape.thinned(1 - taken)
    if quality.strategy == "prune_structured":
        # As neurons: what heads it takes as well costs as much.
        c = shape.config
        layers = sum(m.parameters for layer in shape.layers for m in layer[2:])
        kept = 1 - options["prune_structured_fraction"] * shape.parameters / layers
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


def why_none(points: list[Point], budget: Budget) -> TfspeedError:
    """What to say where no point keeps to a budget: which bound fails, and by how much."""
    said = []
    for name, bound in budget.bounds.items():
        alone = min(p.value(name) for p in points)
        rest = [p.value(name) for p in points if p.meets(budget, but=name)]
        if alone > bound:
            said.append(f"{name}={bound:g}: nothing reaches it, the least is {alone:.4g} "
                        f"({_excess(alone, bound)})")
        elif rest and min(rest) > bound:
            said.append(f"{name}={bound:g}: within the other bounds the least is "
                        f"{min(rest):.4g} ({_excess(min(rest), bound)})")
    if not said:
        said = ["each bound can be kept alone, and no two of them left out one at a time let "
                "the others be kept: widen two"]
    return TfspeedError("No configuration keeps to this budget: " + "; ".join(said) + ".",
                        **budget.bounds, hint="Widen that bound, or use a smaller model.")


def _excess(value: float, bound: float) -> str:
    return "not known" if math.isinf(value) else f"{value / bound:.2f} times the bound"


def best(points: list[Point]) -> Point:
    """The one that is done first."""
    return min(points, key=lambda p: (p.e2e_s, p.memory_bytes))
