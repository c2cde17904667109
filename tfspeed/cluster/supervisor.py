"""Starts this machine's workers, watches them, and starts all of them again when one dies.

All, because TensorFlow's runtime takes no newcomer into a running cluster: the others are of no
use any more. On several machines each has a supervisor for its own workers; when one dies, those
of the other machines lose their peer and end as well, and so all are started again.
"""

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tfspeed.cluster import addresses, binding
from tfspeed.cluster.addresses import Cluster
from tfspeed.devices import JOB_CORES, job_cores
from tfspeed.errors import TfspeedError

LOST = 75  # exit code of a worker that lost another one: says nothing, its supervisor does
_USER_ERROR, _INTERRUPTED = 2, 130
_CHILD = Path(__file__).with_name("child.py")
_GRACE_S = 10  # for the others, once the first has ended


class _Died(Exception):
    """What is said when a worker is gone."""


@dataclasses.dataclass
class Worker:
    index: int
    process: subprocess.Popen
    stderr: Path | None
    status: int
    joined: bool = False


class Supervisor:
    """Args:
        make: gives the cluster of a new start (fresh ports where they were chosen here).
        indices: which of its workers run here.
        command: script and arguments, run by this Python.
        bind: the address that the workers' ports are held to.
        join_s: how long workers may take until all have joined.
        restarts: how often all are started again.
        say: shows a line to the user.
    """

    def __init__(self, make: Callable[[], Cluster], indices: list[int], command: list[str],
                 bind: str, join_s: float, restarts: int, say: Callable[[str], None]):
        self.make, self.indices, self.command, self.bind = make, indices, command, bind
        self.join_s, self.restarts, self.say = join_s, restarts, say
        self.workers: list[Worker] = []

    def run(self) -> int:
        """Returns the exit code of the job; nothing that was started here runs any more then.

        Raises:
            TfspeedError: a worker died once too often, or did not come.
        """
        for left in range(self.restarts, -1, -1):
            with tempfile.TemporaryDirectory(prefix="tfspeed") as folder:
                try:
                    return self._attempt(Path(folder))
                except KeyboardInterrupt:
                    return self._interrupted()
                except _Died as died:
                    if not left:
                        raise TfspeedError(
                            f"{died} All workers of this machine were stopped.", hint="" if
                            self.restarts else "Run the command again.") from None
                    self.say(f"{died} All workers are stopped and started again.")
                finally:
                    self._kill()
        raise AssertionError("unreachable")

    def _attempt(self, folder: Path) -> int:
        self.cluster = self.make()
        self._start(folder)
        started, first_end = time.monotonic(), None
        while True:
            self._listen()
            if ended := [w for w in self.workers if w.process.poll() is not None]:
                first_end = first_end or time.monotonic()
                code = self._judge(ended, time.monotonic() - first_end)
                if code is not None:
                    return code
            elif time.monotonic() - started > self.join_s \
                    and not all(w.joined for w in self.workers):
                raise self._never_came()

    def _start(self, folder: Path) -> None:
        self.workers = []
        cores = self._shares()
        for position, index in enumerate(self.indices):
            read, write = os.pipe()
            chief = index == 0 or len(self.indices) == 1
            stderr = None if chief else folder / f"{index}.stderr"
            environment = {
                **os.environ, **binding.environment(self.bind, folder),
                "TF_CONFIG": self.cluster.of(index).tf_config(), "TFSPEED_STATUS": str(write),
                JOB_CORES: str(job_cores()),
                "TF_CPP_MIN_LOG_LEVEL": "3"}  # a lost peer is told of here, once
            with contextlib.ExitStack() as stack:
                output = {} if chief else {
                    "stdout": subprocess.DEVNULL,
                    "stderr": stack.enter_context(stderr.open("wb"))}
                process = subprocess.Popen(
                    [sys.executable, str(_CHILD), str(os.getpid()), cores[position],
                     *self.command], env=environment, pass_fds=[write], process_group=0,
                    stdin=subprocess.DEVNULL, **output)
            os.close(write)
            os.set_blocking(read, False)
            self.workers.append(Worker(index, process, stderr, read))

    def _shares(self) -> list[str]:
        """The cores of each worker: an equal share, all of them where a machine has one worker."""
        count = len(self.indices)
        if count == 1 or not hasattr(os, "sched_getaffinity"):
            return [""] * count
        cores = sorted(os.sched_getaffinity(0))
        each = max(1, len(cores) // count)
        return [",".join(str(cores[(i * each + k) % len(cores)]) for k in range(each))
                for i in range(count)]

    def _listen(self) -> None:
        """Waits a moment for workers to say that they have joined."""
        waiting = [w for w in self.workers if not w.joined and w.process.poll() is None]
        if not waiting:
            time.sleep(0.05)
            return
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker.status, selectors.EVENT_READ, worker)
            for key, _ in selector.select(0.05):
                key.data.joined = bool(os.read(key.fd, 64))
                if not key.data.joined:
                    time.sleep(0.05)  # it is ending

    def _judge(self, ended: list[Worker], since: float) -> int | None:
        """The exit code of the job, if it is over. Raises _Died when a worker must be replaced."""
        codes = {w.index: w.process.returncode for w in ended}
        if codes.get(0) == 0:  # all is done, however the others end
            return 0 if len(ended) == len(self.workers) or since > _GRACE_S else None
        for worker in ended:  # causes before symptoms
            code = codes[worker.index]
            if code < 0:
                raise _Died(f"{self._named(worker.index)} was killed by "
                            f"{signal.Signals(-code).name}.")
            if code == 1:
                raise _Died(f"{self._named(worker.index)} failed."
                            + self._said(worker))
        if first := codes.get(self.workers[0].index):
            if first != LOST:
                return first  # it has said why
        elif first == 0:  # of a machine without the chief
            return 0
        if since < 2:
            return None  # for the chief's own word, and for the cause
        for worker in ended:
            if codes[worker.index] == _USER_ERROR:
                print(f"error: {self.cluster.named(worker.index)}: "
                      f"{self._said(worker).strip().removeprefix('error: ')}", file=sys.stderr)
                return _USER_ERROR
        if LOST in codes.values():
            silent = [w.index for w in self.workers if w.index not in codes]
            if silent:
                raise _Died(f"{self._named(silent[0])} does not answer.")
            others = len(self.indices) < len(self.cluster.addresses)
            raise _Died(("A worker on another machine is gone, or does not answer." if others else
                         "The workers lost each other.") + _cause(ended))
        return None

    def _named(self, index: int) -> str:
        """A worker, at the start of a sentence."""
        return self.cluster.named(index).capitalize()

    def _said(self, worker: Worker) -> str:
        """The end of what a worker wrote to stderr."""
        if worker.stderr is None:
            return ""
        return " " + " ".join(worker.stderr.read_text(errors="replace").split("\n")[-12:])

    def _never_came(self) -> TfspeedError:
        every = range(len(self.cluster.addresses))
        late = (addresses.silent(self.cluster.addresses) or [i for i in every
                if i not in self.indices] or [w.index for w in self.workers if not w.joined])
        return TfspeedError(
            f"Not all workers came within {self.join_s:g} s: nothing was heard of "
            f"{', '.join(map(self.cluster.named, late))}.",
            hint="Start it, or give --join_timeout more seconds. Its port must be reachable "
                 "(firewalls, --bind), and no other program's.")

    def _interrupted(self) -> int:
        """Ctrl-C: the chief writes what it has; a second one strikes at once. Who waits for others
        to come has nothing, and would not hear of it."""
        if not self.workers or self.workers[0].index or not self.workers[0].joined:
            self.say("Interrupted.")
            return _INTERRUPTED
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired,
                                 ProcessLookupError):
            self.workers[0].process.send_signal(signal.SIGINT)
            self.workers[0].process.wait(60)
        return _INTERRUPTED

    def _kill(self) -> None:
        """SIGKILL: a worker that waits for another one heeds nothing less."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            with contextlib.suppress(OSError):
                os.close(worker.status)
        self.workers = []


def _cause(ended: list[Worker]) -> str:
    """Why workers that lost another one think so; "" where none said it."""
    for worker in ended:
        with contextlib.suppress(BlockingIOError):
            if said := os.read(worker.status, 4096).removeprefix(b"joined"):
                return f" {said.decode(errors='replace')}"
    return ""
