"""The thread that runs the steps: takes requests in, samples, tells who asked.

A backend is called from this thread alone. What goes wrong with one request ends that one.
"""

import logging
import queue
import threading
import time

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.serving import sampler
from tfspeed.serving.backend import Backend, Chunk
from tfspeed.serving.blocks import BlockPool
from tfspeed.serving.request import Request, Update
from tfspeed.serving.scheduler import Scheduler

_log = logging.getLogger(__name__)


class Overloaded(Exception):
    """Too many are waiting: come back later."""


class Worker:
    """Runs a scheduler over a backend.

    Args:
        chunk: see `Scheduler`.
        max_waiting: requests in the queue, beyond which `submit` refuses.

    Attributes:
        steps, prompt_tokens, reused_tokens, new_tokens: how many there were so far.
    """

    def __init__(self, backend: Backend, chunk: int = 64, max_waiting: int = 256):
        self.backend = backend
        self.scheduler = Scheduler(
            BlockPool(backend.blocks, backend.block), backend.max_rows,
            min(chunk, backend.max_tokens), backend.shares)
        self.steps = self.prompt_tokens = self.reused_tokens = self.new_tokens = 0
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._most = backend.max_rows + max_waiting
        self._admitted = 0  # requests between submit and their end
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tfspeed-worker", daemon=True)
        self._closing = False
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hands in a request; from any thread.

        Raises:
            TfspeedError: it does not fit.
            Overloaded: too many are waiting.
        """
        tokens = len(request.prompt) + request.max_tokens
        model, most = self.backend.model, self.backend.context_length
        if tokens > most:
            raise TfspeedError(
                f"The prompt and the new tokens must fit into {most} tokens.",
                prompt_tokens=len(request.prompt), max_tokens=request.max_tokens,
                hint="Shorten the prompt or ask for fewer tokens.")
        bad = next((t for t in request.prompt if not 0 <= t < model.vocabulary_size), None)
        if bad is not None:
            raise TfspeedError(f"Token ids must lie in [0, {model.vocabulary_size}).", token=bad)
        with self._lock:
            if self._closing or self._admitted >= self._most:
                raise Overloaded
            self._admitted += 1
        self._commands.put(("add", request))

    def cancel(self, request: Request) -> None:
        """Gives up a request; from any thread, also when it is over already."""
        self._commands.put(("cancel", request))

    def keep(self, kept: bool) -> None:
        """Forgets what was read for texts that are over; from now on whether what is read is kept
        for others that begin alike. For measuring: from any thread, while nothing runs."""
        self._commands.put(("keep", kept))

    def close(self, seconds: float = 0) -> None:
        """Takes nothing more in; what runs may finish for so long, then it is cancelled."""
        with self._lock:
            self._closing = True
        end = time.monotonic() + seconds
        while self._admitted and time.monotonic() < end:
            time.sleep(0.02)
        self._commands.put(("close", None))
        self._thread.join()
        self.backend.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def requests(self) -> int:
        """Those that are not over."""
        return self._admitted

    def _run(self) -> None:
        while self._take_commands():
            now = time.monotonic()
            for request in [*self.scheduler.running, *self.scheduler.waiting]:
                if request.deadline is not None and now > request.deadline:
                    self._end(request, "timeout")
            planned = self.scheduler.plan()
            if planned:
                self._step(planned)
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self._end(request, "cancelled")

    def _take_commands(self) -> bool:
        """Does what was asked for meanwhile, and waits where nothing runs; False at the end."""
        idle = not (self.scheduler.running or self.scheduler.waiting)
        while True:
            try:
                command, request = self._commands.get(block=idle)
            except queue.Empty:
                return True
            idle = False
            if command == "close":
                return False
            if command == "cancel":
                self._end(request, "cancelled")
                continue
            if command == "keep":
                self.scheduler.pool.forget()
                self.scheduler.shares = request and self.backend.shares
                continue
            try:
                self.scheduler.add(request)
            except Exception as error:
                self._finished(request, Update(reason="error", error=str(error)))

    def _step(self, planned: list[tuple[Request, Chunk]]) -> None:
        self.steps += 1
        try:
            rows = iter(self.backend.read([chunk for _, chunk in planned]))
        except Exception as error:
            self._alone(planned, error)
            return
        for request, chunk in planned:
            self._after(request, chunk, next(rows) if chunk.wanted else None)

    def _alone(self, planned, error: Exception) -> None:
        """A step that failed is tried once more, each text for itself: who fails again is out."""
        _log.warning("a step failed, its texts are tried alone: %s", error)
        for request, chunk in planned:
            try:
                rows = self.backend.read([chunk])
                row = np.array(rows[0]) if chunk.wanted else None
            except Exception as found:
                _log.exception("a request failed")
                self._end(request, "error", f"{type(found).__name__}: {found}")
                continue
            self._after(request, chunk, row)

    def _after(self, request: Request, chunk: Chunk, logits: np.ndarray | None) -> None:
        try:
            self._advance(request, chunk, logits)
        except Exception as error:
            _log.exception("a request failed")
            self._end(request, "error", f"{type(error).__name__}: {error}")

    def _advance(self, request, chunk, logits) -> None:
        decoding = request.generated > 0 and len(chunk.tokens) == 1
        self.scheduler.read(request, len(chunk.tokens))
        self.prompt_tokens += 0 if decoding else len(chunk.tokens)
        if logits is None:
            return
        if not request.generated:
            self.reused_tokens += request.reused
        token = sampler.choose(logits, request.sampling, request.generated)
        self.new_tokens += 1
        told = sampler.told(logits, token, request.logprobs)
        request.tokens.append(token)
        stopped, text = token in request.stop_tokens, ""
        if request.text and not stopped:
            text, stopped = request.text.push(token)
        reason = ("stop" if stopped else
                  "length" if request.generated >= request.max_tokens else None)
        if reason and request.text and (reason == "length" or token in request.stop_tokens):
            text += request.text.rest()
        update = Update(text, (told,), reason)
        if reason:
            self.scheduler.remove(request)
            self._finished(request, update)
        else:
            request.tell(update)

    def _end(self, request: Request, reason: str, error: str = "") -> None:
        if self.scheduler.remove(request):
            self._finished(request, Update(reason=reason, error=error))

    def _finished(self, request: Request, update: Update) -> None:
        with self._lock:
            self._admitted -= 1
        try:
            request.tell(update)
        except Exception:
            _log.exception("whoever asked could not be told")
