"""Watches the reactor: measures its lag, for metrics and stress mode, and logs the hooks that block it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service

from txsmtpd.log.session import Sink
from txsmtpd.observe.blocking import BlockingWatch
from txsmtpd.observe.lag import ReactorLag


class ReactorWatch:
    """Measures the reactor's lag, and logs what blocks the reactor.

    :param late: called regularly with the lag in seconds.
    :param log: the log. None: do not log what blocks.
    """

    def __init__(self, late: Callable[[float], object], log: Sink | None) -> None:
        self._late = late
        self._log = log
        self._lag: ReactorLag | None = None
        self._blocking: BlockingWatch | None = None

    def start(self, reactor: Any) -> None:
        """Start, once the reactor runs.

        :param reactor: IReactorTime; IReactorCore if there is a log.
        """
        self._lag = ReactorLag(self._told, reactor)
        self._lag.start()
        if self._log is not None:
            self._blocking = BlockingWatch(self._lag, self._log)
            reactor.callWhenRunning(self._blocking.start)

    def _told(self, seconds: float) -> None:
        if self._blocking is not None:
            self._blocking.resumed(seconds)
        self._late(seconds)

    def stop(self) -> None:
        """Stop."""
        if self._lag is not None:
            self._lag.stop()
        if self._blocking is not None:
            self._blocking.stop()


class WatchService(Service):
    """Runs a watch while the service runs."""

    def __init__(self, watch: ReactorWatch, reactor: Any) -> None:
        self._watch = watch
        self._reactor = reactor

    def startService(self) -> None:
        super().startService()
        self._watch.start(self._reactor)

    def stopService(self) -> None:
        super().stopService()
        self._watch.stop()
