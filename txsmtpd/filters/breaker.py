"""A breaker: after several failures in a row, do not try again for a while.

A filter that is down would otherwise cost each message the time it takes to find that out.
"""

from __future__ import annotations

from collections.abc import Callable

FAILURES = 5
PAUSE = 10.0  # seconds


class Breaker:
    """Counts failures, and says whether to try.

    :param seconds: tells the time, in seconds.
    :param failures: in a row, after which it opens.
    :param pause: seconds for which it stays open; then one attempt tells whether it closes.
    """

    def __init__(self, seconds: Callable[[], float], failures: int = FAILURES, pause: float = PAUSE) -> None:
        self._seconds = seconds
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing is tried now. When the pause is over, this is False for one caller, then True again."""
        if self._failures < self._limit:
            return False
        now = self._seconds()
        if now < self._until:
            return True
        self._until = now + self._pause
        return False

    def succeeded(self) -> None:
        """It worked."""
        self._failures = 0

    def failed(self) -> None:
        """It did not."""
        self._failures += 1
        if self._failures >= self._limit:
            self._until = self._seconds() + self._pause
