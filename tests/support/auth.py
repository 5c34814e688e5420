"""Shared by the tests of AUTH: a connection in memory, and base64."""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from txsmtpd import SMTPFactory
from txsmtpd.smtp import SMTP


def b64(text: bytes | str) -> bytes:
    return base64.b64encode(text.encode("utf-8") if isinstance(text, str) else text)


def plain(login: str, password: str, authzid: str = "") -> bytes:
    return b64(f"{authzid}\0{login}\0{password}")


class Transport(StringTransport):
    """A transport that records that it was aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Tls:
    """The data about TLS in a session."""

    protocol = "TLSv1.3"
    cipher = "TLS_AES_256_GCM_SHA384"
    peer_certificate: Any = None
    server_name = None
    binds = True


class Connection:
    """A client in memory that has received the greeting.

    :param options: of the factory. By default, AUTH is offered without TLS, and refusals are not delayed.
    """

    def __init__(
        self, handler: object = None, *, protocol: type[SMTP] = SMTP, ehlo: bool = True, **options: Any
    ) -> None:
        self.clock = Clock()
        defaults = {"auth_require_tls": False, "auth_failure_delay": 0, "hostname": "mx.test", "reactor": self.clock}
        self.factory = SMTPFactory(handler, protocol=protocol, **(defaults | options))
        self.server: Any = self.factory.buildProtocol(None)
        self.transport = Transport()
        self.server.makeConnection(self.transport)
        self.transport.clear()
        self.greeting = self.say(b"EHLO client.test") if ehlo else []

    @property
    def session(self) -> Any:
        return self.server.session

    def send(self, octets: bytes) -> list[bytes]:
        """Send octets. Return the lines that the server has sent since the last call."""
        self.server.dataReceived(octets)
        while self.factory.batches.step():
            pass
        return self.heard()

    def heard(self) -> list[bytes]:
        lines = self.transport.value().split(b"\r\n")
        self.transport.clear()
        assert lines.pop() == b""
        return lines

    def say(self, *lines: bytes) -> list[bytes]:
        """Send lines in one segment."""
        return self.send(b"".join(line + b"\r\n" for line in lines))

    def offered(self) -> bytes | None:
        """The line AUTH of the reply to EHLO."""
        found = [line for line in self.say(b"EHLO client.test") if line[4:8] == b"AUTH"]
        return found[0][4:] if found else None


def friend(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
    """An authenticator with one user."""
    return bool(auth_data == (b"user", b"sesame"))


OK = b"235 2.7.0 Authentication successful"
INVALID = b"535 5.7.8 Authentication credentials invalid"
GOOD = plain("user", "sesame")
WRONG = plain("user", "xyzzy")
