"""The answers to one HTTP request, as they come from the worker's thread."""

import asyncio
import contextlib
import json
import time

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tfspeed.models.text_stream import StoppedText
from tfspeed.serving import request as serving
from tfspeed.serving.http.answers import Answers, error
from tfspeed.serving.http.asked import Asked, BadRequest, Limits
from tfspeed.serving.http.metrics import Metrics
from tfspeed.serving.worker import Worker


class Running:
    """Hands in a request's texts and collects what comes. Whatever happens to it, its rows are
    freed.

    Args:
        name: of the model.
    """

    def __init__(self, worker: Worker, metrics: Metrics, name: str, limits: Limits, asked: Asked):
        self._worker, self._metrics, self._asked = worker, metrics, asked
        self._loop, self._updates = asyncio.get_running_loop(), asyncio.Queue()
        self._start = time.perf_counter()
        model = worker.backend.model
        deadline = time.monotonic() + limits.answer_s
        self._requests = [self._request(model, prompt, i * asked.n + j, deadline)
                          for i, prompt in enumerate(asked.prompts) for j in range(asked.n)]
        self._answers = Answers(asked, name, model.tokenizer, self._requests)
        self._times: list[list[float]] = [[] for _ in self._requests]
        self._open = set(range(len(self._requests)))
        try:
            for request in self._requests:
                worker.submit(request)
        except BaseException:
            self._cancel()
            raise

    def _request(self, model, prompt, index, deadline) -> serving.Request:
        def tell(update):  # on the worker's thread; the loop may be gone when the server closes
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

        tokenizer, asked = model.tokenizer, self._asked
        ends = tokenizer.eos_ids if tokenizer and not asked.ignore_eos else ()
        text = None
        if tokenizer is not None:
            text = StoppedText(tokenizer.decode, asked.stop, () if asked.chat else prompt)
        elif asked.stop:
            raise BadRequest("This model has no tokenizer: it cannot stop at a text.", "stop")
        return serving.Request(
            prompt, asked.max_tokens, asked.sampling_of(index),
            frozenset(ends), text, asked.priority, asked.logprobs, deadline, tell)

    async def whole(self, request: Request) -> dict:
        gone = asyncio.ensure_future(_gone(request))
        parts: list[list[serving.Update]] = [[] for _ in self._requests]
        try:
            while self._open:
                waiting = asyncio.ensure_future(self._next())
                await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    raise ClientDisconnect
                index, update = await waiting
                if update.reason == "error":
                    raise HTTPException(500, "The server failed on this request.")
                parts[index].append(update)
            return self._answers.whole(parts)
        finally:
            gone.cancel()
            self._cancel()

    async def stream(self):
        try:
            while self._open:
                index, update = await self._next()
                if update.reason == "error":
                    value = json.dumps(error("The server failed on this request.",
                                             "server_error"))
                    yield f"data: {value}\n\n"
                    return
                yield self._answers.piece(index, update)
            yield self._answers.last()
        finally:
            self._cancel()

    async def _next(self) -> tuple[int, serving.Update]:
        index, update = await self._updates.get()
        times = self._times[index]
        if update.tokens:
            times.append(time.perf_counter())
        if update.reason:
            self._open.discard(index)
            self._metrics.ended(update.reason, self._start, times)
        return index, update

    def _cancel(self) -> None:
        for index in self._open:
            self._worker.cancel(self._requests[index])
            self._metrics.ended("gone", self._start, self._times[index])
        self._open.clear()


async def _gone(request: Request) -> None:
    """Returns when the client has vanished."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
