"""What more workers would bring, on paper: from the model's sizes and the machine's, no run.

One decode step reads every weight once (that is what bounds it at small batches), so a worker takes
`bytes / bandwidth`. What is not in it: the cache, compute, host time, waiting for the slowest
worker, links that others use too. Real runs are slower; what loses here loses there.
"""

import dataclasses

from tfspeed.costs import communication, shapes
from tfspeed.costs.communication import Link
from tfspeed.costs.shapes import Shape
from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig

WORKERS = tuple(2**i for i in range(11))  # to 1,024


@dataclasses.dataclass(frozen=True)
class Machine:
    """One worker.

    Attributes:
        bytes_per_s: at which it reads its memory.
        flops_per_s: multiply-adds counted as two; a training step is bound by them.
        link: to each of the others.
    """

    bytes_per_s: float
    flops_per_s: float
    link: Link

    def __post_init__(self):
        if not (self.bytes_per_s > 0 and self.flops_per_s > 0):
            raise TfspeedError("A worker reads and computes at more than 0 a second.",
                               bytes_per_s=self.bytes_per_s, flops_per_s=self.flops_per_s)


@dataclasses.dataclass(frozen=True)
class Point:
    """One step with a number of workers.

    Attributes:
        work_s, exchange_s: one after the other; nothing overlaps.
        speedup: over one worker: steps a second, or, where each adds a share of its own, tokens.
    """

    workers: int
    work_s: float
    exchange_s: float
    speedup: float

    @property
    def efficiency(self) -> float:
        return self.speedup / self.workers


def tensor_parallel(config: DecoderConfig, machine: Machine, itemsize: int,
                    batch: int = 1) -> list[Point]:
    """A decode step of `batch` rows, heads and columns spread over the workers as
    `strategies/tensor_parallel.py` does: whole groups of heads, the rest filled up with zeros;
    embedding and head whole on each; one sum after each half of a layer."""
    sums = (1 if config.parallel_residual else 2) * config.num_layers

    whole = shapes.decoder(config)

    def point(workers):
        work = itemsize * _read_weights(whole.shared_out(workers)) / machine.bytes_per_s
        cost = communication.all_reduce(workers, batch * config.hidden_dim * itemsize)
        return work, sums * cost.seconds(machine.link)

    return _points(point, own_share=False)


def data_parallel(config: DecoderConfig, machine: Machine, itemsize: int,
                  batch: int = 1) -> list[Point]:
    """A decode step of `batch` rows on each worker (`mirrored`, `multi_worker`): whole models,
    which exchange nothing but the tokens that they give."""

    def point(workers):
        cost = communication.all_gather(workers, 4 * batch * workers)
        work = itemsize * _read_weights(shapes.decoder(config)) / machine.bytes_per_s
        return work, cost.seconds(machine.link)

    return _points(point, own_share=True)


def data_parallel_training(config: DecoderConfig, machine: Machine, itemsize: int,
                           tokens: int) -> list[Point]:
    """A training step on `tokens` of each worker: six operations a weight and token (two forward,
    four backward, arXiv:2001.08361), then a sum of all gradients."""

    def point(workers):
        parameters = config.parameter_count
        cost = communication.all_reduce(workers, itemsize * parameters)
        return 6 * parameters * tokens / machine.flops_per_s, cost.seconds(machine.link)

    return _points(point, own_share=True)


def _points(point, own_share: bool) -> list[Point]:
    single = sum(point(1))
    found = []
    for workers in WORKERS:
        work, exchange = point(workers)
        speedup = single / (work + exchange) * (workers if own_share else 1)
        found.append(Point(workers, work, exchange, speedup))
    return found


def _read_weights(shape: Shape) -> int:
    """Weights that a step reads: of a table that is looked up it reads a row."""
    return shape.parameters - shape.table_values
