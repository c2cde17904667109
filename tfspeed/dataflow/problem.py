"""What a mapping of a graph to processors is judged by: the slowest one, transfers counted."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from tfspeed.errors import TfspeedError

_MOST = 2_000_000  # mappings that `exhaustive` looks at


@dataclasses.dataclass(frozen=True)
class Links:
    """Every processor reaches every other, at one speed."""

    latency_s: float = 0.0
    bytes_per_s: float = float("inf")

    def seconds(self, size: float) -> float:
        return self.latency_s + size / self.bytes_per_s


class Problem:
    """Args:
        costs: seconds of each node on each processor, `[nodes, processors]`.
        edges: bytes by (from, to), from before to.
        links: a `Links`, or one for each pair of processors, `links[a][b]`.
    """

    def __init__(self, costs, edges: dict[tuple[int, int], int], links=None):
        self.costs = np.asarray(costs, float)
        if self.costs.ndim != 2 or 0 in self.costs.shape or not (
                np.isfinite(self.costs).all() and (self.costs >= 0).all()):
            raise TfspeedError("A mapping needs nodes, processors, and a cost that is not negative "
                               "for each pair of them.", shape=self.costs.shape)
        if bad := [edge for edge in edges if not 0 <= edge[0] < edge[1] < len(self.costs)]:
            raise TfspeedError("An edge must lead from a node to a later one.", edge=bad[0])
        links = Links() if links is None else links
        if isinstance(links, Links):
            links = [[links] * self.processors] * self.processors
        self.edges, self.links = dict(edges), links

    @property
    def nodes(self) -> int:
        return len(self.costs)

    @property
    def processors(self) -> int:
        return self.costs.shape[1]

    def transfer(self, size: float, a: int, b: int) -> float:
        """Seconds for so many bytes between two processors."""
        return 0.0 if a == b else self.links[a][b].seconds(size)

    def sending(self, node: int, a: int, b: int) -> float:
        """Seconds for what a node of a chain sends to the next."""
        edge = node, node + 1
        return self.transfer(self.edges[edge], a, b) if edge in self.edges else 0.0

    def loads(self, mapping: Sequence[int]) -> np.ndarray:
        """Seconds that each processor is busy for one item of the stream: its nodes, and sending
        what they make to nodes elsewhere."""
        loads = np.zeros(self.processors)
        for node, processor in enumerate(mapping):
            loads[processor] += self.costs[node, processor]
        for (a, b), size in self.edges.items():
            loads[mapping[a]] += self.transfer(size, mapping[a], mapping[b])
        return loads

    def period(self, mapping: Sequence[int]) -> float:
        """Seconds between two items of a stream that is long enough: the slowest processor's."""
        return float(self.loads(mapping).max())


def exhaustive(problem: Problem) -> list[int]:
    """The best of all mappings: for small graphs, to check others by.

    Raises:
        TfspeedError: there are more than two million.
    """
    nodes, processors = problem.costs.shape
    if processors ** nodes > _MOST:
        raise TfspeedError("Too many mappings to look at each.", nodes=nodes,
                           processors=processors, hint="Use chain or heft.")
    every = np.array(list(itertools.product(range(processors), repeat=nodes)), int)
    loads = np.zeros((len(every), processors))
    rows = np.arange(len(every))
    for node in range(nodes):
        loads[rows, every[:, node]] += problem.costs[node, every[:, node]]
    for (a, b), size in problem.edges.items():
        sent = np.array([[problem.transfer(size, p, q) for q in range(processors)]
                         for p in range(processors)])
        loads[rows, every[:, a]] += sent[every[:, a], every[:, b]]
    return every[loads.max(1).argmin()].tolist()
