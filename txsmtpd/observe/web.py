"""The monitoring pages ``/metrics``, ``/livez`` and ``/readyz``, with :mod:`twisted.web`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from txsmtpd.observe.health import Health
from txsmtpd.observe.http import PromptSite

TEXT = "text/plain; charset=utf-8"
TIMEOUT = 30  # seconds in which a request must arrive, and then the next one on the same connection
CONNECTIONS = 100  # at the same time
BODY_REFUSED = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

Page = Callable[[str], tuple[int, bytes, str]]
"""Takes the Accept header; returns the status, the body and its content type."""


def monitoring_site(
    health: Health, metrics: Callable[[str], tuple[bytes, str]] | None = None, *, reactor: Any = None
) -> Site:
    """Make the site.

    :param metrics: takes the Accept header, and returns all metrics and their content type. None: no ``/metrics`` page.
    :param reactor: provides the time (IReactorTime). Default: the global reactor.
    """

    def livez(accept: str) -> tuple[int, bytes, str]:
        # The reactor runs, otherwise this line would not be reached.
        return 200, b"ok\n", TEXT

    def readyz(accept: str) -> tuple[int, bytes, str]:
        problems = [*health.problems()]
        text = "".join(f"{' '.join(problem.split())}\n" for problem in problems) or "ok\n"
        return (503 if problems else 200), text.encode(), TEXT

    root = Resource()
    root.putChild(b"livez", _Page(livez))
    root.putChild(b"readyz", _Page(readyz))
    if metrics is not None:
        root.putChild(b"metrics", _Page(lambda accept: (200, *metrics(accept))))
    return _MonitoringSite(root, requestFactory=_Request, timeout=TIMEOUT, reactor=reactor)


class _Page(Resource):
    isLeaf = True

    def __init__(self, page: Page) -> None:
        super().__init__()
        self._page = page

    def render_GET(self, request: Any) -> bytes:
        # Twisted uses it for HEAD requests too.
        status, text, content_type = self._page(request.getHeader("Accept") or "")
        request.setResponseCode(status)
        request.setHeader("Content-Type", content_type)
        request.setHeader("Cache-Control", "no-store")
        return text


class _Request(Request):
    """A request without a body. No page takes one, and Twisted would store it, whatever its size."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0)
        if length != 0:  # None: the body is sent in chunks
            self._refused = True
            channel: Any = self.channel
            channel.transport.write(BODY_REFUSED)
            channel.loseConnection()

    def handleContentChunk(self, data: bytes) -> None: ...

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self._refused:
            super().requestReceived(command, path, version)


class _MonitoringSite(PromptSite):
    """A site with a limited number of connections."""

    displayTracebacks = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open = 0

    def buildProtocol(self, addr: Any) -> Any:
        if self._open >= CONNECTIONS:
            return None  # then the connection is closed
        protocol: Any = super().buildProtocol(addr)
        lost = protocol.connectionLost

        def connection_lost(reason: Any) -> None:
            self._open -= 1
            lost(reason)

        protocol.connectionLost = connection_lost
        self._open += 1
        return protocol
