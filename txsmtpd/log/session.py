"""Limits how much one session logs, and passes events to a sink. No formatting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from txsmtpd.log.events import LEFT_OUT, Event, client_text

LINES = 100  # per session at once, and then per minute


class Sink(Protocol):
    """Receives the events of all sessions."""

    def emit(
        self,
        event: Event,
        session: str | None,
        fields: dict[str, Any],
        error: BaseException | None = None,
        secret: bool = False,
    ) -> None:
        """Log an event.

        :param session: the session's id, or None.
        :param fields: the event's fields by name.
        :param error: the exception to log, with its traceback.
        :param secret: whether the exception's text may contain a password and must not be logged.
        """


class SessionLog:
    """The log of one session.

    To keep clients from filling the disk with logs, a session may log *limit* lines at once, and as many again each
    minute. Further lines are counted, and :meth:`close` logs their number. Accepted messages are always logged.

    :param limit: the number of lines. None: no limit.
    :param now: returns monotonic time in seconds.
    """

    __slots__ = ("_allowance", "_left_out", "_limit", "_now", "_session", "_sink", "_updated")

    def __init__(
        self, sink: Sink, session: str, limit: int | None = LINES, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._sink = sink
        self._session = session
        self._limit = limit
        self._now = now
        self._allowance = float(limit or 0)
        self._updated = 0.0  # when the allowance was last updated; 0.0 is right at first, because the allowance is full
        self._left_out = 0

    def __call__(self, event: Event, **fields: Any) -> None:
        """Log an event with its fields."""
        if event.always or self._limit is None or self._may(self._limit):
            self._sink.emit(event, self._session, fields)

    def failure(self, event: Event, error: BaseException, secret: bool = False, **fields: Any) -> None:
        """Log an event with an exception.

        :param secret: whether the exception's text may contain a password.
        """
        if self._limit is None or self._may(self._limit):
            self._sink.emit(event, self._session, fields, error, secret)

    def close(self, peer: object) -> None:
        """Log how many lines were omitted, if any.

        :param peer: the client, as :attr:`~txsmtpd.session.Session.peer`.
        """
        if self._left_out:
            self._sink.emit(LEFT_OUT, self._session, {"count": self._left_out, "client": client_text(peer)})
            self._left_out = 0

    def _may(self, limit: int) -> bool:
        now = self._now()
        self._allowance = min(self._allowance + (now - self._updated) * limit / 60, limit)
        self._updated = now
        if self._allowance < 1:
            self._left_out += 1
            return False
        self._allowance -= 1
        return True
