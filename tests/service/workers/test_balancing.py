"""Which of several workers accepts a connection."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.balancing import WAIT, Balancer


class Port:
    """A port that counts accepts."""

    def __init__(self) -> None:
        self.accepted = 0
        self.numberAccepts = 100
        self.connected = True
        self.reading = True

    def doRead(self) -> None:
        self.accepted += self.numberAccepts

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True


class BalancerTests(SynchronousTestCase):
    """A worker with more connections waits for those with fewer."""

    def setUp(self) -> None:
        self.port = Port()
        self.clock = Clock()
        self.has_more = False
        Balancer(self.port, lambda: self.has_more, self.clock)

    def test_one(self) -> None:
        """A worker that has no more than others accepts immediately, and only one connection."""
        self.port.doRead()
        self.assertEqual(self.port.accepted, 1)

    def test_waits(self) -> None:
        """A worker that has more waits a moment, and then accepts what no other has accepted."""
        self.has_more = True
        self.port.doRead()
        self.assertEqual((self.port.accepted, self.port.reading), (0, False))
        self.clock.advance(WAIT)
        self.assertTrue(self.port.reading)
        self.port.doRead()
        self.assertEqual(self.port.accepted, 1)

    def test_again(self) -> None:
        """It waits again for each connection."""
        self.has_more = True
        for _ in range(2):
            self.port.doRead()
            self.clock.advance(WAIT)
            self.port.doRead()
        self.port.doRead()
        self.assertEqual((self.port.accepted, self.port.reading), (2, False))

    def test_closed(self) -> None:
        """A port that was closed during the wait stays closed."""
        self.has_more = True
        self.port.doRead()
        self.port.connected = False
        self.clock.advance(WAIT)
        self.assertFalse(self.port.reading)
