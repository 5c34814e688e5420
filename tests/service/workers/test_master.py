"""What the master does when workers start, end and are replaced. Without processes: workers that only take notes."""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.master import READY_WITHIN, Master
from txsmtpd.service.workers.worker import Errand


class Stub:
    """A worker without a process."""

    counted = None
    is_ready = is_draining = False
    problems: list[str] = []

    def __init__(self, slot: int, row: int) -> None:
        self.slot, self.row, self.started, self.heard = slot, row, 0.0, 0.0
        self.heard_of: list[object] = []

    def meet(self, rows: list[int]) -> None:
        pass

    def retire(self) -> None:
        self.is_draining = True

    drain = retire

    def signal(self, number: int) -> None:
        self.heard_of.append(number)


class Running(Clock):
    """A reactor that runs."""

    def callWhenRunning(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class Stubbed(Master):
    """A master of stubs."""

    rows = 0

    def _spawn(self, slot: int) -> Any:
        self.rows += 1
        stub: Any = Stub(slot, self.rows % 4)
        self.workers.append(stub)
        return stub


class MasterTests(SynchronousTestCase):
    """Two slots."""

    def setUp(self) -> None:
        self.clock = Running()
        self.statuses: list[int] = []
        self.master = Stubbed(
            2, [], ["worker"], Errand(), end_process=lambda _, status: self.statuses.append(status), reactor=self.clock
        )
        self.master.startService()
        self.addCleanup(self.close)

    def close(self) -> None:
        for memory in self.master._page, self.master._sketch:
            if memory is not None:
                memory.close()

    def ready(self) -> list[Any]:
        """Let all workers that start be ready, and return the serving ones, by slot."""
        while starting := [each for each in self.master.workers if not each.is_ready]:
            starting[0].is_ready = True
            self.master.worker_ready(starting[0])
        return sorted((each for each in self.master.workers if not each.is_draining), key=lambda each: each.slot)

    def end(self, worker: Any, status: int | None = None, number: int | None = None) -> None:
        self.master.worker_ended(worker, status, number)

    def slots(self) -> list[int]:
        return sorted(each.slot for each in self.master.workers if not each.is_draining)

    def test_reload(self) -> None:
        """A reload replaces one slot after the other: each old one goes on until its successor is ready."""
        old = self.ready()
        done: list[bool] = []
        self.master.reload(done.append)
        self.assertEqual([each.is_draining for each in old], [False, False])
        new = self.ready()
        self.assertEqual([each.is_draining for each in old], [True, True])
        self.assertEqual((done, self.slots(), set(new) & set(old)), ([True], [0, 1], set()))

    def test_oldDiesDuringReload(self) -> None:
        """An old worker that dies before it is its slot's turn gets one successor, not two."""
        old = self.ready()
        self.master.reload()
        self.end(old[1], number=signal.SIGKILL)
        self.ready()
        self.clock.advance(60)
        self.assertEqual(self.slots(), [0, 1])

    def test_failedReloadFills(self) -> None:
        """If the reload fails then, the slot gets a worker all the same."""
        old = self.ready()
        done: list[bool] = []
        self.master.reload(done.append)
        self.end(old[1], number=signal.SIGKILL)
        self.end(next(each for each in self.master.workers if not each.is_ready), status=64)
        self.assertEqual((done, self.slots()), ([False], [0, 1]))
        self.assertFalse(old[0].is_draining)

    def test_late(self) -> None:
        """A new worker that does not become ready in time is killed, and the old ones go on."""
        old = self.ready()
        done: list[bool] = []
        self.master.reload(done.append)
        new = next(each for each in self.master.workers if not each.is_ready)
        self.clock.advance(READY_WITHIN)
        self.assertEqual(new.heard_of, [signal.SIGKILL])
        self.end(new, number=signal.SIGKILL)
        self.assertEqual((done, [each.is_draining for each in old]), ([False], [False, False]))

    def test_stopDuringReload(self) -> None:
        """A server that is told to end in the middle of a reload ends with its last worker, whichever that is."""
        for last in (0, 1, 2):
            self.close()
            self.setUp()
            self.ready()
            self.master.reload()
            stopped: Deferred[None] = self.master.stopService()
            workers = list(self.master.workers)
            self.assertEqual(len(workers), 3)
            workers.append(workers.pop(last))
            for worker in workers:
                self.assertNoResult(stopped)
                self.end(worker, status=0)
            self.successResultOf(stopped)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_firstStart(self) -> None:
        """A mistake that keeps the first worker from starting ends the master with its status; later it does not."""
        self.end(self.master.workers[0], status=64)
        self.assertEqual(self.statuses, [64])
        self.ready()
        self.end(self.master.workers[0], status=64)
        self.assertEqual(self.statuses, [64])

    def test_backoff(self) -> None:
        """A worker that dies is replaced after a second, then after two."""
        for delay in (1, 2):
            [*_, last] = self.ready()
            self.end(last, number=signal.SIGKILL)
            self.clock.advance(delay - 0.1)
            self.assertEqual(len(self.slots()), 1)
            self.clock.advance(0.1)
            self.assertEqual(len(self.slots()), 2)
