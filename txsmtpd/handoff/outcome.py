"""The outcomes of handing a message to another system, as exceptions and replies.

There are three outcomes. If the target returns, it has taken responsibility. If it raises
:class:`~txsmtpd.reply.Refused` or its subclass :class:`NotTaken`, it certainly has not. After any other exception the
outcome is unknown, and the client is told to send the message again: delivery is at least once.
"""

from __future__ import annotations

from txsmtpd.reply import Refused, Reply

NOT_TAKEN = Reply(451, "4.3.0", "The downstream system did not accept the message, try again later")
UNAVAILABLE = Reply(451, "4.4.1", "The downstream system is not available, try again later")
UNKNOWN = Reply(451, "4.4.2", "The downstream system did not confirm the message; send it again")
MISCONFIGURED = Reply(451, "4.3.5", "The server is not configured correctly, try again later")
BUSY = Reply(451, "4.3.2", "Too many messages in progress, try again later")
TOO_LARGE = Reply(552, "5.3.4", "The message is too large for the downstream system")


class NotTaken(Refused):
    """The target has certainly not taken the message.

    :param why: the reason for the log; not shown to the client.
    :param reply: the reply to the client.
    """

    outcome = "not_taken"  #: the label value in metrics

    def __init__(self, why: str, reply: Reply = NOT_TAKEN) -> None:
        super().__init__(reply)
        self.why = why

    def __str__(self) -> str:
        return self.why


class Unroutable(NotTaken):
    """The target cannot route the message: a permanent configuration error, not a temporary failure."""

    outcome = "unroutable"

    def __init__(self, why: str) -> None:
        super().__init__(why, MISCONFIGURED)


class OutcomeUnknown(Exception):
    """It is unknown whether the target has taken the message.

    :param why: for the log.
    :param reply: the reply to the client: 451, so that it sends the message again.
    """

    def __init__(self, why: str, reply: Reply = UNKNOWN) -> None:
        super().__init__(why)
        self.reply = reply
