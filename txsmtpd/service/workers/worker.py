"""The worker's side: the service that follows the master's commands."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from txsmtpd.factory import SMTPFactory
from txsmtpd.observe.counters import Snapshot
from txsmtpd.service.exit_status import stop_with
from txsmtpd.service.workers.balancing import Balancer
from txsmtpd.service.workers.connection_table import ConnectionTable
from txsmtpd.service.workers.inheritance import Inherited
from txsmtpd.service.workers.messages import Beat, Channel, Drain, Farewell, Hurry, Peers, Ready, Reopen, Retire, adopt
from txsmtpd.service.workers.sketch import Sketch

BEAT = 1.0  # seconds
CLIENT_CHECK = 0.25  # seconds between checks for remaining clients
ORPHANED = 6.0  # seconds until a worker that hangs ends itself, after the time at which a master would have aborted it

log = Logger(namespace="txsmtpd")


class SharedPlaces:
    """The numbers of connections of client networks over all workers.

    :param prefix: distinguishes these numbers from those of other listeners and limits in the same sketch.
    """

    def __init__(self, sketch: Sketch, row: int, prefix: str) -> None:
        self._sketch = sketch
        self._row = row
        self._prefix = prefix

    def elsewhere(self, network: str) -> int:
        return self._sketch.elsewhere(self._row, self._prefix + network)

    def add(self, network: str, number: int) -> None:
        self._sketch.add(self._row, self._prefix + network, number)


def count_for_host(factory: SMTPFactory, table: ConnectionTable, sketch: Sketch, row: int, column: int) -> None:
    """Count the connections of a factory in the memory that all workers share, so that its limits apply to all.

    :param row: of this process.
    :param column: of the factory's listener.
    """
    before = 0

    def changed() -> None:
        nonlocal before
        now = len(factory.connections)
        table.put(row, column, now)
        if now > before:
            table.accepted(row)
        before = now

    factory.connections_changed = changed
    factory.connections_elsewhere = lambda: table.column(column, without=row)
    for number, places in enumerate(factory.places):
        places.shared = SharedPlaces(sketch, row, f"{column} {number} ")


class _WorkerChannel(Channel):
    """The worker's end of the channel."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link

    @Drain.responder
    def drain(self) -> dict[str, Any]:
        self.link.drain()
        return {}

    @Retire.responder
    def retire(self) -> dict[str, Any]:
        self.link.retire()
        return {}

    @Reopen.responder
    def reopen(self) -> dict[str, Any]:
        self.link.reopen()
        return {}

    @Hurry.responder
    def hurry(self) -> dict[str, Any]:
        self.link.hurry()
        return {}

    @Peers.responder
    def peers(self, rows: list[int]) -> dict[str, Any]:
        self.link.peers = rows
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.link.master_gone()


class Link(Service):
    """Sends heartbeats to the master, and executes the master's commands.

    :param inherited: what this process has inherited from the master.
    :param listeners: the services that listen, in the order of the sockets.
    :param snapshot: returns the counters. None: there are no metrics.
    :param problems: returns why this worker cannot serve clients.
    :param hurry: closes all connections now.
    :param grace: maximum time in seconds for clients to leave after a new worker has taken over.
    :param silence: seconds without a heartbeat after which the master aborts this process; 0: never.
    :param reopen: reopens files that may have been renamed.
    """

    def __init__(
        self,
        inherited: Inherited,
        listeners: Sequence[Any],
        *,
        snapshot: Callable[[], Snapshot] | None,
        problems: Callable[[], Iterable[str]],
        hurry: Callable[[], object],
        grace: float,
        silence: float = 0.0,
        reopen: Sequence[Callable[[], object]] = (),
        reactor: Any = None,
    ) -> None:
        self.peers: list[int] = []  #: rows of the other workers that accept connections
        self._inherited = inherited
        self._listeners = listeners
        self._snapshot = snapshot
        self._problems = problems
        self._hurry = hurry
        self._reactor = reactor
        self._table = ConnectionTable(inherited.rows, inherited.sockets, inherited.table)
        self._sketch = Sketch(inherited.rows, inherited.sketch)
        self._channel: Channel | None = None
        self._beats = LoopingCall(self._beat)
        self._client_check = LoopingCall(self._stop_without_clients)
        self._retires_at = 0.0
        self._grace = grace
        self._silence = silence
        self._reopen = reopen
        self._is_ending = False

    def startService(self) -> None:
        super().startService()
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        for column, listener in enumerate(self._listeners):
            count_for_host(listener.factory, self._table, self._sketch, self._inherited.row, column)
            Balancer(listener.port, self._comes_after, self._reactor)
        os.set_blocking(self._inherited.channel, False)
        self._channel = _WorkerChannel(self)
        adopt(self._reactor, self._inherited.channel, self._channel)
        os.close(self._inherited.channel)
        self._channel.tell(Ready)
        self._beats.clock = self._reactor
        self._beats.start(BEAT)

    def _comes_after(self) -> bool:
        return self._table.comes_after(self._inherited.row, self.peers)

    def _beat(self) -> None:
        if self._silence:  # without a master, a worker that hangs must end itself: it would keep the addresses in use
            faulthandler.dump_traceback_later(self._silence + ORPHANED, exit=True, file=self._inherited.report)
        if self._channel is not None and not self._channel.is_full:  # a master that is stopped reads nothing
            self._channel.tell(Beat, counted=self._counted(), problems=[*self._problems()])

    def _counted(self) -> Any:
        return None if self._snapshot is None else self._snapshot()

    # Commands of the master

    def drain(self) -> None:
        """Stop; open transactions have the grace period to finish."""
        self._stop()

    def retire(self) -> None:
        """Stop when the clients have left, or at the end of the grace period: then the others get 421."""
        for each in self._listeners:
            Deferred.fromCoroutine(each.stop_listening())
        self._retires_at = self._reactor.seconds() + self._grace
        self._client_check.clock = self._reactor
        if not self._client_check.running:
            self._client_check.start(CLIENT_CHECK, now=False)

    def _stop_without_clients(self) -> None:
        has_clients = any(each.factory.connections for each in self._listeners)
        if not has_clients or self._reactor.seconds() >= self._retires_at:
            self._client_check.stop()
            self._stop()

    def reopen(self) -> None:
        """Reopen the files that may have been renamed. This worker writes to them until it ends."""
        for each in self._reopen:
            try:
                each()
            except OSError as error:
                log.error("cannot reopen {file}: {error}", file=error.filename, error=error.strerror)

    def hurry(self) -> None:
        """Stop now."""
        self._stop()
        self._hurry()

    def master_gone(self) -> None:
        """Stop, because the master is gone and cannot replace this worker."""
        if not self._is_ending:
            log.error("the master has died; this worker stops")
            self._stop()

    def _stop(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            # Python's own exit takes 0.2 seconds of processor time, which adds up when all workers end at once. A
            # single process skips it as well: it ends by a signal.
            stop_with(self._reactor, 0)

    def stopService(self) -> Deferred[Any] | None:
        """Send the final counters to the master, when no connection is left.

        :return: a Deferred that fires when the master has them, or after a second.
        """
        super().stopService()
        self._is_ending = True
        if self._beats.running:
            self._beats.stop()
            faulthandler.cancel_dump_traceback_later()
        told: Deferred[Any] | None = None
        if self._channel is not None:
            told = self._channel.tell(Farewell, counted=self._counted())
        if told is not None:
            told.addTimeout(1.0, self._reactor)
            told.addErrback(lambda failure: None)  # the master may be gone
        return told
