"""Timers of all connections on a single delayed call of the reactor, which is set for the earliest of them.

A delayed call of Twisted takes about 450 bytes, an entry here a third of that, and most connections end without
touching the delayed call. :mod:`txsmtpd.engine.timeouts` decides what is late.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall

CANCELLED = 50  # cancelled entries that may stay in the heap before it is cleaned up
NEVER, ALWAYS = math.inf, -math.inf
RESOLUTION = 1e-6  # seconds; tolerates the rounding of floats

Entry = list[Any]  # the time, a number that orders entries of the same time, and the object to call, or None


class Timed(Protocol):
    """An object with a timer."""

    def on_timer(self) -> None:
        """Called at the time that was set."""


class Timers:
    """The timers of one clock.

    :param clock: the clock (IReactorTime).
    """

    __slots__ = ("_call", "_cancelled", "_clock", "_entries", "_moment", "_number")

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._entries: list[Entry] = []  # a heap
        self._number = 0
        self._cancelled = 0
        self._call: IDelayedCall | None = None
        self._moment = NEVER  # the time of the delayed call; ALWAYS while timers are being called

    def add(self, moment: float, timed: Timed) -> Entry:
        """Call *timed* at a time, or in the next iteration of the reactor if that has passed."""
        self._number += 1
        entry = [moment, self._number, timed]
        heappush(self._entries, entry)
        if moment < self._moment:
            self._set()
        return entry

    def cancel(self, entry: Entry) -> None:
        """Cancel a timer. Does nothing if it was called or cancelled before."""
        if entry[2] is None:
            return
        entry[2] = None
        self._cancelled += 1
        entries = self._entries
        if self._cancelled == len(entries):
            if self._moment != ALWAYS:
                self._set()
        elif self._cancelled > CANCELLED and self._cancelled > len(entries) // 2:
            entries[:] = [each for each in entries if each[2] is not None]
            heapify(entries)
            self._cancelled = 0

    def _set(self) -> None:
        """Set the delayed call for the earliest entry, if there is one."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._cancelled == len(self._entries):
            self._entries.clear()
            self._cancelled = 0
            self._moment = NEVER
        else:
            self._moment = moment = self._entries[0][0]
            self._call = self._clock.callLater(max(moment - self._clock.seconds(), 0.0), self._call_due)

    def _call_due(self) -> None:
        self._call = None
        self._moment = ALWAYS
        entries, last, now = self._entries, self._number, self._clock.seconds() + RESOLUTION
        try:
            # Timers that are added meanwhile are called in the next iteration.
            while entries and entries[0][0] <= now and entries[0][1] <= last:
                entry = heappop(entries)
                timed, entry[2] = entry[2], None
                if timed is None:
                    self._cancelled -= 1
                else:
                    timed.on_timer()
        finally:
            self._set()


def timers_of(clock: Any) -> Timers:
    """Return the timers of a clock. They are created on first use."""
    found: Timers | None = getattr(clock, "_txsmtpd_timers", None)
    if found is None:
        found = clock._txsmtpd_timers = Timers(clock)
    return found
