"""A breaker: what has failed several times in a row is not asked for a while. Pure; time is an argument."""

from __future__ import annotations


class Breaker:
    """Counts failures in a row.

    :param failures: after how many the pause begins.
    :param pause: its length in seconds. After it, one may try; if that fails, the pause begins anew.
    """

    def __init__(self, failures: int = 3, pause: float = 5.0) -> None:
        self._most = failures
        self._pause = pause
        self._failures = 0
        self._closed_at = 0.0

    def allows(self, now: float) -> bool:
        """Whether to try now."""
        if self._failures < self._most:
            return True
        if now < self._closed_at:
            return False
        self._closed_at = now + self._pause  # for all others, while one tries
        return True

    def failed(self, now: float) -> bool:
        """It has failed. Whether a pause begins that was none before."""
        self._failures += 1
        self._closed_at = now + self._pause
        return self._failures == self._most

    def succeeded(self) -> bool:
        """It has worked. Whether that ends a pause."""
        ended = self._failures >= self._most
        self._failures = 0
        return ended
