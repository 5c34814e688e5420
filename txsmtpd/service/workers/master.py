"""The master process: binds the sockets, and starts the workers.

It replaces a worker that dies. On SIGHUP, it replaces all workers.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from txsmtpd.bridges.monotonic import monotonic_seconds
from txsmtpd.observe.counters import Counters, Snapshot
from txsmtpd.service.exit_status import EX_OSERR, EX_USAGE, complain
from txsmtpd.service.listening import GRACE
from txsmtpd.service.workers.backoff import Backoff
from txsmtpd.service.workers.connection_table import ConnectionTable
from txsmtpd.service.workers.inheritance import Inheritance
from txsmtpd.service.workers.process import Worker, inherited_environment
from txsmtpd.service.workers.sketch import Sketch
from txsmtpd.service.workers.sockets import KeptSocket

log = Logger(namespace="txsmtpd")

READY_WITHIN = 30.0  # seconds that a worker may take to start
SILENCE = 60.0  # seconds without a heartbeat after which a worker counts as hung
# Seconds after the grace period until a worker is killed. The deadline of the master itself is a second later, so that
# it can kill the workers and see them end.
MARGIN = 5.0
# If SIGTERM arrives twice, workers are killed after this time, and the master itself ends after 2 seconds.
HURRY = 1.0  # seconds
BEAT = 1.0  # seconds between checks of the heartbeats
# A worker lets another one with fewer connections accept first, if that one has sent a heartbeat within this time.
LATE = 5.0  # seconds
AT_ONCE = max(2, os.cpu_count() or 1)  # workers that start at the same time; each keeps one processor busy


class Master(Service):
    """The service of the master process. It is ready (:class:`~txsmtpd.interfaces.IReadiness`) while a worker is.

    :param count: the number of workers.
    :param sockets: the sockets that the workers serve.
    :param words: the command that starts a worker.
    :param inheritance: what workers inherit besides the sockets.
    :param grace: maximum time in seconds for open transactions to finish when the service stops.
    :param silence: seconds without a heartbeat after which a worker is aborted; 0: never.
    :param logs: whether the master logs the standard output and error of its workers. Use it if the master has no
        standard streams of its own.
    :param end_process: called with the reactor and an exit status if no worker can start. None: keep trying.
    :param reactor: Default: the global reactor.
    """

    def __init__(
        self,
        count: int,
        sockets: Sequence[KeptSocket],
        words: Sequence[str],
        inheritance: Inheritance,
        *,
        grace: float = GRACE,
        silence: float = SILENCE,
        logs: bool = False,
        end_process: Callable[[Any, int], object] | None,
        reactor: Any = None,
    ) -> None:
        self.count = count
        self.sockets = list(sockets)
        self.grace = grace
        self.workers: list[Worker] = []  #: all processes, including those that drain
        self.restarts = 0  #: the number of workers that died and were replaced
        self._words = [*words]
        self._inheritance = inheritance
        self._silence = silence
        self._logs = logs
        self._end_process = end_process
        self._reactor = reactor
        self.seconds: Callable[[], float] = lambda: 0.0
        self._table: ConnectionTable | None = None  # a shared table: the connections of each process
        self._sketch: Sketch | None = None  # a shared table: the connections of each client network
        self._backoffs = [Backoff() for _ in range(count)]
        self._gone = Counters()  # the sum of the counters of workers that have ended
        self._watch: LoopingCall | None = None
        self._last_check = 0.0  # when the heartbeats were last checked
        self._has_served = False  # whether a worker was ever ready
        self._reloading: _Reload | None = None
        self._again: list[Deferred[bool]] = []  # results of the reload that follows the current one
        self._when_ready: list[Deferred[None]] = []  # results of when_ready(), which fire when a worker is ready
        self._stopped: Deferred[None] | None = None  # fires when the last worker has ended
        self._patience = grace + MARGIN  # maximum time in seconds for workers to end
        self._killing: Any = None  # delayed call that kills those that have not ended by then
        self._delayed: set[Any] = set()
        self._wanted: deque[int] = deque()  # slots that wait until fewer workers are starting
        self._responsive: list[Worker] = []

    # Start and stop

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        for each in self.sockets:
            each.bind()

    def startService(self) -> None:
        super().startService()
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        self.seconds = monotonic_seconds(self._reactor)
        for each in self.sockets:
            each.bind()
            log.info("{count} workers listen on {address}", count=self.count, address=each.address)
        self._table = ConnectionTable(2 * self.count, len(self.sockets))
        self._sketch = Sketch(2 * self.count)
        self._watch = LoopingCall(self._check_heartbeats)
        self._watch.clock = self._reactor
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running and self._watch is not None:
            self._wanted.extend(range(self.count))
            self._start_wanted()
            self._last_check = self.seconds()
            self._watch.start(BEAT, now=False)

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that fires when the first worker is ready."""
        if self._has_served:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._when_ready.append(waiting)
        return waiting

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._watch is not None and self._watch.running:
            self._watch.stop()
        if self._reloading is not None:
            self._reloading.give_up()
        for delayed in list(self._delayed):
            delayed.cancel()
        self._delayed.clear()
        self._wanted.clear()
        # Close the sockets first: otherwise clients would wait in a backlog that no process accepts from.
        for each in self.sockets:
            await maybeDeferred(each.close)
        if self.workers:
            for worker in self.workers:
                worker.drain()
            self._stopped = Deferred()
            self._killing = self._reactor.callLater(self._patience, self._kill)
            await self._stopped
            if self._killing.active():
                self._killing.cancel()
        if self._table is not None:
            self._table.close()
            self._table = None
        if self._sketch is not None:
            self._sketch.close()
            self._sketch = None

    def _kill(self) -> None:
        for worker in self.workers:
            log.error("{worker} did not stop in time and is killed", worker=str(worker))
            worker.signal(signal.SIGKILL)

    def hurry(self) -> None:
        """Close all connections now, and stop the workers. Kill a worker that does not stop, because it would keep the
        addresses in use after the end of this process."""
        self._patience = HURRY
        for worker in self.workers:
            worker.hurry()
        if self._killing is not None and self._killing.active():
            self._killing.reset(self._patience)

    # Workers

    def _serving(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_ready and not worker.is_draining]

    def _spawn(self, slot: int) -> Worker | None:
        """Spawn a worker. Return None if the system cannot start it, if all rows of the shared tables are in use, or if
        the service is stopping."""
        table, sketch = self._table, self._sketch
        if not self.running or table is None or sketch is None:
            return None
        taken = {worker.row for worker in self.workers}
        row = next((row for row in range(table.rows) if row not in taken), None)
        if row is None:  # there are two rows for each slot, and all are in use: end the oldest process that drains
            oldest = min(self.workers, key=lambda worker: (not worker.is_draining, worker.started))
            log.warn("{worker} is still draining and is stopped: there are too many processes", worker=str(oldest))
            oldest.hurry()
            return None
        table.clear(row)
        sketch.clear(row)
        worker = Worker(slot, row, self, self._reactor, self.seconds)
        shared = (table.descriptor, sketch.descriptor, *self._inheritance.descriptors)
        descriptors = [*(each.descriptor for each in self.sockets), *shared]
        describe = self._inheritance.describer(slot, row, table.rows, len(self.sockets))
        try:
            worker.spawn(self._words, inherited_environment(os.environ, sys.path), descriptors, describe, self._logs)
        except OSError as error:  # the limit of processes or descriptors is reached
            reason = f"cannot start worker {slot}: {self._words[0]}: {error.strerror or error}"
            log.error("{reason}", reason=reason)
            if not self._has_served and self._end_process is not None:
                complain(reason)  # on standard error, for a user who may not see the log
                self._wanted.clear()
                self._end_process(self._reactor, EX_OSERR)
            return None
        self.workers.append(worker)
        log.info("{worker} started", worker=str(worker))
        return worker

    def _start_worker(self, slot: int) -> None:
        """Queue the start of a worker for the slot. At most AT_ONCE workers start at the same time. If the slot has a
        worker when its turn comes, none is started."""
        self._wanted.append(slot)
        self._start_wanted()

    def _start_wanted(self) -> None:
        # Start one at a time until one is ready: a mistake that stops every worker is then reported once.
        most = AT_ONCE if self._has_served else 1
        while self.running and self._wanted and sum(not each.is_ready for each in self.workers) < most:
            slot = self._wanted.popleft()
            has_one = any(each.slot == slot and not each.is_draining for each in self.workers)
            if not has_one and self._spawn(slot) is None:
                self._later(BEAT, self._start_worker, slot)

    def _later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> None:
        def call() -> None:
            self._delayed.discard(delayed)
            function(*arguments)

        delayed = self._reactor.callLater(seconds, call)
        self._delayed.add(delayed)

    def worker_ready(self, worker: Worker) -> None:
        """Handle a worker's message that it is listening."""
        self._has_served = True
        log.info("{worker} is ready", worker=str(worker))
        self._send_peers()
        when_ready, self._when_ready = self._when_ready, []
        for waiting in when_ready:
            waiting.callback(None)
        if self._reloading is not None:
            self._reloading.worker_ready(worker)
        self._start_wanted()

    def _send_peers(self) -> None:
        """Tell each worker which other workers accept connections."""
        self._responsive = self._find_responsive()
        for worker in self._serving():
            worker.send_peers([other.row for other in self._responsive if other is not worker])

    def _find_responsive(self) -> list[Worker]:
        """Return the workers whose last heartbeat is recent. They probably accept connections."""
        now = self.seconds()
        return [worker for worker in self._serving() if now - worker.heard < LATE]

    def worker_ended(self, worker: Worker, status: int | None, signal: int | None) -> None:
        """Handle the end of a worker's process."""
        self.workers.remove(worker)
        if worker.counted is not None:
            self._gone.add(without_gauges(worker.counted))
        if self._table is not None and self._sketch is not None:
            self._table.clear(worker.row)
            self._sketch.clear(worker.row)
        self._send_peers()
        if not self.running:
            if self._stopped is not None and not self.workers:
                stopped, self._stopped = self._stopped, None
                stopped.callback(None)
            return
        if self._reloading is not None and self._reloading.worker_ended(worker):
            return
        self._replace(worker, status)
        self._start_wanted()

    def _replace(self, worker: Worker, status: int | None) -> None:
        """Start a new worker in place of one that has ended."""
        if status in (EX_USAGE, EX_OSERR) and not self._has_served and self._end_process is not None:
            # The next worker would fail in the same way. This one has printed the reason.
            self._wanted.clear()
            self._end_process(self._reactor, status)
            return
        if not worker.is_draining:
            self.restarts += 1
            delay = self._backoffs[worker.slot].after(self.seconds() - worker.started)
            log.info("restarting worker {slot} in {seconds} seconds", slot=worker.slot, seconds=delay)
            self._later(delay, self._start_worker, worker.slot)

    def _check_heartbeats(self) -> None:
        """Abort workers that hang."""
        now = self.seconds()
        # While this process was stopped, or waited for a processor, it could not receive heartbeats.
        missed, self._last_check = max(now - self._last_check - BEAT, 0.0), now
        for worker in self.workers:
            worker.heard += missed
        if self._find_responsive() != self._responsive:
            self._send_peers()
        for worker in self.workers:
            silent = now - worker.heard
            if not worker.is_ready and not worker.is_draining and self._reloading is None and silent > READY_WITHIN:
                self._abort(worker, "has not become ready")
            elif worker.is_ready and self._silence and silent > self._silence:
                self._abort(worker, f"has sent no heartbeat for {silent:.0f} seconds")

    def _abort(self, worker: Worker, why: str) -> None:
        log.error("{worker} {why}, and is aborted", worker=str(worker), why=why)
        worker.heard = self.seconds()  # do not abort it again in the next second
        worker.abort()

    # Reload

    def reopen(self) -> None:
        """Let all workers reopen the log and the transcript. This includes workers that are draining, and workers that
        a failed reload leaves in place."""
        for worker in self.workers:
            worker.reopen()

    def reload(self) -> Deferred[bool]:
        """Replace all workers, one slot after the other. The old worker stops when the new one is ready.

        If a new worker does not become ready, the reload fails and the remaining old workers stay. A call during
        a reload schedules another reload, because the new workers may have read the old configuration.

        :return: a Deferred that fires at the end with True if all workers were replaced. Otherwise it fires with False,
            and the log has the reason.
        """
        if not self.running:
            return succeed(False)
        done: Deferred[bool] = Deferred()
        if self._reloading is not None:
            log.info("a reload is in progress; another one will follow")
            self._again.append(done)
        else:
            self._reload([done])
        return done

    def _reload(self, waiting: list[Deferred[bool]]) -> None:
        def finish(problem: str | None) -> None:
            self._reloading = None
            if problem is None:
                log.info("all workers were replaced")
            elif self.running:
                log.error("{problem}; the other workers continue", problem=problem)
            self._fill()
            again, self._again = self._again, []
            for each in waiting:
                each.callback(problem is None)
            if again and self.running:
                self._reload(again)
            else:
                for each in again:
                    each.callback(False)

        self._reloading = _Reload(self, finish)
        self._backoffs = [Backoff() for _ in range(self.count)]  # the reload may have fixed what made workers die
        self._reloading.next()

    def _fill(self) -> None:
        """Start workers for slots that have none, such as those whose worker died during a reload."""
        for slot in range(self.count):
            self._start_worker(slot)

    # State of all workers

    def connections(self) -> int:
        """Return the number of open connections of all workers."""
        table = self._table
        return 0 if table is None else sum(map(table.row, range(table.rows)))

    def not_ready(self) -> str | None:
        """Return why the workers cannot serve clients, or None; see :class:`~txsmtpd.interfaces.IReadiness`."""
        serving = self._serving()
        if not serving:
            return "no worker is ready" if self.running else None
        problems = [worker.problems for worker in serving]
        return problems[0][0] if all(problems) else None

    def snapshot(self) -> Snapshot:
        """Return the sum of the counters of all workers, including those that have ended."""
        total = Counters()
        total.add(self._gone.snapshot())
        for worker in self.workers:
            if worker.counted is not None:
                total.add(worker.counted)
        # These are 0 or 1 in each process; their sum would mean nothing.
        for name in ("build_info", "stress"):
            total[name].update({labels: min(1, value) for labels, value in total[name].items()})
        total["worker_restarts_total"][()] = self.restarts
        total["workers"]["ready",] = len(self._serving())
        total["workers"]["draining",] = sum(worker.is_draining for worker in self.workers)
        return total.snapshot()


