"""The memory of messages: shares of a budget."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.handoff.budget import Budget


class BudgetTests(SynchronousTestCase):
    """A budget for 3 messages and 100 octets, of which one message may have 40."""

    def setUp(self) -> None:
        self.budget = Budget(3, 100, 40)

    def test_messages(self) -> None:
        """A message above the limit waits until another one is finished. They are served in order."""
        shares = [self.successResultOf(self.budget.take(1)) for _ in range(3)]
        fourth, fifth = self.budget.take(1), self.budget.take(1)
        self.assertNoResult(fourth)
        shares[0].release()
        self.successResultOf(fourth)
        self.assertNoResult(fifth)

    def test_octets(self) -> None:
        """A message that does not fit waits. So do later ones, even if they are smaller."""
        first = self.successResultOf(self.budget.take(50))
        second, third = self.budget.take(20), self.budget.take(1)
        self.assertNoResult(second)
        self.assertNoResult(third)
        first.release()
        self.successResultOf(second)
        self.successResultOf(third)
        self.assertEqual(self.budget.octets, 21)

    def test_reserve(self) -> None:
        """Of messages that grow, one can always be read to its end, and so all of them are completed."""
        first, second = (self.successResultOf(self.budget.take(30)) for _ in range(2))
        grown = [first.grow(5), second.grow(5)]
        self.successResultOf(grown[0])  # from the reserve
        self.assertNoResult(grown[1])
        self.successResultOf(first.grow(5))
        first.release()
        self.successResultOf(grown[1])
        second.release()
        self.assertEqual((self.budget.messages, self.budget.octets), (0, 0))

    def test_growingFirst(self) -> None:
        """Messages that have started are served before those that have not."""
        first, second = (self.successResultOf(self.budget.take(30)) for _ in range(2))
        self.successResultOf(first.grow(1))
        opening, growing = self.budget.take(20), second.grow(25)
        first.release()
        self.successResultOf(growing)
        self.assertNoResult(opening)

    def test_cancelled(self) -> None:
        """A message that has stopped waiting is removed."""
        first, second = (self.successResultOf(self.budget.take(30)) for _ in range(2))
        self.successResultOf(first.grow(1))
        waiting = [self.budget.take(20), second.grow(25)]
        for each in waiting:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(self.budget.waiting, 0)

    def test_releasedTwice(self) -> None:
        """A share is released once."""
        share = self.successResultOf(self.budget.take(10))
        share.release()
        share.release()
        self.assertEqual((self.budget.messages, self.budget.octets), (0, 0))

    def test_numbers(self) -> None:
        """A budget that has no room for its largest message and others is refused."""
        self.assertRaises(ValueError, Budget, 0, 100, 40)
        error = self.assertRaises(ValueError, Budget, 1, 79, 40)
        self.assertIn("twice as many", str(error))
