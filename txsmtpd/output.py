"""Send replies in the turn of the reactor that made them.

``transport.write`` waits for the next turn: it asks the reactor to tell when the socket can be written, is told,
writes, and takes the request back. A reply is small and the socket is nearly always ready, so where the transport is a
plain TCP or Unix connection with nothing queued, sending at once spares all that, a third of the work for a short
message. What the socket does not take at once goes the ordinary way; so does everything over TLS, in tests, and
behind anything that is queued. The order of octets is kept, and so is the transport's word to its producer.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection


def sends_at_once(transport: Any) -> bool:
    """Whether :func:`send_at_once` can do better than ``transport.write``."""
    return isinstance(transport, Connection)


def is_closing(transport: Any) -> bool:
    """Whether somebody has told the transport to close, so that nothing more should be done."""
    return transport.disconnecting or getattr(transport, "_aborting", False)


def send_at_once(transport: Any, octets: bytes) -> None:
    """Write the octets to the transport, now if possible."""
    if transport.TLS or is_closing(transport) or transport.dataBuffer or transport._tempDataBuffer:
        transport.write(octets)
        return
    sent = transport.writeSomeData(octets)
    if not isinstance(sent, int):
        # The connection is broken. The transport finds out for itself, and tells the protocol in its own time.
        transport.write(octets)
    elif sent < len(octets):
        transport.write(octets[sent:])