class _Reload:
    """A reload in progress. It replaces one worker at a time.

    :param finish: called once, with the reason why not all workers were replaced, or None.
    """

    def __init__(self, master: Master, finish: Callable[[str | None], object]) -> None:
        self._master = master
        self._finish = finish
        self._old = sorted((each for each in master.workers if not each.is_draining), key=lambda each: each.slot)
        self._new: Worker | None = None
        self._deadline: Any = None

    def next(self) -> None:
        if not self._old:
            self._finish(None)
            return
        self._new = self._master._spawn(self._old[0].slot)
        if self._new is None:  # there is no room for another process yet
            self._master._later(BEAT, self.next)
            return
        self._deadline = self._master._reactor.callLater(READY_WITHIN, self._too_late)

    def worker_ready(self, worker: Worker) -> None:
        if worker is self._new:
            self._stop_waiting()
            old = self._old.pop(0)
            if old in self._master.workers:
                old.retire()
                self._master._send_peers()
            self.next()

    def worker_ended(self, worker: Worker) -> bool:
        """Handle the end of a worker. Return False if it is not part of this reload."""
        if worker is self._new:
            self._stop_waiting()
            self._finish(f"{worker} ended before it was ready")
            return True
        return worker in self._old  # it is replaced when the reload reaches its slot

    def give_up(self) -> None:
        """End the reload, because the server stops."""
        self._old.clear()
        if self._new is not None:
            self._stop_waiting()
        self._finish("the server ends")

    def _too_late(self) -> None:
        assert self._new is not None
        log.error("{worker} was not ready within {time:g} seconds", worker=str(self._new), time=READY_WITHIN)
        self._new.abort()

    def _stop_waiting(self) -> None:
        self._new = None
        if self._deadline.active():
            self._deadline.cancel()


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """Return the counters and histograms of a snapshot: gauges of a worker that has ended have no meaning."""
    families = Counters().families
    return {name: series for name, series in snapshot.items() if name in families and families[name].kind != "gauge"}
