"""Shares the server's time fairly: the commands of a client that sends many at once are executed in batches, with other
connections in between.

A batch ends after ``batch_limit`` commands, or after a few milliseconds. Connections with more commands are queued, and
one of them runs a batch in each iteration of the reactor. So a client that sends few commands waits for one batch at
most, however many clients send a lot. It never enters the queue itself.
"""

from __future__ import annotations

from collections import deque
from typing import Any

BATCH_TIME = 0.004  # seconds; looked at after every eighth command


class Batches:
    """The connections of a factory that wait for their next batch."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._call: Any = None

    def add(self, connection: Any) -> None:
        """A connection has more to say than one batch."""
        self._waiting.append(connection)
        if self._call is None:
            self._call = connection.call_later(0, self._next)

    def step(self) -> bool:
        """Let the next connection have its batch now, in place of a reactor; whether there was one."""
        if self._call is None:
            return False
        self._call.cancel()
        self._next()
        return True

    def _next(self) -> None:
        self._call = None
        while self._waiting:
            connection = self._waiting.popleft()
            if connection.closing:
                continue
            if self._waiting:  # before the batch, so that nothing that it does can stop the others
                self._call = connection.call_later(0, self._next)
            connection.next_batch()
            return
