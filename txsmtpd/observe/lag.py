"""Measures the reactor's lag, which shows blocking hooks and overloaded machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

INTERVAL = 0.25  # seconds


class ReactorLag:
    """Repeatedly schedules a call, and reports how late it was.

    :param tell: called with the lag, in seconds.
    :param clock: schedules the calls (IReactorTime).
    :param seconds: returns monotonic time.
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
        self.due = 0.0  #: when the next call is due

    def start(self) -> None:
        """Start measuring."""
        self.due = self._seconds() + self._interval
        self._call = self._clock.callLater(self._interval, self._tick)

    def stop(self) -> None:
        """Stop measuring."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _tick(self) -> None:
        late = max(0.0, self._seconds() - self.due)
        self.start()
        self._tell(late)
