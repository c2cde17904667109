"""The job behind `scripts/serve.py`: load, change, serve until told to stop."""

import os
import queue
import socket
import sys

import uvicorn

from tfspeed import cli, engines
from tfspeed.devices import set_threads
from tfspeed.errors import TfspeedError
from tfspeed.main_job import read_text
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load
from tfspeed.serving import backend as backends
from tfspeed.serving.http.app import Server
from tfspeed.serving.http.asked import Limits
from tfspeed.serving.http.guards import PatientProtocol, is_loopback
from tfspeed.serving.request import Request
from tfspeed.serving.worker import Worker

_CONNECTIONS, _BACKLOG = 1024, 256
_SWITCH_S = 0.0005  # Python's own is 0.005
KEY = "TFSPEED_API_KEY"


def run(flags) -> None:
    """Does what the flags of `scripts/serve.py` say."""
    limits = Limits(flags.max_body_kb << 10, answer_s=flags.timeout_s,
                    new_tokens=flags.max_new_tokens)
    if not 0 <= flags.port < 2**16:
        raise TfspeedError("--port must lie in [0, 65536), 0 for any.", port=flags.port)
    for name in ("max_body_kb", "timeout_s", "max_new_tokens", "max_streams", "chunk"):
        if flags[name].value <= 0:
            raise TfspeedError(f"--{name} must be more than 0.", **{name: flags[name].value})
    key, local = os.environ.get(KEY) or None, is_loopback(flags.host)
    bar, listening = Progress(), listen(flags.host, flags.port)
    worker = start(flags, bar)
    if not local and not key:
        bar.say(f"Everyone who can reach {flags.host} can use this server: set {KEY} to ask for "
                "a key.")
    # The worker comes back from a step many times a second, and must not wait for long to go on.
    sys.setswitchinterval(_SWITCH_S)
    server = Server(worker, worker.backend.model.name, limits, key, local, flags.grace_s)
    config = uvicorn.Config(
        server.app, http=PatientProtocol, ws="none", log_level="warning",
        access_log=False, server_header=False, limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=30, timeout_graceful_shutdown=max(1, round(flags.grace_s)))
    _Announced(config, worker.backend, bar).run([listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: before anything slow, so that a port in use is told at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise TfspeedError("The server cannot listen there.", host=host, port=port,
                           cause=str(error), hint="Choose another --port or --host.") from error


def start(flags, bar) -> Worker:
    """Loads the model and makes what serves it; one token is generated, so that all is compiled
    that will be needed first."""
    engines.check(flags.engine)
    backends.check(flags.engine)
    calibration = read_text(flags.calibration, "calibration") if flags.calibration else None
    set_threads(flags.threads)
    strategy = cli.make_strategy(flags.strategy)
    with bar.task(f"loading and compiling {flags.model}, {strategy.name}, {flags.engine}", None):
        with strategy.scope():
            model = strategy.apply(load(flags.model), calibration)
        backend = backends.create(flags.engine, model, flags.cache_tokens, flags.max_streams)
        worker = Worker(backend, flags.chunk, flags.max_waiting)
        try:
            warm_up(worker)
        except BaseException:
            worker.close()
            raise
    return worker


def warm_up(worker: Worker) -> None:
    """Generates two tokens."""
    updates: queue.SimpleQueue = queue.SimpleQueue()
    worker.submit(Request([0, 0], 2, tell=updates.put))
    while not (update := updates.get()).reason:
        pass
    if update.reason == "error":
        raise TfspeedError("The model does not run.", cause=update.error)


class _Announced(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config, backend, bar):
        super().__init__(config)
        self._backend, self._bar = backend, bar

    async def startup(self, sockets=None):
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            self._bar.say(f"{self._backend.model.name} on {self._backend.name}: "
                          f"http://{host}:{port}/ (OpenAI's API at /v1). Ctrl-C stops it.")
