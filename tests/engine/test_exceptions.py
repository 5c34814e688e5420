"""Exceptions that do not derive from ``Exception``: they end neither a session nor the server."""

from __future__ import annotations

import asyncio
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from tests.support import GREETING, TRANSACTION, Client, LoggingTestCase, codes, handler
from txsmtpd import SMTP
from txsmtpd.interfaces import IStreamingHandler

BASE_EXCEPTIONS = (SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit)
SESSION = {
    "HELO": b"HELO a\r\n",
    "EHLO": GREETING,
    "MAIL": GREETING + b"MAIL FROM:<a@example.com>\r\n",
    "RCPT": GREETING + TRANSACTION,
    "DATA": GREETING + TRANSACTION + b"DATA\r\na\r\n.\r\n",
    "NOOP": b"NOOP\r\n",
    "RSET": b"RSET\r\n",
    "VRFY": b"VRFY a\r\n",
}


def in_three_ways(error: type[BaseException]) -> list[Any]:
    """Hooks that raise: a plain one, a coroutine before its first await, and a coroutine after it."""

    def plain(*arguments: Any) -> str:
        raise error

    async def at_once(*arguments: Any) -> str:
        raise error

    async def later(*arguments: Any) -> str:
        await succeed(None)
        raise error

    return [plain, at_once, later]


@implementer(IStreamingHandler)
class Streams:
    """Accepts messages with a receiver of which one method raises."""

    def __init__(self, method: str, error: type[BaseException]) -> None:
        def raises(*arguments: Any) -> None:
            raise error

        @implementer(IConsumer)
        class Receiver:
            def __getattr__(self, name: str) -> Any:
                return raises if name == method else lambda *arguments: "250 2.0.0 OK"

        self.receiver = Receiver()

    def open_message(self, server: Any, session: Any, envelope: Any) -> Any:
        return self.receiver


class BaseExceptionTests(LoggingTestCase):
    """SystemExit, KeyboardInterrupt, and the exceptions that end coroutines."""

    def test_hooks(self) -> None:
        """A hook that raises one gets 451, whether it has awaited something or not. The session continues."""
        for name, octets in SESSION.items():
            for error in BASE_EXCEPTIONS:
                for hook in in_three_ways(error):
                    client = Client(handler(**{name: hook}))
                    self.assertEqual(client.codes(octets)[-1], 451, (name, error, hook))
                    self.assertEqual(client.codes(b"HELP\r\n"), [214])
                    self.flushLoggedErrors(error)

    def test_commands(self) -> None:
        """The same is true for a command of a subclass."""
        for error in BASE_EXCEPTIONS:
            for function in in_three_ways(error):
                client = Client(protocol=type("Own", (SMTP,), {"smtp_PING": function}))
                self.assertEqual(client.codes(b"PING\r\nNOOP\r\n"), [451, 250], (error, function))
                self.flushLoggedErrors(error)

    def test_exceptionHook(self) -> None:
        """If ``handle_exception`` raises one, the reply is 500, as for any exception."""

        def fails(*arguments: Any) -> str:
            raise ZeroDivisionError

        for error in BASE_EXCEPTIONS:
            for hook in in_three_ways(error):
                client = Client(handler(NOOP=fails, exception=hook))
                self.assertEqual(client.codes(b"NOOP\r\nHELP\r\n"), [500, 214], (error, hook))
                self.flushLoggedErrors(error, ZeroDivisionError)

    def test_receivers(self) -> None:
        """If a receiver of messages raises one, the message is refused with 451."""
        for method in ("registerProducer", "write", "unregisterProducer", "finish"):
            for error in BASE_EXCEPTIONS:
                client = Client(Streams(method, error))
                self.assertEqual(client.codes(SESSION["DATA"] + b"NOOP\r\n")[-2:], [451, 250], (method, error))
                self.flushLoggedErrors(error)

    def test_ends(self) -> None:
        """Hooks at the end of a connection do not prevent the cleanup, whatever they raise."""
        for error in BASE_EXCEPTIONS:
            for hook in in_three_ways(error):
                client = Client(handler(DISCONNECT=hook))
                client.server.at_end(hook)
                client.talk(b"QUIT\r\n")
                self.assertTrue(client.closed)
                self.assertEqual(client.factory.connections, set())
                self.flushLoggedErrors(error)

    def test_greeting(self) -> None:
        """If ``handle_CONNECT`` raises one, the client is rejected with a reply."""
        for error in BASE_EXCEPTIONS:
            for hook in in_three_ways(error):
                client = Client(handler(CONNECT=hook))
                self.assertEqual((codes(client.welcome), client.closed), ([451], True), (error, hook))
                self.flushLoggedErrors(error)

    def test_deferred(self) -> None:
        """A Deferred that fails with one is handled in the same way."""
        for error in BASE_EXCEPTIONS:
            waits: Deferred[str] = Deferred()
            client = Client(handler(NOOP=lambda *arguments, waits=waits: waits))
            self.assertEqual(client.codes(b"NOOP\r\n"), [])
            waits.errback(error())
            self.assertEqual(client.codes(b"HELP\r\n"), [451, 214], error)
            self.flushLoggedErrors(error)
