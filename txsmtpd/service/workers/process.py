"""A worker as the master sees it: a process, the channel to it, and what it has told last."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from txsmtpd.observe.counters import Snapshot
from txsmtpd.service.workers.messages import Beat, Channel, Drain, Farewell, Hurry, Peers, Ready, Reopen, Retire, adopt

log = Logger(namespace="txsmtpd")

LAST_WORDS = 1.0  # seconds that what a process has printed last may take to come
LONGEST_REPORT = 2**16  # octets


class Watcher(Protocol):
    """What is told of a worker."""

    def worker_ready(self, worker: Worker) -> None: ...

    def worker_ended(self, worker: Worker, status: int | None, signal: int | None) -> None: ...


class _MastersEnd(Channel):
    """The master's end of the channel."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.worker = worker

    @Ready.responder
    def ready(self) -> dict[str, Any]:
        self.worker._ready()
        return {}

    @Beat.responder
    def beat(self, counted: Snapshot | None, problems: list[str]) -> dict[str, Any]:
        self.worker._beat(counted, problems)
        return {}

    @Farewell.responder
    def farewell(self, counted: Snapshot | None) -> dict[str, Any]:
        self.worker._beat(counted, ["it is ending"])
        return {}


class Worker(ProcessProtocol):
    """A process that serves.

    :param slot: which of the N it is.
    :param row: its row of the page.
    :param watcher: is told what becomes of it.
    :param reactor: IReactorProcess, IReactorTime, IReactorSocket.
    :param seconds: the time, by a clock that is never set.
    """

    def __init__(self, slot: int, row: int, watcher: Watcher, reactor: Any, seconds: Callable[[], float]) -> None:
        self.slot = slot
        self.row = row
        self.started = seconds()
        self.heard = self.started  #: when the worker has last been heard of
        self.is_ready = False
        self.is_draining = False
        self.counted: Snapshot | None = None  #: by the worker so far
        self.problems: list[str] = ["it is starting"]
        self._watcher = watcher
        self._reactor = reactor
        self._seconds = seconds
        self.pid = 0  #: the process
        self._channel: Channel | None = None
        self._report: int | None = None  # descriptor of the memory into which a crash writes its traceback
        self._words: Any = None  # waits for the last words

    def __str__(self) -> str:
        return f"worker {self.slot} (process {self.pid})"

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.pid = transport.pid

    def spawn(
        self,
        words: Sequence[str],
        environ: Mapping[str, str],
        descriptors: Sequence[int],
        describe: Callable[[int], str],
        logs: bool,
    ) -> None:
        """Start the process.

        :param words: the command.
        :param descriptors: what it inherits, as 3, 4, ...; the channel comes after them, then the report.
        :param describe: the value of the variable that tells the worker what it is, from the channel's descriptor.
        :param logs: whether its standard output and error come back here, to be logged.
        :raises OSError: if the system has no room for another process, or for its descriptors.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "rb") as nothing:
            self._report = os.memfd_create("txsmtpd report")
            channel = 3 + len(descriptors)
            children: dict[int, Any] = {0: nothing.fileno(), **({1: "r", 2: "r"} if logs else {1: 1, 2: 2})}
            children.update(enumerate([*descriptors, theirs.fileno(), self._report], 3))
            ours.setblocking(False)
            self._channel = _MastersEnd(self)
            try:
                adopt(self._reactor, ours.fileno(), self._channel)
                self._reactor.spawnProcess(
                    self, words[0], words, {**environ, "_TXSMTPD_WORKER": describe(channel)}, childFDs=children
                )
            except BaseException:
                self._close()
                raise

    # What the worker tells

    def _ready(self) -> None:
        self.is_ready = True
        self.problems = []
        self.heard = self._seconds()
        self._watcher.worker_ready(self)

    def _beat(self, counted: Snapshot | None, problems: list[str]) -> None:
        self.heard = self._seconds()
        self.counted = counted
        self.problems = problems

    # What it is told

    def drain(self) -> None:
        """Let it end, in its own time."""
        self.is_draining = True
        self._tell(Drain)

    def retire(self) -> None:
        """Let it end when its clients have left: another one has taken over."""
        self.is_draining = True
        self._tell(Retire)

    def reopen(self) -> None:
        """Let it reopen the log and the transcript."""
        self._tell(Reopen)

    def hurry(self) -> None:
        """Let it end now."""
        self._tell(Hurry)

    def meet(self, rows: Sequence[int]) -> None:
        """Tell it who else accepts."""
        self._tell(Peers, rows=[*rows])

    def _tell(self, command: Any, **arguments: Any) -> None:
        if self._channel is not None:
            self._channel.tell(command, **arguments)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(number)

    def abort(self) -> None:
        """End a process that does not answer. The traceback of what it is doing comes into the log."""
        self.signal(signal.SIGABRT)
        self._reactor.callLater(2.0, self.signal, signal.SIGKILL)

    # What becomes of it

    def outReceived(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            log.info("{worker}: {line}", worker=str(self), line=line)

    errReceived = outReceived

    def processExited(self, reason: Any) -> None:
        # A process that it has started may keep its standard output open, for ever.
        self._words = self._reactor.callLater(LAST_WORDS, self._ended, reason)

    def processEnded(self, reason: Any) -> None:
        if self._words is not None and self._words.active():
            self._words.cancel()
            self._ended(reason)

    def _ended(self, reason: Any) -> None:
        self.is_ready = False
        value = reason.value
        number = getattr(value, "signal", None)
        self.transport = None
        for line in self._reported().splitlines():
            log.error("{worker}: {line}", worker=str(self), line=line)
        self._close()
        if self.is_draining and (value.exitCode == 0 or number == signal.SIGTERM):
            log.info("{worker} has ended", worker=str(self))
        elif number is not None:
            log.error("{worker} was ended by {signal}", worker=str(self), signal=signal.Signals(number).name)
        else:
            log.error("{worker} has ended with status {status}", worker=str(self), status=value.exitCode)
        self._watcher.worker_ended(self, value.exitCode, number)

    def _reported(self) -> str:
        """The traceback of a crash; empty if there was none."""
        return "" if self._report is None else os.pread(self._report, LONGEST_REPORT, 0).decode("utf-8", "replace")

    def _close(self) -> None:
        if self._channel is not None and self._channel.transport is not None:
            self._channel.transport.loseConnection()
        report, self._report = self._report, None
        if report is not None:
            os.close(report)


def inherited_environment(environ: Mapping[str, str], path: Sequence[str]) -> dict[str, str]:
    """The environment of a worker: it finds the modules that the master finds, and is none that systemd has started.

    :param path: of modules.
    """
    kept = {name: value for name, value in environ.items() if name not in SYSTEMD}
    return {**kept, "PYTHONPATH": os.pathsep.join(each or os.curdir for each in path)}


SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
