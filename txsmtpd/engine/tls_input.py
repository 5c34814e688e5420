"""A layer between the socket and Twisted's TLS. It queues handshakes, and input that is slow to decrypt.

A step of a handshake costs as much as a batch of commands, and many clients may start a handshake at the same time.
Twisted's TLS delivers each record separately, and a record may be as small as one command, or an update of the keys
(RFC 8446 4.6.3), which costs as much as some commands. So this layer combines the records of one read into one batch,
and decrypts a read that contains hundreds of small records in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from txsmtpd.engine.batches import batches_of

if TYPE_CHECKING:
    from txsmtpd.engine.connection import Connection

MANY = 64  # records in one read; a read of 64 KiB has 5 of the largest, and 45 of those that fill a packet
PART = 4096  # octets, for 150 of the smallest records
HEADER = 5  # octets of a record: its type, the version, and its length (RFC 8446 5.1)


class TLSInput:
    """Receives the octets from the socket, and passes them on to Twisted's TLS.

    :param connection: the connection.
    :param tls: its :class:`twisted.protocols.tls.TLSMemoryBIOProtocol`.
    """

    __slots__ = ("_batches", "_connection", "_decrypt", "_header", "_input", "_lost", "_rest", "_tls")

    def __init__(self, connection: Connection, tls: Any) -> None:
        self._connection = connection
        self._tls = tls
        self._batches = batches_of(connection.server)
        self._decrypt = tls.dataReceived
        self._input = b""  # octets that wait in the queue
        self._rest = 0  # octets of the current record that have not arrived
        self._header = b""  # the first octets of the next record, if its header is incomplete
        self._lost = False
        tls.dataReceived = self.handshake_received

    def handshake_received(self, octets: bytes) -> None:
        """Run the next step of the handshake, or queue it if others wait."""
        if self._count_records(octets) > MANY or self._input or not self._batches.are_idle:
            self._queue(octets)
        else:
            self._step(octets)

    def handshake_completed(self) -> None:
        """The handshake is complete. Further input consists of records with data."""
        self._tls.dataReceived = self._received

    def _received(self, octets: bytes) -> None:
        if self._count_records(octets) > MANY or self._input:
            self._queue(octets)
        elif len(octets) < PART:
            self._connection.read_together(self._decrypt, octets)
        else:
            self._step(octets)

    def _count_records(self, octets: bytes) -> int:
        """Return how many records begin in the octets. They follow those of the calls before."""
        if self._header:
            octets, position = self._header + octets, 0
        else:
            position = self._rest
        size = len(octets)
        count = 0
        while position + HEADER <= size:
            position += HEADER + (octets[position + 3] << 8) + octets[position + 4]
            count += 1
        self._header = octets[position:]
        self._rest = max(position - size, 0)
        return count

    def _queue(self, octets: bytes) -> None:
        """Queue the octets, and pause the transport."""
        if not self._input:
            self._batches.add(self)
        self._input += octets
        self._tls.transport.pauseProducing()

    def _step(self, octets: bytes) -> None:
        self._connection.read_together(self._decrypt, octets)
        self._batches.busy_at = monotonic()

    def stop(self) -> None:
        """The connection is lost."""
        self._lost = True
        del self._tls.dataReceived  # breaks a reference cycle

    # As an entry of the queue

    @property
    def closing(self) -> bool:
        """Whether the connection is lost."""
        return self._lost

    def call_later(self, period: float, function: Callable[..., Any]) -> Any:
        """Call the function after *period* seconds."""
        # Use the reactor that reads the socket, because the connection of a test may have another clock.
        reactor = getattr(self._tls.transport, "reactor", self._connection.clock)
        return reactor.callLater(period, function)

    def next_batch(self) -> None:
        """Pass on a part of the queued octets."""
        octets, self._input = self._input[:PART], self._input[PART:]
        if self._input:
            self._batches.add(self)
        elif self._connection.may_read:
            self._tls.transport.resumeProducing()
        self._step(octets)
