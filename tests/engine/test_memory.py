"""The memory of messages is counted in all cases. Beyond the limit, messages wait, and then they are refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.engine.test_batches import UNLIMITED, Direct
from tests.support import GREETING, TRANSACTION, handler
from txsmtpd import SMTPFactory
from txsmtpd.engine.message_sink import MEMORY_TIMEOUT
from txsmtpd.handlers import Sink
from txsmtpd.reply import Refused, Reply

PIECE = b"a" * 98 + b"\r\n"


class MemoryTests(SynchronousTestCase):
    """A factory whose messages may use 4,000 octets together, of which 1,000 are reserved for one message."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.taken: list[bytes] = []
        self.hook: Deferred[str] | None = None

    def factory(self, taker: object = None, **options: Any) -> SMTPFactory:
        taker = taker or handler(DATA=self.take)
        options = {"memory_limit": 4000, "data_size_limit": 1000, **UNLIMITED, **options}
        self.made = SMTPFactory(taker, hostname="mx.test", reactor=self.clock, **options)
        return self.made

    def take(self, server: Any, session: Any, envelope: Any) -> Any:
        self.taken.append(envelope.content)
        return self.hook or "250 2.0.0 OK"

    def client(self, factory: SMTPFactory, *said: bytes) -> Direct:
        client = Direct(factory)
        client.say(GREETING + TRANSACTION)
        client.heard()
        for each in said:
            client.say(each)
        return client

    @property
    def used(self) -> int:
        return self.made.settings.memory.used

    def lose(self, client: Direct) -> None:
        client.server.connectionLost(Failure(ConnectionDone()))

    def test_counted(self) -> None:
        """A message counts from its first octet until the handler's reply."""
        self.hook = Deferred()
        client = self.client(self.factory(), b"DATA\r\n", PIECE)
        self.assertEqual(self.used, 98)  # CRLF may begin the end of the data, and is not counted yet
        client.say(b".\r\n")
        self.assertEqual(self.used, 100)
        self.hook.callback("250 OK")
        self.assertEqual(self.used, 0)
        self.assertEqual(self.taken, [PIECE])

    def test_everyEnd(self) -> None:
        """Any end of a message releases its memory."""
        chunk = b"BDAT 100\r\n" + PIECE
        for name, said, size in (
            ("reply", (b"DATA\r\n", PIECE, b".\r\n"), 0),
            ("chunks", (chunk, chunk, b"BDAT 0 LAST\r\n"), 0),
            ("last chunk", (chunk, b"BDAT 100 LAST\r\n" + PIECE), 0),
            ("reset", (chunk, b"RSET\r\n"), 0),
            ("greeting", (chunk, GREETING), 0),
            ("quit", (chunk, b"QUIT\r\n"), 100),
            ("bare newline", (b"DATA\r\n", PIECE, b"\n", b"\r\n.\r\n"), 0),
            ("too large", (b"DATA\r\n", PIECE * 30, b".\r\n"), 0),
            ("chunk too large", (chunk, b"BDAT 2000\r\n" + b"a" * 2000), 0),
            ("chunk malformed", (chunk, b"BDAT x\r\n"), 100),
            ("DATA between chunks", (chunk, b"DATA\r\n"), 100),
            ("unfinished", (b"DATA\r\n", PIECE), 98),
            ("unfinished chunk", (b"BDAT 100\r\n", PIECE[:50]), 50),
        ):
            client = self.client(self.factory(), *said)
            self.assertEqual(self.used, size, name)
            self.lose(client)
            self.assertEqual(self.used, 0, name)

    def test_handlerFails(self) -> None:
        """When a hook raises, takes too long or loses its client, it no longer uses the message."""
        for end in (
            lambda client, hook: hook.errback(ValueError()),
            lambda client, hook: self.clock.advance(300),
            lambda client, hook: self.lose(client),
            lambda client, hook: self.made.abort(),
        ):
            self.hook = Deferred()
            client = self.client(self.factory(), b"DATA\r\n", PIECE, b".\r\n")
            self.assertEqual(self.used, 100)
            end(client, self.hook)
            self.flushLoggedErrors(ValueError)
            if self.used:  # aborted, but connectionLost has not been called yet
                self.lose(client)
            self.assertEqual(self.used, 0)

    def test_hookThatGoesOn(self) -> None:
        """A hook that ignores its cancellation still uses the message."""
        hook: Deferred[str] = Deferred()
        again: Deferred[str] = Deferred()

        async def stubborn(*arguments: Any) -> str:
            try:
                return await hook
            except BaseException:
                return await again

        client = self.client(self.factory(handler(DATA=stubborn)), b"DATA\r\n", PIECE, b".\r\n")
        self.lose(client)
        self.assertEqual(self.used, 100)
        again.callback("250 OK")
        self.assertEqual(self.used, 0)

    def test_smallPieces(self) -> None:
        """A message of many chunks of two octets does not use many times their size."""
        client = self.client(self.factory(data_size_limit=None, memory_limit=None))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            client.say(b"BDAT 2\r\nab" * 10)
            self.clock.advance(0)
            client.transport.clear()
        after, _ = tracemalloc.get_traced_memory()
        self.assertEqual(self.used, 20_000)
        self.assertLess(after - before, 100_000)

    def test_waits(self) -> None:
        """Beyond the limit, a client is not read until another message is finished. Then it continues."""
        factory = self.factory(data_size_limit=None)
        first, second, third = (self.client(factory, b"DATA\r\n", PIECE * 14) for _ in range(3))
        self.assertEqual(first.heard() + second.heard() + third.heard(), [354] * 3)
        second.say(PIECE * 3)  # the third has the reserve; the second has sent this before it was paused
        third.say(PIECE * 4)
        self.assertEqual(factory.settings.memory.waiting, 1)
        held = self.used
        second.say(PIECE + b".\r\n")
        self.assertEqual((self.used, second.heard()), (held, []))
        third.say(b".\r\n")
        self.assertEqual((third.heard(), second.heard()), ([250], [250]))
        self.assertEqual(factory.settings.memory.waiting, 0)
        first.say(b".\r\n")
        self.assertEqual(first.heard(), [250])
        self.assertEqual([len(each) for each in self.taken], [1800, 1800, 1400])
        self.assertEqual(self.used, 0)

    def test_refused(self) -> None:
        """A message that has waited too long is refused with 452 at its end, and the rest of it is discarded. The
        client's next message is accepted."""
        for begin, end in ((b"DATA\r\n", b".\r\n"), (b"BDAT 1600\r\n", b"BDAT 0 LAST\r\n")):
            factory = self.factory(data_size_limit=None)
            others = [self.client(factory, b"DATA\r\n", PIECE * 18) for _ in range(2)]
            client = self.client(factory, begin, PIECE * 14)
            client.heard()
            self.clock.advance(MEMORY_TIMEOUT)
            self.assertEqual(factory.settings.memory.refused, 1)
            client.say(PIECE * 2 + end)
            self.assertEqual(client.heard()[-1], 452, begin)
            for other in others:
                self.lose(other)
            client.say(TRANSACTION + b"DATA\r\n" + PIECE + b".\r\n")
            self.assertEqual(client.heard(), [250, 250, 354, 250])
            self.assertEqual(self.used, 0)

    def test_progress(self) -> None:
        """Many large messages that have all started are completed, one after the other."""
        factory = self.factory()
        clients = [self.client(factory, b"DATA\r\n") for _ in range(20)]
        for _ in range(9):
            for client in clients:
                client.say(PIECE)
        for client in clients:
            client.say(b".\r\n")
        self.assertEqual([client.heard()[-1] for client in clients], [250] * 20)
        self.assertEqual({len(each) for each in self.taken}, {900})
        self.assertEqual(self.used, 0)

    def test_discarded(self) -> None:
        """The sink keeps nothing of a message, but the limits of the header apply."""
        client = self.client(self.factory(Sink()), b"DATA\r\n", b"Subject: a\r\n\r\n" + PIECE * 9)
        self.assertEqual(self.used, 0)
        client.say(b".\r\n")
        self.assertEqual(client.heard(), [354, 250])
        client = self.client(self.factory(Sink(), header_field_limit=2), b"DATA\r\n", b"a: b\r\n" * 3, b".\r\n")
        self.assertEqual(client.heard(), [354, 554])

    def test_subclassOfSink(self) -> None:
        """A subclass that reads messages gets them."""
        seen = []

        class Looks(Sink):
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                seen.append(envelope.content)
                return "250 OK"

        self.client(self.factory(Looks()), b"DATA\r\n", PIECE, b".\r\n")
        self.assertEqual(seen, [PIECE])

    def test_filtered(self) -> None:
        """Behind filters, a message that the handler gets whole counts, too."""

        class Looks:
            name = "looks"

            async def filter_message(self, server: Any, session: Any, envelope: Any, message: Any) -> Any:
                if b"bad" in await message.read():
                    raise Refused(Reply(550, "5.7.1", "No"))

        self.hook = Deferred()
        client = self.client(self.factory(filters=[Looks()]), b"DATA\r\n", b"a: b\r\n\r\nbody\r\n", b".\r\n")
        self.assertEqual(self.used, 14)
        self.hook.callback("250 OK")
        self.assertEqual(self.used, 0)
        client.say(TRANSACTION + b"DATA\r\nbad\r\n.\r\n")
        self.assertEqual(client.heard()[-1], 550)
        self.assertEqual(self.used, 0)
