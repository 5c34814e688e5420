"""One timer of the reactor for all connections: it is set for the first of them that has to be looked at.

A delayed call of Twisted takes about 450 bytes, an entry here a third of that; and most connections come and go without
a look at the reactor's own timers. What is late, and what becomes of it, is decided in :mod:`txsmtpd.engine.patience`.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall

CANCELLED = 50  # entries that may be kept before they are looked for
NEVER, ALWAYS = math.inf, -math.inf
RESOLUTION = 1e-6  # seconds; a sum of floats may be a little less than it should be

Entry = list[Any]  # when, a number that tells entries of one moment apart, and who is looked at; None: nobody any more


class Watched(Protocol):
    """Who is looked at when its time has come."""

    def look(self) -> None:
        """The moment has come."""


class Timers:
    """What is to be looked at later, by one clock.

    :param clock: what keeps the time (IReactorTime).
    """

    __slots__ = ("_call", "_cancelled", "_clock", "_entries", "_moment", "_number")

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._entries: list[Entry] = []  # a heap
        self._number = 0
        self._cancelled = 0
        self._call: IDelayedCall | None = None
        self._moment = NEVER  # for which that is set; always, while entries are looked at

    def add(self, moment: float, watched: Watched) -> Entry:
        """Look at it at a moment, or in the next turn of the reactor if that has passed."""
        self._number += 1
        entry = [moment, self._number, watched]
        heappush(self._entries, entry)
        if moment < self._moment:
            self._set()
        return entry

    def cancel(self, entry: Entry) -> None:
        """Look at it no more. An entry that was looked at may be given, too."""
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
        """Set the reactor's timer for the first entry, if any is left."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._cancelled == len(self._entries):
            self._entries.clear()
            self._cancelled = 0
            self._moment = NEVER
        else:
            self._moment = moment = self._entries[0][0]
            self._call = self._clock.callLater(max(moment - self._clock.seconds(), 0.0), self._come)

    def _come(self) -> None:
        self._call = None
        self._moment = ALWAYS
        entries, last, now = self._entries, self._number, self._clock.seconds() + RESOLUTION
        try:
            # What is added meanwhile waits for the next turn.
            while entries and entries[0][0] <= now and entries[0][1] <= last:
                entry = heappop(entries)
                watched, entry[2] = entry[2], None
                if watched is None:
                    self._cancelled -= 1
                else:
                    watched.look()
        finally:
            self._set()


def timers_of(clock: Any) -> Timers:
    """The timers of a clock."""
    found: Timers | None = getattr(clock, "_txsmtpd_timers", None)
    if found is None:
        found = clock._txsmtpd_timers = Timers(clock)
    return found
