"""The memory that workers share."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.page import Page


class PageTests(SynchronousTestCase):
    """Numbers that all processes see."""

    def setUp(self) -> None:
        self.page = Page(4, 2)
        self.addCleanup(self.page.close)

    def test_sums(self) -> None:
        """The connections of a process are those of all its listeners; those of a listener, of all processes."""
        self.page.put(0, 0, 3)
        self.page.put(0, 1, 4)
        self.page.put(2, 1, 5)
        self.assertEqual([self.page.row(row) for row in range(4)], [7, 0, 5, 0])
        self.assertEqual(self.page.column(1), 9)
        self.assertEqual(self.page.column(1, without=2), 4)

    def test_turns(self) -> None:
        """The next connection is for the process with the fewest; of those with as many, for the one that has waited
        longest. Only the processes count that are asked about."""
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
        """Another process that has the descriptor sees what is written."""
        other = Page(4, 2, os.dup(self.page.descriptor))
        self.addCleanup(other.close)
        self.page.put(3, 1, 17)
        self.assertEqual(other.row(3), 17)

    def test_clear(self) -> None:
        """What a process had that is gone counts no more."""
        self.page.put(1, 0, 2)
        self.page.put(1, 1, 2)
        self.page.clear(1)
        self.assertEqual(self.page.row(1), 0)
