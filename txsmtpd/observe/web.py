"""The monitoring pages ``/metrics``, ``/livez`` and ``/readyz``, with :mod:`twisted.web`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from txsmtpd.observe.health import Health

TEXT = "text/plain; charset=utf-8"
TIMEOUT = 30  # seconds for a request, and for the next one on the same connection

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
    return _QuietSite(root, timeout=TIMEOUT, reactor=reactor)


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


class _QuietSite(Site):
    """A site that does not log each request, because probes come every few seconds."""

    noisy = False
    displayTracebacks = False

    def log(self, request: Request) -> None:
        pass
