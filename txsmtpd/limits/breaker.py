"""A circuit breaker: after several consecutive failures, pauses for a while. No I/O; time is an argument."""

from __future__ import annotations


class Breaker:
    """Counts consecutive failures.

    :param failures: the number of failures after which the pause begins.
    :param pause: its length in seconds. After it, one attempt is allowed; if it fails or has no result, another pause
        follows.
    """

    def __init__(self, failures: int = 3, pause: float = 5.0) -> None:
        self._most = failures
        self._pause = pause
        self._failures = 0
        self._closed_at = 0.0

    def allows(self, now: float) -> bool:
        """Return True if an attempt may be made now."""
        if self._failures < self._most:
            return True
        if now < self._closed_at:
            return False
        self._closed_at = now + self._pause  # one attempt at a time
        return True

    def failed(self, now: float) -> bool:
        """Record a failure. Return True if it begins a pause."""
        self._failures += 1
        self._closed_at = now + self._pause
        return self._failures == self._most

    def succeeded(self) -> bool:
        """Record a success. Return True if it ends a pause."""
        ended = self._failures >= self._most
        self._failures = 0
        return ended
