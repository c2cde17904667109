"""What collectives cost: bytes that a worker sends, and seconds, by the alpha-beta model.

A message of m bytes takes `alpha + m / bandwidth` seconds (R. W. Hockney, Parallel Computing 20,
1994). The algorithms are those of TensorFlow's runtime on CPUs, and of NCCL's rings: see R. Thakur,
R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", 2005, and
P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms", 2009 (no algorithm sends less than
the ring). All workers send at the same time, and nothing else uses their links.

    all_reduce(workers=8, size=4 * 576).seconds(Link(alpha_s=20e-6, bytes_per_s=10e9))
"""

import dataclasses

from tfspeed.errors import TfspeedError


@dataclasses.dataclass(frozen=True)
class Link:
    """Between two workers.

    Attributes:
        alpha_s: seconds that a message takes however short it is.
        bytes_per_s: at which a long one flows, in one direction.
    """

    alpha_s: float
    bytes_per_s: float

    def __post_init__(self):
        if not (self.alpha_s >= 0 and self.bytes_per_s > 0):
            raise TfspeedError("A link has a latency of 0 s or more, and a bandwidth above 0.",
                               **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one collective.

    Attributes:
        messages: that follow one another, each waiting for the one before.
        sent_bytes: by the worker that sends most; in rings all send the same.
        total_bytes: by all workers.
        waited_bytes: in the messages that follow one another.
    """

    messages: int
    sent_bytes: float
    total_bytes: float
    waited_bytes: float

    def seconds(self, link: Link) -> float:
        return self.messages * link.alpha_s + self.waited_bytes / link.bytes_per_s


def _ring(workers: int, size: float, rounds: int) -> Cost:
    """In each round every worker sends the next one a part of `size / workers`."""
    _check(workers, size)
    sent = rounds / workers * size
    return Cost(rounds, sent, workers * sent, sent)


def all_reduce(workers: int, size: float) -> Cost:
    """Every worker gets the sum of all workers' `size` bytes: a ring that reduces and scatters,
    then gathers, in parts of `size / workers`."""
    return _ring(workers, size, 2 * (workers - 1))


def reduce_scatter(workers: int, size: float) -> Cost:
    """Every worker gets its part of the sum of all workers' `size` bytes."""
    return _ring(workers, size, workers - 1)


def all_gather(workers: int, size: float) -> Cost:
    """Every worker gets the parts of all, `size` bytes when they are put together."""
    return _ring(workers, size, workers - 1)


def broadcast(workers: int, size: float) -> Cost:
    """Every worker gets the `size` bytes of one: a binary tree, worker r hands them to 2r + 1 and
    then to 2r + 2 (TensorFlow's hierarchical_tree_broadcaster.cc)."""
    _check(workers, size)
    arrived = [0]  # after how many messages
    for worker in range(1, workers):
        arrived.append(arrived[(worker - 1) // 2] + (1 if worker % 2 else 2))
    last = max(arrived)
    return Cost(last, min(2, workers - 1) * size, (workers - 1) * size, last * size)


def point_to_point(size: float) -> Cost:
    """One worker sends `size` bytes to another."""
    _check(2, size)
    return Cost(1, size, size, size)


def fit(sizes: list[float], seconds: list[float]) -> Link:
    """The link that explains what messages of these sizes took: least squares of the relative
    errors, so that short messages count as much as long ones.

    Raises:
        TfspeedError: fewer than two sizes, or times that do not grow with them.
    """
    if len(set(sizes)) < 2 or len(sizes) != len(seconds) or min(seconds) <= 0:
        raise TfspeedError("A link is fitted to the times of messages of two sizes or more.",
                           sizes=sizes, seconds=seconds)
    # Weighted normal equations of seconds = alpha + size / bandwidth.
    weights = [1 / s**2 for s in seconds]
    total = sum(weights)
    mean_size = sum(w * x for w, x in zip(weights, sizes, strict=True)) / total
    mean_time = sum(w * s for w, s in zip(weights, seconds, strict=True)) / total
    spread = sum(w * (x - mean_size)**2 for w, x in zip(weights, sizes, strict=True))
    slope = sum(w * (x - mean_size) * (s - mean_time)
                for w, x, s in zip(weights, sizes, seconds, strict=True)) / spread
    if slope <= 0:
        raise TfspeedError("Longer messages must take longer: these times were disturbed.",
                           sizes=sizes, seconds=seconds, hint="Measure again.")
    return Link(max(0.0, mean_time - slope * mean_size), 1 / slope)


def _check(workers: int, size: float) -> None:
    if workers < 1 or size < 0:
        raise TfspeedError("A collective has one worker or more, and 0 bytes or more.",
                           workers=workers, size=size)
