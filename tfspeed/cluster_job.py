"""A job on workers, of the strategies multi_worker and dataflow: who supervises, leads, follows."""

import contextlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

import tfspeed
from tfspeed import engines
from tfspeed.cluster import addresses, binding, supervisor
from tfspeed.cluster.member import (
    Member,
    WorkerLost,
    gave_up,
    joined,
    supervised,
    watched,
)
from tfspeed.digest import text_digest
from tfspeed.errors import TfspeedError
from tfspeed.export.files import ended_by_sigterm, listing
from tfspeed.models.load import load, located

WAITING = ("Measured by the chief of the workers alone, on its own cores, while the others wait; "
           "in turn with the other row.")

ON_WORKERS = ("multi_worker", "dataflow")  # the strategies


def member_of(flags, strategy) -> Callable[[], Member] | None:
    """What joins the cluster, where a strategy runs on workers; None where none does."""
    parts = getattr(strategy, "parts", [strategy])
    found = [part for part in parts if part.name in ON_WORKERS]
    if not found:
        for name in ("workers", "bind", "restarts", "join_timeout"):
            if flags[name].present:
                raise TfspeedError(f"--{name} is for workers.", strategy=flags.strategy,
                                   hint="Add --strategy=multi_worker, or dataflow.")
        return None
    return lambda: found[0].member


def run(flags, strategy, calibration: str | None, join: Callable[[], Member],
        job: Callable[[], int | None], make: Callable | None = None) -> int | None:
    """Runs a job of the chief's over workers; returns an exit code.

    Args:
        make: gives the model that workers other than the chief run; None: as run.py does.

    In the process that the user started: starts this machine's workers and watches them. In a
    worker: joins, makes sure that all are alike, and leads (`job`) or follows.
    """
    if not supervised():
        return supervise(flags)
    try:
        with watched():
            member = join()
            member.agree(_facts(flags, strategy, calibration))
            joined()
            if not member.is_chief:
                engines.create(flags.engine, make() if make else _model(
                    flags, strategy, calibration)).serve()
                return None
            code = job()
            if code in (None, 0, 3):  # after Ctrl-C the others may be anywhere
                with contextlib.suppress(WorkerLost):  # the job is done, whoever is gone by now
                    member.tell(None)  # lets them go
            return code
    except WorkerLost as lost:
        gave_up(lost)
        return supervisor.LOST


def _model(flags, strategy, calibration):
    with strategy.scope():
        return strategy.apply(load(flags.model, flags.dtype, strategy.reads_part), calibration)


def _given(flags, name: str):
    """A flag of run.py's that other scripts may not have."""
    return flags[name].value if name in flags else None


def _facts(flags, strategy, calibration) -> dict[str, str]:
    """What all workers must have in common before they load anything."""
    source = located(flags.model)
    files = listing(source) if source.exists() else []
    return {"tfspeed": tfspeed.__version__, "tensorflow": tf.__version__,
            "keras": keras.__version__, "python": platform.python_version(),
            "strategy": strategy.label, "engine": flags.engine,
            "dtype": _given(flags, "dtype") or "float32",
            "model": " ".join(file["sha256"][:16] for file in files) or flags.model,
            "calibration": text_digest(calibration or "")}


def supervise(flags) -> int:
    """Starts this machine's workers: all of them, or the one of TF_CONFIG."""
    binding.check(flags.bind)
    for name, least in (("workers", 1), ("restarts", 0), ("join_timeout", 1)):
        if not flags[name].value >= least:
            raise TfspeedError(f"--{name} must be at least {least}.", **{name: flags[name].value})
    cluster = addresses.from_environment()
    if cluster is None:
        indices = list(range(flags.workers))

        def make():
            return addresses.local(flags.workers, flags.bind)
    else:
        if flags["workers"].present:
            raise TfspeedError("--workers starts workers on this machine, and TF_CONFIG (or "
                               "--hosts) says where they are.", workers=flags.workers)
        own = cluster.addresses[cluster.index]
        indices = [cluster.index]
        _check_reachable(own, flags.bind)

        def make():
            addresses.check_free(own, flags.bind)
            return cluster
    resumes = bool(_given(flags, "prompts") or _given(flags, "distill_checkpoint"))
    started = supervisor.Supervisor(
        make, indices, [str(Path(sys.argv[0]).resolve()), *sys.argv[1:]], flags.bind,
        flags.join_timeout, flags.restarts if resumes else 0,
        lambda text: print(text, file=sys.stderr, flush=True))
    with ended_by_sigterm():  # else its folder would stay
        return started.run()


def _check_reachable(own: str, bind: str) -> None:
    host = addresses.host_of(own)
    if bind == addresses.LOOPBACK and host not in (bind, "localhost"):
        raise TfspeedError(
            "Workers listen on 127.0.0.1 only, where those of other hosts cannot reach them.",
            address=own, hint=f"Give --bind={host if host[0].isdigit() else 'ADDRESS'}, this "
            "machine's address in a private network: TensorFlow's connections are neither "
            "authenticated nor encrypted.")
