"""Stress mode begins and ends with hysteresis."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits.stress import Stress


class StressTests(SynchronousTestCase):
    """When it begins and when it ends."""

    def test_connections(self) -> None:
        """It begins at 80 % of the connections and ends below 60 %."""
        stress = Stress()
        counts = [*range(101), *range(100, -1, -1)]
        changes = [(count, stress.active) for count in counts if stress.update(count, 100)]
        self.assertEqual(changes, [(80, True), (59, False)])

    def test_between(self) -> None:
        """Between the two thresholds, it does not change."""
        stress = Stress()
        for count in [70, 79, 61, 70] * 10:
            self.assertFalse(stress.update(count, 100))
        self.assertFalse(stress.active)
        stress.update(80, 100)
        for count in [70, 79, 61, 70] * 10:
            self.assertFalse(stress.update(count, 100))
        self.assertTrue(stress.active)

    def test_no_limit(self) -> None:
        """Without a connection limit, only the reactor's lag counts."""
        stress = Stress()
        self.assertFalse(stress.update(10**6, None))
        stress.lag = 0.3
        self.assertTrue(stress.update(1, None))
        self.assertIn("300 ms late", stress.cause)
        stress.lag = 0.2
        self.assertFalse(stress.update(1, None))
        stress.lag = 0.1
        self.assertTrue(stress.update(1, None))
        self.assertFalse(stress.active)

    def test_both(self) -> None:
        """It ends only when both are low."""
        stress = Stress()
        stress.lag = 1.0
        stress.update(90, 100)
        self.assertFalse(stress.update(10, 100))
        stress.lag = 0.0
        self.assertFalse(stress.update(70, 100))
        self.assertTrue(stress.update(10, 100))
