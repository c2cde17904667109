"""One product of matrices, split over the replicas of any `tf.distribute` strategy.

    with strategy.scope():                 # none is needed: nothing is a variable
        split = SplitProduct(strategy, a, b, "rows")
    split().numpy()

`rows`: each replica has some rows of A and all of B, and makes those rows of the product;
`columns`: all of A and some columns of B; the parts are gathered. `inner`: some columns of A and
the rows of B that they meet; each makes a product of full size, and all are added up.
"""

import dataclasses
import time

import numpy as np
import rich.box
import rich.console
import rich.table
import tensorflow as tf

from tfspeed.affinity import check_cores, pinned
from tfspeed.costs import communication
from tfspeed.costs.communication import Cost, Link
from tfspeed.devices import available_cores, mirrored_strategy, per_replica, replica_devices
from tfspeed.errors import TfspeedError

# Which axis of A and of B is split, and along which the parts are gathered; None: whole, or added.
SPLITS = {"rows": (0, None, 0), "columns": (None, 1, 1), "inner": (1, 0, None)}
_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22)  # bytes of the messages that a link is fitted to


class SplitProduct:
    """`a @ b` over the replicas of a strategy; a call computes it anew and gives it whole.

    Args:
        a, b: float32 `[m, k]` and `[k, n]` on the host. What does not divide evenly is filled up
            with zeros, which are cut off again.
        split: one of `SPLITS`.
    """

    def __init__(self, strategy: tf.distribute.Strategy, a: np.ndarray, b: np.ndarray, split: str):
        self.strategy, self.shape = strategy, (a.shape[0], b.shape[1])
        self._gathered = SPLITS[split][2]
        self._operands = [_spread(strategy, m, axis)
                          for m, axis in zip((a, b), SPLITS[split], strict=False)]
        self._run = tf.function(self._product)

    def __call__(self) -> tf.Tensor:
        """float32 `[m, n]`."""
        return self._run(*self._operands)

    @property
    def cost(self) -> Cost:
        """Of putting the parts together."""
        collective = (communication.all_reduce if self._gathered is None
                      else communication.all_gather)
        return collective(self.strategy.num_replicas_in_sync, 4 * self.shape[0] * self.shape[1])

    def _product(self, a, b):
        parts = self.strategy.run(tf.matmul, args=(a, b))
        if self._gathered is None:
            return self.strategy.reduce("SUM", parts, axis=None)
        rows, columns = self.shape
        return self.strategy.gather(parts, axis=self._gathered)[:rows, :columns]


def _spread(strategy, matrix: np.ndarray, axis: int | None):
    """Equal parts along an axis, or the whole, on each replica."""
    count = strategy.num_replicas_in_sync
    if axis is None:
        parts = [matrix] * count
    else:
        missing = [(0, -matrix.shape[i] % count if i == axis else 0) for i in range(2)]
        parts = np.split(np.pad(matrix, missing), count, axis)
    return per_replica(strategy, parts)


