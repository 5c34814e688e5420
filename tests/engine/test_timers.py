"""One delayed call of the reactor for many connections."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.engine.timers import CANCELLED, Timers, timers_of


class Recorder:
    """Records when its timer fires, and may then call a function."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.called: list[float] = []
        self.then: Callable[[], object] = bool  # which does nothing

    def on_timer(self) -> None:
        self.called.append(self.clock.seconds())
        self.then()


class TimersTests(SynchronousTestCase):
    """Each timer fires once, at its time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)

    def recorder(self) -> Recorder:
        return Recorder(self.clock)

    def test_inOrder(self) -> None:
        """Timers fire at their times, in whatever order they were added."""
        first, second, third = self.recorder(), self.recorder(), self.recorder()
        self.timers.add(20, second)
        self.timers.add(10, first)
        self.timers.add(30, third)
        self.clock.pump([10, 10, 10, 10])
        self.assertEqual((first.called, second.called, third.called), ([10], [20], [30]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oneCall(self) -> None:
        """However many timers are set, the clock has one delayed call."""
        for moment in (5, 1, 3, 3):
            self.timers.add(moment, self.recorder())
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [1])

    def test_sameMoment(self) -> None:
        """Timers of the same time fire in the order in which they were added."""
        order: list[int] = []
        for number in range(5):
            recorder = self.recorder()
            recorder.then = lambda number=number: order.append(number)
            self.timers.add(7, recorder)
        self.clock.advance(7)
        self.assertEqual(order, [0, 1, 2, 3, 4])

    def test_past(self) -> None:
        """A time that has passed means the next iteration of the reactor, not now."""
        self.clock.advance(100)
        recorder = self.recorder()
        self.timers.add(1, recorder)
        self.assertEqual(recorder.called, [])
        self.clock.advance(0)
        self.assertEqual(recorder.called, [100])

    def test_addedMeanwhile(self) -> None:
        """A timer that is set while timers fire waits for another iteration, even if its time has come."""
        first, second, added = self.recorder(), self.recorder(), self.recorder()
        seen: list[list[float]] = []
        first.then = lambda: self.timers.add(1, added)
        second.then = lambda: seen.append([*added.called])
        self.timers.add(1, first)
        self.timers.add(1, second)
        self.clock.advance(1)
        self.assertEqual((seen, added.called), ([[]], [1]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """A cancelled timer does not fire, and is released. After the last one, the clock has no call."""
        kept, gone = self.recorder(), self.recorder()
        entry, other = self.timers.add(5, gone), self.timers.add(9, kept)
        self.timers.cancel(entry)
        self.timers.cancel(entry)
        self.assertNotIn(gone, entry)
        self.clock.advance(8)
        self.timers.cancel(other)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(8)
        self.assertEqual((kept.called, gone.called), ([], []))

    def test_cancelledMeanwhile(self) -> None:
        """A timer may be cancelled by another one of the same time. A timer that has fired may be cancelled."""
        first, second = self.recorder(), self.recorder()
        one = self.timers.add(1, first)
        two = self.timers.add(1, second)
        first.then = lambda: self.timers.cancel(two)
        self.clock.advance(1)
        self.timers.cancel(one)
        self.assertEqual((first.called, second.called), ([1], []))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.timers.add(2, second)
        self.clock.advance(1)
        self.assertEqual(second.called, [2])

    def test_manyCancelled(self) -> None:
        """Cancelled timers are not kept until their time."""
        stays = self.recorder()
        self.timers.add(1000, stays)
        for _ in range(10 * CANCELLED):
            self.timers.cancel(self.timers.add(500, self.recorder()))
        self.assertLessEqual(len(self.timers._entries), 2 * CANCELLED + 2)
        self.clock.advance(1000)
        self.assertEqual(stays.called, [1000])

    def test_raises(self) -> None:
        """An exception does not prevent the other timers from firing."""

        def fail() -> None:
            raise ZeroDivisionError

        bad, good, later = self.recorder(), self.recorder(), self.recorder()
        bad.then = fail
        for moment, recorder in ((1, bad), (1, good), (2, later)):
            self.timers.add(moment, recorder)
        self.assertRaises(ZeroDivisionError, self.clock.advance, 1)
        self.clock.advance(0)
        self.clock.advance(1)
        self.assertEqual((good.called, later.called), ([1], [2]))

    def test_sums(self) -> None:
        """A time that is missed by a rounding error counts as reached."""
        self.clock.advance(1.1)
        self.assertLess(1.1 + (7.3 - 1.1), 7.3)
        recorder = self.recorder()
        self.timers.add(7.3, recorder)
        self.clock.advance(7.3 - 1.1)
        self.assertEqual(len(recorder.called), 1)

    def test_ofClock(self) -> None:
        """Each clock has its own timers."""
        self.assertIs(timers_of(self.clock), timers_of(self.clock))
        self.assertIsNot(timers_of(self.clock), timers_of(Clock()))
