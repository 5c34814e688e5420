"""Hands a connection that asyncio has accepted over to a Twisted protocol and the reactor of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from txsmtpd.bridges.reactors import reactor_of_loop


class _Ready(Factory):
    """Returns an existing protocol."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._protocol


def take_over(transport: Any, protocol: Protocol) -> None:
    """Connect a protocol to the client of an asyncio transport that has not read anything yet.

    The socket is duplicated, and asyncio's copy is closed, which the client does not notice. Call it in the protocol's
    ``connection_made``.

    :raises TypeError: if asyncio has started TLS, or the transport has no socket.
    """
    socket = transport.get_extra_info("socket")
    if socket is None or transport.get_extra_info("sslcontext") is not None:
        transport.abort()
        raise TypeError(
            "this protocol begins TLS itself: make it with tls_context= and implicit_tls=True, and listen without ssl="
        )
    reactor = reactor_of_loop(asyncio.get_running_loop())
    try:
        reactor.adoptStreamConnection(socket.fileno(), socket.family, _Ready(protocol))
    finally:
        transport.abort()
