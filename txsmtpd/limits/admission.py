"""Decides whether a client may continue. This module chooses the key under which the client is counted, and asks the
limiter. It does not create replies.

Clients in *unlimited* networks have no limits. Others are counted by their network or, once authenticated, by their
login.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from txsmtpd.limits.limiter import AUTH, KINDS, LOGIN
from txsmtpd.limits.networks import PREFIXES, networks_of
from txsmtpd.limits.rate import Retry
from txsmtpd.session import Session
from txsmtpd.wire.networks import UNIX, Network, Networks

UNLIMITED = ("127.0.0.0/8", "::1", UNIX)
REMEMBERED = 4096  # clients whose network is cached


class Admission:
    """Asks a limiter for decisions about clients.

    :param limiter: an :class:`~txsmtpd.interfaces.ILimiter`.
    :param unlimited: networks without limits, in the form that :class:`~txsmtpd.wire.networks.Networks` takes.
    :param prefixes: the prefix lengths of networks, for IPv4 and IPv6.
    """

    def __init__(
        self, limiter: Any, unlimited: Iterable[Network] = UNLIMITED, prefixes: tuple[int, int] = PREFIXES
    ) -> None:
        self.limiter = limiter
        self.unlimited = Networks("unlimited_networks", unlimited)
        self._network_of = networks_of(prefixes)
        self._key_of: Callable[[Any], str | None] = lru_cache(maxsize=REMEMBERED)(self._key_of_host)
        # The kinds of request that the limiter limits. All others are admitted without asking the limiter. A custom
        # limiter without the attribute `kinds` is asked about all of them.
        self.kinds = frozenset(getattr(limiter, "kinds", [*KINDS, AUTH]))
        self.admitted = dict.fromkeys(self.kinds, 0)  #: the number of admitted requests by kind, for the metrics
        self.refused = dict.fromkeys(self.kinds, 0)  #: the number of refused requests by kind, for the metrics

    def network(self, peer: Any) -> str | None:
        """Return the network that a client is counted under, or None if it has no limits.

        :param peer: as :attr:`~txsmtpd.session.Session.peer`.
        """
        return self._key_of(peer[0]) if type(peer) is tuple else None

    def admit(self, kind: str, session: Session) -> Any:
        """Ask the limiter whether the client may do something once more.

        :param kind: what the client wants to do. ``"auth"``: try to log in.
        :return: None for yes, or a :class:`~txsmtpd.limits.Retry`; or an awaitable of either.
        """
        if kind not in self.kinds:
            return None
        peer = session.peer
        key = self._key_of(peer[0]) if type(peer) is tuple else None  # as in `network`, inlined for speed
        if key is None:
            self.admitted[kind] += 1
            return None
        if session.authenticated and kind in ("messages", "recipients"):
            login = session.login_data
            if isinstance(login, bytes):
                login = login.decode("utf-8", "replace")
            key = f"{LOGIN}{login}" if isinstance(login, str) and login else key
        answer = self.limiter.admit(kind, key)
        if answer is None:
            self.admitted[kind] += 1
        return answer

    def auth_failed(self, session: Session, name: str) -> Any:
        """Record a failed login with this name.

        :return: how often the name failed recently, or an awaitable of that; 1 if failures are not counted.
        """
        key = self.network(session.peer) if AUTH in self.kinds else None
        return 1 if key is None else self.limiter.auth_failed(key, name)

    def _key_of_host(self, host: Any) -> str | None:
        return None if (host, 0) in self.unlimited else self._network_of(host)


def seconds_left(retry: Retry) -> int:
    """Return the seconds until a retry, as an integer."""
    return max(1, -int(-retry.seconds // 1))
