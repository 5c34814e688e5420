"""A reactor on an asyncio loop, which is not the global reactor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.support.tls import combined, issue, write
from txsmtpd.bridges.loop_reactor import LoopClock, LoopReactor
from txsmtpd.bridges.reactor_thread import ReactorThread
from txsmtpd.bridges.reactors import clock_of, current_reactor, reactor_of_loop
from txsmtpd.tls.certificates import Certificates


class LoopTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.addCleanup(self.loop.close)

    def run_loop(self, seconds: float = 0.02) -> None:
        """Let the loop run for a moment."""
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run_forever()


class TimeTests(LoopTestCase):
    """Timers."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = LoopClock(self.loop)
        self.calls: list[Any] = []

    def test_interfaces(self) -> None:
        """It uses the same clock as Twisted's reactors."""
        verifyObject(IReactorTime, self.clock)
        timer = self.clock.callLater(1, int)
        verifyObject(IDelayedCall, timer)
        self.assertAlmostEqual(timer.getTime(), self.clock.seconds() + 1, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [timer])
        timer.cancel()

    def test_called(self) -> None:
        """The function is called once, at its time, with its arguments. Then the call is no longer active."""
        timer = self.clock.callLater(0, lambda *args, **kwargs: self.calls.append((args, kwargs)), 1, a=2)
        self.assertTrue(timer.active())
        self.run_loop()
        self.assertEqual(self.calls, [((1,), {"a": 2})])
        self.assertFalse(timer.active())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for change in (timer.cancel, lambda: timer.reset(1), lambda: timer.delay(1)):
            self.assertRaises(AlreadyCalled, change)

    def test_cancelled(self) -> None:
        """A cancelled call is not made."""
        timer = self.clock.callLater(0, self.calls.append, 1)
        timer.cancel()
        self.run_loop()
        self.assertEqual(self.calls, [])
        self.assertFalse(timer.active())
        self.assertRaises(AlreadyCancelled, timer.cancel)

    def test_moved(self) -> None:
        """A call can be made earlier or later than planned."""
        sooner = self.clock.callLater(60, self.calls.append, "sooner")
        later = self.clock.callLater(0, self.calls.append, "later")
        sooner.reset(0)
        later.delay(60)
        self.run_loop()
        self.assertEqual(self.calls, ["sooner"])
        later.cancel()

    def test_fails(self) -> None:
        """An exception of a call is logged, and the loop continues."""
        self.clock.callLater(0, lambda: 1 / 0)
        self.clock.callLater(0, self.calls.append, 1)
        self.run_loop()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.calls, [1])

    def test_forgets(self) -> None:
        """Cancelled calls are not kept until their time."""
        for _ in range(3000):
            self.clock.callLater(300, int).cancel()
            if _ % 100 == 0:
                self.run_loop(0)
        self.run_loop(0)
        self.assertLess(len(self.loop._scheduled), 300)  # type: ignore[attr-defined]


class ChoiceTests(LoopTestCase):
    """Which reactor is the current one."""

    def test_oneForEachLoop(self) -> None:
        """A loop has one reactor, and gets another when that is closed. In the loop, it is the current one."""
        reactor = reactor_of_loop(self.loop)
        self.assertIs(reactor_of_loop(self.loop), reactor)
        found: list[Any] = []
        self.loop.call_soon(lambda: found.append(current_reactor()))
        self.run_loop(0)
        self.assertEqual(found, [reactor])
        self.assertIs(clock_of(reactor), reactor)
        reactor.close()
        self.assertIsNot(reactor_of_loop(self.loop), reactor)

    def test_global(self) -> None:
        """Without a running loop, the global reactor is the current one."""
        from twisted.internet import reactor

        self.assertIs(current_reactor(), reactor)

    def test_held(self) -> None:
        """A reactor that is held does not close."""
        reactor = LoopReactor(self.loop)
        reactor.hold()
        reactor.hold()
        reactor.release()
        self.assertTrue(reactor.running)
        reactor.release()
        self.assertFalse(reactor.running)


class Server(Protocol):
    """Starts TLS immediately, and sends the data of a pull producer."""

    size = 2**18

    def __init__(self, context: Any) -> None:
        self.context = context

    def connectionMade(self) -> None:
        self.sent = 0
        self.transport.startTLS(self.context)  # type: ignore[union-attr]
        self.transport.registerProducer(self, False)  # type: ignore[union-attr, arg-type]

    def resumeProducing(self) -> None:
        self.transport.write(b"x" * 1000)  # type: ignore[union-attr]
        self.sent += 1000
        if self.sent >= self.size:
            self.transport.unregisterProducer()  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]

    def stopProducing(self) -> None:
        """The connection is lost."""


class Client(Protocol):
    def __init__(self, context: Any) -> None:
        self.context = context
        self.received = 0
        self.ended: Deferred[int] = Deferred()

    def connectionMade(self) -> None:
        self.transport.startTLS(self.context)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(self.received)


class TransportTests(SynchronousTestCase):
    """Connections, with and without TLS, on a reactor that is not the global one."""

    def test_tls(self) -> None:
        """TLS and pull producers work within it, for servers and clients."""
        certificates = Certificates(write(Path(self.mktemp()), combined(issue("localhost"))))
        thread = ReactorThread()
        thread.start()
        self.addCleanup(thread.stop)

        async def exchange() -> int:
            reactor: Any = current_reactor()
            factory = Factory.forProtocol(lambda: Server(certificates))  # type: ignore[arg-type]
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            endpoint = HostnameEndpoint(reactor, "127.0.0.1", port.getHost().port)
            client = await endpoint.connect(Factory.forProtocol(lambda: Client(CertificateOptions())))  # type: ignore[arg-type]
            received: int = await client.ended  # type: ignore[attr-defined]
            await port.stopListening()
            return received

        self.assertGreaterEqual(thread.run(exchange, timeout=30), Server.size)
