"""What one session logs, and how much of it. No formats: a sink takes what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from txsmtpd.log.events import LEFT_OUT, Event

LINES = 100  # of one session at once, and then as many again in a minute


class Sink(Protocol):
    """Takes the events of all sessions."""

    def emit(
        self,
        event: Event,
        session: str | None,
        fields: dict[str, Any],
        error: BaseException | None = None,
        secret: bool = False,
    ) -> None:
        """Log an event.

        :param session: the session's id; None: it is about none.
        :param fields: the event's fields by name.
        :param error: the exception that it is about, with its traceback.
        :param secret: whether its text may hold a password, and must not be shown.
        """


class SessionLog:
    """The log of one session.

    No client can fill a disk by what it makes the server log: a session may log *limit* lines at once, and as many
    again in each minute. What is more is counted, and :meth:`close` tells the number. Accepted messages are always
    logged.

    :param limit: None: no limit.
    :param now: the time in seconds, which never goes back.
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
        self._updated = 0.0  # when that was true; the first time, the allowance is full whatever this is
        self._left_out = 0

    def __call__(self, event: Event, **fields: Any) -> None:
        """Log an event with its fields."""
        if event.always or self._limit is None or self._may(self._limit):
            self._sink.emit(event, self._session, fields)

    def failure(self, event: Event, error: BaseException, secret: bool = False, **fields: Any) -> None:
        """Log an event that is about an exception.

        :param secret: whether the exception's text may hold a password.
        """
        if self._limit is None or self._may(self._limit):
            self._sink.emit(event, self._session, fields, error, secret)

    def close(self, client: str) -> None:
        """Tell how much was left out, if anything was."""
        if self._left_out:
            self._sink.emit(LEFT_OUT, self._session, {"count": self._left_out, "client": client})
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
