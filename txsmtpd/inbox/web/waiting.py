"""Long polling: a request is answered when the mail it waits for has arrived, or after a timeout.

A request subscribes to events before it searches, so no mail between the two is missed.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.defer import Deferred

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.inbox.events import Event
from txsmtpd.inbox.scope import Scope
from txsmtpd.inbox.search import Terms
from txsmtpd.inbox.store import Page, Store
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTTPError, Response

LONGEST = 60.0  # seconds that a request can wait
DEFAULT = 10.0


class Arrivals:
    """Tells whether mail of a scope has arrived since the last call."""

    def __init__(self, store: Store, scope: Scope, reactor: Any) -> None:
        self._reactor = reactor
        self._has_come = False
        self._waiting: Deferred[bool] | None = None
        self._subscription = store.hub.subscribe(scope, self._tell)

    def _tell(self, event: Event) -> None:
        if event.kind == "new":
            self._has_come = True
            self._fire(True)

    def _fire(self, has_come: bool) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(has_come)

    async def next(self, until: float) -> bool:
        """Wait for more mail. Return True if some arrived in time.

        :param until: the deadline, in the reactor's time.
        """
        if not self._has_come:
            self._waiting = Deferred()
            waiting = self._waiting
            deadline = self._reactor.callLater(max(0.0, until - self._reactor.seconds()), self._fire, False)
            try:
                if not await waiting:
                    return False
            finally:
                self._waiting = None
                if deadline.active():
                    deadline.cancel()
        self._has_come = False
        return True

    def cancel(self) -> None:
        self._subscription.cancel()


async def wait_for(
    call: Call, scope: Scope, terms: Terms, *, timeout: float, count: int = 1, after: int = 0, limit: int | None = 50
) -> tuple[Page, bool]:
    """Wait until enough messages match or the time is over. Return the matching messages, and whether there are enough.

    :raises HTTPError: if too many requests are waiting already.
    """
    settings, reactor = call.settings, current_reactor()
    if len(settings.waiting) >= settings.waiting_limit:
        raise HTTPError(503, "too many requests wait for mail", {"Retry-After": "1"})
    arrivals = Arrivals(call.store, scope, reactor)
    settings.waiting.add(arrivals)
    until = reactor.seconds() + timeout
    try:
        while True:
            page = await call.store.page(scope, terms, after=after, limit=limit)
            if page.count >= count:
                return page, True
            if not await arrivals.next(until):
                return page, False
    finally:
        arrivals.cancel()
        settings.waiting.discard(arrivals)


def preference(call: Call) -> int | None:
    """Return the seconds of ``Prefer: wait=N`` (RFC 7240 4.3), or None."""
    for preference in (call.header("Prefer") or "").split(","):
        match = re.fullmatch(r"\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:;.*)?", preference, re.IGNORECASE)
        if match is not None:
            return min(int(match[1]), int(LONGEST))
    return None


async def wait_if_preferred(call: Call, terms: Terms, headers: dict[str, str]) -> None:
    """Wait for a message if the request prefers that to an empty response, and say so in the response headers."""
    wanted = preference(call)
    if wanted is None:
        return
    headers["Preference-Applied"] = f"wait={wanted}"
    headers["Vary"] = "Prefer"
    await wait_for(call, call.scope, terms, timeout=wanted, limit=1)


def applied(response: Response, headers: dict[str, str]) -> Response:
    """Return the response with these headers added."""
    response.headers.update(headers)
    return response
