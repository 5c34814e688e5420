"""Send replies in the turn of the reactor that made them, those of one reading together.

``transport.write`` waits for the next turn: it asks the reactor to tell when the socket can be written, is told,
writes, and takes the request back. A reply is small and the socket is nearly always ready, so where the transport is a
plain TCP or Unix connection with nothing queued, sending at once spares all that, a third of the work for a short
message. Over TLS as ``startTLS`` begins it there is a second such wait, for more to encrypt; it is spared as well.

What the socket does not take at once goes the ordinary way; so does everything in tests, and behind anything that is
queued. The order of octets is kept, and so is the transport's word to its producer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Error
from twisted.internet.tcp import Connection
from twisted.protocols.tls import BufferingTLSTransport

Way = Callable[[Any, bytes], None]

RECORD = 2**14  # octets that TLS encrypts as one (RFC 8446 5.1)
GATHERED = 2048  # octets of replies, at most; then the transport can say that the client does not read them


class Output:
    """What is sent over a transport, in order.

    :param transport: the transport.
    """

    __slots__ = ("_transport", "_write", "pending")
    muted = False  #: whether nothing is sent any more

    def __init__(self, transport: Any) -> None:
        self.pending = b""  #: what the transport has not been given yet; more may be added, and :meth:`flush` called
        self._transport = transport
        self._write = way_to(transport)

    def flush(self) -> None:
        """Give the transport what was sent."""
        octets = self.pending
        if octets:
            self.pending = b""
            self._write(self._transport, octets)

    def abort(self) -> None:
        """Forget what the transport has not been given."""
        self.stop_waiting()
        self.pending = b""

    def stop_waiting(self) -> None:
        """Do not wait for pending output any more."""

    def may_close(self, close: Callable[[], None]) -> bool:
        """Whether the connection may be closed now; if not, *close* is called when it may."""
        return True

    def transport_changed(self) -> None:
        """TLS has begun: there may be a better way to send."""
        self._write = way_to(self._transport)


def way_to(transport: Any) -> Way:
    """Return the fastest function to send over a transport; it takes the transport and the octets.

    It stays valid as long as the transport exists, but there may be a faster one after TLS has started.
    """
    if not isinstance(transport, Connection):
        return _write
    if not transport.TLS:
        return send_at_once
    tls = transport.protocol
    knows = isinstance(tls, BufferingTLSTransport) and hasattr(tls, "_appSendBuffer") and hasattr(tls, "_aggregator")
    return encrypt_at_once if knows else _write


def closes_at_once(transport: Any) -> bool:
    """Whether the transport can close immediately: everything was sent, and TLS needs no closing message."""
    return isinstance(transport, Connection) and not (
        transport.TLS or transport.dataBuffer or transport._tempDataBuffer
    )


def _write(transport: Any, octets: bytes) -> None:
    transport.write(octets)


def send_at_once(transport: Any, octets: bytes) -> None:
    """Write the octets to a plain transport, now if possible."""
    if (
        transport.TLS
        or transport.disconnecting
        or transport._aborting
        or transport.dataBuffer
        or transport._tempDataBuffer
    ):
        transport.write(octets)
    else:
        _send(transport, transport, octets)


def encrypt_at_once(transport: Any, octets: bytes) -> None:
    """Write the octets to a transport in TLS, now if possible."""
    tls = transport.protocol
    if (
        len(octets) > RECORD
        or tls.disconnecting
        or tls._lostTLSConnection
        or tls._appSendBuffer
        or tls._aggregator._buffer
        or transport._aborting
        or transport.dataBuffer
        or transport._tempDataBuffer
    ):
        transport.write(octets)
        return
    connection = tls.getHandle()
    try:
        encrypted = connection.send(octets)
    except Error:  # or TLS must read first; either way Twisted's own path knows what to do
        transport.write(octets)
        return
    # What is behind the TLS layer is written to as it writes there itself.
    _send(transport, tls.transport, connection.bio_read(2 * RECORD))
    if encrypted < len(octets):
        transport.write(octets[encrypted:])


def _send(connection: Any, ordinary: Any, octets: bytes) -> None:
    """Give the socket what it takes, and the rest to the ordinary way."""
    sent = connection.writeSomeData(octets)
    if not isinstance(sent, int):
        # The connection is broken. The transport finds out for itself, and tells the protocol in its own time.
        ordinary.write(octets)
    elif sent < len(octets):
        ordinary.write(octets[sent:])
