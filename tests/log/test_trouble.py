"""Trouble that comes and goes causes one line in the log when it begins, and one when it ends."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.log.trouble import KINDS, QUIET, Trouble


class TroubleTests(SynchronousTestCase):
    """When to log."""

    def test_onceEach(self) -> None:
        """The beginning, another kind of trouble, and the end."""
        trouble = Trouble()
        self.assertFalse(trouble.worked(0))
        self.assertTrue(trouble.seen("full", 1))
        self.assertFalse(trouble.seen("full", 2))
        self.assertTrue(trouble.seen("broken", 3))
        self.assertTrue(trouble.worked(3 + QUIET))
        self.assertFalse(trouble.worked(4 + QUIET))
        self.assertTrue(trouble.seen("broken", 5 + QUIET))

    def test_flapping(self) -> None:
        """If every second message fails, that is logged once."""
        trouble = Trouble()
        told = [trouble.seen("full", now) if now % 2 else trouble.worked(now) for now in range(1, 1000)]
        self.assertEqual(told.count(True), 1)

    def test_alternating(self) -> None:
        """Two kinds that alternate are told once each; and many kinds do not fill the memory."""
        trouble = Trouble()
        told = [trouble.seen("closed" if now % 2 else "reset", now) for now in range(1000)]
        self.assertEqual(told.count(True), 2)
        for number in range(10 * KINDS):
            self.assertTrue(trouble.seen(f"kind {number}", 1000))
        self.assertEqual(len(trouble._logged), KINDS)
