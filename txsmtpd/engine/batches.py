"""Distribute the server's time fairly: if a client sends many commands at once, they are executed in batches, and other
connections run in between.

A batch ends after ``batch_limit`` commands, or after a few milliseconds. Connections with more commands are queued, and
one of them runs a batch in each iteration of the reactor. A client that sends few commands is not queued, so it waits
for at most one batch, no matter how many clients are queued. A step of a TLS handshake costs as much as a batch, so
handshakes are queued, too, if there are several at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

BATCH_TIME = 0.004  # seconds
FEW = 8  # commands that are executed even if others wait; the time is checked after each FEW commands
PAUSE = 0.0005  # seconds; work that follows sooner may belong to the same iteration of the reactor


class Waiting(Protocol):
    """An entry of the queue."""

    @property
    def closing(self) -> bool:
        """Whether the entry is to be skipped."""

    def call_later(self, period: float, function: Callable[..., Any]) -> Any:
        """Call the function after *period* seconds."""

    def next_batch(self) -> None:
        """Run the next batch."""


class Batches:
    """The queue of a factory: connections and TLS handshakes that wait for their next batch."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._call: Any = None
        self.busy_at = 0.0  #: the time at which the last batch, or the last step of a handshake, ended

    def add(self, waiting: Waiting) -> None:
        """Add a connection with more input than one batch, or a handshake."""
        self._waiting.append(waiting)
        if self._call is None:
            self._call = waiting.call_later(0, self._next)

    def __bool__(self) -> bool:
        """Whether the queue has entries."""
        return bool(self._waiting)

    @property
    def are_idle(self) -> bool:
        """Whether the queue is empty, and no batch has just ended."""
        return not self._waiting and monotonic() - self.busy_at > PAUSE

    def step(self) -> bool:
        """Run the next batch now, for tests without a reactor. Return whether there was one."""
        if self._call is None:
            return False
        self._call.cancel()
        self._next()
        return True

    def _next(self) -> None:
        self._call = None
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.closing:
                continue
            if self._waiting:  # schedule the next one first, so that an exception in this batch does not stop the queue
                self._call = self._waiting[0].call_later(0, self._next)
            waiting.next_batch()
            return


def batches_of(server: Any) -> Batches:
    """Return the queue of a server's factory. For a factory of another kind, return a new queue: its connections do not
    wait for each other."""
    found: Batches | None = getattr(server.factory, "batches", None)
    return Batches() if found is None else found
