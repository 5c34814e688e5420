"""Send replies in the iteration of the reactor in which they were created. Replies to pipelined commands are sent
together.

``transport.write`` waits for the next iteration: it registers the socket with the reactor, writes when the reactor
calls, and unregisters the socket. But a reply is small, and the socket is nearly always writable. So if the transport
is a plain TCP or Unix connection without queued data, this module writes to the socket directly. That saves a third of
the processor time for a short message. Twisted's TLS waits for another iteration to collect data; this is avoided, too.

Octets that the socket does not accept immediately are passed to ``transport.write``. All output is passed to it if data
is already queued, or if the transport is of another kind, such as one of a test. Therefore the order of the octets and
the calls to the producer are the same as without this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Error
from twisted.internet.tcp import Connection
from twisted.protocols.tls import BufferingTLSTransport

WriteFunction = Callable[[Any, bytes], None]

RECORD = 2**14  # octets that TLS encrypts as one (RFC 8446 5.1)
# If this many octets of replies are pending, they are written before more commands run. Otherwise the server would not
# notice that the client does not read.
FLUSH_SIZE = 2048


class Output:
    """Sends octets over a transport, in order.

    :param transport: the transport.
    """

    __slots__ = ("_transport", "_write", "pending")
    muted = False  #: whether output is discarded

    def __init__(self, transport: Any) -> None:
        self.pending = b""  #: octets to be written; callers append to them, and call :meth:`flush`
        self._transport = transport
        self._write = write_function(transport)

    def flush(self) -> None:
        """Write the pending octets."""
        octets = self.pending
        if octets:
            self.pending = b""
            self._write(self._transport, octets)

    def abort(self) -> None:
        """Discard the pending and the delayed octets."""
        self.pending = b""

    def stop_waiting(self) -> None:
        """Stop delaying output. Only subclasses delay it."""

    def may_close(self, close: Callable[[], None]) -> bool:
        """Whether the connection may be closed now. If not, *close* is called later."""
        return True

    def transport_changed(self) -> None:
        """TLS has started. Choose the fastest way to send over TLS."""
        self._write = write_function(self._transport)


def write_function(transport: Any) -> WriteFunction:
    """Return the fastest function that sends octets over a transport. Its arguments are the transport and the octets.

    The function also works after TLS has started, but there may be a faster one then.
    """
    if not isinstance(transport, Connection):
        return _write
    if not transport.TLS:
        return send_at_once
    tls = transport.protocol
    is_known = isinstance(tls, BufferingTLSTransport) and hasattr(tls, "_appSendBuffer") and hasattr(tls, "_aggregator")
    return encrypt_at_once if is_known else _write


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
    except Error:  # for example, TLS must read first: Twisted handles this
        transport.write(octets)
        return
    # Write to the transport below the TLS layer, as the TLS layer does.
    _send(transport, tls.transport, connection.bio_read(2 * RECORD))
    if encrypted < len(octets):
        transport.write(octets[encrypted:])


def _send(connection: Any, unencrypted: Any, octets: bytes) -> None:
    """Write octets to the socket of the connection. If the socket does not accept all of them, pass the rest to the
    *unencrypted* transport, which queues them and does not encrypt them again."""
    sent = connection.writeSomeData(octets)
    if not isinstance(sent, int):
        # The connection is lost. The transport notices this later, and notifies the protocol.
        unencrypted.write(octets)
    elif sent < len(octets):
        unencrypted.write(octets[sent:])
