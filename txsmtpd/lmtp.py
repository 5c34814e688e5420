"""LMTP (RFC 2033): SMTP for delivery into mailboxes. It has LHLO instead of HELO and EHLO, and a reply for each
recipient at the end of a message, so that a full mailbox does not delay the mail of other recipients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from txsmtpd.command import commands_of, greeted, syntax
from txsmtpd.engine.dispatcher import Dispatcher
from txsmtpd.engine.message import IncomingMessage
from txsmtpd.engine.results import ANSWERED_LATER, Action
from txsmtpd.recipient_replies import Replies, folded
from txsmtpd.reply import Reply, is_part
from txsmtpd.session import Envelope
from txsmtpd.smtp import SMTP

__all__ = ["LMTP"]

_NONE: list[list[str]] = []  # never changed
NEED_LHLO = Reply(503, "5.5.1", "Send LHLO first")


class MessageForEach(IncomingMessage):
    """A message with a reply for each recipient."""

    __slots__ = ()
    one_for_each = True

    def reply_is_due(self) -> None:
        self._server._dispatcher.owed = self._server._accepted

    def recipients(self, envelope: Envelope) -> Sequence[str]:
        return self._server._dispatcher.recipients(envelope)  # type: ignore[no-any-return]

    def combined_reply(self, paths: Sequence[str], replies: Sequence[Reply]) -> Any:
        said: dict[str, list[Reply]] = {}
        for path, reply in zip(reversed(paths), reversed(replies), strict=True):
            said.setdefault(path, []).append(reply)

        def next_for(path: str) -> Reply:
            """Return the next reply for a recipient named more than once; the last one again if there are too few."""
            return said[path].pop() if len(said[path]) > 1 else said[path][0]

        owed = self._server._dispatcher.owed
        each_its_own = [folded([next_for(path) for path in each]) for each in owed]
        return Replies([", ".join(each) for each in owed], each_its_own)


class DispatcherForEach(Dispatcher):
    """Replies to a message once for each of its recipients."""

    __slots__ = ("owed", "replies_pushed")

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        #: After the end of a message, until the replies to it are sent: for each accepted RCPT, the forward-paths that
        #: its hook has added: usually one, several for an alias, or none.
        self.owed: Sequence[Sequence[str]] = ()
        self.replies_pushed = 0  #: how many of these replies a hook has pushed

    def recipients(self, envelope: Envelope) -> Sequence[str]:
        """Return the recipients of the message to which replies are due."""
        owed = [path for each in self.owed for path in each]
        # A hook may have added recipients since then, or removed duplicates.
        return envelope.rcpt_tos if set(owed) <= set(envelope.rcpt_tos) else owed

    async def reply_for_error(self, error: BaseException) -> Reply:
        reply = await super().reply_for_error(error)
        return NEED_LHLO if reply is greeted.refusal else reply

    def on_result(self, result: Any) -> None:
        # Every outcome of the command that ended the message is a reply to it: a status, a refusal, an exception, or a
        # timeout of the hook.
        if not self.owed or result is ANSWERED_LATER or self.payload_due:
            super().on_result(result)
        elif isinstance(result, Action):
            if not result.answers:
                self.owed = ()
            super().on_result(result)
        else:
            self._answer_for_each(result)

    def _answer_for_each(self, result: Any) -> None:
        replies: Sequence[Reply]
        server = self.server
        if type(result) is not Replies:
            reply = self.reply_from_command(result)
            if reply.code >= 400:
                reply = self.refusal(reply, self.recipients(server.envelope)[self.replies_pushed :])
            replies = [reply] * len(self.owed)
        else:
            said = {
                reply: self.refusal(reply, recipients) if reply.code >= 400 else reply
                for reply, recipients in result.by_reply().items()
            }
            replies = [said[reply] for reply in result.replies]
        pushed, self.owed, self.replies_pushed = self.replies_pushed, (), 0
        self.ended_message = None
        closes = self.closes_after_reply
        for reply in replies[pushed:]:
            if server.settings.log_dialogue:
                self.log_reply(reply)
            if self.meter is not None:
                self.meter.replied(self.verb, reply)
            self.connection.send(reply.encode(server.envelope.smtp_utf8))
            closes = closes or reply.code == 421
        self.after_reply(closes)


class LMTP(SMTP):
    """The protocol of one connection, for clients that speak LMTP.

    Options, hooks and everything else are those of :class:`~txsmtpd.smtp.SMTP`. LHLO calls ``handle_EHLO``. After the
    end of data, or after ``BDAT ... LAST``, the server sends one reply for each accepted RCPT, in their order; two if a
    recipient was named twice.
    """

    lmtp = True
    ident = "LMTP txsmtpd"
    smtp_HELO = None  # type: ignore[assignment]  # RFC 2033 4.1: 500
    smtp_EHLO = None  # type: ignore[assignment]
    _dispatcher_class = DispatcherForEach
    _message_class = MessageForEach
    _accepted: list[list[str]] = _NONE  # the forward-paths of each accepted RCPT

    @syntax("LHLO hostname", argument=True, junk=True)
    async def smtp_LHLO(self, arg: str) -> Reply:
        return await super().smtp_EHLO(arg)

    async def smtp_RCPT(self, arg: str | None) -> Reply:
        known = len(self.envelope.rcpt_tos)
        reply = await super().smtp_RCPT(arg)
        if reply.positive:
            if not self._accepted:
                self._accepted = []
            self._accepted.append(self.envelope.rcpt_tos[known:])
        return reply

    def reset_transaction(self) -> None:
        super().reset_transaction()
        self._accepted = _NONE

    def _has_recipients(self) -> bool:
        # RFC 2033 4.2. It is not enough that there are recipients: a handler may have added one.
        return super()._has_recipients() and bool(self._accepted)

    def push(self, status: Reply | str | bytes) -> Deferred[None]:
        """Send a reply. After a message, a complete reply is the one for the next recipient."""
        pushed = super().push(status)
        dispatcher = self._dispatcher
        if dispatcher.owed and not is_part(status):
            dispatcher.replies_pushed += 1
        return pushed


LMTP.commands = commands_of(LMTP)
