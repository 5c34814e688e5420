"""How many connections each network has open, and may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol


class Shared(Protocol):
    """The numbers of other processes."""

    def elsewhere(self, network: str) -> int:
        """How many connections the network has there."""

    def add(self, network: str, number: int) -> None:
        """Tell them of connections here."""


class Places:
    """Places for connections, by network. Nothing is remembered of a network without connections.

    :param limit: how many each may have.
    :param network_of: tells the network of a client; None: it has no limit.
    """

    def __init__(self, limit: int, network_of: Callable[[Any], str | None]) -> None:
        self.limit = limit
        self.taken: Counter[str] = Counter()
        self.shared: Shared | None = None  #: tells of other processes that serve the same clients
        self._network_of = network_of
        self._of: dict[Any, str] = {}

    def take(self, owner: Any, peer: Any) -> bool:
        """Take a place for a client; False if its network has none left.

        :param owner: what :meth:`leave` is told.
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
        """Whether the client's network has no place left."""
        network = self._network_of(peer)
        return network is not None and self._count(network) >= self.limit

    def _count(self, network: str) -> int:
        own = self.taken.get(network, 0)
        return own if self.shared is None else own + self.shared.elsewhere(network)

    def leave(self, owner: Any) -> None:
        """The owner's place, if it has one, is free again."""
        network = self._of.pop(owner, None)
        if network is not None:
            self.taken[network] -= 1
            if self.shared is not None:
                self.shared.add(network, -1)
            if not self.taken[network]:
                del self.taken[network]
