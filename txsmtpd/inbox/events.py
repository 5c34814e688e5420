"""Events about changes in a store, sent to browsers, WebSocket clients and waiting requests.

Everything runs in the reactor's thread. Events are numbered, and the most recent ones are kept for clients that
reconnect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.logger import Logger

from txsmtpd.inbox.scope import EVERYTHING, Scope

if TYPE_CHECKING:
    from txsmtpd.inbox.message import Message

KEPT = 1000

log = Logger(namespace="txsmtpd.inbox")


@dataclass(frozen=True, slots=True)
class Event:
    """A change in a store.

    :ivar kind: ``new``, ``seen``, ``tags`` or ``delete`` for one message; ``truncate`` (all mail was deleted),
        ``prune`` (many changes; reload), ``session`` (a session ended), ``faults`` (the fault rules changed).
    :ivar scope: the scope in which it happened. Only subscribers to it, or to a scope within it, get the event.
    """

    number: int
    kind: str
    message: Message | None = None
    scope: Scope = EVERYTHING

    def is_for(self, scope: Scope) -> bool:
        """Return True if subscribers to this scope get the event."""
        if not set(self.scope.keys) <= set(scope.keys):
            return False
        return self.message is None or scope.has(self.message)


class Subscription:
    """A subscription to events, until :meth:`cancel` is called."""

    def __init__(self, hub: Hub, scope: Scope, tell: Callable[[Event], object]) -> None:
        self._hub = hub
        self.scope = scope
        self.tell = tell

    def cancel(self) -> None:
        self._hub._subscriptions.pop(self, None)


class Hub:
    """Publishes events to subscribers."""

    def __init__(self) -> None:
        self._subscriptions: dict[Subscription, None] = {}
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._number = 0

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def last_number(self) -> int:
        return self._number

    def subscribe(self, scope: Scope, tell: Callable[[Event], object]) -> Subscription:
        """Call *tell* with each event of a scope from now on."""
        subscription = Subscription(self, scope, tell)
        self._subscriptions[subscription] = None
        return subscription

    def publish(self, kind: str, message: Message | None = None, scope: Scope = EVERYTHING) -> None:
        """Publish an event to all subscribers whose scope it belongs to."""
        self._number += 1
        event = Event(self._number, kind, message, scope)
        self._events.append(event)
        for subscription in list(self._subscriptions):
            if subscription in self._subscriptions and event.is_for(subscription.scope):
                try:
                    subscription.tell(event)
                except Exception:
                    log.failure("sending an event to a browser failed")
                    subscription.cancel()

    def since(self, number: int, scope: Scope) -> Iterator[Event] | None:
        """Return the events after a number, or None if some of them are no longer kept."""
        if number > self._number or (self._events and number < self._events[0].number - 1):
            return None
        return (event for event in self._events if event.number > number and event.is_for(scope))
