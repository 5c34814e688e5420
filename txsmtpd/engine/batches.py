"""Shares the server's time fairly: the commands of a client that sends many at once are executed in batches, with other
connections in between.

A batch ends after ``batch_limit`` commands, or after a few milliseconds. Connections with more commands are queued, and
one of them runs a batch in each iteration of the reactor. So a client that sends few commands waits for one batch at
most, however many clients send a lot. It never enters the queue itself. TLS handshakes, which cost as much as a batch,
are in the same queue if there are several at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

BATCH_TIME = 0.004  # seconds
FEW = 8  # commands that are executed at once even if others wait; then the time is looked at, and after as many again
PAUSE = 0.0005  # seconds; what follows sooner may be of the same iteration of the reactor


class Waiting(Protocol):
    """What waits in the queue."""

    @property
    def closing(self) -> bool:
        """Whether it does not wait any more."""

    def call_later(self, period: float, function: Callable[..., Any]) -> Any:
        """Call the function after so many seconds."""

    def next_batch(self) -> None:
        """It is its turn."""


class Batches:
    """The connections of a factory that wait for their next batch, and the handshakes that wait for their turn."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._call: Any = None
        self.busy_at = 0.0  #: the time when a batch or a step of a handshake was last worked on

    def add(self, waiting: Waiting) -> None:
        """A connection has more to say than one batch, or a handshake has more to do."""
        self._waiting.append(waiting)
        if self._call is None:
            self._call = waiting.call_later(0, self._next)

    def __bool__(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    @property
    def are_idle(self) -> bool:
        """Whether nobody waits, and nothing that takes long was done a moment ago."""
        return not self._waiting and monotonic() - self.busy_at > PAUSE

    def step(self) -> bool:
        """Let the next one have its turn now, in place of a reactor; whether there was one."""
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
            if self._waiting:  # before the batch, so that nothing that it does can stop the others
                self._call = self._waiting[0].call_later(0, self._next)
            waiting.next_batch()
            return


def batches_of(server: Any) -> Batches:
    """Return the batches of a server's factory. A factory that is not ours has none: its connections do not wait for
    each other."""
    found: Batches | None = getattr(server.factory, "batches", None)
    return Batches() if found is None else found
