"""Whether a client may go on: who it is counted as, and what the limiter says. No reply is made here.

Clients in *unlimited* networks are asked about nothing. Others are counted by their network, or, once they have
authenticated, by their login.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from txsmtpd.limits.limiter import AUTH, KINDS, LOGIN
from txsmtpd.limits.networks import PREFIXES, networks_of
from txsmtpd.limits.rate import Retry
from txsmtpd.session import Session
from txsmtpd.wire.networks import UNIX, Network, Networks

UNLIMITED = ("127.0.0.0/8", "::1", UNIX)
REMEMBERED = 4096  # clients whose network is not worked out anew


class Admission:
    """Asks a limiter about clients.

    :param limiter: an :class:`~txsmtpd.interfaces.ILimiter`.
    :param unlimited: networks that have no limits, as :class:`~txsmtpd.wire.networks.Networks` takes them.
    :param prefixes: how many bits of an IPv4 and of an IPv6 address are the network's.
    """

    def __init__(
        self, limiter: Any, unlimited: Iterable[Network] = UNLIMITED, prefixes: tuple[int, int] = PREFIXES
    ) -> None:
        self.limiter = limiter
        self.unlimited = Networks("unlimited_networks", unlimited)
        self._network_of = networks_of(prefixes)
        self._key_of: Callable[[Any], str | None] = lru_cache(maxsize=REMEMBERED)(self._key_of_host)
        # What has no rate is not even asked about. Another limiter may have one for everything.
        self.kinds = frozenset(getattr(limiter, "kinds", [*KINDS, AUTH]))
        self.decisions: Counter[tuple[str, str]] = Counter()  #: by kind, and "admitted" or "refused"

    def network(self, peer: Any) -> str | None:
        """The network that a client is counted as; None: it has no limits.

        :param peer: as :attr:`~txsmtpd.session.Session.peer`.
        """
        return self._key_of(peer[0]) if type(peer) is tuple else None

    def admit(self, kind: str, session: Session) -> Any:
        """Whether the client may do what is of this kind once more. ``"auth"`` only asks whether it may try to log in.

        :return: None for yes, or a :class:`~txsmtpd.limits.Retry`; or an awaitable of one of them.
        """
        if kind not in self.kinds:
            return None
        key = self.network(session.peer)
        if key is None:
            return None
        if session.authenticated and kind in ("messages", "recipients"):
            login = session.login_data
            if isinstance(login, bytes):
                login = login.decode("utf-8", "replace")
            key = f"{LOGIN}{login}" if isinstance(login, str) and login else key
        return self.limiter.admit(kind, key)

    def note(self, kind: str, answer: Retry | None) -> None:
        """Count a decision, for the metrics."""
        self.decisions[kind, "admitted" if answer is None else "refused"] += 1

    def auth_failed(self, session: Session, name: str) -> Any:
        """The client has failed to log in with the name.

        :return: how often the name has failed of late, or an awaitable of it; 1 if nobody counts.
        """
        key = self.network(session.peer) if AUTH in self.kinds else None
        return 1 if key is None else self.limiter.auth_failed(key, name)

    def _key_of_host(self, host: Any) -> str | None:
        return None if (host, 0) in self.unlimited else self._network_of(host)


def seconds_left(retry: Retry) -> int:
    """The whole seconds after which to try again."""
    return max(1, -int(-retry.seconds // 1))
