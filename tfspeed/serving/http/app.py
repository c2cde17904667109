"""The routes of the server, over one worker."""

import contextlib
import json
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from tfspeed.errors import TfspeedError
from tfspeed.serving.http import asked as reading
from tfspeed.serving.http.answers import error
from tfspeed.serving.http.asked import BadRequest, Limits
from tfspeed.serving.http.guards import Doorkeeper, read_body
from tfspeed.serving.http.metrics import Metrics
from tfspeed.serving.http.openapi import describe
from tfspeed.serving.http.running import Running
from tfspeed.serving.worker import Overloaded, Worker

_PAGE = Path(__file__).with_name("page.html")
_KINDS = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}
_RETRY_S = 1


class Server:
    """Args:
        worker: closed when the server is.
        name: what the model is called.
        key: the API key that /v1 asks for, None for none.
        local: whether it listens on loopback only.
        grace_s: what runs may finish for so long when the server is closed.
    """

    def __init__(self, worker: Worker, name: str, limits: Limits, key: str | None = None,
                 local: bool = True, grace_s: float = 0):
        self.worker, self.name, self.limits, self.metrics = worker, name, limits, Metrics()
        self._created, self._grace_s = int(time.time()), grace_s
        routes = [
            Route("/", self.page), Route("/healthz", self.health),
            Route("/metrics", self.told_metrics), Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models), Route("/v1/models/{name:path}", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"])]
        handlers = {BadRequest: self._refused, TfspeedError: self._refused,
                    Overloaded: self._overloaded, HTTPException: self._http_error,
                    ClientDisconnect: self._gone,
                    Exception: self._failed}
        self.app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        self.app.add_middleware(Doorkeeper, key=key, local=local)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app):
        yield
        await run_in_threadpool(self.worker.close, self._grace_s)

    # What is small.

    async def page(self, request: Request):
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={
            "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; connect-src 'self'"})

    async def health(self, request: Request):
        alive = self.worker.alive
        return JSONResponse({"status": "ok" if alive else "closing"}, 200 if alive else 503)

    async def told_metrics(self, request: Request):
        return PlainTextResponse(self.metrics.text(self.worker), headers={
            "Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def openapi(self, request: Request):
        return JSONResponse(describe(self.name, self.limits))

    async def models(self, request: Request):
        model = {"id": self.name, "object": "model", "created": self._created,
                 "owned_by": "tfspeed", "max_model_len": self.worker.backend.context_length}
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse({"object": "list", "data": [model]})
        if wanted != self.name:
            raise BadRequest(f"The model {wanted[:80]!r} is not served here.", "model", 404)
        return JSONResponse(model)

    # What runs the model.

    async def completions(self, request: Request):
        return await self._complete(request, chat=False)

    async def chat(self, request: Request):
        return await self._complete(request, chat=True)

    async def _complete(self, request: Request, chat: bool):
        body = await read_body(request, self.limits.body_bytes, self.limits.body_s)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest("The body is no JSON.") from error
        # Long prompts take a while to encode: others must not wait for that.
        asked = await run_in_threadpool(
            reading.read, value, chat, self.worker.backend.model, self.name,
            self.worker.backend.context_length, self.limits)
        running = Running(self.worker, self.metrics, self.name, self.limits, asked)
        if asked.stream:
            return StreamingResponse(running.stream(), media_type="text/event-stream",
                                     headers={"Cache-Control": "no-cache"})
        return JSONResponse(await running.whole(request))

    # What goes wrong.

    async def _refused(self, request, found):
        status = getattr(found, "status", 400)
        kind = _KINDS.get(status, "invalid_request_error")
        # What is left of a body that is not wanted is not read: the connection ends.
        headers = {"Connection": "close"} if status in (408, 413) else {}
        return JSONResponse(error(str(found), kind, getattr(found, "param", None)), status,
                            headers=headers)

    async def _gone(self, request, found):
        return Response(status_code=499)  # nobody reads it, and nothing has failed

    async def _overloaded(self, request, found):
        self.metrics.refused()
        return JSONResponse(error("Too many requests are waiting: come back later.",
                                  _KINDS[429], code="overloaded"), 429,
                            headers={"Retry-After": str(_RETRY_S)})

    async def _http_error(self, request, found):
        return JSONResponse(error(found.detail, _KINDS.get(found.status_code,
                                                           "invalid_request_error")),
                            found.status_code, headers=found.headers)

    async def _failed(self, request, found):
        return JSONResponse(error("The server failed on this request.", "server_error"), 500)
