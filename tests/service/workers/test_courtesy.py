"""Which of several workers accepts a connection."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers.courtesy import MOMENT, Courtesy


class Port:
    """A port that counts."""

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


class CourtesyTests(SynchronousTestCase):
    """A worker that has more connections waits for those that have fewer."""

    def setUp(self) -> None:
        self.port = Port()
        self.clock = Clock()
        self.has_more = False
        Courtesy(self.port, lambda: self.has_more, self.clock)

    def test_one(self) -> None:
        """A worker that has no more than others accepts at once, and one connection only."""
        self.port.doRead()
        self.assertEqual(self.port.accepted, 1)

    def test_waits(self) -> None:
        """One that has more waits a moment, and accepts then what nobody else has taken."""
        self.has_more = True
        self.port.doRead()
        self.assertEqual((self.port.accepted, self.port.reading), (0, False))
        self.clock.advance(MOMENT)
        self.assertTrue(self.port.reading)
        self.port.doRead()
        self.assertEqual(self.port.accepted, 1)

    def test_again(self) -> None:
        """It waits for each connection anew."""
        self.has_more = True
        for _ in range(2):
            self.port.doRead()
            self.clock.advance(MOMENT)
            self.port.doRead()
        self.port.doRead()
        self.assertEqual((self.port.accepted, self.port.reading), (2, False))

    def test_closed(self) -> None:
        """A port that was closed while it waited stays closed."""
        self.has_more = True
        self.port.doRead()
        self.port.connected = False
        self.clock.advance(MOMENT)
        self.assertFalse(self.port.reading)
