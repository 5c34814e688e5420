"""A layer between the socket and Twisted's TLS. It queues handshakes, and input that is slow to decrypt.

A step of a handshake costs as much as a batch of commands, and many clients may start a handshake at the same time.
Twisted's TLS delivers each record separately, and a record may be as small as one command. So this layer combines the
records of one read into one batch. If a read was slow to decrypt, because it contained hundreds of small records, the
following input of this client is decrypted in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from txsmtpd.engine.batches import batches_of

if TYPE_CHECKING:
    from txsmtpd.engine.connection import Connection

READING = 65536  # octets that the transport reads at once
LONG = 0.002  # seconds, for READING octets; with large records, decryption takes a tenth of this
PART = 4096  # octets


class TLSInput:
    """Receives the octets from the socket, and passes them on to Twisted's TLS.

    :param connection: the connection.
    :param tls: its :class:`twisted.protocols.tls.TLSMemoryBIOProtocol`.
    """

    __slots__ = ("_batches", "_connection", "_decrypt", "_input", "_is_slow", "_over", "_tls")

    def __init__(self, connection: Connection, tls: Any) -> None:
        self._connection = connection
        self._tls = tls
        self._batches = batches_of(connection.server)
        self._decrypt = tls.dataReceived
        self._input = b""  # octets that wait in the queue
        self._is_slow = True  # whether the last read was slow to decrypt; assumed before the first one
        self._over = False
        tls.dataReceived = self.handshake_received

    def handshake_received(self, octets: bytes) -> None:
        """Run the next step of the handshake, or queue it if others wait."""
        if not self._input and self._batches.are_idle:
            self._step(octets)
        else:
            self._wait(octets)

    def handshake_completed(self) -> None:
        """The handshake is complete. Further input consists of records with data."""
        self._tls.dataReceived = self._received

    def _received(self, octets: bytes) -> None:
        if self._input or (self._is_slow and len(octets) > PART):
            self._wait(octets)
        elif len(octets) < PART:
            self._connection.read_together(self._decrypt, octets)
        else:
            self._step(octets)

    def _wait(self, octets: bytes) -> None:
        """Queue the octets, and pause the transport."""
        if not self._input:
            self._batches.add(self)
        self._input += octets
        self._tls.transport.pauseProducing()

    def _step(self, octets: bytes) -> None:
        began = monotonic()
        self._connection.read_together(self._decrypt, octets)
        self._batches.busy_at = ended = monotonic()
        if len(octets) >= PART:
            self._is_slow = ended - began > LONG * len(octets) / READING

    def stop(self) -> None:
        """The connection is lost."""
        self._over = True
        del self._tls.dataReceived  # breaks a reference cycle

    # As an entry of the queue

    @property
    def closing(self) -> bool:
        """Whether the connection is lost."""
        return self._over

    def call_later(self, period: float, function: Callable[..., Any]) -> Any:
        """Call the function after *period* seconds."""
        # Use the reactor that reads the socket, because the connection of a test may have another clock.
        reactor = getattr(self._tls.transport, "reactor", self._connection.clock)
        return reactor.callLater(period, function)

    def next_batch(self) -> None:
        """Pass on the queued octets, or a part of them."""
        size = PART if self._is_slow else READING
        octets, self._input = self._input[:size], self._input[size:]
        if self._input:
            self._batches.add(self)
        elif self._connection.may_read:
            self._tls.transport.resumeProducing()
        self._step(octets)
