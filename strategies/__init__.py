"""The strategies: one technique a file, each from a LanguageModel to a LanguageModel.

    strategy = strategies.create("mirrored")
    with strategy.scope():
        model = strategy.apply(tfspeed.load("smollm2-135m"), data=None)
"""

import importlib

from strategies.base import Composition, Strategy
from tfspeed.errors import TfspeedError

# Modules are imported only when their strategy is asked for.
STRATEGIES = {
    "baseline": "strategies.baseline:Baseline",
    "bfloat16": "strategies.cast:Bfloat16",
    "cluster": "strategies.cluster:Cluster",
    "dataflow": "strategies.dataflow:Dataflow",
    "distill": "strategies.distill:Distill",
    "float16": "strategies.cast:Float16",
    "keras_quantize": "strategies.keras_quantize:KerasQuantize",
    "low_rank": "strategies.low_rank:LowRank",
    "mirrored": "strategies.mirrored:Mirrored",
    "multi_worker": "strategies.multi_worker:MultiWorker",
    "prune": "strategies.prune:Prune",
    "prune_structured": "strategies.prune_structured:PruneStructured",
    "quantize": "strategies.quantize:Quantize",
    "speculative": "strategies.speculative:Speculative",
    "tensor_parallel": "strategies.tensor_parallel:TensorParallel",
}


def find(name: str) -> type[Strategy]:
    """The class behind one name."""
    if name not in STRATEGIES:
        raise TfspeedError(
            "--strategy must be one strategy, or several joined by '+'.", strategy=name,
            hint=f"Known: {', '.join(STRATEGIES)}; `scripts/run.py --strategy=list` describes "
                 "them.")
    module, _, attribute = STRATEGIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def create(names: str, options: dict | None = None) -> Strategy:
    """Makes the strategy (or composition, left to right) that `names` spells: `a` or `a+b`.

    Args:
        names: as given to `--strategy`.
        options: an `Options` object by strategy name; defaults where missing.
    """
    options = options or {}
    parts = [name.strip() for name in names.split("+")]
    for name in parts:
        if parts.count(name) > 1:
            raise TfspeedError("A strategy can be named once.", strategy=names)
    classes = [find(name) for name in parts]
    deploying = [cls.name for cls in classes if cls.deploys]
    if len(deploying) > 1:
        raise TfspeedError("One strategy decides what runs where.", strategy=names,
                           hint=f"Keep one of {' and '.join(deploying)}; tensor_parallel goes with "
                                "mirrored or multi_worker.")
    spreading = [cls.name for cls in classes if cls.spreads]
    if len(spreading) > 1:
        raise TfspeedError("One strategy splits the model: a pipeline takes all workers, and each "
                           "of them one device.", strategy=names,
                           hint=f"Keep one of {' and '.join(spreading)}.")
    made = [cls(options.get(name)) for name, cls in zip(parts, classes, strict=True)]
    return made[0] if len(made) == 1 else Composition(made)


def describe() -> dict[str, str]:
    """One line about each strategy: the first of its module's docstring."""
    lines = {}
    for name in STRATEGIES:
        module = importlib.import_module(find(name).__module__)
        lines[name] = (module.__doc__ or "").strip().splitlines()[0]
    return lines
