"""What keeps one client from harming the others: slow, large, foreign and unknown ones."""

import asyncio
import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tfspeed.serving.http.answers import error
from tfspeed.serving.http.asked import BadRequest

_HEADER_S = 10
# A body that is too large is still read up to so many times the limit, and thrown away: who is cut
# off while sending does not see the answer that says why.
_DRAINED = 8


class PatientProtocol(AutoHTTPProtocol):
    """uvicorn's protocol, but a client that dawdles over its headers is shown out."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data):
        super().data_received(data)
        if self._waits_for_headers() and self._expected_after is not self.cycle:
            self._expect_headers()  # of a next request, whose first bytes these are

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self):
        before = self._expected_after = self.cycle

        def check():
            if self.cycle is before and self._waits_for_headers():
                self.transport.close()

        self.loop.call_later(_HEADER_S, check)


class Doorkeeper:
    """ASGI middleware: the key for /v1, and the Host header of a server that listens on loopback:
    a page of another site must not reach it under a name of its own (DNS rebinding)."""

    def __init__(self, app, key: str | None, local: bool):
        self._app, self._key, self._local = app, key, local

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = None
            if self._local and not is_loopback(_host(headers.get("host", ""))):
                refusal = 403, "This server answers to localhost only.", "permission_error"
            elif self._key and scope["path"].startswith("/v1") and not hmac.compare_digest(
                    headers.get("authorization", "").encode(), f"Bearer {self._key}".encode()):
                refusal = 401, "The API key is missing or wrong.", "authentication_error"
            if refusal:
                status, message, kind = refusal
                await JSONResponse(error(message, kind), status)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def read_body(request, most: int, seconds: float) -> bytes:
    """The body of a request, which must be JSON: what a page of another site can send without
    asking first is not."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest("The Content-Type must be application/json.", status=415)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    body += part
                elif size > _DRAINED * most:
                    break
    except TimeoutError as error:
        raise BadRequest("The request took too long to arrive.", status=408) from error
    if size > most:
        raise BadRequest(f"A request may have {most} bytes.", status=413)
    return bytes(body)
