"""Whether the server is ready for clients, as a load balancer or a supervisor asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from txsmtpd.interfaces import IReadiness


class Health:
    """What speaks against sending clients here.

    :param checks: objects that provide :class:`~txsmtpd.interfaces.IReadiness`; others are left out.
    """

    def __init__(self, *checks: Any) -> None:
        self._checks = [check for check in checks if is_readiness(check)]
        self.draining = False  #: the server is about to end; never undone
        self.starting = True  #: not all addresses are listened on yet

    def problems(self) -> Iterator[str]:
        """Why the server is not ready, one line each; nothing if it is."""
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
    """Whether the object can tell whether it is ready, declared or not."""
    return IReadiness.providedBy(candidate) or callable(getattr(candidate, "not_ready", None))
