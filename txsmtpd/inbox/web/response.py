"""Responses, and how they are written: with security headers, and at the speed of slow clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
HTML = "text/html; charset=utf-8"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors {frames}"
)
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-DNS-Prefetch-Control": "off",
    "Cache-Control": "no-store",
}


class HTTPError(Exception):
    """Raised to reject a request.

    :param status: the HTTP status.
    :param text: the response body, in plain text.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})


@dataclass
class Response:
    """A response.

    :ivar body: bytes, or an asynchronous iterator of bytes.
    :ivar headers: headers that are added to the default ones or override them.
    :ivar length: the length of an iterator body, if known.
    """

    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = TEXT
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


OK = b"ok"


def ok() -> Response:
    return Response(OK)


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """Return a JSON response."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, JSON, status, {name.replace("_", "-"): value for name, value in headers.items()})


def redirect(location: str, status: int = 302) -> Response:
    return Response(b"", TEXT, status, {"Location": location})


async def write(request: Any, response: Response, frames: str) -> None:
    """Write a response and finish the request.

    :param frames: the sources for the ``frame-ancestors`` directive.
    """
    headers = {
        **ALWAYS,
        "Content-Security-Policy": PAGE_POLICY.format(frames=frames),
        "Content-Type": response.content_type,
        **response.headers,
    }
    request.setResponseCode(response.status)
    for name, value in headers.items():
        request.setHeader(name.encode("ascii"), value.encode("utf-8"))
    body = response.body
    if isinstance(body, bytes):
        request.setHeader(b"Content-Length", b"%d" % len(body))
        if request.method != b"HEAD":
            request.write(body)
    else:
        if response.length is not None:
            request.setHeader(b"Content-Length", b"%d" % response.length)
        if request.method != b"HEAD":
            await _stream(request, body)
    if not request.gone:
        request.finish()


@implementer(IPushProducer)
class Flow:
    """Tracks whether a client keeps up, as the push producer of its connection."""

    def __init__(self) -> None:
        self.paused = False
        self.stopped = False
        self._resumed: Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self._go_on()

    def stopProducing(self) -> None:
        self.stopped = True
        self._go_on()

    def _go_on(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    async def ready(self) -> None:
        """Wait until the client can receive more, or has disconnected."""
        if self.paused and not self.stopped:
            self._resumed = Deferred()
            await self._resumed


async def _stream(request: Any, body: AsyncIterator[bytes]) -> None:
    flow = Flow()
    request.registerProducer(flow, True)
    try:
        async for piece in body:
            await flow.ready()
            if flow.stopped or request.gone:
                break
            request.write(piece)
    finally:
        if not request.gone:
            request.unregisterProducer()
