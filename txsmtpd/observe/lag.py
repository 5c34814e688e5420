"""How late the reactor is: the number that shows a hook which blocks, or a machine with too much to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

INTERVAL = 0.25  # seconds


class ReactorLag:
    """Asks the reactor for a call, again and again, and tells how much later than asked it came.

    :param tell: called with the seconds.
    :param clock: what makes the calls (IReactorTime).
    :param seconds: what tells the time; it must not go back.
    """

    def __init__(
        self,
        tell: Callable[[float], object],
        clock: Any,
        interval: float = INTERVAL,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._interval = interval
        self._seconds = seconds
        self._call: Any = None
        self._due = 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._due = self._seconds() + self._interval
        self._call = self._clock.callLater(self._interval, self._tick)

    def stop(self) -> None:
        """Measure no more."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _tick(self) -> None:
        late = max(0.0, self._seconds() - self._due)
        self.start()
        self._tell(late)
