"""The delay before a worker that died is replaced. It doubles while workers die soon after their start. Pure."""

from __future__ import annotations

FIRST = 1.0  # seconds
LONGEST = 60.0  # seconds
HEALTHY = 60.0  # seconds that a worker must live for the delay to start over


class Backoff:
    """The delays of one slot.

    >>> backoff = Backoff()
    >>> [backoff.after(0.5) for _ in range(3)]
    [1.0, 2.0, 4.0]
    >>> backoff.after(3600)
    1.0
    """

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, lifetime: float) -> float:
        """Return the seconds to wait after a worker that lived for *lifetime* seconds."""
        if lifetime >= HEALTHY:
            self._next = FIRST
        delay, self._next = self._next, min(2 * self._next, LONGEST)
        return delay
