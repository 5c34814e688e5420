"""A reactor that measures time by a clock which is never set.

Twisted's reactors go by the wall clock. When it is set forward by an hour, every client has said nothing for an hour;
when it is set back, no timeout comes for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.python.runtime import seconds as wall_clock


def use_monotonic_clock(reactor: Any) -> None:
    """Have a reactor of Twisted's go by the monotonic clock from now on. Calls that are pending keep their delay.

    It changes the reactor for all that run in it, so it is for the program that owns the reactor; the command line does
    it. Reactors that go by another clock already are left as they are.
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
    """A clock for a reactor that goes by the wall clock; that of any other reactor is its own."""
    seconds: Callable[[], float] = reactor.seconds
    return time.monotonic if seconds is wall_clock else seconds
