"""What lies between the socket and Twisted's TLS: handshakes take turns, and all records of one reading are one batch.

A step of a handshake costs as much as a batch of commands, and many clients may take one at the same time. A record may
be as small as one command, and TLS passes each on alone.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from txsmtpd.engine.batches import Batches, batches_of

if TYPE_CHECKING:
    from txsmtpd.engine.connection import Connection


class TLSInput:
    """Takes what comes from the socket, and passes it on to Twisted's TLS.

    :param connection: the connection.
    :param tls: its :class:`twisted.protocols.tls.TLSMemoryBIOProtocol`.
    """

    __slots__ = ("_connection", "_decrypt", "_input", "_over", "_paused", "_tls")

    def __init__(self, connection: Connection, tls: Any) -> None:
        self._connection = connection
        self._tls = tls
        self._decrypt = tls.dataReceived
        self._input = b""  # what waits for its turn
        self._paused = False  # no more is read until then
        self._over = False
        tls.dataReceived = self.handshake_received

    def handshake_received(self, octets: bytes) -> None:
        """Take the next step of the handshake; or keep the octets, if others are at work, until it is its turn."""
        if not self._input:
            batches = batches_of(self._connection.server)
            if batches.are_idle:
                self._step(octets, batches)
                return
            batches.add(self)
        elif not self._paused:
            self._paused = True
            self._tls.transport.pauseProducing()
        self._input += octets

    def handshake_completed(self) -> None:
        """What comes from now on is decrypted at once."""
        self._tls.dataReceived = self._received

    def stop(self) -> None:
        """The connection is lost."""
        self._over = True
        del self._tls.dataReceived  # which is a cycle of references

    def _received(self, octets: bytes) -> None:
        self._connection.read_together(self._decrypt, octets)

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
        """Take the step that waits."""
        octets, self._input = self._input, b""
        if self._paused:
            self._paused = False
            self._tls.transport.resumeProducing()
        self._step(octets, batches_of(self._connection.server))

    def _step(self, octets: bytes, batches: Batches) -> None:
        self._received(octets)
        batches.busy_at = monotonic()
