"""Logs the beginning and the end of trouble once, instead of with each message. Standard library only."""

from __future__ import annotations

QUIET = 60.0  # seconds without trouble after which it is over
KINDS = 20  # kinds of trouble that are remembered


class Trouble:
    """Tracks trouble that may come and go with each message."""

    def __init__(self) -> None:
        self._logged: dict[str, None] = {}  # the kinds that were logged since the trouble began
        self._last = 0.0  # when it last occurred

    def seen(self, trouble: str, now: float) -> bool:
        """Record a failure.

        :param now: the time, in seconds.
        :return: whether to log it, because it is the first of its kind since the trouble began.
        """
        self._last = now
        if trouble in self._logged:
            return False
        while len(self._logged) >= KINDS:
            del self._logged[next(iter(self._logged))]
        self._logged[trouble] = None
        return True

    def worked(self, now: float) -> bool:
        """Record a success.

        :return: whether to log the end of the trouble: there was some, but none for a minute.
        """
        if not self._logged or now - self._last < QUIET:
            return False
        self._logged.clear()
        return True
