"""Failed logins: how many distinct names a network has tried, and how often each name was tried.

A phone with an outdated password fails repeatedly with one name; an attacker who guesses tries many. So networks are
limited by the number of distinct names. A name is never locked, because anyone could lock out its owner that way; its
logins are delayed instead. Both tables are bounded. Names are stored as hashes. No I/O; time is an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from txsmtpd.limits.rate import Rate, Retry

TABLE_SIZE = 10_000  # entries of each of the two tables


class Failures:
    """Counts failed logins.

    :param rate: how many distinct names a network may fail with in a period. The burst is ignored.
    :param size: the maximum number of networks and of names. Beyond it, the one that failed longest ago is forgotten.
    """

    def __init__(self, rate: Rate, size: int = TABLE_SIZE) -> None:
        self.rate = rate
        self.size = size
        self.forgotten = 0  #: networks that were forgotten too early because the table was full
        self._networks: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._names: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def admit(self, network: str, now: float) -> Retry | None:
        """Decide whether the network may try another name."""
        tried = self._networks.get(network)
        if tried is None or len(tried) < self.rate.number:
            return None
        since = now - self.rate.period
        for name in [name for name, last in tried.items() if last <= since]:
            del tried[name]
        return None if len(tried) < self.rate.number else Retry(min(tried.values()) - since)

    def failed(self, network: str, name: str, now: float) -> int:
        """Record a failed login.

        :return: how often the name failed recently, including this time.
        """
        self._note_network(network, hash(name), now)
        return self._note_name(hash(name), now)

    def _note_network(self, network: str, name: int, now: float) -> None:
        table = self._networks
        tried = table.get(network)
        if tried is None:
            if table:
                self._make_room(now)
            tried = table[network] = {}
        else:
            table.move_to_end(network)
        if name in tried or len(tried) < self.rate.number:  # beyond this number, it is rejected anyway
            tried[name] = now

    def _make_room(self, now: float) -> None:
        """Forget the network that failed longest ago, if it has expired or the table is full."""
        network, tried = next(iter(self._networks.items()))
        recent = max(tried.values(), default=-math.inf) > now - self.rate.period  # `admit` may have removed all names
        if not recent or len(self._networks) >= self.size:
            del self._networks[network]
            self.forgotten += recent

    def _note_name(self, name: int, now: float) -> int:
        table = self._names
        count, last = table.get(name, (0, now))
        if last <= now - self.rate.period:
            count = 0
        table[name] = (count + 1, now)
        table.move_to_end(name)
        if len(table) > self.size:
            table.popitem(last=False)
        return count + 1
