"""The planner's choice beside a grid of configurations that are all measured: how far it is from
the best of them, and what the measuring would have cost."""

import dataclasses
from collections.abc import Callable

import numpy as np

from tfspeed.costs import planner
from tfspeed.costs.budget import Budget
from tfspeed.costs.cases import DEFAULT_MODEL, METRICS, Case
from tfspeed.costs.observing import by_round
from tfspeed.costs.planner import Point
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.qualities import Quality
from tfspeed.costs.shapes import Shape

ENGINES = ("graph", "xla", "fused", "fused:float16", "fused:int8", "fused:int4",
           "fused:int4,head=int4")
BATCHES = 1, 4, 16
PROMPT_TOKENS, NEW_TOKENS = 64, 24
_TPOT_MS = 4, 8, 16, 32  # bounds under which the most tokens a second are looked for


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a point is wanted for: the least `cost` of those that `allowed` lets through."""

    name: str
    allowed: Callable[[Point], bool]
    cost: Callable[[Point], float]


def goals() -> list[Goal]:
    """The fastest of a batch, with and without rounded weights; the most tokens a second, within
    some times per token."""
    found = []
    for batch in BATCHES:
        for kind, kept in (("any", ""), ("at least 8 bits", "int4"), ("floats", "int")):
            found.append(Goal(f"fastest at batch {batch}, {kind}",
                              lambda p, batch=batch, kept=kept: p.load.batch == batch
                              and not (kept and kept in p.quality.engine), lambda p: p.e2e_s))
    for bound in _TPOT_MS:
        found.append(Goal(f"most tokens/s within {bound} ms each",
                          lambda p, bound=bound: p.meets(Budget(tpot_ms=bound)),
                          lambda p: 1 / p.output_tokens_per_s))
    return found


def predicted(shape: Shape, predictor: Predictor, threads: list[int]) -> list[Point]:
    """The points of the grid."""
    known = [Quality("baseline", (), engine, None, "") for engine in ENGINES]
    loads = [Load(batch, PROMPT_TOKENS, NEW_TOKENS) for batch in BATCHES]
    return planner.search(shape, predictor, known, loads, threads, 1, max(threads))


def case(point: Point) -> Case:
    return Case(DEFAULT_MODEL, point.quality.engine, point.threads, point.load.batch,
                PROMPT_TOKENS, NEW_TOKENS)


def measured(point: Point, seen: list[dict]) -> Point:
    """The point with the times that an `Observer` saw in several rounds: how fast it is says their
    median, whether it keeps a bound on `tpot_s` the slowest of them."""
    firsts, steps = (by_round(seen, name) for name in METRICS)
    first, each = float(np.median(firsts)), float(np.median(steps))
    return dataclasses.replace(point, ttft_s=first, tpot_s=max(steps),
                               e2e_s=first + (NEW_TOKENS - 1) * each)


def contenders(goal: Goal, guesses: list[Point]) -> list[Point]:
    """Those that a glance shall tell apart: what may be the best if its bounds are kept, and the
    best of those that surely keep them."""
    hoped, sure = ([p for p in guesses if goal.allowed(_slower(p, times))]
                   for times in (1 / (1 + planner.DOUBT), 1 + planner.DOUBT))
    found = planner.contenders(hoped, goal.cost)
    return found + [p for p in planner.contenders(sure, goal.cost)[:1] if p not in found]


def _slower(point: Point, times: float) -> Point:
    return dataclasses.replace(point, ttft_s=times * point.ttft_s, tpot_s=times * point.tpot_s)


def choose(goal: Goal, guesses: list[Point], glances: dict[Case, Point]) -> Point | None:
    """Of the contenders the best as they were seen at a glance, or predicted where they were not;
    the fastest if none keeps the bounds, None if there is no contender."""
    seen = [(p, glances.get(case(p), p)) for p in contenders(goal, guesses)]
    kept = [pair for pair in seen if goal.allowed(pair[1])]
    if kept:
        return min(kept, key=lambda pair: goal.cost(pair[1]))[0]
    return min(seen, key=lambda pair: pair[1].tpot_s)[0] if seen else None


def judge(guesses: list[Point], truths: list[Point],
          glances: dict[Case, Point] | None = None) -> list[dict]:
    """For each goal that can be reached: what the planner chooses, what the measurements would,
    how much the one is `behind` the other (0 where they are the same), and whether it is `allowed`
    as it was measured: a bound may be broken that was meant to be kept.

    Args:
        truths: the points of `guesses`, in their order, as they were measured.
        glances: contenders as the planner measured them, before and on its own.
    """
    rows = []
    for goal in goals():
        point = choose(goal, guesses, glances or {})
        able = [i for i, truth in enumerate(truths) if goal.allowed(truth)]
        if point and able:
            chosen = guesses.index(point)
            best = min(able, key=lambda i: goal.cost(truths[i]))
            rows.append({"goal": goal.name, "chosen": _label(truths[chosen]),
                         "best": _label(truths[best]),
                         "behind": goal.cost(truths[chosen]) / goal.cost(truths[best]) - 1,
                         "allowed": goal.allowed(truths[chosen])})
    return rows


def _label(point: Point) -> str:
    return f"{point.quality.engine}, {point.threads} threads, batch {point.load.batch}"
