"""Results of turns that are not replies."""

from __future__ import annotations

from typing import Any, Final

#: The result of a turn whose reply is sent by another turn, after octets that are not lines have been read.
ANSWERED_LATER: Final = object()


class Action:
    """The result of a turn that performs an action on the connection instead of returning a reply."""

    closes = False  #: whether the action ends the session, so that no reply follows
    answers = False  #: whether the action sends the reply of the turn itself

    def act(self, server: Any) -> None:
        """Perform the action."""
        raise NotImplementedError
