"""Who the workers are and where they listen: TF_CONFIG, a list of hosts, or free local ports."""

import dataclasses
import json
import os
import socket
from collections.abc import Sequence

from tfspeed.errors import TfspeedError

LOOPBACK = "127.0.0.1"
_JOBS = ("chief", "worker")  # in the order of their ranks


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a job in the order of their ranks; the first is the chief.

    Attributes:
        addresses: `host:port` of each.
        index: the rank of this process, or of the one to be started; None for all.
        chief_job: whether TF_CONFIG calls the first one `chief`.
    """

    addresses: tuple[str, ...]
    index: int | None = None
    chief_job: bool = False

    def __post_init__(self):
        for address in self.addresses:
            _check_address(address)
        twice = sorted({a for a in self.addresses if self.addresses.count(a) > 1})
        if twice:
            raise TfspeedError("Each worker needs an address of its own.", twice=twice)
        if not self.addresses:
            raise TfspeedError("A cluster needs at least one worker.", workers=0)
        if self.index is not None and not 0 <= self.index < len(self.addresses):
            raise TfspeedError(f"A worker's index must lie in [0, {len(self.addresses)}).",
                               index=self.index, workers=list(self.addresses))

    @property
    def machines(self) -> int:
        return len({host_of(address) for address in self.addresses})

    @property
    def neighbours(self) -> int:
        """The workers on the machine of this one, itself among them."""
        return sum(host_of(address) == host_of(self.addresses[self.index])
                   for address in self.addresses)

    def named(self, index: int) -> str:
        """What a message calls a worker."""
        return f"worker {index} ({self.addresses[index]})"

    def of(self, index: int) -> "Cluster":
        return dataclasses.replace(self, index=index)

    def tf_config(self) -> str:
        """The value of TF_CONFIG for the worker `index`."""
        jobs = {"worker": list(self.addresses)}
        task = {"type": "worker", "index": self.index}
        if self.chief_job:
            jobs = {"chief": jobs["worker"][:1], "worker": jobs["worker"][1:]}
            task = ({"type": "chief", "index": 0} if self.index == 0
                    else {"type": "worker", "index": self.index - 1})
        return json.dumps({"cluster": {k: v for k, v in jobs.items() if v}, "task": task})


def _check_address(address) -> None:
    host, colon, port = str(address).rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise TfspeedError("A worker's address must be host:port.", address=address,
                           hint="For example 10.0.0.1:2222.")


def from_hosts(hosts: str, index: int) -> Cluster:
    """The cluster of `--hosts=a:port,b:port --index=…`."""
    return Cluster(tuple(part.strip() for part in hosts.split(",") if part.strip()), index)


def host_of(address: str) -> str:
    return address.rpartition(":")[0]


def from_environment() -> Cluster | None:
    """The cluster that TF_CONFIG spells; None where it is not set or names no cluster.

    Raises:
        TfspeedError: it is no JSON, names no task of its own cluster, or other jobs than chief
            and worker.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _wrong(text, f"It is no JSON: {error}.") from error
    jobs = config.get("cluster") if isinstance(config, dict) else None
    if jobs in (None, {}) and isinstance(config, dict):
        return None
    if not isinstance(jobs, dict) or not all(isinstance(v, list) for v in jobs.values()):
        raise _wrong(text, "`cluster` must map `worker` (and `chief`) to lists of addresses.")
    if other := sorted(set(jobs) - set(_JOBS)):
        raise _wrong(text, f"Jobs are chief and worker, not {', '.join(other)}.")
    if len(jobs.get("chief", [])) > 1:
        raise _wrong(text, "There can be one chief.")
    addresses = [address for job in _JOBS for address in jobs.get(job, [])]
    return Cluster(tuple(map(str, addresses)), _rank(config.get("task"), jobs, text),
                   chief_job=bool(jobs.get("chief")))


def _rank(task, jobs: dict, text: str) -> int:
    """The rank of `task` in the cluster."""
    if not isinstance(task, dict) or task.get("type") not in list(jobs):  # it may be of any type
        raise _wrong(text, f"`task` must have a `type` out of {sorted(jobs)} and an `index`.")
    count = len(jobs[task["type"]])
    try:
        index = int(task.get("index"))
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < count:
        raise _wrong(text, f"The index of a {task['type']} must lie in [0, {count}).")
    return index + (len(jobs.get("chief", [])) if task["type"] == "worker" else 0)


def _wrong(text: str, why: str) -> TfspeedError:
    return TfspeedError("TF_CONFIG does not describe a cluster. " + why, TF_CONFIG=text[:300],
                        hint='For example {"cluster": {"worker": ["a:2222", "b:2222"]}, '
                             '"task": {"type": "worker", "index": 0}}.')


def local(count: int, bind: str) -> Cluster:
    """A cluster on this machine, on ports that are free now."""
    host = LOOPBACK if bind == "0.0.0.0" else bind
    held = []
    try:
        for _ in range(count):
            held.append(socket.socket())
            held[-1].bind((host, 0))
        return Cluster(tuple(f"{host}:{s.getsockname()[1]}" for s in held))
    except OSError as error:
        raise _no_listening(host, error) from error
    finally:
        for s in held:
            s.close()


def check_free(address: str, bind: str) -> None:
    """Refuses a port of this machine that is taken, or an address that is not this machine's."""
    with socket.socket() as tried:
        # As TensorFlow's server does: a port that a dead process has just left is free.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((bind, int(address.rpartition(":")[2])))
        except OSError as error:
            raise _no_listening(address, error) from error


def _no_listening(address: str, error: OSError) -> TfspeedError:
    return TfspeedError("A worker cannot listen at its address.", address=address,
                        cause=error.strerror,
                        hint="The port may be taken by another program: give another one. "
                             "--bind must be an address of this machine.")


def silent(addresses: Sequence[str]) -> list[int]:
    """Which of these take no connection."""
    found = []
    for index, address in enumerate(addresses):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            found.append(index)
    return found
