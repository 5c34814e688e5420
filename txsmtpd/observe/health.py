"""Readiness of the server, for load balancers and supervisors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from txsmtpd.interfaces import IReadiness


class Health:
    """Collects the reasons why the server is not ready.

    :param checks: objects that provide :class:`~txsmtpd.interfaces.IReadiness`. Other objects are ignored.
    """

    def __init__(self, *checks: Any) -> None:
        self._checks = [check for check in checks if is_readiness(check)]
        self.draining = False  #: the server is shutting down; never reset
        self.starting = True  #: the server is not yet listening on all addresses

    def problems(self) -> Iterator[str]:
        """Yield the reasons why the server is not ready, as lines; none if it is ready."""
        if self.draining:
            yield "the server is shutting down"
        elif self.starting:
            yield "the server is starting"
        for check in self._checks:
            try:
                problem = check.not_ready()
            except Exception as error:
                problem = f"{type(check).__name__}.not_ready raised {type(error).__name__}"
            if problem:
                yield problem


def is_readiness(candidate: Any) -> bool:
    """Return True if the object provides IReadiness, declared or not."""
    return IReadiness.providedBy(candidate) or callable(getattr(candidate, "not_ready", None))
