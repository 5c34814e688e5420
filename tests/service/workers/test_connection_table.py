"""The memory that workers share."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.connection_table import ConnectionTable


class ConnectionTableTests(SynchronousTestCase):
    """Numbers that all processes can read."""

    def setUp(self) -> None:
        self.table = ConnectionTable(4, 2)
        self.addCleanup(self.table.close)

    def test_sums(self) -> None:
        """The connections of a process are the sum of its listeners. Those of a listener are the sum of all
        processes."""
        self.table.put(0, 0, 3)
        self.table.put(0, 1, 4)
        self.table.put(2, 1, 5)
        self.assertEqual([self.table.row(row) for row in range(4)], [7, 0, 5, 0])
        self.assertEqual(self.table.column(1), 9)
        self.assertEqual(self.table.column(1, without=2), 4)

    def test_turns(self) -> None:
        """The process with the fewest connections accepts the next one; among equals, the one that has waited longest.
        Only the given processes count."""
        self.table.put(1, 0, 2)
        self.table.put(2, 0, 5)
        self.assertTrue(self.table.comes_after(2, [1]))
        self.assertFalse(self.table.comes_after(1, [2]))
        self.assertFalse(self.table.comes_after(2, []))
        self.table.put(1, 1, 3)
        for last, first in (1, 2), (2, 1), (1, 2):
            self.table.accepted(last)
            self.assertTrue(self.table.comes_after(last, [first]))
            self.assertFalse(self.table.comes_after(first, [last]))
        self.assertEqual(self.table.row(1), 5)

    def test_shared(self) -> None:
        """Another process with the descriptor reads the numbers."""
        other = ConnectionTable(4, 2, os.dup(self.table.descriptor))
        self.addCleanup(other.close)
        self.table.put(3, 1, 17)
        self.assertEqual(other.row(3), 17)

    def test_clear(self) -> None:
        """The numbers of a process that has ended no longer count."""
        self.table.put(1, 0, 2)
        self.table.put(1, 1, 2)
        self.table.clear(1)
        self.assertEqual(self.table.row(1), 0)
