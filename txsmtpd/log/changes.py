"""Whether the log is told of trouble and of its end, once each and not for each message. Standard library only."""

from __future__ import annotations

QUIET = 60.0  # seconds without trouble, after which it is over


class Trouble:
    """The trouble that something has, which may come and go with each message."""

    def __init__(self) -> None:
        self.told: str | None = None  #: the trouble that was told, and is not over
        self._last = 0.0  # when it was seen

    def seen(self, trouble: str, now: float) -> bool:
        """It has failed.

        :param now: the time, in seconds.
        :return: whether to tell it: it is another trouble than the one before.
        """
        self._last = now
        told, self.told = self.told, trouble
        return told != trouble

    def worked(self, now: float) -> bool:
        """It has worked.

        :return: whether to tell it: there was trouble, and none for a minute.
        """
        if self.told is None or now - self._last < QUIET:
            return False
        self.told = None
        return True
