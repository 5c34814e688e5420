"""Slow clients, and clients that are slowed down. Pure functions of time and numbers."""

from __future__ import annotations


def heard_at(heard: float, now: float, octets: int, rate: float) -> float:
    """The budget of a client that sends message data.

    The budget starts at the time-out, loses the time that passes, earns the octets that come at a rate of *rate* octets
    a second, and never exceeds the time-out. It is kept as the time from which silence counts: the client has used its
    budget up once ``now - heard`` is the time-out.

    :param heard: that time before the octets came.
    :return: that time now.
    """
    earned = heard + octets / rate
    return earned if earned < now else now


def growing_delay(count: int, first: float, longest: float) -> float:
    """Seconds to wait at the *count*-th time, from 1 on: *first*, then twice as long each time, up to *longest*.

    >>> [growing_delay(count, 1.0, 10.0) for count in (0, 1, 2, 3, 4, 5, 1000)]
    [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    """
    if count < 1:
        return 0.0
    return min(first * 2.0 ** min(count - 1, 64), max(longest, first))
