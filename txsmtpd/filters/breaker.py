"""A circuit breaker: after several consecutive failures, do not try again for a while.

Otherwise each message would have to wait until a filter that is down times out.
"""

from __future__ import annotations

from collections.abc import Callable

FAILURES = 5
PAUSE = 10.0  # seconds


class Breaker:
    """Counts failures, and decides whether to try.

    :param seconds: returns the time, in seconds.
    :param failures: the number of consecutive failures after which it opens.
    :param pause: seconds for which it stays open. Then one attempt decides whether it closes.
    """

    def __init__(self, seconds: Callable[[], float], failures: int = FAILURES, pause: float = PAUSE) -> None:
        self._seconds = seconds
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether attempts are currently blocked. After the pause, this is False for one caller, then True again."""
        if self._failures < self._limit:
            return False
        now = self._seconds()
        if now < self._until:
            return True
        self._until = now + self._pause
        return False

    def succeeded(self) -> None:
        """Record a success."""
        self._failures = 0

    def failed(self) -> None:
        """Record a failure."""
        self._failures += 1
        if self._failures >= self._limit:
            self._until = self._seconds() + self._pause
