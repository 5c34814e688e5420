"""LMTP (RFC 2033): SMTP for the last step, into mailboxes. What differs: LHLO in place of HELO and EHLO, and a reply of
its own for each recipient at the end of a message, so that a mailbox that is full holds up nobody else's mail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from txsmtpd.command import Rule, commands_of, syntax
from txsmtpd.engine.dispatcher import ANSWERED_LATER, is_part
from txsmtpd.recipient_replies import Replies, folded, named
from txsmtpd.reply import Reply
from txsmtpd.session import Envelope
from txsmtpd.smtp import SMTP, greeted, recipients
from txsmtpd.wire.chunk import parse_bdat
from txsmtpd.wire.data import DataReader

__all__ = ["LMTP"]

NEED_LHLO = Reply(503, "5.5.1", "Send LHLO first")

# RFC 2033 4.2. That there are recipients is not enough: a handler may have added one of its own.
accepted = Rule(lambda lmtp, arg: bool(lmtp._accepted), recipients.refusal)


class LMTP(SMTP):
    """The protocol of one connection, for clients that speak LMTP.

    Options, hooks and all else are those of :class:`~txsmtpd.smtp.SMTP`. LHLO calls ``handle_EHLO``. Behind an end of
    data, and behind ``BDAT ... LAST``, each recipient whose RCPT was accepted gets a reply, in their order, one who was
    named twice too.
    """

    lmtp = True
    ident = "LMTP txsmtpd"
    smtp_HELO = None  # type: ignore[assignment]  # RFC 2033 4.1: 500
    smtp_EHLO = None  # type: ignore[assignment]
    # For each accepted RCPT the forward-paths that its hook has made of it: mostly its own, more for an alias, or none.
    _accepted: list[list[str]]
    _owed: Sequence[Sequence[str]] = ()  # the same, once the message has ended and until it is answered
    _replies_pushed = 0  # how many of them a hook has answered by pushing

    @syntax("LHLO hostname", argument=True, junk=True)
    async def smtp_LHLO(self, arg: str) -> Reply:
        return await super().smtp_EHLO(arg)

    async def explain(self, error: BaseException) -> Reply:
        reply = await super().explain(error)
        return NEED_LHLO if reply is greeted.refusal else reply

    # Who is owed a reply

    def connectionMade(self) -> None:
        self._accepted = []
        super().connectionMade()

    async def smtp_RCPT(self, arg: str | None) -> Reply:
        known = len(self.envelope.rcpt_tos)
        reply = await super().smtp_RCPT(arg)
        if reply.positive:
            self._accepted.append(self.envelope.rcpt_tos[known:])
        return reply

    @syntax("DATA", needs=[accepted])
    async def smtp_DATA(self, arg: None) -> Any:
        return await super().smtp_DATA(arg)

    @syntax("BDAT size [LAST]", needs=[accepted])
    async def smtp_BDAT(self, arg: str) -> Any:
        if parse_bdat(arg.encode("ascii")).last:
            self._owed = self._accepted
        return await super().smtp_BDAT(arg)

    def _end_of_data(self, reader: DataReader) -> Any:
        self._owed = self._accepted
        return super()._end_of_data(reader)

    def reset_transaction(self) -> None:
        super().reset_transaction()
        self._accepted = []

    # The replies

    def push(self, status: Reply | str | bytes) -> Deferred[None]:
        """Send a reply. To a message, a whole one is that of the next recipient."""
        pushed = super().push(status)
        if self._owed and not is_part(status):
            self._replies_pushed += 1
        return pushed

    def _recipients_of(self, envelope: Envelope) -> Sequence[str]:
        owed = [path for each in self._owed for path in each]
        # A hook may have added recipients of its own since, or dropped those who were named twice.
        return envelope.rcpt_tos if set(owed) <= set(envelope.rcpt_tos) else owed

    def _gathered(self, paths: Sequence[str], replies: Sequence[Reply]) -> Any:
        said: dict[str, list[Reply]] = {}
        for path, reply in zip(reversed(paths), reversed(replies), strict=True):
            said.setdefault(path, []).append(reply)

        def next_for(path: str) -> Reply:
            """The next reply for who is named more than once; the last one again where there are too few."""
            return said[path].pop() if len(said[path]) > 1 else said[path][0]

        each_its_own = [folded([next_for(path) for path in each]) for each in self._owed]
        return Replies([", ".join(each) for each in self._owed], each_its_own)

    def answer(self, result: Any) -> None:
        # Whatever ends the turn in which the message has ended is an answer to it: a status, a refusal, an exception,
        # a hook that took too long.
        if not self._owed or result is ANSWERED_LATER or self._payload_due:
            super().answer(result)
            return
        if type(result) is not Replies:
            reply = self._status_of_command(result)
            if reply.code >= 400:
                reply = self._refusal(reply, named(self._recipients_of(self.envelope)[self._replies_pushed :]))
            replies = [reply] * len(self._owed)
        else:
            said = {
                reply: self._refusal(reply, recipients) if reply.code >= 400 else reply
                for reply, recipients in result.by_reply().items()
            }
            replies = [said[reply] for reply in result.replies]
        told, self._owed, self._replies_pushed = self._replies_pushed, (), 0
        closes = self._last_turn
        for reply in replies[told:]:
            if self.settings.log_dialogue:
                self._log_reply(reply)
            self.send(reply.encode(self.envelope.smtp_utf8))
            closes = closes or reply.code == 421
        self._end_turn(closes)


LMTP.commands = commands_of(LMTP)
