"""Sites of :mod:`twisted.web` whose clients must send the header of a request in time. HTTP/1.1 only (RFC 9112)."""

from __future__ import annotations

from typing import Any

from twisted.web.http import HTTPChannel
from twisted.web.server import Site


class PromptChannel(HTTPChannel):
    """A connection whose timeout is the time for the next request line and header together.

    With Twisted's channel, each octet restarts the timeout. A client that sends an octet from time to time could keep a
    connection for hours. Octets of a body still restart it: the request limits the time for its body.
    """

    def resetTimeout(self) -> None:
        """Called for all octets. Does nothing."""

    def rawDataReceived(self, data: bytes) -> None:
        super().resetTimeout()
        super().rawDataReceived(data)


class PromptSite(Site):
    """A site with such connections. It does not log each request, because probes and pages ask every few seconds."""

    noisy = False
    protocol: Any = PromptChannel

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]  # HTTP/2 has another channel, with the timeout of Twisted

    def log(self, request: Any) -> None: ...
