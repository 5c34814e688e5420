"""A circuit breaker: after consecutive failures, the server is not called for a while. No I/O; time is an argument."""

from __future__ import annotations

FAILURES = 5  # consecutive
PAUSE = 5.0  # seconds until the next attempt
LONGEST_PAUSE = 300.0  # seconds; the longest pause that the server can ask for


class Breaker:
    """Decides when the server may be called.

    After the pause one request is allowed; its outcome decides whether the breaker closes.
    """

    def __init__(self, failures: int = FAILURES, pause: float = PAUSE) -> None:
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._closed_until: float | None = None  # no requests until this time, then one
        self._trying = False

    def allows(self, now: float) -> bool:
        """Return True if a request may be made. Then call :meth:`succeeded`, :meth:`failed` or :meth:`gave_up` after
        it."""
        if self._closed_until is None:
            return True
        if now < self._closed_until or self._trying:
            return False
        self._trying = True
        return True

    def is_open(self, now: float) -> bool:
        """Return True if requests are currently blocked."""
        return self._closed_until is not None

    def succeeded(self) -> None:
        """Record a valid response."""
        self._failures = 0
        self._closed_until = None
        self._trying = False

    def failed(self, now: float) -> None:
        """Record a missing or invalid response."""
        self._failures += 1
        if self._trying or self._failures >= self._limit:
            self._closed_until = now + self._pause
        self._trying = False

    def gave_up(self) -> None:
        """Record that the request was given up, which says nothing about the server."""
        self._trying = False

    def pause(self, now: float, seconds: float) -> None:
        """Make no requests for this many seconds, because the server asked for it."""
        self._closed_until = now + min(max(seconds, 0.0), LONGEST_PAUSE)
        self._trying = False
