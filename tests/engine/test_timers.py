"""One timer of the reactor for many connections."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.engine.timers import CANCELLED, Timers, timers_of


class Watched:
    """Notes when it was looked at, and may do something then."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.looked: list[float] = []

    def look(self) -> None:
        self.looked.append(self.clock.seconds())
        self.at_look()

    def at_look(self) -> None:
        """Nothing."""


class TimersTests(SynchronousTestCase):
    """Each is looked at once, in its time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)

    def watched(self) -> Watched:
        return Watched(self.clock)

    def test_inOrder(self) -> None:
        """Each is looked at when its moment has come, in whatever order they were added."""
        first, second, third = self.watched(), self.watched(), self.watched()
        self.timers.add(20, second)
        self.timers.add(10, first)
        self.timers.add(30, third)
        self.clock.pump([10, 10, 10, 10])
        self.assertEqual((first.looked, second.looked, third.looked), ([10], [20], [30]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oneCall(self) -> None:
        """However many wait, the clock has one call."""
        for moment in (5, 1, 3, 3):
            self.timers.add(moment, self.watched())
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [1])

    def test_sameMoment(self) -> None:
        """Those of the same moment are looked at in the order in which they were added."""
        order: list[int] = []
        for number in range(5):
            watched = self.watched()
            watched.at_look = lambda number=number: order.append(number)  # type: ignore[method-assign,misc]
            self.timers.add(7, watched)
        self.clock.advance(7)
        self.assertEqual(order, [0, 1, 2, 3, 4])

    def test_past(self) -> None:
        """A moment that has passed means the next turn of the reactor, and not now."""
        self.clock.advance(100)
        watched = self.watched()
        self.timers.add(1, watched)
        self.assertEqual(watched.looked, [])
        self.clock.advance(0)
        self.assertEqual(watched.looked, [100])

    def test_addedMeanwhile(self) -> None:
        """Who is added by somebody who is looked at waits for another turn, even if the moment has come."""
        first, second, added = self.watched(), self.watched(), self.watched()
        seen: list[list[float]] = []
        first.at_look = lambda: self.timers.add(1, added)  # type: ignore[method-assign,assignment,return-value]
        second.at_look = lambda: seen.append([*added.looked])  # type: ignore[method-assign]
        self.timers.add(1, first)
        self.timers.add(1, second)
        self.clock.advance(1)
        self.assertEqual((seen, added.looked), ([[]], [1]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Who is cancelled is not looked at, and is let go. After the last one the clock has no call."""
        kept, gone = self.watched(), self.watched()
        entry, other = self.timers.add(5, gone), self.timers.add(9, kept)
        self.timers.cancel(entry)
        self.timers.cancel(entry)
        self.assertNotIn(gone, entry)
        self.clock.advance(8)
        self.timers.cancel(other)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(8)
        self.assertEqual((kept.looked, gone.looked), ([], []))

    def test_cancelledMeanwhile(self) -> None:
        """Who is cancelled by somebody of the same moment is not looked at; who was looked at may be cancelled."""
        first, second = self.watched(), self.watched()
        one = self.timers.add(1, first)
        two = self.timers.add(1, second)
        first.at_look = lambda: self.timers.cancel(two)  # type: ignore[method-assign]
        self.clock.advance(1)
        self.timers.cancel(one)
        self.assertEqual((first.looked, second.looked), ([1], []))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.timers.add(2, second)
        self.clock.advance(1)
        self.assertEqual(second.looked, [2])

    def test_manyCancelled(self) -> None:
        """Those who were cancelled are not kept until their time comes."""
        stays = self.watched()
        self.timers.add(1000, stays)
        for _ in range(10 * CANCELLED):
            self.timers.cancel(self.timers.add(500, self.watched()))
        self.assertLessEqual(len(self.timers._entries), 2 * CANCELLED + 2)
        self.clock.advance(1000)
        self.assertEqual(stays.looked, [1000])

    def test_raises(self) -> None:
        """An exception does not keep the others from their time."""

        def fail() -> None:
            raise ZeroDivisionError

        bad, good, later = self.watched(), self.watched(), self.watched()
        bad.at_look = fail  # type: ignore[method-assign]
        for moment, watched in ((1, bad), (1, good), (2, later)):
            self.timers.add(moment, watched)
        self.assertRaises(ZeroDivisionError, self.clock.advance, 1)
        self.clock.advance(0)
        self.clock.advance(1)
        self.assertEqual((good.looked, later.looked), ([1], [2]))

    def test_sums(self) -> None:
        """A moment that a sum of floats misses by a trifle has come."""
        self.clock.advance(1.1)
        self.assertLess(1.1 + (7.3 - 1.1), 7.3)
        watched = self.watched()
        self.timers.add(7.3, watched)
        self.clock.advance(7.3 - 1.1)
        self.assertEqual(len(watched.looked), 1)

    def test_ofClock(self) -> None:
        """Each clock has its timers."""
        self.assertIs(timers_of(self.clock), timers_of(self.clock))
        self.assertIsNot(timers_of(self.clock), timers_of(Clock()))
