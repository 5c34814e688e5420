"""What the master and a worker tell each other, over a socket pair, in AMP.

Values that grow with what is counted go as compressed JSON, since AMP's are limited to 64 KiB.
"""

from __future__ import annotations

import json
import socket
import zlib
from typing import Any

from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure


class JSON(amp.Argument):
    """A value of JSON's types."""

    def toString(self, inObject: Any) -> bytes:
        return zlib.compress(json.dumps(inObject, separators=(",", ":")).encode("utf-8"), 1)

    def fromString(self, inString: bytes) -> Any:
        return json.loads(zlib.decompress(inString))


# From a worker


class Ready(amp.Command):
    """The worker listens."""

    requiresAnswer = False


class Beat(amp.Command):
    """The worker's reactor turns: sent each second.

    *counted* is what :meth:`~txsmtpd.observe.counters.Counters.snapshot` returns, or None; *problems* say why the
    worker is not ready for clients.
    """

    arguments = [(b"counted", JSON()), (b"problems", JSON())]
    requiresAnswer = False


class Farewell(amp.Command):
    """The worker has ended its last connection; this is what it has counted."""

    arguments = [(b"counted", JSON())]


# To a worker


class Drain(amp.Command):
    """Stop listening, let open transactions end, and exit."""

    requiresAnswer = False


class Retire(amp.Command):
    """Stop listening, since another worker has taken over; exit when the clients have left, or within the grace."""

    requiresAnswer = False


class Reopen(amp.Command):
    """Reopen the log and the transcript, which may have been renamed."""

    requiresAnswer = False


class Hurry(amp.Command):
    """End all connections now, and exit."""

    requiresAnswer = False


class Peers(amp.Command):
    """The rows of the page of those workers that accept connections, besides this one."""

    arguments = [(b"rows", JSON())]
    requiresAnswer = False


class Channel(amp.AMP):
    """One end of the channel. A subclass has the responders."""

    # Those of AMP log each connection, at a level that people see.

    def makeConnection(self, transport: Any) -> None:
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None

    def tell(self, command: Any, **arguments: Any) -> Any:
        """Send a command; nothing, if the other end is gone.

        :return: a Deferred of the answer, if the command has one.
        """
        transport: Any = self.transport
        return self.callRemote(command, **arguments) if transport is not None and transport.connected else None


class _One(Factory):
    """Makes the one protocol that there is already."""

    noisy = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: Any) -> Channel:
        return self._channel


def adopt(reactor: Any, descriptor: int, channel: Channel) -> None:
    """Let the channel talk over this end of a socket pair. The descriptor is duplicated."""
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _One(channel))
