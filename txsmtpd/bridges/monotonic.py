"""Makes a reactor use a monotonic clock.

Twisted's reactors use the wall clock. If it is set forward by an hour, all idle timeouts expire at once; if it is set
back by an hour, no timeout expires for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.python.runtime import seconds as wall_clock


def use_monotonic_clock(reactor: Any) -> None:
    """Make a Twisted reactor use the monotonic clock from now on. Pending calls keep their delay.

    It affects all code that uses the reactor, so only the program that owns the reactor should call it; the command
    line does. Reactors that already use another clock are not changed.
    """
    if not isinstance(reactor, ReactorBase) or reactor.seconds is not wall_clock:
        return
    difference = time.monotonic() - wall_clock()
    for call in reactor.getDelayedCalls():
        pending: Any = call
        pending.time += difference
        pending.seconds = time.monotonic
    reactor.seconds = time.monotonic


def monotonic_seconds(reactor: Any) -> Callable[[], float]:
    """Return a monotonic clock if the reactor uses the wall clock, else the reactor's own clock."""
    seconds: Callable[[], float] = reactor.seconds
    return time.monotonic if seconds is wall_clock else seconds
