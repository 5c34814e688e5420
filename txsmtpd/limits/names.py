"""Failed logins: how many distinct names a network has tried, and how often a name was tried.

A telephone with an old password fails with one name, over and over; whoever guesses tries many. So a network is judged
by the number of names. A name is never locked, since whoever knows it could lock its owner out; it is slowed down. Both
tables are bounded. Names are kept as hashes. Pure; time is an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from txsmtpd.limits.rate import Rate, Retry

TABLE_SIZE = 10_000  # networks, and names


class Failures:
    """Counts failed logins.

    :param rate: how many distinct names a network may fail with, and in which time; its burst is not looked at.
    :param size: how many networks and how many names are remembered. When there are more, the one that failed longest
        ago is forgotten.
    """

    def __init__(self, rate: Rate, size: int = TABLE_SIZE) -> None:
        self.rate = rate
        self.size = size
        self.forgotten = 0  #: networks that were forgotten before their time
        self._networks: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._names: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def admit(self, network: str, now: float) -> Retry | None:
        """Whether the network may try another name."""
        tried = self._networks.get(network)
        if tried is None or len(tried) < self.rate.number:
            return None
        since = now - self.rate.period
        for name in [name for name, last in tried.items() if last <= since]:
            del tried[name]
        return None if len(tried) < self.rate.number else Retry(min(tried.values()) - since)

    def failed(self, network: str, name: str, now: float) -> int:
        """A login has failed.

        :return: how often the name has failed of late, this time included.
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
        if name in tried or len(tried) < self.rate.number:  # beyond the number, it is refused anyway
            tried[name] = now

    def _make_room(self, now: float) -> None:
        """Forget the network that failed longest ago, if that is too long ago or the table is full."""
        network, tried = next(iter(self._networks.items()))
        recent = max(tried.values(), default=-math.inf) > now - self.rate.period  # `admit` may have taken all
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
