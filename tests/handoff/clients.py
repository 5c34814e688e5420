"""Shared by the tests of hand-offs: a server on loopback, and clients in threads."""

from __future__ import annotations

import smtplib
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from txsmtpd import SMTPFactory

MESSAGE = b"From: a@x.test\r\nSubject: hello\r\n\r\nHello\r\n.dot and caf\xc3\xa9\r\n"
PATIENCE = 60  # seconds


def message_of(size: int) -> bytes:
    """A message of this number of octets."""
    header = b"Subject: large\r\n\r\n"
    line = b"x" * 76 + b"\r\n"
    return (header + line * (size // 78 + 1))[: size - 2] + b"\r\n"


class Client:
    """One SMTP session in a thread."""

    def __init__(self, port: int) -> None:
        self.smtp = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
        self.smtp.ehlo("client.test")

    def send(self, message: bytes = MESSAGE, to: str = "b@y.test", declared: bool = True) -> tuple[int, str]:
        """Send a message. Return the code and text of the reply that decides."""
        smtp = self.smtp
        options = ["BODY=8BITMIME", *([f"SIZE={len(message)}"] if declared else [])]
        for command in (lambda: smtp.mail("a@x.test", options), lambda: smtp.rcpt(to)):
            code, text = command()
            if code != 250:
                smtp.rset()
                return code, text.decode()
        try:
            code, text = smtp.data(message)
        except smtplib.SMTPDataError as refused:
            code, text = refused.smtp_code, refused.smtp_error
            smtp.rset()
        return code, text.decode()

    def close(self) -> None:
        self.smtp.close()


def send(port: int, message: bytes = MESSAGE, **options: Any) -> tuple[int, str]:
    """Send a message in its own session."""
    client = Client(port)
    try:
        return client.send(message, **options)
    finally:
        client.close()


class HandoffTestCase(TestCase):
    """A test case with a server on loopback."""

    timeout = 120

    async def serve(self, handler: Any, **settings: Any) -> int:
        """Serve with a handler, which is started. Return the port."""
        factory = SMTPFactory(handler, hostname="mx.test", **settings)
        port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        handler.startService()
        self.addCleanup(self._stop, port, factory, handler)
        return int(port.getHost().port)

    async def _stop(self, port: Any, factory: SMTPFactory, handler: Any) -> None:
        await maybeDeferred(port.stopListening)
        factory.abort()
        await factory.drain()
        if handler.running:
            await handler.stopService()

    def send(self, port: int, *arguments: Any, **options: Any) -> Deferred[tuple[int, str]]:
        """Send a message in its own session, from a thread."""
        return deferToThread(send, port, *arguments, **options)

    async def wait_for(self, condition: Any, seconds: float = PATIENCE) -> None:
        """Let the reactor run until the condition holds."""
        deadline = reactor.seconds() + seconds
        while not condition():
            if reactor.seconds() > deadline:
                raise AssertionError(f"it did not become true within {seconds} seconds")
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.005, turn.callback, None)
            await turn
