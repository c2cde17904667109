"""Mappings beside all that there are: 200 random graphs, chains, and mistakes."""

import numpy as np
import pytest

from tfspeed.dataflow import chain, heft
from tfspeed.dataflow.problem import Links, Problem, exhaustive
from tfspeed.errors import TfspeedError


def random_problem(seed: int, chained: bool = False) -> Problem:
    """Two to eight nodes, two or three processors of other speeds, links of other speeds."""
    random = np.random.default_rng(seed)
    nodes, processors = int(random.integers(2, 9)), int(random.integers(2, 4))
    costs = random.uniform(1, 10, (nodes, 1)) / random.uniform(0.5, 2, (1, processors))
    if random.random() < 0.3:  # processors of other kinds
        costs = costs * random.uniform(0.5, 2, costs.shape)
    edges = {(i, j): float(random.uniform(0, 6)) for i in range(nodes) for j in range(i + 1, nodes)
             if (j == i + 1 if chained else random.random() < 0.35)}
    links = [[Links(float(random.uniform(0, 0.5)), float(random.uniform(1, 10)))
              for _ in range(processors)] for _ in range(processors)]
    return Problem(costs, edges, links)


def contiguous(problem, exactly=False):
    """All mappings of contiguous stages, each processor used at most once."""
    def grow(made):
        if len(made) == problem.nodes:
            if not exactly or len(set(made)) == problem.processors:
                yield made
            return
        for p in range(problem.processors):
            if not made or p == made[-1] or p not in made:
                yield from grow([*made, p])

    return grow([])


@pytest.mark.parametrize("part", range(4))
def test_a_dag_is_mapped_within_five_percent_of_the_best(part):
    for seed in range(50 * part, 50 * (part + 1)):
        problem = random_problem(seed)
        best = problem.period(exhaustive(problem))
        found = problem.period(heft.mapping(problem))
        assert best * (1 - 1e-9) <= found <= 1.05 * best, seed


def test_a_chain_is_mapped_as_well_as_can_be():
    for seed in range(200):
        problem = random_problem(seed, chained=True)
        for exactly in (False, True):
            if exactly and problem.processors > problem.nodes:
                continue
            mapping = chain.stages(problem, exactly=exactly)
            every = list(contiguous(problem, exactly))
            assert mapping in every
            assert problem.period(mapping) == pytest.approx(min(map(problem.period, every))), seed


def test_two_phases_have_the_least_sum():
    for seed in range(100):
        first, second = random_problem(seed, True), random_problem(seed, True)
        second = Problem(second.costs[::-1], {}, second.links)
        found = chain.two_phases(first, second)
        best = min(first.period(m) + second.period(m) for m in contiguous(first))
        assert first.period(found) + second.period(found) == pytest.approx(best), seed


def test_the_period_counts_nodes_and_what_is_sent():
    problem = Problem([[1, 9], [3, 9], [5, 1]], {(0, 1): 8, (1, 2): 2, (0, 2): 4},
                      Links(0.5, 2.0))
    np.testing.assert_allclose(problem.loads([0, 0, 1]), [1 + 3 + 1.5 + 2.5, 1])
    assert problem.period([0, 0, 0]) == 9
    assert exhaustive(problem) == heft.mapping(problem) == [0, 0, 1]


def test_a_slow_link_leaves_all_on_one_processor():
    problem = Problem(np.ones((4, 2)), {(0, 1): 1, (1, 2): 1, (2, 3): 1}, Links(100))
    assert len(set(chain.stages(problem))) == 1
    assert chain.stages(problem, exactly=True) in ([0, 0, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1],
                                                   [1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0])
    assert len(set(heft.mapping(problem))) == 1


def test_stages_in_the_order_of_the_processors():
    problem = Problem([[1, 1], [1, 1], [4, 1]], {(0, 1): 1, (1, 2): 1})
    assert problem.period(chain.stages(problem, ordered=True)) == 2
    turned = Problem(problem.costs[:, ::-1], problem.edges)
    assert turned.period(chain.stages(turned)) == 2
    assert chain.stages(turned, ordered=True, exactly=True) == [0, 0, 1]


def test_many_processors_keep_their_order():
    problem = Problem(np.ones((32, 8)), {(i, i + 1): 1 for i in range(31)})
    assert chain.stages(problem, exactly=True) == [i // 4 for i in range(32)]


def test_mistakes_are_refused():
    with pytest.raises(TfspeedError, match="later one"):
        Problem([[1], [1]], {(1, 0): 1})
    with pytest.raises(TfspeedError, match="not negative"):
        Problem([[-1.0]], {})
    with pytest.raises(TfspeedError, match="each node to the next"):
        chain.stages(Problem(np.ones((3, 2)), {(0, 2): 1}))
    with pytest.raises(TfspeedError, match="more processors"):
        chain.stages(Problem(np.ones((2, 3)), {}), exactly=True)
    with pytest.raises(TfspeedError, match="Too many"):
        exhaustive(Problem(np.ones((32, 2)), {}))
