"""A circuit breaker: after some failures in a row, the other side is left alone for a while. Pure; time is given."""

from __future__ import annotations

FAILURES = 5  # in a row
PAUSE = 5.0  # seconds until the other side is tried again
LONGEST_PAUSE = 300.0  # seconds that the other side may ask for


class Breaker:
    """Tells when the other side may be asked.

    After the pause one request is let through; its outcome decides how it goes on.
    """

    def __init__(self, failures: int = FAILURES, pause: float = PAUSE) -> None:
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._closed_until: float | None = None  # until then nobody asks; then, one does
        self._trying = False

    def allows(self, now: float) -> bool:
        """Whether a request may be made. One that may be made must be followed by :meth:`succeeded`, :meth:`failed` or
        :meth:`gave_up`."""
        if self._closed_until is None:
            return True
        if now < self._closed_until or self._trying:
            return False
        self._trying = True
        return True

    def is_open(self, now: float) -> bool:
        """Whether requests are held back."""
        return self._closed_until is not None

    def succeeded(self) -> None:
        """The other side has answered as it should."""
        self._failures = 0
        self._closed_until = None
        self._trying = False

    def failed(self, now: float) -> None:
        """The other side has not answered, or not as it should."""
        self._failures += 1
        if self._trying or self._failures >= self._limit:
            self._closed_until = now + self._pause
        self._trying = False

    def gave_up(self) -> None:
        """The request came to nothing, which tells nothing of the other side."""
        self._trying = False

    def pause(self, now: float, seconds: float) -> None:
        """The other side wants to be left alone for so long."""
        self._closed_until = now + min(max(seconds, 0.0), LONGEST_PAUSE)
        self._trying = False
