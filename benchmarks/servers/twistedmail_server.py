"""The ESMTP server that comes with Twisted (twisted.mail)."""

from __future__ import annotations

from typing import Any

import options
from certificate import tls_context
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import ServerFactory
from twisted.mail.smtp import ESMTP, IMessage, IMessageDelivery
from zope.interface import implementer


@implementer(IMessage)
class Forget:
    """Receive a message and discard it."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.lineReceived = self.lines.append

    def eomReceived(self) -> Deferred[None]:
        b"\n".join(self.lines)
        return succeed(None)

    def connectionLost(self) -> None:
        self.lines.clear()


@implementer(IMessageDelivery)
class Accept:
    """Accept all senders and recipients."""

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        return origin

    def validateTo(self, user: Any) -> Any:
        return Forget

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
        return b""


class Factory(ServerFactory):
    """Makes a protocol for each connection."""

    noisy = False

    def __init__(self, context: Any) -> None:
        self.context = context
        self.delivery = Accept()

    def buildProtocol(self, addr: Any) -> ESMTP:
        protocol = ESMTP(contextFactory=self.context)
        protocol.host = b"localhost"
        protocol.delivery = self.delivery
        protocol.factory = self
        protocol.noisy = False
        return protocol


def main() -> None:
    told = options.read(lmtp=False, maildir=False)
    context = tls_context(told.certificate, told.key) if told.certificate else None
    reactor.listenTCP(told.port, Factory(context), backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
