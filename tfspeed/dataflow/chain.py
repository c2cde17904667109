"""Exact mapping of a chain to processors: contiguous stages, by dynamic programming.

A stage costs its nodes on its processor, and sending what its last node makes. The state is where a
stage begins, its processor, and which processors are still free, so processors and links may all be
different (the chains-on-chains problem, Bokhari 1988, with transfers).
"""

import functools
from collections.abc import Sequence

import numpy as np

from tfspeed.dataflow.problem import Problem
from tfspeed.errors import TfspeedError

_ANY_ORDER = 6  # processors; of more, stages take the first to the last in their order


def stages(problem: Problem, limits: Problem | None = None, limit: float = float("inf"),
           exactly: bool = False) -> list[int] | None:
    """A mapping with the least period among those of contiguous stages, each processor used once.

    Args:
        limits: the same chain with other costs, under which no stage may take more than `limit`.
        exactly: whether all processors must have a stage; else some may be left without.

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
    kinds = [problem] if limits is None else [problem, limits]
    sums = [np.vstack([np.zeros(k.processors), np.cumsum(k.costs, 0)]) for k in kinds]

    def cost(kind, begin, end, processor, following):
        k = kinds[kind]
        seconds = sums[kind][end, processor] - sums[kind][begin, processor]
        return seconds if following is None else seconds + k.sending(end - 1, processor, following)

    @functools.cache
    def best(begin: int, processor: int, free: tuple[int, ...]):
        """The least period of the nodes from `begin`, and where the first stage ends."""
        found = (float("inf"), None, None)
        if not (exactly and free) and (limits is None
                                       or cost(1, begin, count, processor, None) <= limit):
            found = cost(0, begin, count, processor, None), count, None
        for following in free if problem.processors <= _ANY_ORDER else free[:1]:
            left = tuple(p for p in free if p != following) \
                if problem.processors <= _ANY_ORDER else free[1:]
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
    starts = everyone if problem.processors <= _ANY_ORDER else (0,)
    first = min(starts, key=lambda p: best(0, p, tuple(q for q in everyone if q != p))[0])
    mapping, begin, processor = [], 0, first
    free = tuple(q for q in everyone if q != first)
    if best(0, processor, free)[1] is None:
        return None
    while True:
        _, end, following = best(begin, processor, free)
        mapping += [processor] * (end - begin)
        if following is None:
            return mapping
        begin, processor, free = end, following, tuple(
            p for p in free if p != following) if problem.processors <= _ANY_ORDER else free[1:]


def two_phases(first: Problem, second: Problem, exactly: bool = False) -> list[int]:
    """The mapping with the least sum of both periods, for work in two phases (prefill, then decode)
    on the same stages. Exact: for every period that the first phase may have, the least of the
    second."""
    sums = np.vstack([np.zeros(first.processors), np.cumsum(first.costs, 0)])
    periods = set()
    for end in range(1, first.nodes + 1):
        for begin in range(end):
            for p in range(first.processors):
                spent = sums[end, p] - sums[begin, p]
                periods |= {spent} if end == first.nodes else {
                    spent + first.sending(end - 1, p, q) for q in range(first.processors) if q != p}
    found, least = None, float("inf")
    for limit in sorted(periods):
        if limit >= least:
            break  # the second phase takes some time too
        mapping = stages(second, first, limit * (1 + 1e-9), exactly)
        if mapping is not None and (total := _sum(first, second, mapping)) < least:
            found, least = mapping, total
    return found if found is not None else stages(second, exactly=exactly)


def _sum(first: Problem, second: Problem, mapping: Sequence[int]) -> float:
    return first.period(mapping) + second.period(mapping)
