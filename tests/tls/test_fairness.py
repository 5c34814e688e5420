"""Clients for which TLS is slow do not delay the others."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.internet.ssl import KeyPair, PrivateCertificate
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls import PATIENCE, TLSTestCase, combined, trusting
from txsmtpd.engine.tls_input import PART, TLSInput


class Turns:
    """Counts events in each iteration of the reactor."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.total = 0
        self._now = 0

    def count(self, *arguments: Any) -> None:
        if not self._now:
            reactor.callLater(0, self._next)  # type: ignore[attr-defined]
        self._now += 1
        self.total += 1

    def _next(self) -> None:
        self.counts.append(self._now)
        self._now = 0


async def until(condition: Callable[[], object]) -> None:
    """Let the reactor run until the condition holds. Otherwise the test's timeout ends it."""
    while not condition():
        await deferLater(reactor, 0.001)  # type: ignore[arg-type]


class Records:
    """A client that chooses what is sent in one record, and what is sent at once. Its socket never blocks."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setblocking(False)
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting().wrap_bio(self._incoming, self.outgoing, server_hostname="localhost")

    def hello(self) -> None:
        """Send the first message of a handshake."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()

    def flush(self) -> None:
        self.send(self.outgoing.read())

    def send(self, octets: bytes) -> None:
        """Send encrypted octets, and wait for room. More than some kilobytes must be sent in a thread, since the server
        reads in this one."""
        rest = memoryview(octets)
        while rest:
            select.select([], [self.socket], [], PATIENCE)
            rest = rest[self.socket.send(rest) :]

    async def _again(self, function: Callable[[], Any]) -> Any:
        while True:
            try:
                return function()
            except ssl.SSLWantReadError:
                if self.outgoing.pending:
                    self.flush()
                try:
                    self._incoming.write(self.socket.recv(65536))
                except BlockingIOError:
                    await deferLater(reactor, 0.001)  # type: ignore[arg-type]

    def handshake(self) -> Awaitable[Any]:
        return self._again(self.tls.do_handshake)

    async def read(self, octets: int) -> bytes:
        """The server's output, until there is this number of octets."""
        found = b""
        while len(found) < octets:
            found += await self._again(lambda: self.tls.read(65536))
        return found


class FairnessTests(TLSTestCase):
    """The work of one iteration of the reactor."""

    async def test_records(self) -> None:
        """A thousand records with a command each are executed in the same batches as a thousand commands in one
        record."""
        turns = Turns()

        class Handler:
            async def handle_NOOP(self, *arguments: Any) -> str:
                turns.count()
                return "250 OK"

        for together in (False, True):  # whether the commands are sent with the end of the handshake
            turns.counts.clear()
            client = Records(await self.serve(Handler(), implicit_tls=True, junk_command_limit=None))
            await client.handshake()
            if not together:
                client.flush()
                await client.read(20)
            for _ in range(1000):
                client.tls.write(b"NOOP\r\n")
            client.flush()
            await client.read(1000 * len("250 OK\r\n"))
            await until(lambda: sum(turns.counts) == 1000)
            self.assertLessEqual(max(turns.counts), 64)  # a batch of new input, and a queued batch
            client.socket.close()

    async def test_small(self) -> None:
        """Records that are slow to decrypt are decrypted in parts, in separate batches, and completely."""
        client = Records(await self.serve(implicit_tls=True, junk_command_limit=None, buffer_limit=1000))
        await client.handshake()
        for _ in range(4000):
            client.tls.write(b"NOOP\r\n")
        client.tls.write(b"QUIT\r\n")
        sending = deferToThread(client.send, client.outgoing.read())
        heard = await client.read(4000 * len("250 2.0.0 OK\r\n"))
        self.assertEqual(heard.count(b"250 2.0.0 OK\r\n"), 4000)
        await sending
        client.socket.close()

    async def test_handshakes(self) -> None:
        """Handshakes that start at the same time are queued, and all are completed."""
        turns = Turns()
        context = PrivateCertificate.load(combined(self.leaf), KeyPair.load(combined(self.leaf), 1), 1).options()
        # The server does the cryptographic work after the client's first message.
        context.getContext().set_tlsext_servername_callback(turns.count)
        port = await self.serve(implicit_tls=True, tls_context=context)
        clients = [Records(port) for _ in range(20)]
        for client in clients:
            client.hello()
        await until(lambda: turns.total == 20)
        self.assertLessEqual(max(turns.counts), 5)  # usually one or two; more if the process is interrupted
        for client in clients:
            await client.handshake()
            client.flush()
            self.assertIn(b"220 mx.test", await client.read(12))
            client.socket.close()

    async def test_goesAway(self) -> None:
        """Clients that disconnect while they are queued are removed. If a client sends more than the buffer holds, it
        is read later."""
        port = await self.serve(implicit_tls=True, tls_handshake_timeout=5)
        clients = [Records(port) for _ in range(10)]
        for number, client in enumerate(clients):
            client.hello()
            if number % 2:
                client.socket.close()
            else:
                client.socket.send(bytes(200_000))
        await until(lambda: len(self.factory.connections) == 0 and not self.factory.batches)
        self.flushLoggedErrors()


