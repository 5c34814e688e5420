"""Time limits for filters, and when to pause after failures."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from txsmtpd.filters.verdict import FilterError

FAILURES = 5  # consecutive failures after which a filter is not called for a while
PAUSE = 10.0  # seconds until the next attempt


def within(clock: Any, seconds: float, awaitable: Awaitable[Any]) -> Deferred[Any]:
    """Wait for an awaitable, and cancel it after a timeout.

    :param clock: provides the time (IReactorTime).
    :return: a Deferred, which fails with :class:`FilterError` on timeout even if the awaitable ignores cancellation.
    """
    work: Deferred[Any] = ensureDeferred(awaitable)  # type: ignore[arg-type]
    result: Deferred[Any] = Deferred(lambda _: work.cancel())

    def expire() -> None:
        result.errback(FilterError(f"no answer within {seconds:g} seconds"))
        work.cancel()

    expiry = clock.callLater(seconds, expire)

    def done(outcome: Any) -> None:
        if expiry.active():
            expiry.cancel()
        if not result.called:
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)

    work.addBoth(done)
    return result
