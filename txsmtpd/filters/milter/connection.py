"""A connection to a milter: sends commands and reads responses, one at a time, each with a timeout.

The order of commands is in :mod:`txsmtpd.filters.milter`, their encoding in :mod:`txsmtpd.wire.milter`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.filters.verdict import FilterError
from txsmtpd.wire import milter
from txsmtpd.wire.milter import MilterError, Negotiation, PacketReader, Response

T = TypeVar("T")

LINGER = 10.0  # seconds until a connection is aborted after QUIT


@implementer(IPushProducer)
class MilterConnection(Protocol):
    """The protocol of a connection to a milter.

    :param clock: provides the time (IReactorTime).
    """

    def __init__(self, clock: Any) -> None:
        self.agreed = Negotiation(milter.VERSION, milter.Actions(0), milter.Steps(0))
        self.usable = True  #: whether commands can be sent
        self._clock = clock
        self._reader = PacketReader()
        self._packets: deque[tuple[bytes, bytes]] = deque()
        self._waiting: Deferred[tuple[bytes, bytes]] | None = None
        self._drained: Deferred[None] | None = None
        self._paused = False
        self._error: Exception | None = None
        self._lingers: Any = None

    def connectionMade(self) -> None:
        # The transport reports when written data piles up.
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]

    # From the milter

    def dataReceived(self, data: bytes) -> None:
        try:
            packets = self._reader.feed(data)
        except MilterError as error:
            self._fail(FilterError(f"the milter violated the protocol: {error}"))
            return
        self._packets.extend(packets)
        if self._waiting is not None and self._packets:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self._packets.popleft())
        elif self._packets:
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lingers is not None and self._lingers.active():
            self._lingers.cancel()
        why = "" if reason.check(ConnectionDone) else f": {reason.getErrorMessage()}"
        self._fail(FilterError(f"the milter closed the connection{why}"))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.usable = False
        self.transport.abortConnection()  # type: ignore[union-attr]
        for waiting in self._waiting, self._drained:
            if waiting is not None and not waiting.called:
                waiting.errback(self._error)
        self._waiting = self._drained = None

    # From the transport

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        drained, self._drained = self._drained, None
        if drained is not None and not drained.called:
            drained.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: :meth:`connectionLost` is called too."""

    # To the milter

    async def negotiate(self, timeout: float) -> None:
        """Negotiate the protocol options, with the first packet.

        :raises FilterError: if the negotiation fails.
        """
        self.send(milter.negotiate())
        command, data = await self._next_packet(timeout)
        if command != milter.NEGOTIATE:
            raise self._broken(f"{command!r} instead of a negotiation")
        try:
            self.agreed = milter.parse_negotiation(data)
        except MilterError as error:
            raise self._broken(error) from None

    def send(self, octets: bytes) -> None:
        """Send commands without waiting for a response.

        :raises FilterError: if the connection is closed, or the milter has sent something unexpected.
        """
        if self._error is not None:
            raise self._error
        if self._packets:
            raise self._broken("an unexpected response")
        self.transport.write(octets)  # type: ignore[union-attr]

    async def drain(self, timeout: float) -> None:
        """Wait until the transport can accept more.

        :raises FilterError: on timeout.
        """
        if self._paused and self._error is None:
            self._drained = Deferred()
            await self._within(self._drained, timeout)

    async def response(self, timeout: float) -> Response:
        """Wait for the next response.

        :param timeout: seconds to wait.
        :raises FilterError: if there is none, or an invalid one.
        """
        command, data = await self._next_packet(timeout)
        try:
            response = milter.parse_response(command, data)
        except MilterError as error:
            raise self._broken(error) from None
        if not milter.is_allowed(response, self.agreed.actions):
            raise self._broken(f"{response!r}, which it did not negotiate")
        return response

    async def _next_packet(self, timeout: float) -> tuple[bytes, bytes]:
        if self._packets:
            packet = self._packets.popleft()
            if not self._packets and self._error is None:
                self.transport.resumeProducing()  # type: ignore[union-attr]
            return packet
        if self._error is not None:
            raise self._error
        self._waiting = Deferred()
        return await self._within(self._waiting, timeout)

    async def _within(self, waiting: Deferred[T], timeout: float) -> T:
        expiry = self._clock.callLater(
            timeout, lambda: self._fail(FilterError(f"the milter did not respond for {timeout:g} seconds"))
        )
        try:
            return await waiting
        except CancelledError:
            self._fail(FilterError("the server stopped waiting for the milter"))
            raise
        finally:
            if expiry.active():
                expiry.cancel()

    def _broken(self, what: object) -> FilterError:
        error = FilterError(f"the milter violated the protocol: {what}")
        self._fail(error)
        return error

    def quit(self) -> None:
        """Send QUIT and close."""
        if self.usable:
            self.usable = False
            self._error = FilterError("the connection to the milter is closed")
            self.transport.write(milter.packet(milter.QUIT))  # type: ignore[union-attr]
            self.transport.unregisterProducer()  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]
            # A milter that does not read would keep the connection open.
            self._lingers = self._clock.callLater(LINGER, self.transport.abortConnection)  # type: ignore[union-attr]

    def abort(self) -> None:
        """Close at once, ignoring further responses."""
        self._fail(FilterError("the connection to the milter was aborted"))
