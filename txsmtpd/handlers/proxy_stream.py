"""Forwards a message while it arrives, as fast as the next server reads it.

A short message is collected first and passed to the Proxy whole, so that the next server does not wait for a slow
client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.flow_control import FlowControl
from txsmtpd.handlers.relay_message import parted_early
from txsmtpd.handlers.transaction import Transaction, one_if_equal
from txsmtpd.interfaces import IMessageReceiver
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.wire.outgoing import LineEnds

if TYPE_CHECKING:
    from txsmtpd.handlers.proxy import Proxy

WHOLE = 2**18  # octets up to which a message is collected
PIECE = 2**16  # octets waiting for the next server above which the client is paused


@implementer(IMessageReceiver)
class StreamedMessage(FlowControl):
    """Receives one message.

    :param proxy: the handler.
    """

    def __init__(self, proxy: Proxy, server: Any, session: Session, envelope: Envelope) -> None:
        self._proxy = proxy
        self._about = server, session, envelope
        self._line_ends = None if envelope.body == "BINARYMIME" else LineEnds()
        self._pieces: list[bytes] = []  # received, but not yet forwarded
        self._octets = 0  # the size of these
        self._complete = False  # all pieces have arrived
        self._passing: Deferred[Any] | None = None
        self._result: Any = None  # once that has ended
        self._ended = False
        self._more: Deferred[None] | None = None  # fires with the next piece
        self._paused = False

    # Called by the connection

    def write(self, data: bytes) -> None:
        if self._ended:  # the next server has refused the message
            return
        self._pieces.append(data)
        self._octets += len(data)
        if self._passing is None:
            if self._octets > WHOLE:
                self._pause()
                self._passing = Deferred.fromCoroutine(self._pass_on())
                self._passing.addBoth(self._note_end)
            return
        if self._octets >= PIECE:
            self._pause()
        self._wake()

    async def finish(self) -> Any:
        self._complete = True
        if self._passing is None:
            server, session, envelope = self._about
            envelope.content = envelope.original_content = b"".join(self._pieces)
            return await self._proxy.handle_DATA(server, session, envelope)
        self._wake()
        if not self._ended:
            await self._end()
        if isinstance(self._result, Failure):
            self._result.raiseException()
        return self._result

    def abort(self, reason: BaseException) -> None:
        self._pieces.clear()
        if self._passing is not None and not self._ended:
            self._passing.cancel()

    # Waiting

    def _end(self) -> Deferred[None]:
        """Return a Deferred that fires when the message was forwarded or has failed. Cancelling it discards the
        message."""
        passing = self._passing
        assert passing is not None
        ended: Deferred[None] = Deferred(lambda _: passing.cancel())

        def tell(_: object) -> None:
            if not ended.called:
                ended.callback(None)

        passing.addCallback(tell)
        return ended

    def _note_end(self, result: Any) -> None:
        self._ended = True
        self._result = result
        self._pieces.clear()
        self._resume()

    def _wake(self) -> None:
        more, self._more = self._more, None
        if more is not None:
            more.callback(None)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            super()._pause()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            super()._resume()

    # To the next server

    async def _pass_on(self) -> Any:
        """Forward the whole message and return its status."""
        start = self._taken()
        start = b"".join(self._proxy.with_fields(*self._about, *parted_early(start)))
        try:
            transaction, refusals = await self._proxy.transaction_for(*self._about, start)
        except Refused as refused:
            return refused.reply
        verdicts = iter(await self._verdicts(transaction, start))
        return one_if_equal([reply or next(verdicts) for reply in refusals])

    async def _verdicts(self, transaction: Transaction, start: bytes) -> list[Reply]:
        """Return the next server's reply for each recipient that it has accepted."""
        if not transaction.accepted:
            transaction.end()
            return []
        try:
            await transaction.start_data()
            await transaction.write(start)
            while (piece := await self._next_piece()) is not None:
                if piece:
                    await transaction.write(piece)
            return await transaction.finish()
        except Refused as refused:
            return [refused.reply] * len(transaction.accepted)
        finally:
            transaction.end()

    async def _next_piece(self) -> bytes | None:
        """Return the next octets, or None at the end of the message."""
        if not self._pieces:
            if self._complete:
                rest = b"" if self._line_ends is None else self._line_ends.end()
                self._line_ends = None
                return rest or None
            self._resume()
            if not self._pieces and not self._complete:
                self._more = Deferred()
                await self._more
        return self._taken() if self._pieces else b""

    def _taken(self) -> bytes:
        piece = b"".join(self._pieces)
        self._pieces.clear()
        self._octets = 0
        return piece if self._line_ends is None else self._line_ends.feed(piece)
