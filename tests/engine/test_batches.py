"""Clients that send many commands at once, and other clients at the same time."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, TRANSACTION, Client, codes, handler
from txsmtpd import SMTPFactory

UNLIMITED: dict[str, Any] = {
    "junk_command_limit": None,
    "error_limit": None,
    "timeout": None,
    "command_timeout": None,
    "session_timeout": None,
}


class Direct:
    """A client whose octets reach the server as a reactor would pass them."""

    def __init__(self, factory: SMTPFactory) -> None:
        self.server: Any = factory.buildProtocol(None)  # type: ignore[arg-type]
        self.transport = StringTransport()
        self.server.makeConnection(self.transport)
        self.heard()

    def say(self, octets: bytes) -> None:
        self.server.dataReceived(octets)

    def heard(self) -> list[int]:
        octets = self.transport.value()
        self.transport.clear()
        return codes(octets)


class BatchTests(SynchronousTestCase):
    """Many commands that arrive together."""

    def setUp(self) -> None:
        self.clock = Clock()

    def factory(self, **options: Any) -> SMTPFactory:
        return SMTPFactory(hostname="mx.test", reactor=self.clock, **{"batch_limit": 10, **UNLIMITED, **options})

    def test_batch(self) -> None:
        """The first commands are executed immediately, the others in later iterations of the reactor, in order."""
        client = Direct(self.factory())
        client.say(b"NOOP\r\n" * 25)
        self.assertEqual(client.heard(), [250] * 10)
        self.clock.advance(0)
        self.assertEqual(client.heard(), [250] * 15)  # a Clock has no iterations, so it runs both remaining batches
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_others(self) -> None:
        """A client that sends few commands is served between two batches of a client that sends many."""
        factory = self.factory()
        flood, client = Direct(factory), Direct(factory)
        flood.say(b"NOOP\r\n" * 1000)
        flood.heard()
        client.say(GREETING + TRANSACTION)
        self.assertEqual(client.heard(), [250, 250, 250])
        self.assertEqual(flood.heard(), [])

    def test_oneATurn(self) -> None:
        """However many clients are queued, one of them runs a batch in each iteration of the reactor."""
        factory = self.factory()
        clients = [Direct(factory) for _ in range(5)]
        for client in clients:
            client.say(b"NOOP\r\n" * 38)
            client.heard()
        served = []
        while factory.batches.step():
            served.append([number for number, client in enumerate(clients) if client.heard()])
        # The first client had ten commands executed at once, and the others eight, because the first already waited.
        self.assertEqual(served, [[0], [1], [2], [3], [4]] * 3)

    def test_fewCommands(self) -> None:
        """A client that sends a few commands at once does not wait for others."""
        factory = self.factory()
        flood, client = Direct(factory), Direct(factory)
        flood.say(b"NOOP\r\n" * 1000)
        client.say(b"NOOP\r\n" * 8)
        self.assertEqual(client.heard(), [250] * 8)

    def test_bursts(self) -> None:
        """A client that sends more than a few commands is queued behind the others, even if they fit into one batch,
        since many clients may do that at the same time."""
        factory = self.factory()
        flood, client = Direct(factory), Direct(factory)
        flood.say(b"NOOP\r\n" * 1000)
        client.say(b"NOOP\r\n" * 10)
        self.assertEqual(client.heard(), [250] * 8)
        for _ in range(2):
            factory.batches.step()
        self.assertEqual(client.heard(), [250] * 2)

    def test_chunks(self) -> None:
        """Chunks count as commands, so that tiny ones use no more batches than lines do."""
        client = Direct(self.factory())
        client.say(GREETING + TRANSACTION + b"BDAT 1\r\na" * 100)
        self.assertLess(len(client.heard()), 10)
        self.clock.advance(0)
        client.say(b"BDAT 0 LAST\r\n")
        self.clock.advance(0)
        self.assertEqual(client.heard()[-1], 250)

    def test_bounded(self) -> None:
        """Input that arrives meanwhile is kept in a buffer of limited size, and executed in order."""
        client = Direct(self.factory(buffer_limit=1000))
        client.say(b"NOOP\r\n" * 20)
        for _ in range(200):
            if client.transport.producerState == "producing":
                client.say(b"NOOP\r\n" * 10)
        self.assertEqual(client.transport.producerState, "paused")
        self.clock.advance(0)
        self.assertEqual(client.transport.producerState, "producing")
        self.assertEqual(set(client.heard()), {250})

    def test_goesAway(self) -> None:
        """A client that disconnects or is disconnected while it is queued is removed. The others are served."""
        factory = self.factory()
        first, second = Direct(factory), Direct(factory)
        for client in (first, second):
            client.say(b"NOOP\r\n" * 30)
        first.server.connectionLost()
        self.clock.advance(0)
        self.assertEqual(len(second.heard()), 30)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_halfClosed(self) -> None:
        """A client that closes its side gets all its replies."""
        client = Direct(self.factory())
        client.say(b"NOOP\r\n" * 30 + b"QUIT\r\n")
        client.server.readConnectionLost()
        self.clock.advance(0)
        self.assertEqual(client.heard(), [250] * 30 + [221])
        self.assertTrue(client.transport.disconnecting)

    def test_notIdle(self) -> None:
        """A client that waits in the queue is not idle."""
        client = Direct(self.factory(timeout=10.0))
        client.say(b"NOOP\r\n" * 11)
        client.heard()
        self.assertTrue(client.server._connection.server_busy)
        self.clock.advance(0)
        self.assertFalse(client.server._connection.server_busy)

    def test_raises(self) -> None:
        """A command that raises an exception does not delay others."""

        class Handler:
            def handle_NOOP(self, *arguments: Any) -> str:
                raise ZeroDivisionError

        client = Direct(SMTPFactory(Handler(), reactor=self.clock, batch_limit=5, hostname="mx.test", **UNLIMITED))
        client.say(b"NOOP\r\n" * 20)
        self.clock.advance(0)
        self.assertEqual(client.heard(), [451] * 20)
        self.flushLoggedErrors(ZeroDivisionError)

    def test_wrong(self) -> None:
        """A batch has at least one command."""
        self.assertRaises(ValueError, self.factory, batch_limit=0)


class RefusalTests(SynchronousTestCase):
    """Refusals that are not errors of the client."""

    def dictionary(self, names: int, **options: Any) -> list[int]:
        """The replies to a client that sends this number of recipients, none of which exists."""

        class Handler:
            def handle_RCPT(self, *arguments: Any) -> str:
                return "550 5.1.1 No such user"

        client = Client(Handler(), hostname="mx.test", **options)
        client.talk(GREETING + b"MAIL FROM:<a@example.com>\r\n")
        return client.codes(b"".join(b"RCPT TO:<%d@example.com>\r\n" % number for number in range(names)))

    def test_few(self) -> None:
        """A mailing list may have some dozens of recipients that no longer exist."""
        self.assertEqual(self.dictionary(80), [550] * 80)

    def test_many(self) -> None:
        """A client that tries hundreds of names is delayed, and then disconnected."""
        self.assertEqual(self.dictionary(1000, error_delay=0), [550] * 199 + [421])
        self.assertLess(len(self.dictionary(1000)), 100)  # the others wait

    def test_limit(self) -> None:
        """The limit can be changed. Without it, such refusals are not delayed and do not end a session."""
        self.assertEqual(self.dictionary(50, error_delay=0, refusal_limit=30), [550] * 29 + [421])
        self.assertEqual(self.dictionary(50, error_delay=0, refusal_limit=30, error_limit=5), [550] * 29 + [421])
        for off in (0, None):
            self.assertEqual(self.dictionary(900, refusal_limit=off), [550] * 900)
        self.assertEqual(self.dictionary(900, error_delay=0, error_limit=None), [550] * 900)

    def test_mixed(self) -> None:
        """With the defaults, ten refusals count as one error."""
        octets = b"BOGUS\r\n" * 10
        client = Client(handler(NOOP=lambda *arguments: "452 4.3.1 Later"), error_delay=0)
        self.assertEqual(client.codes(b"NOOP\r\n" * 99 + octets), [452] * 99 + [500] * 9 + [500])
        self.assertEqual(client.codes(b"NOOP\r\n"), [421])
