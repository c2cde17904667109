"""Exact mapping of a chain to processors: contiguous stages, by dynamic programming.

A stage costs its nodes on its processor, and sending what its last node makes. The state is where a
stage begins, its processor, and which processors are still free, so processors and links may all be
different (the chains-on-chains problem, Bokhari 1988, with transfers).
"""

import functools

import numpy as np

from tfspeed.dataflow.problem import Problem
from tfspeed.errors import TfspeedError

_ANY_ORDER = 6  # processors; of more, stages take the first to the last in their order


def stages(problem: Problem, limits: Problem | None = None, limit: float = float("inf"),
           exactly: bool = False, ordered: bool = False, busy=None) -> list[int] | None:
    """A mapping with the least period among those of contiguous stages, each processor used once.

    Args:
        limits: the same chain with other costs, under which no stage may take more than `limit`.
        exactly: whether all processors must have a stage; else some may be left without.
        ordered: whether stages take processors in their order, as they do where there are many.
        busy: seconds that each processor works beside, if it has a stage.

    Returns:
        The processor of each node; None where `limit` allows no mapping.
    """
    if set(problem.edges) - {(i, i + 1) for i in range(problem.nodes - 1)}:
        raise TfspeedError("A chain has edges from each node to the next only.",
                           hint="Use heft for other graphs.")
    count = problem.nodes
    if exactly and problem.processors > count:
        raise TfspeedError("There are more processors than nodes for them.", nodes=count,
                           processors=problem.processors)
    ordered = ordered or problem.processors > _ANY_ORDER
    kinds = [problem] if limits is None else [problem, limits]
    sums = [np.vstack([np.zeros(k.processors), np.cumsum(k.costs, 0)]) for k in kinds]
    busy = np.zeros(problem.processors) if busy is None else busy

    def cost(kind, begin, end, processor, following):
        k = kinds[kind]
        seconds = busy[processor] + sums[kind][end, processor] - sums[kind][begin, processor]
        return seconds if following is None else seconds + k.sending(end - 1, processor, following)

    @functools.cache
    def best(begin: int, processor: int, free: tuple[int, ...]):
        """The least period of the nodes from `begin`, and where the first stage ends."""
        found = (float("inf"), None, None)
        if not (exactly and free) and (limits is None
                                       or cost(1, begin, count, processor, None) <= limit):
            found = cost(0, begin, count, processor, None), count, None
        for following in free[:1] if ordered else free:
            left = tuple(p for p in free if p != following)
            for end in range(begin + 1, count):
                if cost(0, begin, end, processor, None) >= found[0] or (
                        limits is not None and cost(1, begin, end, processor, None) > limit):
                    break  # it only grows
                seconds = cost(0, begin, end, processor, following)
                if seconds < found[0] and (limits is None or cost(
                        1, begin, end, processor, following) <= limit):
                    seconds = max(seconds, best(end, following, left)[0])
                    if seconds < found[0]:
                        found = seconds, end, following
        return found

    everyone = range(problem.processors)
    first = min((0,) if ordered else everyone,
                key=lambda p: best(0, p, tuple(q for q in everyone if q != p))[0])
    mapping, begin, processor = [], 0, first
    free = tuple(q for q in everyone if q != first)
    if best(0, processor, free)[1] is None:
        return None
    while True:
        _, end, following = best(begin, processor, free)
        mapping += [processor] * (end - begin)
        if following is None:
            return mapping
        begin, processor = end, following
        free = tuple(p for p in free if p != following)


def two_phases(first: Problem, second: Problem, exactly: bool = False,
               ordered: bool = False) -> list[int]:
    """The mapping with the least sum of both periods, for work in two phases (prefill, then decode)
    on the same stages. Exact: for every period that the first phase may have, the least of the
    second; those that cannot win are left out."""
    found = [stages(problem, exactly=exactly, ordered=ordered) for problem in (first, second)]
    least_first, least_second = first.period(found[0]), second.period(found[1])

    def total(mapping):
        return first.period(mapping) + second.period(mapping)

    best = min(found, key=total)
    for limit in _periods(first):
        if limit < least_first:
            continue
        if limit + least_second >= total(best):
            break
        mapping = stages(second, first, limit * (1 + 1e-9), exactly, ordered)
        if mapping is not None:
            best = min(best, mapping, key=total)
    return best


def _periods(problem: Problem) -> list[float]:
    """What a stage may cost, each once, the smallest first."""
    sums = np.vstack([np.zeros(problem.processors), np.cumsum(problem.costs, 0)])
    several, found = range(problem.processors), set()
    for end in range(1, problem.nodes + 1):
        for begin in range(end):
            for p in several:
                spent = sums[end, p] - sums[begin, p]
                found |= {spent} if end == problem.nodes else {
                    spent + problem.sending(end - 1, p, q) for q in several if q != p}
    return sorted(found)
