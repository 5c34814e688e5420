"""The master when workers start, end and are replaced, with stubs in place of processes."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers import master as master_module
from txsmtpd.service.workers.inheritance import Inheritance
from txsmtpd.service.workers.master import AT_ONCE, READY_WITHIN, SILENCE, Master


class Stub:
    """A worker without a process."""

    counted = None
    is_ready = is_draining = False
    problems: list[str] = []

    def __init__(self, slot: int, row: int) -> None:
        self.slot, self.row, self.started, self.heard = slot, row, 0.0, 0.0
        self.heard_of: list[object] = []

    def send_peers(self, rows: list[int]) -> None:
        self.known = rows

    def retire(self) -> None:
        self.is_draining = True

    drain = retire

    def hurry(self) -> None:
        pass

    aborted = 0

    def abort(self) -> None:
        self.aborted += 1

    def signal(self, number: int) -> None:
        self.heard_of.append(number)


class Running(Clock):
    """A reactor that is running."""

    def callWhenRunning(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class Full(Running):
    """A reactor that cannot start a process."""

    def adoptStreamConnection(self, descriptor: int, family: int, factory: object) -> None:
        pass

    def spawnProcess(self, protocol: object, executable: str, *arguments: object, **more: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


class Stubbed(Master):
    """A master with stubs."""

    rows = 0
    has_room = True

    def _spawn(self, slot: int) -> Any:
        if not self.has_room:
            return None
        self.rows += 1
        stub: Any = Stub(slot, self.rows % (2 * self.count))
        self.workers.append(stub)
        return stub


class MasterTests(SynchronousTestCase):
    """Two slots."""

    def setUp(self, count: int = 2) -> None:
        self.clock = Running()
        self.statuses: list[int] = []
        self.master = Stubbed(
            count,
            [],
            ["worker"],
            Inheritance(),
            end_process=lambda _, status: self.statuses.append(status),
            reactor=self.clock,
        )
        self.master.startService()
        self.addCleanup(self.close)

    def close(self) -> None:
        for memory in self.master._table, self.master._sketch:
            if memory is not None:
                memory.close()
        self.master._table = self.master._sketch = None

    def ready(self) -> list[Any]:
        """Let all workers that start become ready. Return the serving ones by slot."""
        while self.ready_one():
            pass
        return sorted((each for each in self.master.workers if not each.is_draining), key=lambda each: each.slot)

    def ready_one(self) -> bool:
        """Let the first worker that starts become ready. Return whether there was one."""
        starting = next((each for each in self.master.workers if not each.is_ready), None)
        if starting is not None:
            starting.is_ready = True
            self.master.worker_ready(starting)
        return starting is not None

    def end(self, worker: Any, status: int | None = None, number: int | None = None) -> None:
        self.master.worker_ended(worker, status, number)

    def slots(self) -> list[int]:
        return sorted(each.slot for each in self.master.workers if not each.is_draining)

    def test_reload(self) -> None:
        """A reload replaces one slot after the other. Each old worker serves until its successor is ready."""
        old = self.ready()
        reloaded = self.master.reload()
        self.assertEqual([each.is_draining for each in old], [False, False])
        new = self.ready()
        self.assertEqual([each.is_draining for each in old], [True, True])
        self.assertTrue(self.successResultOf(reloaded))
        self.assertEqual((self.slots(), set(new) & set(old)), ([0, 1], set()))

    def test_oldDiesDuringReload(self) -> None:
        """An old worker that dies before its slot is reached gets one successor, not two."""
        old = self.ready()
        self.master.reload()
        self.end(old[1], number=signal.SIGKILL)
        self.ready()
        self.clock.advance(60)
        self.assertEqual(self.slots(), [0, 1])

    def test_failedReloadFills(self) -> None:
        """If the reload fails then, the slot gets a worker, too."""
        old = self.ready()
        reloaded = self.master.reload()
        self.end(old[1], number=signal.SIGKILL)
        self.end(next(each for each in self.master.workers if not each.is_ready), status=64)
        self.assertFalse(self.successResultOf(reloaded))
        self.assertEqual(self.slots(), [0, 1])
        self.assertFalse(old[0].is_draining)

    def test_tooLate(self) -> None:
        """A new worker that does not become ready in time is aborted, and the old ones continue."""
        old = self.ready()
        reloaded = self.master.reload()
        new = next(each for each in self.master.workers if not each.is_ready)
        self.clock.advance(READY_WITHIN)
        self.assertEqual(new.aborted, 1)
        self.end(new, number=signal.SIGABRT)
        self.assertFalse(self.successResultOf(reloaded))
        self.assertEqual([each.is_draining for each in old], [False, False])

    def test_reloadDuringReload(self) -> None:
        """A reload that is requested during another one follows it, because the newest workers may have started before
        the last change. Several requests cause one reload."""
        self.ready()
        done: list[str] = []

        def note(name: str, succeeded: bool) -> None:
            done.append(f"{name} {succeeded}")

        self.master.reload().addCallback(partial(note, "first"))
        between = next(each for each in self.master.workers if not each.is_ready)

        for name in ("second", "third"):
            self.master.reload().addCallback(partial(note, name))
        before = self.master.rows
        last = self.ready()
        self.assertEqual(done, ["first True", "second True", "third True"])
        self.assertEqual((self.slots(), self.master.rows - before), ([0, 1], 3))
        self.assertTrue(between.is_draining)
        self.assertFalse(any(each.is_draining for each in last))

    def test_failedReloadWhileOneWaits(self) -> None:
        """A slot whose next worker is delayed gets one immediately when a reload has failed, and no second one
        later."""
        [_, last] = self.ready()
        self.end(last, number=signal.SIGKILL)
        self.master.reload()
        self.end(next(each for each in self.master.workers if not each.is_ready), status=64)
        self.assertEqual(self.slots(), [0, 1])
        self.clock.advance(20)
        self.assertEqual(self.slots(), [0, 1])

    def test_noRoom(self) -> None:
        """A worker that the system cannot start is tried again."""
        [_, last] = self.ready()
        self.master.has_room = False
        self.end(last, number=signal.SIGKILL)
        self.clock.pump([1] * 3)
        self.assertEqual(self.slots(), [0])
        self.master.has_room = True
        self.clock.advance(1)
        self.assertEqual(self.slots(), [0, 1])

    def test_cannotBeStarted(self) -> None:
        """If the first worker cannot be started, the master ends with status 71, and reports the error."""
        said: list[str] = []
        self.patch(master_module, "complain", said.append)
        statuses: list[int] = []
        master = Master(
            2, [], ["/no/python"], Inheritance(), end_process=lambda _, status: statuses.append(status), reactor=Full()
        )
        master.startService()
        self.assertEqual((statuses, said), ([71], ["cannot start worker 0: /no/python: No such file or directory"]))
        self.successResultOf(master.stopService())
        self.flushLoggedErrors()

    def test_fewAtOnce(self) -> None:
        """Many workers do not start at the same time, since all of them would be late."""
        self.close()
        self.setUp(100)
        self.assertEqual(len(self.master.workers), 1)
        self.ready_one()
        self.assertEqual(sum(not each.is_ready for each in self.master.workers), AT_ONCE)
        self.ready()
        self.assertEqual(self.slots(), [*range(100)])

    def test_late(self) -> None:
        """No worker leaves a connection to a worker that has sent no heartbeat for some seconds."""
        first, second = self.ready()
        self.assertEqual((first.known, second.known), ([second.row], [first.row]))
        self.clock.pump([1] * 6)
        second.heard = self.clock.seconds()
        self.clock.advance(1)
        self.assertEqual((first.known, second.known), ([second.row], []))

    def test_silent(self) -> None:
        """A worker that sends no heartbeat is aborted once. Time in which the master itself was stopped does not
        count."""
        first, second = self.ready()
        self.clock.advance(SILENCE + 100)
        self.assertEqual((first.aborted, second.aborted), (0, 0))
        for _ in range(int(SILENCE) + 2):
            self.clock.advance(1)
            second.heard = self.clock.seconds()
        self.assertEqual((first.aborted, second.aborted), (1, 0))
        self.flushLoggedErrors()

    def test_whenReady(self) -> None:
        """The server is ready when a worker is, and not before."""
        ready = self.master.when_ready()
        self.assertNoResult(ready)
        self.ready_one()
        self.successResultOf(ready)
        self.successResultOf(self.master.when_ready())

    def test_stopDuringReload(self) -> None:
        """A server that is stopped during a reload ends with its last worker, whichever that is."""
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

    def test_hurry(self) -> None:
        """After a second SIGTERM, workers that have not ended after a second are killed, even directly after the first
        one. After one SIGTERM, they are killed after the grace period."""
        for hurries, patience in (("no", 35), ("after", 1), ("before", 1)):
            self.close()
            self.setUp()
            workers = self.ready()
            if hurries == "before":
                self.master.hurry()
            stopped: Deferred[None] = self.master.stopService()
            if hurries == "after":
                self.master.hurry()
            self.clock.advance(patience - 0.5)
            self.assertEqual([each.heard_of for each in workers], [[], []])
            self.clock.advance(0.5)
            self.assertEqual([each.heard_of for each in workers], [[signal.SIGKILL], [signal.SIGKILL]])
            for each in workers:
                self.end(each, number=signal.SIGKILL)
            self.successResultOf(stopped)
        self.flushLoggedErrors()

    def test_firstStart(self) -> None:
        """An error that prevents the first worker from starting ends the master with its status. Later it does not."""
        self.end(self.master.workers[0], status=64)
        self.assertEqual((self.statuses, self.slots()), ([64], []))
        self.close()
        self.setUp()
        self.ready()
        self.end(self.master.workers[0], status=64)
        self.assertEqual((self.statuses, self.slots()), ([], [1]))

    def test_backoff(self) -> None:
        """A worker that dies is replaced after one second, then after two."""
        for delay in (1, 2):
            [*_, last] = self.ready()
            self.end(last, number=signal.SIGKILL)
            self.clock.advance(delay - 0.1)
            self.assertEqual(len(self.slots()), 1)
            self.clock.advance(0.1)
            self.assertEqual(len(self.slots()), 2)
