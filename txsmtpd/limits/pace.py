"""Pure functions for slow clients, and for delaying clients."""

from __future__ import annotations


def heard_at(heard: float, now: float, octets: int, rate: float) -> float:
    """Return the new start of the idle time of a client that sends message data.

    The client has a time budget. It starts at the timeout, decreases as time passes, increases by ``octets / rate``
    seconds for received data, and never exceeds the timeout. It is stored as the time since which the client counts as
    idle: the budget is used up once ``now - heard`` reaches the timeout.

    :param heard: that time before the data arrived.
    :return: that time now.
    """
    earned = heard + octets / rate
    return earned if earned < now else now


def growing_delay(count: int, first: float, longest: float) -> float:
    """Return the delay for the *count*-th time, starting at 1: *first* seconds, doubled each time, up to *longest*.

    >>> [growing_delay(count, 1.0, 10.0) for count in (0, 1, 2, 3, 4, 5, 1000)]
    [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    """
    if count < 1:
        return 0.0
    return min(first * 2.0 ** min(count - 1, 64), max(longest, first))