class SocketOfTLS:
    """Replaces Twisted's TLS: keeps its input."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.transport = StringTransport()

    def dataReceived(self, octets: bytes) -> None:
        self.got.append(octets)


class RecordTests(SynchronousTestCase):
    """The number of octets that are decrypted at once, by the number of records."""

    def setUp(self) -> None:
        self.tls = SocketOfTLS()
        connection = SimpleNamespace(
            server=SimpleNamespace(factory=None),
            read_together=lambda function, octets: function(octets),
            may_read=True,
            clock=Clock(),
        )
        self.input = TLSInput(connection, self.tls)  # type: ignore[arg-type]  # all that it uses
        self.input.handshake_completed()

    def received(self, octets: bytes) -> list[int]:
        """The sizes of the parts that are decrypted at once, for one read."""
        self.tls.got.clear()
        self.tls.dataReceived(octets)
        while self.input._batches.step():
            pass
        self.assertEqual(b"".join(self.tls.got), octets)
        self.assertEqual(self.tls.transport.producerState, "producing")
        return [len(each) for each in self.tls.got]

    def test_keyUpdates(self) -> None:
        """Hundreds of updates of the keys, each in a record of its own, are parts, also after a read of large records,
        and also with the end of the handshake. They cost much more than their octets."""
        updates = record(22) * (60000 // 27)
        large = record(16401) * 3
        for octets in (updates, large, updates, large + updates, updates):
            sizes = self.received(octets)
            if octets is large:
                self.assertEqual(sizes, [len(large)])
            else:
                self.assertGreater(len(sizes), 10)
                self.assertLessEqual(max(sizes), PART)
        self.tls.dataReceived = self.input.handshake_received  # type: ignore[method-assign]  # as the handshake does
        self.assertLessEqual(max(self.received(updates)), PART)

    def test_usual(self) -> None:
        """Records of ordinary clients, which fill a packet or are larger, are decrypted as they arrive."""
        for size in (1400, 4096, 16401):
            octets = record(size) * (65536 // (size + 5))
            self.assertEqual(self.received(octets), [len(octets)])

    @given(some.lists(some.integers(0, 700), max_size=20), some.lists(some.integers(0, 9000), max_size=10))
    def test_cuts(self, lengths: list[int], cuts: list[int]) -> None:
        """Records are counted once, wherever the reads end."""
        octets = b"".join(map(record, lengths))
        edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
        count = sum(self.input._count_records(octets[begin:end]) for begin, end in pairwise(edges))
        self.assertEqual(count, len(lengths))


def record(size: int) -> bytes:
    """A record of TLS with so many octets."""
    return b"\x17\x03\x03" + size.to_bytes(2, "big") + b"\x17" * size
