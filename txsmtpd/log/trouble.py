"""Logs the beginning and the end of trouble once, instead of with each message. Standard library only."""

from __future__ import annotations

QUIET = 60.0  # seconds without trouble after which it is over


class Trouble:
    """Tracks trouble that may come and go with each message."""

    def __init__(self) -> None:
        self.current: str | None = None  #: the current trouble that was logged, or None
        self._last = 0.0  # when it last occurred

    def seen(self, trouble: str, now: float) -> bool:
        """Record a failure.

        :param now: the time, in seconds.
        :return: whether to log it, because it differs from the last one.
        """
        self._last = now
        previous, self.current = self.current, trouble
        return previous != trouble

    def worked(self, now: float) -> bool:
        """Record a success.

        :return: whether to log the end of the trouble: there was some, but none for a minute.
        """
        if self.current is None or now - self._last < QUIET:
            return False
        self.current = None
        return True
