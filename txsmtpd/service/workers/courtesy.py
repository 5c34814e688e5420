"""How workers accept connections: one at a time, and after workers with fewer connections or a longer wait.

All workers are woken by each connection. Without more, the one that waited last is mostly the first, and takes them all
(measured by several servers: 70 to 97 of 100). SMTP clients keep their connections, so that lasts. A worker with more
connections than another one therefore waits a moment, and so does one with as many that got its last one later; then
it accepts what is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOMENT = 0.002  # seconds; a worker that is idle accepts much sooner


class Courtesy:
    """Makes a Twisted port leave connections to other processes.

    :param port: whose ``doRead`` accepts (:class:`twisted.internet.tcp.Port`, or that of a Unix socket).
    :param comes_after: whether another process should take the next connection.
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
            self._port.numberAccepts = 1  # Twisted would take up to a hundred
            return self._accept()
        self._port.stopReading()
        self._clock.callLater(MOMENT, self._go_on)
        return None

    def _go_on(self) -> None:
        if getattr(self._port, "connected", True):
            self._has_waited = True
            self._port.startReading()
