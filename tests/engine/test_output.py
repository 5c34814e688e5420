"""Replies that are sent in the iteration in which they are created."""

from __future__ import annotations

import socket
from typing import Any

from OpenSSL.SSL import WantReadError
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls import LineClient, TLSTestCase, from_the_first_octet, secured
from txsmtpd import SMTP
from txsmtpd.engine.output import RECORD, closes_at_once, encrypt_at_once, send_at_once, write_function


class Stingy(Connection):
    """A connection whose socket accepts this number of octets at once."""

    def __init__(self, takes: Any) -> None:
        ours, self.other = socket.socketpair()
        super().__init__(ours, None, MemoryReactor())  # type: ignore[arg-type]
        self.connected = 1
        self.takes = takes
        self.taken = b""

    def writeSomeData(self, data: bytes) -> Any:
        if not isinstance(self.takes, int):
            return self.takes
        taken = bytes(data[: self.takes])
        self.taken += taken
        return len(taken)

    def close(self) -> None:
        self.socket.close()
        self.other.close()


class SendAtOnceTests(SynchronousTestCase):
    """Octets over a plain connection."""

    def connection(self, takes: Any) -> Stingy:
        connection = Stingy(takes)
        self.addCleanup(connection.close)
        return connection

    def later(self, connection: Stingy) -> bytes:
        """The octets that are not yet written."""
        return connection.dataBuffer + b"".join(connection._tempDataBuffer)

    def test_all(self) -> None:
        """Octets that the socket accepts are sent, and nothing is queued."""
        connection = self.connection(1000)
        self.assertIs(write_function(connection), send_at_once)
        send_at_once(connection, b"250 OK\r\n")
        self.assertEqual((connection.taken, self.later(connection)), (b"250 OK\r\n", b""))

    def test_short(self) -> None:
        """Octets that the socket does not accept are queued, and nothing is sent twice."""
        for takes in range(8):
            connection = self.connection(takes)
            send_at_once(connection, b"250 OK\r\n")
            self.assertEqual(connection.taken + self.later(connection), b"250 OK\r\n")
            self.assertEqual(len(connection.taken), takes)

    def test_order(self) -> None:
        """Octets after queued ones are queued, too, even if the socket would accept them now."""
        connection = self.connection(3)
        send_at_once(connection, b"first")
        connection.takes = 1000
        send_at_once(connection, b"second")
        self.assertEqual(connection.taken + self.later(connection), b"firstsecond")
        self.assertEqual(connection.taken, b"fir")
        connection._tempDataBuffer, connection._tempDataLen = [], 0
        connection.dataBuffer = b"st"
        send_at_once(connection, b"third")
        self.assertEqual(connection.taken, b"fir")

    def test_broken(self) -> None:
        """If the connection is lost, the transport notifies the protocol later."""
        connection = self.connection(CONNECTION_LOST)
        send_at_once(connection, b"250 OK\r\n")
        self.assertEqual(self.later(connection), b"250 OK\r\n")

    def test_closing(self) -> None:
        """Nothing is sent directly on a transport that is closing."""
        for attribute in ("disconnecting", "_aborting"):
            connection = self.connection(1000)
            setattr(connection, attribute, True)
            send_at_once(connection, b"250 OK\r\n")
            self.assertEqual(connection.taken, b"", attribute)

    def test_closes(self) -> None:
        """A connection that has sent everything closes immediately. Another one may need the linger time."""
        connection = self.connection(3)
        self.assertTrue(closes_at_once(connection))
        send_at_once(connection, b"250 OK\r\n")
        self.assertFalse(closes_at_once(connection))


class Sayer(SMTP):
    """A server that sends much data, in different ways."""

    takes: int | None = None  # octets that the socket accepts at once; None: no limit
    refuses = False  # whether TLS cannot encrypt now

    def smtp_SAY(self, arg: str) -> str:
        transport = self.transport
        if self.takes is not None:
            ours = transport.writeSomeData
            transport.writeSomeData = lambda data: ours(bytes(data)[: self.takes])
        if self.refuses:
            handle = transport.protocol.getHandle()
            transport.protocol.getHandle = lambda: Unwilling(handle)
        for word in arg.split():
            how, _, octets = word.partition(":")
            text = f"250-{octets} ".encode() + how.encode() * int(octets) + b"\r\n"
            (encrypt_at_once if how == "e" else type(transport).write)(transport, text)
        return "250 done"


class Unwilling:
    """A TLS connection that must read before it writes."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def send(self, octets: bytes) -> int:
        raise WantReadError


class EncryptAtOnceTests(TLSTestCase):
    """Octets over TLS."""

    said = f"e:10 w:20 e:30 e:{RECORD + 1} e:40 w:{3 * RECORD} e:50 e:60"

    async def check(self, connect: Any, **attributes: Any) -> None:
        port = await self.serve(protocol=type("OneSayer", (Sayer,), attributes))

        def talk() -> str:
            client: LineClient = connect(port)
            try:
                self.assertIs(write_function(self.connection().transport), encrypt_at_once)
                return client.ask(f"SAY {self.said}")
            finally:
                client.close()

        reply = await self.run_client(talk)
        expected = [
            f"250-{octets} {how * int(octets)}" for how, octets in (word.split(":") for word in self.said.split())
        ]
        self.assertEqual(reply.split("\n"), [*expected, "250 done"])

    async def test_order(self) -> None:
        """Octets arrive once and in order, by whatever way they are sent."""
        await self.check(secured)

    async def test_implicit(self) -> None:
        """The same is true with implicit TLS."""
        port = await self.serve(implicit_tls=True)

        def talk() -> str:
            client = from_the_first_octet(port)
            try:
                self.assertIs(write_function(self.connection().transport), encrypt_at_once)
                return client.ask("NOOP")
            finally:
                client.close()

        self.assertEqual(await self.run_client(talk), "250 2.0.0 OK")

    async def test_short(self) -> None:
        """Octets that the socket does not accept immediately follow in order."""
        await self.check(secured, takes=7000)

    async def test_mustRead(self) -> None:
        """If TLS must read before it writes, Twisted's transport queues the octets."""
        await self.check(secured, refuses=True)
