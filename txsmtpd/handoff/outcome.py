"""What becomes of a message that is handed to another system, as exceptions and replies.

There are three outcomes. A target that returns has taken responsibility. One that raises
:class:`~txsmtpd.reply.Refused`, of which :class:`NotTaken` is a kind, has certainly not. After any other exception
nobody knows, and the client is told to send the message again: at least once is the promise.
"""

from __future__ import annotations

from txsmtpd.reply import Refused, Reply

NOT_TAKEN = Reply(451, "4.3.0", "The message was not accepted downstream; try again later")
UNAVAILABLE = Reply(451, "4.4.1", "The downstream system is not available; try again later")
UNKNOWN = Reply(451, "4.4.2", "The downstream system did not confirm the message; send it again")
MISCONFIGURED = Reply(451, "4.3.5", "The server is not configured correctly; try again later")
BUSY = Reply(451, "4.3.2", "Too many messages in progress; try again later")
TOO_LARGE = Reply(552, "5.3.4", "The message is too large for the downstream system")


class NotTaken(Refused):
    """The target has certainly not taken the message.

    :param why: for the log; the client does not see it.
    :param reply: what the client is told.
    """

    outcome = "not_taken"  #: what metrics count it as

    def __init__(self, why: str, reply: Reply = NOT_TAKEN) -> None:
        super().__init__(reply)
        self.why = why

    def __str__(self) -> str:
        return self.why


class Unroutable(NotTaken):
    """The target has nowhere to put the message: a fault of the configuration, not of the weather."""

    outcome = "unroutable"

    def __init__(self, why: str) -> None:
        super().__init__(why, MISCONFIGURED)


class OutcomeUnknown(Exception):
    """Nobody knows whether the target has taken the message.

    :param why: for the log.
    :param reply: what the client is told: 451, to send it again.
    """

    def __init__(self, why: str, reply: Reply = UNKNOWN) -> None:
        super().__init__(why)
        self.reply = reply
