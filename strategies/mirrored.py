"""A copy of the model on every device (MirroredStrategy); the requests are shared out.

What changes: variables become MirroredVariables, one copy a replica; the rows of a batch are
split over the replicas, each generates its own, the results are gathered in order.
Why it is faster: replicas work at once. R devices with memory and cores of their own give up to
R times the output tokens per second of a batch.
When it is not: one request uses one replica, so batch-1 latency is that of a single device (the
other replicas idle). Logical CPU devices share the cores and the memory bus of one CPU: every
replica reads all the weights for its rows, where one device reads them once for the whole batch.
What it costs: memory for R copies of the weights. Nothing is exchanged while generating.
Exact: yes, the same tokens as on one device.
Source: https://www.tensorflow.org/guide/distributed_training#mirroredstrategy
"""

import copy
import dataclasses

import numpy as np
import tensorflow as tf

from strategies.base import Strategy, option
from tfspeed.devices import mirrored_strategy, per_replica, replica_devices
from tfspeed.models.language_model import Placement


@dataclasses.dataclass(frozen=True)
class Options:
    replicas: int = option(0, "copies of the model; 0: one on each GPU, or one on each core "
                              "without GPUs")


class Replicas(Placement):
    """Runs functions on all replicas of a `tf.distribute` strategy."""

    def __init__(self, strategy: tf.distribute.Strategy, devices: list[str]):
        self.strategy = strategy
        self.devices = tuple(devices)
        self.row_shares = len(self.devices)

    def shard(self, rows):
        """Equal shares for all: the last row is repeated to fill up, and dropped by the caller.
        A single row stays whole and runs on the first replica."""
        rows = np.asarray(rows)
        count = len(self.devices)
        if len(rows) == 1:
            with tf.device(self.devices[0]):
                return tf.convert_to_tensor(rows)
        missing = -len(rows) % count
        rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        return per_replica(self.strategy, np.split(rows, count))

    def run(self, function, *args):
        # Whether the rows were shared out shows in the first argument, the tokens.
        if len(self.strategy.experimental_local_results(args[0])) == 1:
            with tf.device(self.devices[0]):
                return function(*args)
        return self.strategy.run(function, args=args)

    def gather(self, value):
        return np.concatenate([np.asarray(part) for part in
                               self.strategy.experimental_local_results(value)])


class Mirrored(Strategy):
    name = "mirrored"
    Options = Options
    deploys = True

    def __init__(self, options=None):
        super().__init__(options)
        # Logical devices must exist before TensorFlow starts, hence before any model is loaded.
        self.devices = replica_devices(self.options.replicas)
        self._strategy = None

    @property
    def strategy(self) -> tf.distribute.MirroredStrategy:
        if self._strategy is None:
            self._strategy = mirrored_strategy(self.devices)
        return self._strategy

    def scope(self):
        return self.strategy.scope()

    def apply(self, model, data=None):
        model = copy.copy(model)
        model.placement = Replicas(self.strategy, self.devices)
        return model

    def report(self):
        lines = [f"{len(self.devices)} replicas on {', '.join(self.devices)}, each with a copy of "
                 "the weights. Replicas raise throughput, never batch-1 latency: one request runs "
                 "on one replica."]
        if self.devices[0].startswith("CPU"):
            lines.append("These are logical devices of one CPU: they share its cores and its "
                         "memory bandwidth, so expect no gain over one device at the same batch.")
        return lines
