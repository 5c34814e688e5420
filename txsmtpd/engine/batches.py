"""Let connections take turns: one that has sent many commands at once has them carried out in batches, and others in
between.

A batch ends after so many commands (``batch_limit``), or after a few milliseconds. The connections that have more to
say wait in line, and one of them has a batch in each turn of the reactor; so a client that says little waits for one
batch, however many clients say a lot. Clients that send a few commands at once never come here.
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
