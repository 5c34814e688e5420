"""Limits the open connections of each network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol


class Shared(Protocol):
    """The connection counts of other processes."""

    def elsewhere(self, network: str) -> int:
        """Return how many connections the network has in other processes."""

    def add(self, network: str, number: int) -> None:
        """Report connections in this process to the others."""


class Places:
    """Places for connections, by network. Networks without connections are not stored.

    :param limit: the maximum for each network.
    :param network_of: returns the network of a client, or None if it has no limit.
    """

    def __init__(self, limit: int, network_of: Callable[[Any], str | None]) -> None:
        self.limit = limit
        self.taken: Counter[str] = Counter()
        self.shared: Shared | None = None  #: the counts of other processes that serve the same clients
        self._network_of = network_of
        self._of: dict[Any, str] = {}

    def take(self, owner: Any, peer: Any) -> bool:
        """Take a place for a client. Return False if its network has none left.

        :param owner: to be passed to :meth:`leave`.
        """
        network = self._network_of(peer)
        if network is None:
            return True
        if self._count(network) >= self.limit:
            return False
        self.taken[network] += 1
        if self.shared is not None:
            self.shared.add(network, 1)
        self._of[owner] = network
        return True

    def is_full(self, peer: Any) -> bool:
        """Return True if the client's network has no place left."""
        network = self._network_of(peer)
        return network is not None and self._count(network) >= self.limit

    def _count(self, network: str) -> int:
        own = self.taken.get(network, 0)
        return own if self.shared is None else own + self.shared.elsewhere(network)

    def leave(self, owner: Any) -> None:
        """Release the owner's place, if it has one."""
        network = self._of.pop(owner, None)
        if network is not None:
            self.taken[network] -= 1
            if self.shared is not None:
                self.shared.add(network, -1)
            if not self.taken[network]:
                del self.taken[network]
