"""Balances connections over the workers. A worker accepts one at a time, and waits for workers that have fewer.

The system wakes all workers for each connection, and one of them mostly wins: with plain ``accept``, it gets 70 to 97
of 100 connections. SMTP clients keep their connections, so that the imbalance lasts. Therefore a worker waits a moment
if another one has fewer connections, or as many and an earlier last accept. Then it accepts what is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WAIT = 0.002  # seconds that a worker leaves a connection to others; a worker that is idle accepts much sooner


class Balancer:
    """Makes a Twisted port leave connections to other processes.

    :param port: a :class:`twisted.internet.tcp.Port` or :class:`twisted.internet.unix.Port`; its ``doRead`` accepts.
    :param comes_after: returns True if another process should accept the next connection.
    :param clock: IReactorTime.
    """

    def __init__(self, port: Any, comes_after: Callable[[], bool], clock: Any) -> None:
        self._port = port
        self._comes_after = comes_after
        self._clock = clock
        self._accept = port.doRead
        self._has_waited = False
        port.doRead = self._read

    def _read(self) -> Any:
        if self._has_waited or not self._comes_after():
            self._has_waited = False
            self._port.numberAccepts = 1  # Twisted would accept up to a hundred at once
            return self._accept()
        self._port.stopReading()
        self._clock.callLater(WAIT, self._accept_again)
        return None

    def _accept_again(self) -> None:
        if getattr(self._port, "connected", True):
            self._has_waited = True
            self._port.startReading()
