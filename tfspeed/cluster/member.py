"""A worker's place in the cluster: TensorFlow's collectives between processes, the handshake."""

import contextlib
import functools
import json
import os

import numpy as np
import tensorflow as tf

# Private, and in TensorFlow 2.21 the only way to say how long a silent worker is waited for:
# MultiWorkerMirroredStrategy takes what is configured before it is made.
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context as eager_context

from tfspeed.cluster.addresses import Cluster, from_environment
from tfspeed.errors import TfspeedError

_HEARTBEAT_S = 30  # a worker that is silent for longer is given up
_STATUS = "TFSPEED_STATUS"  # file descriptor on which the supervisor hears of this worker
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
         tf.errors.DeadlineExceededError, tf.errors.InternalError,
         tf.errors.FailedPreconditionError)


class WorkerLost(TfspeedError):
    """Another worker died, or does not answer any more."""


@contextlib.contextmanager
def watched():
    """Turns what TensorFlow raises when another worker is gone into WorkerLost."""
    try:
        yield
    except _LOST as error:
        raise WorkerLost("A worker of the cluster is gone, or does not answer: this one stops.",
                         cause=_said(error.message)) from error


def _said(message: str) -> str:
    """The last line of TensorFlow's that is not the name of a node."""
    lines = [line.strip() for line in message.splitlines()]
    return next((x for x in reversed(lines) if x and not x.startswith("[[")), "")[:200]


def supervised() -> bool:
    """Whether this process was started by a `Supervisor`."""
    return _STATUS in os.environ


class Member:
    """This process in its cluster; alone, where TF_CONFIG names none.

    Collectives must be called by all workers, in the same order.

    Attributes:
        strategy: the MultiWorkerMirroredStrategy of all workers.
        count, index: how many workers there are, and which this one is; 0 is the chief.
    """

    def __init__(self, cluster: Cluster | None):
        self.cluster = cluster
        self.count = len(cluster.addresses) if cluster else 1
        self.index = cluster.index if cluster else 0
        if cluster and self.count > 1:
            _configure(cluster)
        try:
            with watched():
                self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.UnknownError as error:  # "Could not start gRPC server"
            raise TfspeedError("TensorFlow's server could not start: its port may be taken.",
                               address=cluster.addresses[self.index],
                               cause=error.message) from error
        except RuntimeError as error:  # "Collective ops must be configured at program startup"
            raise TfspeedError("A worker must join its cluster before TensorFlow runs anything.",
                               cause=str(error)[:200]) from error
        replicas = self.strategy.extended._num_devices_per_worker
        if replicas > 1:
            raise TfspeedError("A worker runs on one device.", devices=replicas,
                               hint="Start a worker for each GPU: CUDA_VISIBLE_DEVICES=…")
        self._gather = tf.function(lambda given: self.strategy.run(_gathered, args=(given,)),
                                   reduce_retracing=True)

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def all_gather(self, values: np.ndarray) -> np.ndarray:
        """int32 `[n]` of every worker, as many on each, to `[workers, n]` on all."""
        if self.count == 1:
            return values[None]
        with watched():
            given = self.strategy.experimental_distribute_values_from_function(
                lambda _: tf.constant(values[None], tf.int32))
            return self.strategy.experimental_local_results(self._gather(given))[0].numpy()

    def share(self, message) -> list:
        """What JSON can hold, of every worker, to all: a list in the order of the ranks."""
        data = np.frombuffer(json.dumps(message).encode(), np.uint8)
        lengths = self.all_gather(np.array([len(data)], np.int32))[:, 0]
        size = 1 << int(lengths.max() - 1).bit_length()  # few sizes, few traces
        padded = np.zeros(size, np.int32)
        padded[:len(data)] = data
        rows = self.all_gather(padded)
        return [json.loads(row[:length].astype(np.uint8).tobytes())
                for row, length in zip(rows, lengths, strict=True)]

    def tell(self, message=None):
        """The chief's message, to all: what the others give is not looked at."""
        return self.share(message if self.is_chief else None)[0]

    def agree(self, facts: dict[str, str]) -> None:
        """Refuses to go on unless all workers have the same facts.

        Raises:
            TfspeedError: on all of them; it names those that differ from the chief.
        """
        everyone = self.share(facts)
        for index, theirs in enumerate(everyone):
            differs = {name: (everyone[0].get(name), theirs.get(name))
                       for name in sorted(everyone[0] | theirs)
                       if everyone[0].get(name) != theirs.get(name)}
            if differs:
                raise TfspeedError(
                    f"The workers do not agree: {self.cluster.named(index)} differs from the "
                    f"chief in {', '.join(differs)}.",
                    **{name: f"{mine} (chief), {other}"
                       for name, (mine, other) in list(differs.items())[:3]},
                    hint="Give all workers the same files, flags and versions.")


def _gathered(values):
    # TensorFlow finds a tensor's device by its operator, and an argument has none.
    return tf.distribute.get_replica_context().all_gather(tf.identity(values), axis=0)


def _configure(cluster: Cluster) -> None:
    jobs = ({"chief": 1} if cluster.chief_job else {}) | {
        "worker": cluster.addresses[1 if cluster.chief_job else 0:]}
    jobs = [CoordinatedJob(name=name, num_tasks=1 if name == "chief" else len(tasks))
            for name, tasks in jobs.items()]
    leader = "chief" if cluster.chief_job else "worker"
    eager_context.context().configure_coordination_service(
        "standalone", service_leader=f"/job:{leader}/replica:0/task:0", coordinated_jobs=jobs,
        heartbeat_timeout_in_ms=_HEARTBEAT_S * 1000)


@functools.cache
def member() -> Member:
    """This process's place in the cluster of TF_CONFIG. Joined once: TensorFlow's collectives
    fail where a process makes a second strategy. Waits for all workers to come."""
    return Member(from_environment())


def joined() -> None:
    """Tells the supervisor, if any, that this worker has joined and agrees."""
    _say("joined")


def gave_up(lost: WorkerLost) -> None:
    """Tells the supervisor, if any, why this worker ends: it speaks for all."""
    _say(str(lost).partition("Received: ")[2])


def _say(text: str) -> None:
    if supervised():
        os.write(int(os.environ[_STATUS]), text.encode()[:4000])
