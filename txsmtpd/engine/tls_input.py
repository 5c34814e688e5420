"""What lies between the socket and Twisted's TLS: handshakes take turns, and so does input that is slow to decrypt.

A step of a handshake costs as much as a batch of commands, and many clients may take one at the same time. TLS passes
each record on alone, and a record may be as small as one command: all records of one reading are one batch. If
decrypting hundreds of them takes long, what the client sends next is decrypted in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from txsmtpd.engine.batches import batches_of

if TYPE_CHECKING:
    from txsmtpd.engine.connection import Connection

READING = 65536  # octets that the transport reads at once
LONG = 0.002  # seconds; decrypting a reading of large records takes a tenth
PART = 4096  # octets


class TLSInput:
    """Takes what comes from the socket, and passes it on to Twisted's TLS.

    :param connection: the connection.
    :param tls: its :class:`twisted.protocols.tls.TLSMemoryBIOProtocol`.
    """

    __slots__ = ("_batches", "_connection", "_decrypt", "_input", "_is_slow", "_over", "_tls")

    def __init__(self, connection: Connection, tls: Any) -> None:
        self._connection = connection
        self._tls = tls
        self._batches = batches_of(connection.server)
        self._decrypt = tls.dataReceived
        self._input = b""  # what waits for its turn
        self._is_slow = True  # whether the last reading took long; nobody knows before the first
        self._over = False
        tls.dataReceived = self.handshake_received

    def handshake_received(self, octets: bytes) -> None:
        """Take the next step of the handshake, or let it wait for its turn if others are at work."""
        if not self._input and self._batches.are_idle:
            self._step(octets)
        else:
            self._wait(octets)

    def handshake_completed(self) -> None:
        """What comes from now on are records."""
        self._tls.dataReceived = self._received

    def _received(self, octets: bytes) -> None:
        if self._input or (self._is_slow and len(octets) > PART):
            self._wait(octets)
        elif len(octets) < PART:
            self._connection.read_together(self._decrypt, octets)
        else:
            self._step(octets)

    def _wait(self, octets: bytes) -> None:
        """Keep the octets until it is the turn of this connection. Read no more until then."""
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
        del self._tls.dataReceived  # which is a cycle of references

    # As what waits in the queue

    @property
    def closing(self) -> bool:
        """Whether nothing will be read any more."""
        return self._over

    def call_later(self, period: float, function: Callable[..., Any]) -> Any:
        """Call the function after so many seconds."""
        # In the reactor that reads the socket: tests may have another clock.
        reactor = getattr(self._tls.transport, "reactor", self._connection.clock)
        return reactor.callLater(period, function)

    def next_batch(self) -> None:
        """Take the step that waits, or a part of it."""
        size = PART if self._is_slow else READING
        octets, self._input = self._input[:size], self._input[size:]
        if self._input:
            self._batches.add(self)
        elif self._connection.may_read:
            self._tls.transport.resumeProducing()
        self._step(octets)
