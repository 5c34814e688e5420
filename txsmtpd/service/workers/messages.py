"""The messages between the master and a worker: AMP over a socket pair.

Values that can grow, such as counters, are sent as compressed JSON, because AMP limits a value to 64 KiB.
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
    """A value that JSON can represent, compressed."""

    def toString(self, inObject: Any) -> bytes:
        return zlib.compress(json.dumps(inObject, separators=(",", ":")).encode("utf-8"), 1)

    def fromString(self, inString: bytes) -> Any:
        return json.loads(zlib.decompress(inString))


# From a worker to the master


class Ready(amp.Command):
    """The worker listens."""

    requiresAnswer = False


class Beat(amp.Command):
    """A heartbeat, sent each second by the worker's reactor.

    *counted* is the result of :meth:`~txsmtpd.observe.counters.Counters.snapshot`, or None without metrics. *problems*
    lists why the worker cannot serve clients; it is empty if it can.
    """

    arguments = [(b"counted", JSON()), (b"problems", JSON())]
    requiresAnswer = False


class Farewell(amp.Command):
    """The worker has closed its last connection. *counted* has its final counters."""

    arguments = [(b"counted", JSON())]


# From the master to a worker


class Drain(amp.Command):
    """Stop listening, let open transactions finish within the grace period, and exit."""

    requiresAnswer = False


class Retire(amp.Command):
    """Stop listening, because a new worker has taken over, and exit when the clients have left or the grace period is
    over."""

    requiresAnswer = False


class Reopen(amp.Command):
    """Reopen the log and the transcript, which may have been renamed."""

    requiresAnswer = False


class Hurry(amp.Command):
    """Close all connections now, and exit."""

    requiresAnswer = False


class Peers(amp.Command):
    """The other workers that accept connections, by their rows in the table of connections."""

    arguments = [(b"rows", JSON())]
    requiresAnswer = False


class Channel(amp.AMP):
    """One end of the channel. Subclasses define the responders."""

    is_full = False  #: whether the other end does not read; set by the transport

    # Skip AMP's own methods, which log each connection at the level "info".

    def makeConnection(self, transport: Any) -> None:
        amp.BinaryBoxProtocol.makeConnection(self, transport)
        transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None

    def pauseProducing(self) -> None:
        self.is_full = True

    def resumeProducing(self) -> None:
        self.is_full = False

    def stopProducing(self) -> None:
        pass  # the connection is lost

    def tell(self, command: Any, **arguments: Any) -> Any:
        """Send a command, unless the other end is gone.

        :return: a Deferred that fires with the answer; None if the command has no answer or was not sent.
        """
        transport: Any = self.transport
        return self.callRemote(command, **arguments) if transport is not None and transport.connected else None


class _ChannelFactory(Factory):
    """Returns an existing protocol."""

    noisy = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: Any) -> Channel:
        return self._channel


def adopt(reactor: Any, descriptor: int, channel: Channel) -> None:
    """Connect the channel to one end of a socket pair. The descriptor is duplicated."""
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _ChannelFactory(channel))
