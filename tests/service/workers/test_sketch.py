"""The numbers of connections by network that workers share."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.sketch import Sketch


class SketchTests(SynchronousTestCase):
    """Connections by network, over all processes."""

    def setUp(self) -> None:
        self.sketch = Sketch(3)
        self.addCleanup(self.sketch.close)

    def test_elsewhere(self) -> None:
        """A process reads the numbers of the others, without its own."""
        self.sketch.add(0, "192.0.2.1/32", 2)
        self.sketch.add(1, "192.0.2.1/32", 3)
        self.assertEqual([self.sketch.elsewhere(row, "192.0.2.1/32") for row in range(3)], [3, 2, 5])
        self.sketch.add(1, "192.0.2.1/32", -3)
        self.assertEqual(self.sketch.elsewhere(0, "192.0.2.1/32"), 0)

    def test_neverTooSmall(self) -> None:
        """With thousands of networks, no number is too low, and hardly any is too high."""
        for number in range(3000):
            self.sketch.add(0, f"10.{number >> 8}.{number & 255}.0/24", 1)
        seen = [self.sketch.elsewhere(1, f"10.{number >> 8}.{number & 255}.0/24") for number in range(3000)]
        self.assertGreaterEqual(min(seen), 1)
        self.assertLess(sum(count > 1 for count in seen), 300)

    def test_clear(self) -> None:
        """The numbers of a process that has ended no longer count."""
        self.sketch.add(1, "a", 1)
        self.sketch.clear(1)
        self.assertEqual(self.sketch.elsewhere(0, "a"), 0)

    def test_shared(self) -> None:
        """Another process with the descriptor reads the numbers."""
        other = Sketch(3, os.dup(self.sketch.descriptor))
        self.addCleanup(other.close)
        self.sketch.add(2, "a", 1)
        self.assertEqual(other.elsewhere(0, "a"), 1)
