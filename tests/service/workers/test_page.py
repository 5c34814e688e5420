"""The memory that workers share."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.page import Page


class PageTests(SynchronousTestCase):
    """Numbers that all processes can read."""

    def setUp(self) -> None:
        self.page = Page(4, 2)
        self.addCleanup(self.page.close)

    def test_sums(self) -> None:
        """The connections of a process are the sum of its listeners. Those of a listener are the sum of all
        processes."""
        self.page.put(0, 0, 3)
        self.page.put(0, 1, 4)
        self.page.put(2, 1, 5)
        self.assertEqual([self.page.row(row) for row in range(4)], [7, 0, 5, 0])
        self.assertEqual(self.page.column(1), 9)
        self.assertEqual(self.page.column(1, without=2), 4)

    def test_turns(self) -> None:
        """The process with the fewest connections accepts the next one; among equals, the one that has waited longest.
        Only the given processes count."""
        self.page.put(1, 0, 2)
        self.page.put(2, 0, 5)
        self.assertTrue(self.page.comes_after(2, [1]))
        self.assertFalse(self.page.comes_after(1, [2]))
        self.assertFalse(self.page.comes_after(2, []))
        self.page.put(1, 1, 3)
        for last, first in (1, 2), (2, 1), (1, 2):
            self.page.accepted(last)
            self.assertTrue(self.page.comes_after(last, [first]))
            self.assertFalse(self.page.comes_after(first, [last]))
        self.assertEqual(self.page.row(1), 5)

    def test_shared(self) -> None:
        """Another process with the descriptor reads the numbers."""
        other = Page(4, 2, os.dup(self.page.descriptor))
        self.addCleanup(other.close)
        self.page.put(3, 1, 17)
        self.assertEqual(other.row(3), 17)

    def test_clear(self) -> None:
        """The numbers of a process that has ended no longer count."""
        self.page.put(1, 0, 2)
        self.page.put(1, 1, 2)
        self.page.clear(1)
        self.assertEqual(self.page.row(1), 0)
