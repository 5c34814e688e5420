"""Stress mode: whether the server is so busy that it must shorten timeouts. A state with hysteresis."""

from __future__ import annotations


class Stress:
    """True if the server is under stress.

    Stress begins when the number of connections, or the reactor's lag, reaches *enter*, and ends when both are below
    *leave*. In between, the state does not change, so that it does not flip with each connection.

    :param lag_limit: the reactor lag, in seconds, at which stress begins.
    :param enter: the fraction of the connection limit at which stress begins.
    :param leave: the fraction of both limits below which it ends.
    """

    def __init__(self, lag_limit: float = 0.25, enter: float = 0.8, leave: float = 0.6) -> None:
        self.active = False
        self.lag = 0.0  #: the last measured reactor lag, in seconds
        self.cause = ""  #: the reason for the last change, as text
        self.lag_limit = lag_limit
        self.enter = enter
        self.leave = leave

    def update(self, connections: int, limit: int | None) -> bool:
        """Update the state for a number of connections.

        :param limit: the connection limit. None: no limit.
        :return: whether :attr:`active` has changed.
        """
        used = connections / limit if limit else 0.0
        if self.active:
            if used >= self.leave or self.lag >= self.leave * self.lag_limit:
                return False
            self.cause = "connections and the reactor's delay are low again"
        elif limit and used >= self.enter:
            self.cause = f"{connections} of {limit} connections are open"
        elif self.lag > self.lag_limit:
            self.cause = f"the reactor is {self.lag * 1000:.0f} ms late"
        else:
            return False
        self.active = not self.active
        return True
