"""How many connections each network has open, and may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any


class Places:
    """Places for connections, by network. Nothing is remembered of a network without connections.

    :param limit: how many each may have.
    :param network_of: tells the network of a client; None: it has no limit.
    """

    def __init__(self, limit: int, network_of: Callable[[Any], str | None]) -> None:
        self.limit = limit
        self.taken: Counter[str] = Counter()
        self._network_of = network_of
        self._of: dict[Any, str] = {}

    def take(self, owner: Any, peer: Any) -> bool:
        """Take a place for a client; False if its network has none left.

        :param owner: what :meth:`leave` is told.
        """
        network = self._network_of(peer)
        if network is None:
            return True
        if self.taken.get(network, 0) >= self.limit:
            return False
        self.taken[network] += 1
        self._of[owner] = network
        return True

    def is_full(self, peer: Any) -> bool:
        """Whether the client's network has no place left."""
        network = self._network_of(peer)
        return network is not None and self.taken.get(network, 0) >= self.limit

    def leave(self, owner: Any) -> None:
        """The owner's place, if it has one, is free again."""
        network = self._of.pop(owner, None)
        if network is not None:
            self.taken[network] -= 1
            if not self.taken[network]:
                del self.taken[network]
