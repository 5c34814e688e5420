"""Signals: SIGHUP reloads, SIGTERM and SIGINT stop the server, a second one closes all connections at once.

Other signals, such as SIGUSR1, are ignored. Stopping has deadlines: a few seconds after the last transaction or after
the grace period, no work keeps the process alive, such as a hanging disk write in a thread. On SIGABRT, with which
systemd's watchdog ends a service that hangs, and on a crash, the process prints what it was doing.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from txsmtpd.service.exit_status import EX_OSERR

log = Logger(namespace="txsmtpd")

MARGIN = 5.0  # seconds after the grace period, for services that stop after the transactions
HURRIED = 2.0  # seconds after a second SIGTERM
IGNORED = tuple(name for name in ("SIGUSR1", "SIGUSR2", "SIGALRM") if hasattr(signal, name))


class Signals(Service):
    """Handles the signals of a process while it serves.

    :param reload: functions to call one after another on SIGHUP. One that fails logs the reason and returns False. They
        may return Deferreds.
    :param hurry: closes all connections at once.
    :param grace: seconds that stopping may take.
    :param flush: called before the process is ended by force.
    :param ends: the signals that end the server.
    :param reactor: provides the time (IReactorTime). Default: the global reactor.
    """

    def __init__(
        self,
        *,
        reload: Sequence[Callable[[], Any]],
        hurry: Callable[[], object],
        grace: float,
        flush: Callable[[], object] = lambda: None,
        ends: Sequence[str] = ("SIGTERM", "SIGINT"),
        reactor: Any = None,
    ) -> None:
        self._ends = [getattr(signal, name) for name in ends]
        self._reload = reload
        self._hurry = hurry
        self._grace = grace
        self._deadline = Deadline(flush)
        self._reactor = reactor
        self._terminal = _terminal()
        self._endings = 0
        self._before: dict[int, Any] = {}  # the previous handlers, which are those of the reactor

    def startService(self) -> None:
        super().startService()
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # keep nohup's setting
            signal.signal(signal.SIGHUP, self._on_hangup)
        for name in IGNORED:
            if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # twistd rotates its log at SIGUSR1
                signal.signal(getattr(signal, name), self._on_ignored)
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:  # a worker reports to its master instead
            with suppress(OSError, ValueError):  # it is closed
                faulthandler.enable(sys.__stderr__)
        self._reactor.callWhenRunning(self._take_over)

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self._deadline.within(self._grace + MARGIN)
        return None

    def _take_over(self) -> None:
        """Install handlers that call those of the reactor. The reactor has installed its own by now."""
        # When the services have stopped, only threads are left, such as one that waits for a DNS server.
        self._reactor.addSystemEventTrigger("during", "shutdown", self._deadline.within, MARGIN)
        for number in self._ends:
            before = signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                signal.signal(number, self._on_end)

    # Handlers. Python calls them between any two instructions, so they leave all work to the reactor.

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._stop_or_reload)

    def _on_ignored(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._reactor.callFromThread(log.info, "{signal} is ignored", signal=name)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self._endings += 1
        if self._endings == 1:
            self._before[number](number, frame)
        else:
            self._reactor.callFromThread(self._end_now, signal.Signals(number).name)

    # Called by the reactor

    def _stop_or_reload(self) -> None:
        if self._terminal is not None and _is_gone(self._terminal):
            log.info("the terminal was closed")
            try:
                self._reactor.stop()
            except ReactorNotRunning:
                return
        else:
            self.reload()

    def reload(self) -> Deferred[None]:
        """Reload, as on SIGHUP.

        :return: a Deferred that fires at the end.
        """
        return Deferred.fromCoroutine(self._reload_all())

    async def _reload_all(self) -> None:
        log.info("reloading")
        succeeded = True
        for each in self._reload:
            try:
                succeeded = await maybeDeferred(each) is not False and succeeded
            except OSError as error:
                log.error("cannot reload: {file}: {error}", file=error.filename, error=error.strerror)
                succeeded = False
            except Exception:
                log.failure("cannot reload")
                succeeded = False
        if succeeded:
            log.info("reloaded")
        elif self.running:  # the end of the server ends a reload, too
            log.error("the reload failed")

    def _end_now(self, name: str) -> None:
        log.warn("{signal} again: closing all connections now", signal=name)
        self._deadline.within(HURRIED)
        self._hurry()


def _terminal() -> int | None:
    """Return a descriptor of the terminal that the process was started on, or None."""
    return next((number for number in (0, 1, 2) if os.isatty(number)), None)


def _is_gone(terminal: int) -> bool:
    try:
        os.tcgetpgrp(terminal)
    except OSError:  # the kernel has hung it up
        return True
    return False


class Deadline:
    """Ends the process by force at a given time, even if the reactor's thread is blocked.

    :param flush: called before that.
    """

    def __init__(self, flush: Callable[[], object], end: Callable[[int], object] = os._exit) -> None:
        self._flush = flush
        self._end = end
        self._at = float("inf")
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def within(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now, unless it is earlier already."""
        with self._changed:
            self._at = min(self._at, time.monotonic() + seconds)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="txsmtpd deadline", daemon=True)
                self._thread.start()

    def _wait(self) -> None:
        with self._changed:
            while (left := self._at - time.monotonic()) > 0:
                self._changed.wait(min(left, 3600))
        log.error("the server did not stop in time (a thread still waits, perhaps for a disk); the process is killed")
        self._flush()
        self._end(EX_OSERR)
