"""The master: it keeps the sockets and the number of workers, replaces those that die, and all of them at SIGHUP."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from txsmtpd.bridges.monotonic import monotonic_seconds
from txsmtpd.observe.counters import Counters, Snapshot
from txsmtpd.service.exit_status import EX_OSERR, EX_USAGE, complain
from txsmtpd.service.listening import GRACE
from txsmtpd.service.workers.backoff import Backoff
from txsmtpd.service.workers.page import Page
from txsmtpd.service.workers.process import Worker, inherited_environment
from txsmtpd.service.workers.sketch import Sketch
from txsmtpd.service.workers.sockets import KeptSocket
from txsmtpd.service.workers.worker import Errand

log = Logger(namespace="txsmtpd")

READY_WITHIN = 30.0  # seconds that a worker may take to start
SILENCE = 60.0  # seconds without a beat after which a worker counts as hung
MARGIN = 5.0  # seconds beyond the grace, until a worker is killed
BEAT = 1.0  # seconds
LATE = 5.0  # seconds without a beat after which other workers do not leave connections to a worker
AT_ONCE = max(2, os.cpu_count() or 1)  # workers that start at the same time: each needs a processor for that


class Master(Service):
    """The service of the master.

    :param count: how many workers serve.
    :param sockets: what they serve on.
    :param words: the command that starts a worker.
    :param errand: what else a worker has to know.
    :param grace: seconds that open transactions have to end.
    :param silence: seconds after which a worker that is not heard of is aborted; 0: never.
    :param logs: whether what workers print comes back here, since this process has no standard streams.
    :param end_process: ends this process with a status, once the reactor has stopped. None: the process is not ended;
        workers that cannot start are tried again and again.
    :param reactor: Default: the global one.

    As :class:`~txsmtpd.interfaces.IReadiness` says, it is ready while a worker is.
    """

    def __init__(
        self,
        count: int,
        sockets: Sequence[KeptSocket],
        words: Sequence[str],
        errand: Errand,
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
        self.workers: list[Worker] = []  #: all processes, also those that drain
        self.restarts = 0  #: workers that were replaced because they had died
        self._words = [*words]
        self._errand = errand
        self._silence = silence
        self._logs = logs
        self._end_process = end_process
        self._reactor = reactor
        self.seconds: Callable[[], float] = lambda: 0.0
        self._page: Page | None = None
        self._sketch: Sketch | None = None
        self._backoffs = [Backoff() for _ in range(count)]
        self._gone = Counters()  # what workers counted that have ended
        self._watch: LoopingCall | None = None
        self._has_served = False  # a worker has been ready
        self._reloading: _Reload | None = None
        self._again: list[Deferred[bool]] = []  # who waits for a reload that follows the one going on
        self._served: list[Deferred[None]] = []  # who waits for the first worker
        self._stopped: Deferred[None] | None = None
        self._delayed: set[Any] = set()
        self._wanted: deque[int] = deque()  # slots for which a worker is to start as soon as others have
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
        self._page = Page(2 * self.count, len(self.sockets))
        self._sketch = Sketch(2 * self.count)
        self._watch = LoopingCall(self._look)
        self._watch.clock = self._reactor
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running and self._watch is not None:
            self._wanted.extend(range(self.count))
            self._start_wanted()
            self._watch.start(BEAT, now=False)

    def when_ready(self) -> Deferred[None]:
        """A Deferred that fires once a worker serves."""
        if self._has_served:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._served.append(waiting)
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
        # First of all: else clients would wait in a queue that nobody reads any more.
        for each in self.sockets:
            await maybeDeferred(each.close)
        if self.workers:
            for worker in self.workers:
                worker.drain()
            self._stopped = Deferred()
            deadline = self._reactor.callLater(self.grace + MARGIN, self._kill)
            await self._stopped
            if deadline.active():
                deadline.cancel()
        if self._page is not None:
            self._page.close()
            self._page = None
        if self._sketch is not None:
            self._sketch.close()
            self._sketch = None

    def _kill(self) -> None:
        for worker in self.workers:
            log.error("{worker} has not ended in time and is killed", worker=str(worker))
            worker.signal(signal.SIGKILL)

    def hurry(self) -> None:
        """End all connections now, if the server is to end."""
        for worker in self.workers:
            worker.hurry()

    # Workers

    def _serving(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_ready and not worker.is_draining]

    def _spawn(self, slot: int) -> Worker | None:
        """Spawn a worker; None: there is no room now, or no need."""
        page, sketch = self._page, self._sketch
        if not self.running or page is None or sketch is None:
            return None
        taken = {worker.row for worker in self.workers}
        row = next((row for row in range(page.rows) if row not in taken), None)
        if row is None:  # twice as many processes as there are slots: the longest at it must go
            oldest = min(self.workers, key=lambda worker: (not worker.is_draining, worker.started))
            log.warn("{worker} still drains, and is ended: there are too many processes", worker=str(oldest))
            oldest.hurry()
            return None
        page.clear(row)
        sketch.clear(row)
        worker = Worker(slot, row, self, self._reactor, self.seconds)
        shared = (page.descriptor, sketch.descriptor, *self._errand.descriptors)
        descriptors = [*(each.descriptor for each in self.sockets), *shared]
        describe = self._errand.describer(slot, row, page.rows, len(self.sockets))
        try:
            worker.spawn(self._words, inherited_environment(os.environ, sys.path), descriptors, describe, self._logs)
        except OSError as error:  # no room for a process or for its descriptors
            reason = f"cannot start worker {slot}: {self._words[0]}: {error.strerror or error}"
            log.error("{reason}", reason=reason)
            if not self._has_served and self._end_process is not None:
                complain(reason)  # a daemon has a log only, a command standard error
                self._wanted.clear()
                self._end_process(self._reactor, EX_OSERR)
            return None
        self.workers.append(worker)
        log.info("{worker} starts", worker=str(worker))
        return worker

    def _start_worker(self, slot: int) -> None:
        """Start a worker, as soon as there is room, unless the slot has one."""
        self._wanted.append(slot)
        self._start_wanted()

    def _start_wanted(self) -> None:
        # Until one has served, one at a time: a mistake that none of them survives is told once.
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
        """A worker listens."""
        self._has_served = True
        log.info("{worker} is ready", worker=str(worker))
        self._introduce()
        served, self._served = self._served, []
        for waiting in served:
            waiting.callback(None)
        if self._reloading is not None:
            self._reloading.worker_ready(worker)
        self._start_wanted()

    def _introduce(self) -> None:
        """Tell all workers who else accepts connections."""
        self._responsive = self._heard_of()
        for worker in self._serving():
            worker.meet([other.row for other in self._responsive if other is not worker])

    def _heard_of(self) -> list[Worker]:
        """The workers that would accept a connection now, as far as one can tell."""
        now = self.seconds()
        return [worker for worker in self._serving() if now - worker.heard < LATE]

    def worker_ended(self, worker: Worker, status: int | None, signal: int | None) -> None:
        """A worker is gone."""
        self.workers.remove(worker)
        if worker.counted is not None:
            self._gone.add(without_gauges(worker.counted))
        if self._page is not None and self._sketch is not None:
            self._page.clear(worker.row)
            self._sketch.clear(worker.row)
        self._introduce()
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
        """Start another one in place of a worker that has ended."""
        if status in (EX_USAGE, EX_OSERR) and not self._has_served and self._end_process is not None:
            # What no worker can do, none will be able to: it has said why.
            self._wanted.clear()
            self._end_process(self._reactor, status)
            return
        if not worker.is_draining:
            self.restarts += 1
            delay = self._backoffs[worker.slot].after(self.seconds() - worker.started)
            log.info("worker {slot} is started again in {seconds} seconds", slot=worker.slot, seconds=delay)
            self._later(delay, self._start_worker, worker.slot)

    def _look(self) -> None:
        """Look after workers that hang."""
        now = self.seconds()
        if self._heard_of() != self._responsive:
            self._introduce()
        for worker in self.workers:
            silent = now - worker.heard
            if not worker.is_ready and not worker.is_draining and self._reloading is None and silent > READY_WITHIN:
                self._abort(worker, "has not become ready")
            elif worker.is_ready and self._silence and silent > self._silence:
                self._abort(worker, f"has not been heard of for {silent:.0f} seconds")

    def _abort(self, worker: Worker, why: str) -> None:
        log.error("{worker} {why}, and is aborted", worker=str(worker), why=why)
        worker.heard = self.seconds()  # once is enough
        worker.abort()

    # Reload

    def reopen(self) -> None:
        """Let all workers reopen the log and the transcript, also those that drain, and those that a reload that fails
        leaves in place."""
        for worker in self.workers:
            worker.reopen()

    def reload(self) -> Deferred[bool]:
        """Replace all workers, one slot after the other: the new one first, then the old one retires.

        A new worker that does not become ready ends the reload; the old ones stay. If a reload is going on, another one
        follows it, since what has changed may have changed after the first workers had started.

        :return: fires at the end, with whether all were replaced. If not, the log says why.
        """
        if not self.running:
            return succeed(False)
        done: Deferred[bool] = Deferred()
        if self._reloading is not None:
            log.info("a reload is going on; another one follows it")
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
        self._backoffs = [Backoff() for _ in range(self.count)]  # what kept workers from working may be gone
        self._reloading.next()

    def _fill(self) -> None:
        """Start workers for slots that have none: theirs ended while a reload was to replace it, or waits."""
        for slot in range(self.count):
            self._start_worker(slot)

    # What others ask

    def connections(self) -> int:
        """How many connections are open, on all workers."""
        page = self._page
        return 0 if page is None else sum(map(page.row, range(page.rows)))

    def not_ready(self) -> str | None:
        """Why there are no clients yet; see :class:`~txsmtpd.interfaces.IReadiness`."""
        serving = self._serving()
        if not serving:
            return "no worker is ready" if self.running else None
        problems = [worker.problems for worker in serving]
        return problems[0][0] if all(problems) else None

    def snapshot(self) -> Snapshot:
        """What all workers have counted, with those that have ended."""
        total = Counters()
        total.add(self._gone.snapshot())
        for worker in self.workers:
            if worker.counted is not None:
                total.add(worker.counted)
        # Of these each process has its own, and the sum says nothing.
        for name in ("build_info", "stress"):
            total[name].update({labels: min(1, value) for labels, value in total[name].items()})
        total["worker_restarts_total"][()] = self.restarts
        total["workers"]["ready",] = len(self._serving())
        total["workers"]["draining",] = sum(worker.is_draining for worker in self.workers)
        return total.snapshot()


class _Reload:
    """A reload that is going on: one slot at a time.

    :param finish: is called once, with what kept it from replacing all workers, or None.
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
        if self._new is None:  # there is no room yet
            self._master._later(BEAT, self.next)
            return
        self._deadline = self._master._reactor.callLater(READY_WITHIN, self._too_late)

    def worker_ready(self, worker: Worker) -> None:
        if worker is self._new:
            self._stop_waiting()
            old = self._old.pop(0)
            if old in self._master.workers:
                old.retire()
                self._master._introduce()
            self.next()

    def worker_ended(self, worker: Worker) -> bool:
        """Whether the end of a worker is this reload's affair."""
        if worker is self._new:
            self._stop_waiting()
            self._finish(f"{worker} ended before it was ready")
            return True
        return worker in self._old  # which gets a successor when it is its slot's turn

    def give_up(self) -> None:
        """The server ends."""
        self._old.clear()
        if self._new is not None:
            self._stop_waiting()
        self._finish("the server ends")

    def _too_late(self) -> None:
        assert self._new is not None
        log.error("{worker} was not ready within {time:g} seconds", worker=str(self._new), time=READY_WITHIN)
        self._new.signal(signal.SIGKILL)

    def _stop_waiting(self) -> None:
        self._new = None
        if self._deadline.active():
            self._deadline.cancel()


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """What stays of the numbers of a worker that has ended: what it has counted, not what was so at the moment."""
    families = Counters().families
    return {name: series for name, series in snapshot.items() if name in families and families[name].kind != "gauge"}


def stop_with(reactor: Any, status: int) -> None:
    """Stop the reactor, and end the process with a status."""
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, status)
    with suppress(ReactorNotRunning):
        reactor.stop()
