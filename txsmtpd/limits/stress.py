"""Stress mode: whether the server has so much to do that it must be less patient. A value with hysteresis."""

from __future__ import annotations


class Stress:
    """Whether the server is under stress.

    It is, from the moment at which the connections, or the delay of the reactor, reach *enter*; until both are below
    *leave* again. Between the two it stays as it was, so that it does not change with each connection.

    :param lag_limit: seconds of delay of the reactor that mean stress.
    :param enter: the share of the limit of connections that means stress.
    :param leave: the share of both limits below which it ends.
    """

    def __init__(self, lag_limit: float = 0.25, enter: float = 0.8, leave: float = 0.6) -> None:
        self.active = False
        self.lag = 0.0  #: seconds by which the reactor was late when it was last looked at
        self.cause = ""  #: what the last change was due to, in words
        self.lag_limit = lag_limit
        self.enter = enter
        self.leave = leave

    def update(self, connections: int, limit: int | None) -> bool:
        """Look at the connections.

        :param limit: how many there may be; None: no limit.
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
