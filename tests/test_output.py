"""Replies that leave in the turn that made them."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.main import CONNECTION_LOST
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.output import is_closing, send_at_once, way_to


class Stingy(Connection):
    """A connection whose socket takes so many octets at once."""

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
    """What becomes of the octets."""

    def connection(self, takes: Any) -> Stingy:
        connection = Stingy(takes)
        self.addCleanup(connection.close)
        return connection

    def later(self, connection: Stingy) -> bytes:
        """What is still to be written."""
        return connection.dataBuffer + b"".join(connection._tempDataBuffer)

    def test_all(self) -> None:
        """What the socket takes is gone, and nothing is queued."""
        connection = self.connection(1000)
        self.assertIs(way_to(connection), send_at_once)
        send_at_once(connection, b"250 OK\r\n")
        self.assertEqual((connection.taken, self.later(connection)), (b"250 OK\r\n", b""))

    def test_short(self) -> None:
        """What the socket does not take is queued, and nothing is sent twice."""
        for takes in range(8):
            connection = self.connection(takes)
            send_at_once(connection, b"250 OK\r\n")
            self.assertEqual(connection.taken + self.later(connection), b"250 OK\r\n")
            self.assertEqual(len(connection.taken), takes)

    def test_order(self) -> None:
        """What follows something that is queued is queued behind it, even if the socket would take it now."""
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
        """A broken connection is left to the transport, which tells the protocol in its own time."""
        connection = self.connection(CONNECTION_LOST)
        send_at_once(connection, b"250 OK\r\n")
        self.assertEqual(self.later(connection), b"250 OK\r\n")

    def test_closing(self) -> None:
        """Nothing is sent at once on a transport that is closing, whoever closed it."""
        for attribute in ("disconnecting", "_aborting"):
            connection = self.connection(1000)
            self.assertFalse(is_closing(connection))
            setattr(connection, attribute, True)
            send_at_once(connection, b"250 OK\r\n")
            self.assertEqual(connection.taken, b"", attribute)
            self.assertTrue(is_closing(connection))
