"""The message of a mail transaction (RFC 5321 4.1.1.4, RFC 3030 2): from DATA or BDAT to the handler's reply.

DATA takes two turns: the first returns 354, and the second runs at the end of the message. :mod:`txsmtpd.wire` parses
the octets, and :mod:`txsmtpd.engine.message_sink` keeps them in memory or passes them on.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import CoroutineType
from typing import Any

from twisted.internet.error import ConnectionDone

from txsmtpd.engine.masking import in_one_line
from txsmtpd.engine.message_sink import Buffered, Discarded, MessageSink, Source, Streamed
from txsmtpd.engine.results import ClosingReply
from txsmtpd.engine.timeouts import DataTooSlow
from txsmtpd.extensions.size import TOO_LARGE
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.recipient_replies import FOR_EACH, Replies, folded, named, replies_for
from txsmtpd.reply import FAILED, OK, Refused, Reply
from txsmtpd.session import Envelope
from txsmtpd.wire.data import DataReader, Fault
from txsmtpd.wire.header import HeaderMeter, header_excess

START_MAIL_INPUT = Reply(354, None, "End data with <CR><LF>.<CR><LF>")
CHUNK_OK = Reply(250, "2.0.0", "Chunk received")
FAR_TOO_LARGE = ClosingReply(552, "5.3.4", "Message size far exceeds the limit, closing connection")
NOT_ASCII = Reply(500, "5.6.1", "The message must be ASCII")
FAULT_REPLIES = {
    Fault.TOO_LARGE: TOO_LARGE,
    Fault.BARE_NEWLINE: Reply(550, "5.6.0", "The message contains a bare CR or LF"),
    Fault.LINE_TOO_LONG: Reply(500, "5.6.0", "A line of the message is too long"),
}

_STATUS = (str, Reply)

# Limits for reading and discarding a message that is too large, so that the client gets 552 and does not try again.
DISCARDED = 16  # times the limit
DISCARD_TIME = 300.0  # seconds


class IncomingMessage:
    """A message that is being received. It exists from DATA, or the first BDAT, to the end of the transaction.

    :param server: the protocol that users see.
    """

    __slots__ = ("_deadline", "_header", "_octets", "_refused", "_server", "_sink", "_time_used")

    one_for_each = False  #: whether each recipient gets a reply

    def __init__(self, server: Any) -> None:
        self._server = server
        self._sink: MessageSink | None = None  # receives the octets
        self._header: HeaderMeter | None = None  # measures the header of a streamed message
        self._deadline: Any = None  # the timeout for discarding a message that is too large
        self._octets = 0  # the total size of the chunks
        self._time_used = 0.0  # how much of the time limit for the data the chunks have used, in seconds
        self._refused: Reply | None = None  # the reply to all further chunks

    @property
    def is_refused(self) -> bool:
        """Whether the message was refused. Its further octets are then discarded."""
        return self._refused is not None

    # DATA

    def read_data(self) -> Reply | Awaitable[Reply]:
        """Read the message that follows DATA."""
        if not self._server.envelope.rcpt_tos:
            return self.read_into(Discarded())
        if self._server.settings.open_message is not None:
            return self._open_then_read()
        return self.read_into(self.memory_sink())

    async def _open_then_read(self) -> Reply:
        try:
            sink = await self._open_sink()
        except BaseException:
            self._server._message = None
            raise
        return self.read_into(sink)

    def read_into(self, sink: MessageSink) -> Reply:
        """Read the following octets into the sink, up to the line with a dot. Return 354."""
        server, settings = self._server, self._server.settings
        self._sink = sink
        reader = DataReader(
            self._write_to(sink),
            settings.data_size_limit,
            settings.line_length_limit,
            settings.bare_newlines,
            DISCARDED,
            self._too_large,
            self._far_too_large,
        )
        server._connection.read_data(reader, self._end_of_data)
        server._dispatcher.default_reply = START_MAIL_INPUT
        return START_MAIL_INPUT

    def _write_to(self, sink: MessageSink) -> Callable[[bytes], object]:
        """Return a function that writes to the sink. For a streamed message, the function also measures the header. The
        header of a message in memory is measured at the end."""
        settings = self._server.settings
        if type(sink) is Buffered:
            return sink.write
        if self._header is None:
            self._header = HeaderMeter(sink.write, settings.header_size_limit, settings.header_field_limit)
        return self._header.write

    def _too_large(self) -> None:
        """The message exceeds the limit. Discard the rest, for a limited time."""
        self._deadline = self.call_later(DISCARD_TIME, self._far_too_large)

    def _far_too_large(self) -> None:
        """Close the connection: the message is too large to be discarded, or discarding it takes too long."""
        self._cancel_deadline()
        self._server._dispatcher.on_result(FAR_TOO_LARGE)

    def _cancel_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()

    def _end_of_data(self, reader: DataReader) -> Any:
        if self._deadline is not None:
            self._cancel_deadline()
        self.reply_is_due()
        if reader.fault is not None:
            raise self.refuse(FAULT_REPLIES[reader.fault])
        return self._complete(reader.size)

    # BDAT

    async def read_chunk(self, size: int, last: bool) -> Any:
        """Read the chunk after BDAT.

        :param size: the size of the chunk in octets.
        :param last: whether it is the last chunk of the message.
        """
        if last:
            self.reply_is_due()
        try:
            sink = await self._sink_for_chunk(size)
        except BaseException as error:
            self.refuse_chunks(error.reply if isinstance(error, Refused) else FAILED)
            if last:
                self._server.reset_transaction()
            raise
        if self._octets:  # the first chunk starts the time limit for the data, later chunks continue it
            self._check_time()
        self._octets += size
        reply = self._server._dispatcher.take_payload(self._write_to(sink), partial(self._end_of_chunk, last))
        return await reply if isinstance(reply, Awaitable) else reply

    def _check_time(self) -> None:
        connection = self._server._connection
        try:
            connection.timeouts.next_chunk(self._time_used)
        except DataTooSlow as late:
            connection.cause = late
            raise Refused(late.reply) from None

    async def _sink_for_chunk(self, size: int) -> MessageSink:
        if self._refused is not None:
            raise Refused(self._refused)
        limit = self._server.settings.data_size_limit
        if limit is not None and self._octets + size > limit:
            if size <= DISCARDED * limit:
                raise Refused(TOO_LARGE)
            # The chunk is too large even to be discarded, so the connection is closed.
            self._server._dispatcher.payload_due = 0
            raise Refused(FAR_TOO_LARGE)
        if self._sink is None:
            self._sink = await self._open_sink()
        return self._sink

    def _end_of_chunk(self, last: bool, reader: Any) -> Any:
        if last:
            return self._complete(self._octets)
        self._time_used = self._server._connection.timeouts.time_used
        return CHUNK_OK

    def refuse_chunks(self, reply: Reply) -> None:
        """Refuse the message because a part is missing. All further chunks get the same reply."""
        if self._refused is None:
            self._refused = reply
            self.abort(Refused(reply))

    # The end of the message

    def reply_is_due(self) -> None:
        """Called in the turn whose result is the reply to the message. Does nothing; subclasses may override it."""

    def _complete(self, octets: int) -> Any:
        if self._header is not None and self._header.excess is not None:
            raise self.refuse(self._header_refused(self._header.excess))
        dispatcher = self._server._dispatcher
        if dispatcher.meter is not None:
            dispatcher.meter.message_complete(octets)
        interceptor = dispatcher.interceptor
        if interceptor is not None:
            return interceptor.message(octets, partial(self._finish, octets))
        return self._finish(octets)

    async def _finish(self, octets: int) -> Any:
        """Pass the complete message to the handler, and end the transaction. Return the reply."""
        server, sink = self._server, self._sink
        envelope = server.envelope
        assert sink is not None
        try:
            status = sink.finish()
            if type(status) is CoroutineType or (type(status) is not str and isinstance(status, Awaitable)):
                status = await status
            reply = self._reply_to(status, envelope)
            if reply.positive:
                dispatcher = server._dispatcher
                dispatcher.messages += 1
                dispatcher.junk = 0  # the limit applies to the commands since the last message
                if server.settings.log_messages:
                    _log_message(server, envelope, octets, reply)
            return reply
        finally:
            server._dispatcher.ended_message = envelope.mail_from, envelope.rcpt_tos
            sink.close()
            self._sink = self._header = server._message = None
            server.reset_transaction()

    def _header_refused(self, excess: str) -> Reply:
        settings = self._server.settings
        if excess == "octets":
            limit = settings.header_size_limit
            return Reply(552, "5.3.4", f"The header of the message is larger than {limit} octets")
        return Reply(554, "5.6.0", f"The header of the message has more than {settings.header_field_limit} fields")

    def refuse(self, reply: Reply) -> Refused:
        """Refuse the message and end the transaction. Return the exception to raise."""
        refused = Refused(reply)
        self.abort(refused)
        server, envelope = self._server, self._server.envelope
        server._dispatcher.ended_message = envelope.mail_from, envelope.rcpt_tos
        server.reset_transaction()
        return refused

    def abort(self, reason: BaseException) -> None:
        """Abort the sink, because the message will not be complete."""
        self._cancel_deadline()
        sink, self._sink, self._header = self._sink, None, None
        if sink is not None:
            sink.abort(reason)

    def _reply_to(self, status: Any, envelope: Envelope) -> Any:
        """Convert the handler's result to the reply. It is one status, or a status for each recipient."""
        dispatcher = self._server._dispatcher
        if self.one_for_each and isinstance(status, str):
            lines = status.splitlines()
            if len(lines) > 1 and _are_replies(lines, len(self.recipients(envelope))):
                status = lines
        if isinstance(status, _STATUS) or not isinstance(status, FOR_EACH):
            return dispatcher.reply_from_hook(status, "DATA")
        paths = self.recipients(envelope)
        replies, missing = replies_for(status, paths)
        if missing:
            dispatcher.reply_for_no_status(status, f"handle_DATA, for {named(missing)},")
        return self.combined_reply(paths, replies)

    def recipients(self, envelope: Envelope) -> Sequence[str]:
        """Return the recipients of the message. If the handler returns several statuses, these need one each."""
        return envelope.rcpt_tos

    def combined_reply(self, paths: Sequence[str], replies: Sequence[Reply]) -> Any:
        """Return the reply to a message with different replies for its recipients."""
        if len(set(replies)) > 1:
            what = in_one_line(Replies(paths, replies))
            self._server._dispatcher.log(events.FOLDED, replies=what)
        return folded(replies)

    # Sinks

    async def _open_sink(self) -> MessageSink:
        server = self._server
        if not server.envelope.rcpt_tos:
            return Discarded()
        open_message = server.settings.open_message
        if open_message is None:
            return self.memory_sink()
        receiver = open_message(server, server.session, server.envelope)
        if isinstance(receiver, Awaitable):
            receiver = await receiver
        connection = server._connection
        complain = _complainer(server._dispatcher)
        finish = server.settings.in_asyncio(receiver.finish) if server.settings.asyncio else None
        sink = Streamed(receiver, connection.hold, connection.release, complain, finish)
        if connection.closing:  # open_message has timed out, so nothing else would abort the receiver
            sink.abort(ConnectionDone())
            raise Refused(FAILED)
        return sink

    def memory_sink(self, source: Source | None = None) -> Buffered | Discarded:
        """Return a sink that keeps the message in memory, for ``handle_DATA``.

        :param source: the source of the octets. Default: the connection.
        """
        server = self._server
        settings = server.settings
        if settings.discards:
            return Discarded()
        return Buffered(self, settings.memory.share(), source or server._connection)

    def call_later(self, period: float, function: Callable[[], object]) -> Any:
        """Call a function after *period* seconds."""
        return self._server._connection.call_later(period, function)

    def deliver(self, message: bytes) -> Any:
        """Pass the complete message to the handler. Return its status, or an awaitable of it."""
        server = self._server
        envelope, settings = server.envelope, server.settings
        hooks = settings.hooks
        if len(message) > settings.harmless_size:
            excess = header_excess(message, settings.header_size_limit, settings.header_field_limit)
            if excess is not None:
                raise Refused(self._header_refused(excess))
        envelope.original_content = message
        envelope.content = self.decoded(message) if server.settings.decode_data else message
        if "DATA" in hooks:
            return hooks["DATA"](server, server.session, envelope)
        if "process_message" in hooks:
            return _process_message(hooks["process_message"], server.session, envelope)
        return server.call_hook("DATA", default=_ok)

    def decoded(self, content: bytes) -> str:
        """Return the message as a string (``decode_data``)."""
        if self._server.settings.enable_SMTPUTF8:
            return content.decode("utf-8", "surrogateescape")
        try:
            return content.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(NOT_ASCII) from None


def _are_replies(lines: Sequence[str], count: int) -> bool:
    """Whether the lines are *count* complete replies, which some handlers return as one string for LMTP."""
    return len(lines) == count and all(line[:3].isdecimal() and line[3:4] == " " for line in lines)


async def _process_message(process: Callable[..., Any], session: Any, envelope: Envelope) -> Any:
    """Call the deprecated hook. It may return None, which stands for 250."""
    warnings.warn("process_message is deprecated; implement handle_DATA", DeprecationWarning, stacklevel=2)
    status = process(session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content)
    if isinstance(status, Awaitable):
        status = await status
    return OK if status is None else status


def _complainer(dispatcher: Any) -> Callable[[BaseException], None]:
    def complain(error: BaseException) -> None:
        dispatcher.log.failure(events.FAILED, error, where="the receiver of a message", why="")

    return complain


def _log_message(server: Any, envelope: Envelope, octets: int, reply: Reply | Replies) -> None:
    server._dispatcher.log(
        events.MESSAGE,
        sender=envelope.mail_from,
        recipients=events.Recipients.of(envelope.rcpt_tos),
        octets=octets,
        client=client_text(server.session.peer),
        reply=in_one_line(reply),
    )


def _ok(*arguments: Any) -> Reply:
    return OK
