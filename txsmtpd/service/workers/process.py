"""A worker as the master sees it: its process, the channel to it, and its last report."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from txsmtpd.observe.counters import Snapshot
from txsmtpd.service.workers.inheritance import VARIABLE
from txsmtpd.service.workers.messages import Beat, Channel, Drain, Farewell, Hurry, Peers, Ready, Reopen, Retire, adopt

log = Logger(namespace="txsmtpd")

LAST_OUTPUT = 1.0  # seconds after the exit of a process in which its last output may arrive
LONGEST_REPORT = 2**16  # bytes
LONGEST_LINE = 2**16  # bytes of output without a line feed


class Watcher(Protocol):
    """Is notified when a worker becomes ready or ends."""

    def worker_ready(self, worker: Worker) -> None: ...

    def worker_ended(self, worker: Worker, status: int | None, signal: int | None) -> None: ...


class _MasterChannel(Channel):
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
    """A process that serves clients.

    :param slot: the number of the worker, from 0. Its successor has the same number.
    :param row: its row in the table of connections and in the sketch. No other process has it while this one runs.
    :param watcher: is notified when the worker becomes ready or ends.
    :param reactor: IReactorProcess, IReactorTime, IReactorSocket.
    :param seconds: returns the time of a monotonic clock.
    """

    def __init__(self, slot: int, row: int, watcher: Watcher, reactor: Any, seconds: Callable[[], float]) -> None:
        self.slot = slot
        self.row = row
        self.started = seconds()
        self.heard = self.started  #: the time of its last message
        self.is_ready = False
        self.is_draining = False
        self.counted: Snapshot | None = None  #: its counters as last reported
        self.problems: list[str] = ["it is starting"]
        self._watcher = watcher
        self._reactor = reactor
        self._seconds = seconds
        self.pid = 0  #: the process ID; 0 before the start
        self._channel: Channel | None = None
        self._report: int | None = None  # descriptor of the memory file that receives the traceback of a crash
        self._unfinished: dict[int, bytes] = {}  # incomplete lines of output, by descriptor
        self._last_output: Any = None  # delayed call that stops waiting for output of a process that has exited

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

        :param words: the command and its arguments.
        :param descriptors: inherited as 3, 4, ...; the channel follows them, then the report.
        :param describe: called with the channel's descriptor; returns the value of the environment variable that
            describes the worker to itself.
        :param logs: log its standard output and error in this process. Otherwise it inherits those of this process.
        :raises OSError: if the limit of processes or of descriptors is reached.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "rb") as nothing:
            self._report = os.memfd_create("txsmtpd report")
            channel = 3 + len(descriptors)
            children: dict[int, Any] = {0: nothing.fileno(), **({1: "r", 2: "r"} if logs else {1: 1, 2: 2})}
            children.update(enumerate([*descriptors, theirs.fileno(), self._report], 3))
            ours.setblocking(False)
            self._channel = _MasterChannel(self)
            try:
                adopt(self._reactor, ours.fileno(), self._channel)
                self._reactor.spawnProcess(
                    self, words[0], words, {**environ, VARIABLE: describe(channel)}, childFDs=children
                )
            except BaseException:
                self._close()
                raise

    # Messages from the worker

    def _ready(self) -> None:
        self.is_ready = True
        self.problems = []
        self.heard = self._seconds()
        self._watcher.worker_ready(self)

    def _beat(self, counted: Snapshot | None, problems: list[str]) -> None:
        self.heard = self._seconds()
        self.counted = counted
        self.problems = problems

    # Commands to the worker

    def drain(self) -> None:
        """Stop the worker; its open transactions have the grace period to finish."""
        self.is_draining = True
        self._tell(Drain)
        if not self.is_ready:  # it has no clients, and may be busy with its start for long
            self.signal(signal.SIGTERM)

    def retire(self) -> None:
        """Stop the worker when its clients have left, because a new one has replaced it."""
        self.is_draining = True
        self._tell(Retire)

    def reopen(self) -> None:
        """Let it reopen the log and the transcript."""
        self._tell(Reopen)

    def hurry(self) -> None:
        """Stop the worker now."""
        self._tell(Hurry)

    def send_peers(self, rows: Sequence[int]) -> None:
        """Tell the worker the rows of the others that accept connections."""
        self._tell(Peers, rows=[*rows])

    def _tell(self, command: Any, **arguments: Any) -> None:
        if self._channel is not None:
            self._channel.tell(command, **arguments)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(number)

    def abort(self) -> None:
        """End a process that hangs. The log then has the traceback of what it was doing."""
        self.signal(signal.SIGABRT)
        self._reactor.callLater(2.0, self.signal, signal.SIGKILL)

    # Output and end of the process

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Log whole lines of output. A line may arrive in pieces, interleaved with those of the other stream."""
        *lines, rest = (self._unfinished.pop(childFD, b"") + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
        elif rest:
            self._unfinished[childFD] = rest
        self._log(lines)

    def _log(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            log.info("{worker}: {line}", worker=str(self), line=line.decode("utf-8", "replace").rstrip("\r"))

    def processExited(self, reason: Any) -> None:
        # Do not wait for processEnded: a child of the worker may keep its standard output open.
        self._last_output = self._reactor.callLater(LAST_OUTPUT, self._ended, reason)

    def processEnded(self, reason: Any) -> None:
        if self._last_output is not None and self._last_output.active():
            self._last_output.cancel()
            self._ended(reason)

    def _ended(self, reason: Any) -> None:
        self.is_ready = False
        value = reason.value
        number = getattr(value, "signal", None)
        self.transport = None
        self._log(self._unfinished.values())
        for line in self._reported().splitlines():
            log.error("{worker}: {line}", worker=str(self), line=line)
        self._close()
        if self.is_draining and (value.exitCode == 0 or number == signal.SIGTERM):
            log.info("{worker} has ended", worker=str(self))
        elif number is not None:
            log.error("{worker} was ended by {signal}", worker=str(self), signal=signal_name(number))
        else:
            log.error("{worker} has ended with status {status}", worker=str(self), status=value.exitCode)
        self._watcher.worker_ended(self, value.exitCode, number)

    def _reported(self) -> str:
        """Return the traceback of a crash, or an empty string."""
        return "" if self._report is None else os.pread(self._report, LONGEST_REPORT, 0).decode("utf-8", "replace")

    def _close(self) -> None:
        if self._channel is not None and self._channel.transport is not None:
            self._channel.transport.loseConnection()
        report, self._report = self._report, None
        if report is not None:
            os.close(report)


def signal_name(number: int) -> str:
    """Return the name of a signal. Python has none for most real-time signals.

    >>> signal_name(9), signal_name(35)
    ('SIGKILL', 'signal 35')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def inherited_environment(environ: Mapping[str, str], path: Sequence[str]) -> dict[str, str]:
    """Return the environment of a worker: it imports modules from the same places, and does not notify systemd.

    :param environ: the environment of the master.
    :param path: ``sys.path`` of the master.
    """
    kept = {name: value for name, value in environ.items() if name not in SYSTEMD}
    return {**kept, "PYTHONPATH": os.pathsep.join(each or os.curdir for each in path)}


SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
