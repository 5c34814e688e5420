"""Receives a message for the filters, keeps it until they have decided, then passes it to the handler.

If the filters examine only headers, the body is not kept: the handler gets it as it arrives.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.flow_control import FlowControl
from txsmtpd.engine.message_sink import Streamed
from txsmtpd.filters.header import END, Header
from txsmtpd.filters.message import QUARANTINE, FilteredMessage
from txsmtpd.filters.results import remove_forgeries
from txsmtpd.filters.spool import Spool
from txsmtpd.interfaces import IMessageReceiver
from txsmtpd.recipient_replies import FOR_EACH, folded, replies_for
from txsmtpd.reply import HEADER_TOO_LONG, OK, Refused, Reply

log = Logger(namespace="txsmtpd.filters")

LONGEST_HEADER = 2**18  # bytes; parsing more would block other connections
NO_ROOM = Reply(452, "4.3.1", "Insufficient storage, try again later")

# The last, incomplete line of a header.
_MAY_BE_FIELD = re.compile(rb"[!-9;-~]{0,1000}[ \t]*(?::[^\r]*+\Z|\Z)|[ \t][^\r]*+\Z")


@implementer(IMessageReceiver)
class DiscardedMessage:
    """Receives a message and discards it."""

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def finish(self) -> Reply:
        return OK

    def abort(self, reason: BaseException) -> None: ...


@implementer(IMessageReceiver)
class FilteredReceiver(FlowControl):
    """Receives one message for the filters and the handler.

    :param chain: the :class:`~txsmtpd.filters.chain.Chain`.
    :param whole: whether a filter needs the whole message.
    """

    def __init__(self, chain: Any, server: Any, session: Any, envelope: Any, whole: bool) -> None:
        self._chain = chain
        self._transaction = (server, session, envelope)
        self._whole = whole
        self._start = bytearray()  # the message, until its header is complete
        self._message: FilteredMessage | None = None
        self._body: Spool | None = None
        self._late: list[bytes] = []  # what arrives while the handler's receiver is being opened
        self._opening: Deferred[None] | None = None
        self._receiver: Any = None  # the receiver that replaces the handler's, or None
        self._target: Streamed | None = None  # the destination of the filtered message
        self._aborted: BaseException | None = None
        self._gate: Deferred[None] | None = None
        self._held = False  # whether the handler has paused
        self._error: Exception | None = None
        self._answer: Any = None  # the status that replaces the handler's, or None

    # Called by the connection

    def write(self, data: bytes) -> None:
        if self._error is not None:
            raise self._error
        if self._message is None:
            self._await_header(data)
        elif self._target is not None:
            self._target.write(data)
        elif self._body is not None:
            self._keep(data)
        elif self._answer is None:
            self._late.append(data)

    def _await_header(self, data: bytes) -> None:
        start = self._start
        searched = max(len(start) - 3, 0)
        start += data
        if start.startswith(END) or start.find(END + END, searched) >= 0:
            self._header_is_here()
        elif len(start) > LONGEST_HEADER:
            _, rest = Header.parse(bytes(start))
            if _MAY_BE_FIELD.match(rest):
                raise Refused(HEADER_TOO_LONG)
            self._header_is_here()  # the header ended earlier, with a line that is not a field

    def _header_is_here(self) -> None:
        server, _, envelope = self._transaction
        header, rest = Header.parse(bytes(self._start))
        self._start.clear()
        remove_forgeries(header, [server.hostname, *(link.authserv_id for link in self._chain.links)])
        separator, rest = (END, rest[2:]) if rest.startswith(END) else (b"", rest)
        if self._whole:
            self._body = self._make_spool()
            self._body.on_pressure(self._pause, self._resume)
        self._message = FilteredMessage(envelope, header, separator, self._body, self._make_spool)
        if self._whole:
            self._keep(rest)
            return
        self._late.append(rest)
        self._pause()
        self._opening = Deferred.fromCoroutine(self._open_early(self._message))

    def _keep(self, data: bytes) -> None:
        assert self._body is not None
        try:
            self._body.write(data)
        except OSError as error:
            raise _no_room(error) from error

    def _make_spool(self) -> Spool:
        reactor = self._chain.clock()
        if not IReactorThreads.providedBy(reactor):  # a session in memory, with a Clock
            return Spool(execute)
        return Spool(lambda *call: deferToThreadPool(reactor, reactor.getThreadPool(), *call))

    # Headers only: the handler gets the body as it arrives

    async def _open_early(self, message: FilteredMessage) -> None:
        try:
            await self._filter(message)
            if self._answer is None:
                target = await self._open(self._hold, self._release)
                for piece in (message.start, *self._late):
                    target.write(piece)
                self._target = target
                if self._aborted is not None:
                    self._abort_target(self._aborted)
        except Exception as error:
            self._error = error
        self._late.clear()
        if not self._held:
            self._resume()

    def _hold(self) -> None:
        self._held = True
        self._pause()

    def _release(self) -> None:
        self._held = False
        self._resume()

    # The whole message

    async def finish(self) -> Any:
        try:
            if self._message is None:
                self._header_is_here()
            assert self._message is not None
            if self._whole:
                await self._pass_on(self._message)
            elif self._opening is not None:
                await self._opening
            if self._error is not None:
                raise self._error
            if self._answer is not None:
                return self._answer
            assert self._target is not None
            return self._for_all(await self._target.finish())
        except BaseException as error:
            self._abort_target(error)
            raise
        finally:
            self._close()

    async def _pass_on(self, message: FilteredMessage) -> None:
        assert self._body is not None
        try:
            await self._body.complete()
        except OSError as error:
            raise _no_room(error) from error
        await self._filter(message)
        if self._answer is not None:
            return
        self._target = await self._open(self._close_gate, self._open_gate)
        try:
            async for piece in message.content():
                self._target.write(piece)
                if self._gate is not None:
                    await self._gate
        except OSError as error:
            raise _no_room(error) from error

    def _close_gate(self) -> None:
        if self._gate is None:
            self._gate = Deferred()

    def _open_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None and not gate.called:
            gate.callback(None)

    async def _filter(self, message: FilteredMessage) -> None:
        """Let the filters decide. Sets :attr:`_answer` if the handler does not get the message."""
        _, session, envelope = self._transaction
        await self._chain.filter_message(*self._transaction, message)
        if envelope.filters.discarded or not envelope.rcpt_tos:
            log.info("{session} a filter has discarded the message", session=session.id)
            self._answer = OK
        elif message.quarantined is not None:
            log.info("{session} quarantine: {why}", session=session.id, why=message.header.get(QUARANTINE))
            place = await self._chain.quarantine(*self._transaction, message.quarantined)
            if isinstance(place, str | Reply):
                self._answer = place
            else:
                self._receiver = place

    async def _open(self, hold: Callable[[], Any], release: Callable[[], Any]) -> Streamed:
        receiver = self._receiver
        if receiver is None:
            receiver = await self._chain.open_inner(*self._transaction)
        finish = self._transaction[0].settings.in_asyncio(receiver.finish)
        return Streamed(receiver, hold, release, self._complain, finish)

    def _complain(self, error: BaseException) -> None:
        failure = Failure(error, type(error), error.__traceback__)
        log.failure("{session} the receiver of a message failed", failure, session=self._transaction[1].id)

    def _for_all(self, status: Any) -> Any:
        """Return the status for the client's recipients, in case the filters changed the recipients."""
        assert self._message is not None
        if isinstance(status, FOR_EACH) and self._message.recipients_changed:
            replies, _ = replies_for(status, self._transaction[2].rcpt_tos)
            return folded(replies)
        return status

    # The end

    def abort(self, reason: BaseException) -> None:
        self._aborted = reason
        if self._opening is not None:
            self._opening.cancel()
        self._abort_target(reason)
        self._close()

    def _abort_target(self, reason: BaseException) -> None:
        if self._target is not None:
            self._target.abort(ConnectionAborted() if isinstance(reason, CancelledError) else reason)

    def _close(self) -> None:
        if self._message is not None:
            self._message.close()
        elif self._body is not None:
            self._body.close()


@implementer(IMessageReceiver)
class WholeMessage(FlowControl):
    """Collects a message for a handler that does not stream.

    :param message: the :class:`~txsmtpd.engine.message.IncomingMessage`.
    """

    def __init__(self, message: Any) -> None:
        self._collected = message.memory_sink(self)
        self.write = self._collected.write
        self.abort = self._collected.abort

    async def finish(self) -> Any:
        try:
            status = self._collected.finish()
            return await status if isinstance(status, Awaitable) else status
        finally:
            self._collected.close()

    def hold_untimed(self) -> None:
        """Pause the octets of the message. Called by the sink that collects it."""
        self._pause()

    def release(self) -> None:
        """Resume the octets of the message. Called by the sink that collects it."""
        self._resume()


def _no_room(error: OSError) -> Refused:
    log.error("cannot store a message for the filters: {error}", error=error.strerror or str(error))
    return Refused(NO_ROOM)
