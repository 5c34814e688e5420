"""The results that a turn may have besides an ordinary reply: a reply that closes the connection, an action, or a reply
that is sent later.
"""

from __future__ import annotations

from typing import Any, Final

from txsmtpd.reply import Reply

#: The result of a turn whose reply is sent by another turn, after octets that are not lines have been read.
ANSWERED_LATER: Final = object()


class Action:
    """The result of a turn that performs an action on the connection instead of returning a reply."""

    closes = False  #: whether the action ends the session, so that no reply follows
    answers = False  #: whether the action sends the reply of the turn itself

    def act(self, server: Any) -> None:
        """Perform the action."""
        raise NotImplementedError


class Close(Action):
    """Close the connection without a reply."""

    closes = True

    def act(self, server: Any) -> None:
        server._connection.close()


CLOSE = Close()


class ClosingReply(Reply):
    """A refusal after which the connection closes. After 421 it closes in any case."""

    __slots__ = ()

    @classmethod
    def of(cls, reply: Reply) -> ClosingReply:
        """Return the refusal as a closing reply."""
        return cls(reply.code, reply.status, reply.lines)
