"""The limits of one process: rates by kind, and failed logins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from txsmtpd.limits.buckets import TABLE_SIZE, Buckets
from txsmtpd.limits.names import Failures
from txsmtpd.limits.rate import Rate, Retry, check_kind

KINDS = ("connections", "messages", "recipients", "tls")
AUTH = "auth"
LOGIN = "login:"  # prefix of the keys of authenticated clients


class Limits:
    """An :class:`~txsmtpd.interfaces.ILimiter` for one process.

    :param rates: a :class:`~txsmtpd.limits.Rate`, or its text, for kinds in :data:`KINDS`.
    :param auth_failures: the rate of failed logins of a network; each user name counts once. None: no limit.
    :param table_size: the maximum number of keys for each rate.
    :param clock: returns monotonic time in seconds.
    :raises ValueError: for an unknown kind, or a text that is not a rate.

    >>> limits = Limits({"messages": "2/min"}, clock=lambda: 0.0)
    >>> [limits.admit("messages", "192.0.2.7") for _ in range(3)]
    [None, None, Retry(seconds=30.0)]
    """

    def __init__(
        self,
        rates: Mapping[str, Rate | str] | None = None,
        auth_failures: Rate | str | None = None,
        *,
        table_size: int = TABLE_SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for kind in rates or {}:
            check_kind(kind, KINDS)
        self.buckets = {kind: Buckets(_rate(rate), table_size) for kind, rate in (rates or {}).items()}
        self.failures = None if auth_failures is None else Failures(_rate(auth_failures))
        self._clock = clock

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that have a limit."""
        return frozenset([*self.buckets, *([] if self.failures is None else [AUTH])])

    def admit(self, kind: str, key: str) -> Retry | None:
        """Decide whether the key is admitted. A kind without a rate always is."""
        buckets = self.buckets.get(kind)
        if buckets is not None:
            return buckets.admit(key, self._clock())
        if kind == AUTH and self.failures is not None:
            return self.failures.admit(key, self._clock())
        return None

    def auth_failed(self, network: str, name: str) -> int:
        """Record a failed login of a client in the network.

        :return: how often the name failed recently, including this time.
        """
        return 1 if self.failures is None else self.failures.failed(network, name, self._clock())

    @property
    def forgotten(self) -> int:
        """The number of keys that were removed early because a table was full."""
        forgotten = sum(table.forgotten for table in self.buckets.values())
        return forgotten if self.failures is None else forgotten + self.failures.forgotten


def _rate(rate: Rate | str) -> Rate:
    return rate if isinstance(rate, Rate) else Rate.parse(rate)
