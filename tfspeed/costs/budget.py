"""What a point of the planner must keep to, and what is said where none does."""

import dataclasses
import math
from collections.abc import Sequence

from tfspeed.errors import TfspeedError


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


def why_none(points: Sequence, budget: Budget) -> TfspeedError:
    """What to say where no point keeps to a budget: which bound fails, and by how much."""
    said = []
    for name, bound in budget.bounds.items():
        for these, what in ((points, "nothing reaches it, the least is"),
                            ([p for p in points if p.meets(budget, but=name)],
                             "within the other bounds the least is")):
            best = min(these, key=lambda p: p.value(name), default=None)
            if best is not None and best.value(name) > bound:
                said.append(f"{name}={bound:g}: {what} {best.value(name):.4g} "
                            f"({_excess(best.value(name), bound)}), by {best.label} under "
                            f"{best.quality.engine} at batch {best.load.batch}")
                break
    if not said:
        said = ["each bound can be kept alone, but not the others without any one of them: widen "
                "two"]
    return TfspeedError("No configuration keeps to this budget: " + "; ".join(said) + ".",
                        **budget.bounds, hint="Widen that bound, or use a smaller model.")


def _excess(value: float, bound: float) -> str:
    if math.isinf(value):
        return "not known"
    if value < 1.1 * bound:
        return f"{100 * (value / bound - 1):.2g} % over the bound"
    return f"{value / bound:.2f} times the bound"