def measure_link(strategy: tf.distribute.Strategy, repetitions: int = 20) -> Link:
    """Latency and bandwidth between the replicas of a strategy, from gathers of four sizes."""
    count = strategy.num_replicas_in_sync
    gather = tf.function(lambda value: strategy.gather(value, axis=0))
    values = [strategy.experimental_distribute_values_from_function(
        lambda context, size=size: tf.zeros((size // 4 // count,))) for size in _SIZES]
    for value in values:
        gather(value)
    seconds = [[_seconds(lambda v=value: gather(v)) for value in values]
               for _ in range(repetitions)]
    messages = communication.all_gather(count, 0).messages
    link = communication.fit([communication.all_gather(count, size).sent_bytes for size in _SIZES],
                             np.median(seconds, axis=0).tolist())
    return Link(link.alpha_s / messages, link.bytes_per_s)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of a split product with one device's.

    Attributes:
        single_s, split_s: seconds of each repetition.
        difference: the largest between two elements, relative to the largest element.
        cost, link: of putting the parts together.
        expected_speedup: the whole on one device, by an equal share of it and the exchange.
    """

    single_s: list[float]
    split_s: list[float]
    difference: float
    cost: Cost
    link: Link
    expected_speedup: float

    @property
    def speedup(self) -> float:
        return float(np.median(self.single_s) / np.median(self.split_s))


def compare(strategy: tf.distribute.Strategy, size: int, split: str, repetitions: int,
            single_cores: int, most: float) -> Comparison:
    """Times both in turn.

    Args:
        single_cores: that the one device may use; 0: all.
        most: how many times what the one device has all replicas have together (cores, devices).
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    whole = tf.constant(a), tf.constant(b)
    single = tf.function(lambda: tf.matmul(*whole))
    product = SplitProduct(strategy, a, b, split)
    wanted, found = single().numpy(), product().numpy()
    link = measure_link(strategy)
    times: list[list[float]] = [[], []]
    for number in range(repetitions):
        for which in (0, 1) if number % 2 else (1, 0):
            with pinned(0 if which else single_cores):
                times[which].append(_seconds((single, product)[which]))
    share = np.median(times[0]) / min(strategy.num_replicas_in_sync, most)
    expected = np.median(times[0]) / (share + product.cost.seconds(link))
    return Comparison(*times, float(np.abs(found - wanted).max() / np.abs(wanted).max()),
                      product.cost, link, float(expected))


def _seconds(function) -> float:
    start = time.perf_counter()
    function().numpy()
    return time.perf_counter() - start


def run(flags) -> int:
    """Does what the flags of `scripts/matmul.py` say; returns an exit code: 1 where the products
    differ by more than float32's rounding explains."""
    for name, most in (("size", 20_000), ("repetitions", 10_000)):
        if not 1 <= flags[name].value <= most:
            raise TfspeedError(f"--{name} must lie in [1, {most}].", **{name: flags[name].value})
    if flags.split not in SPLITS:
        raise TfspeedError(f"--split must be one of {', '.join(SPLITS)}.", split=flags.split)
    check_cores("cores_for_baseline", flags.cores_for_baseline)
    devices = replica_devices(flags.devices)
    most = len(devices)
    if devices[0].startswith("CPU"):
        most = available_cores() / (flags.cores_for_baseline or available_cores())
    found = compare(mirrored_strategy(devices), flags.size, flags.split, flags.repetitions,
                    flags.cores_for_baseline, most)
    _print(found, devices, flags)
    # Sums of `size` products in another order: the error grows with their number at most.
    return 0 if found.difference <= flags.size * 2**-23 else 1


def _single(flags) -> str:
    cores = flags.cores_for_baseline
    return "one device" + (f", {cores} core{'s' * (cores > 1)}" if cores else "")


def _print(found: Comparison, devices, flags) -> None:
    size, operations = flags.size, 2 * flags.size**3
    table = rich.table.Table(title=f"{size} x {size} times {size} x {size}, split by {flags.split}",
                             box=rich.box.SIMPLE, title_justify="left")
    for name in ("", "ms", "spread", "GFLOP/s"):
        table.add_column(name, justify="left" if not name else "right")
    for name, seconds in ((_single(flags), found.single_s),
                          (f"{len(devices)} devices", found.split_s)):
        low, middle, high = np.percentile(seconds, (5, 50, 95))
        table.add_row(name, f"{1e3 * middle:.2f}", f"{1e3 * low:.2f}–{1e3 * high:.2f}",
                      f"{operations / middle / 1e9:.0f}")
    rich.console.Console().print(table)
    print(f"speed-up: {found.speedup:.2f}x; expected: {found.expected_speedup:.2f}x")
    print(f"exchanged: {found.cost.sent_bytes / 1e6:.2f} MB sent by each device in "
          f"{found.cost.messages} messages, {1e3 * found.cost.seconds(found.link):.2f} ms by the "
          f"link measured here ({1e6 * found.link.alpha_s:.0f} us, "
          f"{found.link.bytes_per_s / 1e9:.2f} GB/s)")
    print(f"largest difference from one device: {found.difference:.1e} of the largest element")
