"""Reactors with a clock that is never set."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.bridges.monotonic import use_monotonic_clock

# A server and its client in one process. After 0.2 seconds, the wall clock is changed by the given number of seconds.
STEPPED = """
import sys, time
wall, step = time.time, [0.0]
time.time = lambda: wall() + step[0]
from twisted.internet import endpoints, protocol, reactor, task
from txsmtpd import SMTPFactory
from txsmtpd.bridges.monotonic import use_monotonic_clock
use_monotonic_clock(reactor)

class Client(protocol.Protocol):
    def connectionMade(self):
        self.began = time.monotonic()
        reactor.callLater(0.2, step.__setitem__, 0, float(sys.argv[1]))
        reactor.callLater(0.4, lambda: self.transport.write(b"NOOP\\r\\n"))
    def dataReceived(self, data):
        print(data.decode()[:3])
    def connectionLost(self, reason):
        took = time.monotonic() - self.began
        print("late" if took > 5 else "early" if took < 0.8 else "in time")
        reactor.stop()

factory = SMTPFactory(timeout=0.6, command_timeout=None, hostname="mx.test")
port = reactor.listenTCP(0, factory, interface="127.0.0.1")
endpoint = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
endpoints.connectProtocol(endpoint, Client())
reactor.callLater(20, reactor.stop)
reactor.run()
"""


class MonotonicTests(SynchronousTestCase):
    """The clock of a reactor."""

    def reactor(self) -> Any:
        made = SelectReactor()
        self.addCleanup(made.fireSystemEvent, "shutdown")
        return made

    def test_pending(self) -> None:
        """Pending calls keep their delay, and later calls use the same clock."""
        reactor = self.reactor()
        before = reactor.callLater(10, lambda: None)
        use_monotonic_clock(reactor)
        after = reactor.callLater(10, lambda: None)
        for call in (before, after):
            self.assertApproximates(call.getTime() - time.monotonic(), 10, 1)
        before.reset(20)
        self.assertApproximates(before.getTime() - time.monotonic(), 20, 1)
        use_monotonic_clock(reactor)  # again
        self.assertApproximates(after.getTime() - time.monotonic(), 10, 1)
        for call in (before, after):
            call.cancel()

    def test_others(self) -> None:
        """A reactor with another clock is not changed."""
        clock = Clock()
        use_monotonic_clock(clock)
        self.assertEqual(clock.seconds(), 0)

    def test_steps(self) -> None:
        """When the wall clock is set, forward or back, active clients stay connected, and idle ones time out."""
        for step in ("3600", "-3600"):
            words = [sys.executable, "-c", STEPPED, step]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.stdout.split("\n"), ["220", "250", "421", "in time", ""], done.stderr)
