"""Connections to a host name, with the reactor that is passed."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from txsmtpd.bridges.host_endpoint import AT_ONCE, ATTEMPT_DELAY, HostEndpoint

ADDRESSES = [
    IPv6Address("TCP", "2001:db8::1", 25),
    IPv4Address("TCP", "192.0.2.1", 25),
    IPv4Address("TCP", "192.0.2.2", 25),
]


@implementer(IHostnameResolver)
class Resolver:
    """A resolver whose answers the test triggers."""

    receiver: Any = None

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *rest: Any) -> Any:
        self.receiver = receiver
        receiver.resolutionBegan(None)
        return None

    def answer(self, addresses: list[Any]) -> None:
        for address in addresses:
            self.receiver.addressResolved(address)
        self.receiver.resolutionComplete()


class HostTests(SynchronousTestCase):
    """Happy Eyeballs (RFC 8305)."""

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.reactor.nameResolver = self.resolver = Resolver()
        factory = Factory.forProtocol(Protocol)
        self.connecting: Deferred[Any] = HostEndpoint(self.reactor, "mx.example", 25, 30).connect(factory)

    def tried(self) -> list[str]:
        return [call[0] for call in self.reactor.tcpClients]

    def succeed(self, number: int) -> Any:
        protocol = self.reactor.tcpClients[number][2].buildProtocol(None)
        protocol.makeConnection(StringTransport())
        return protocol._wrappedProtocol

    def fail_attempt(self, number: int, error: Exception) -> None:
        self.reactor.tcpClients[number][2].clientConnectionFailed(None, Failure(error))

    def test_first(self) -> None:
        """It connects to the first address that answers. No other address is tried."""
        self.resolver.answer(ADDRESSES)
        self.assertEqual(self.tried(), ["2001:db8::1"])
        protocol = self.succeed(0)
        self.assertIs(self.successResultOf(self.connecting), protocol)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_slow(self) -> None:
        """If an address is slow, the next one is tried. The first connection wins, and the other attempts are
        cancelled."""
        self.resolver.answer(ADDRESSES)
        self.reactor.advance(ATTEMPT_DELAY)
        self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(self.tried(), [each.host for each in ADDRESSES])
        protocol = self.succeed(1)
        self.assertIs(self.successResultOf(self.connecting), protocol)
        self.assertEqual([each.stoppedConnecting for each in self.reactor.connectors], [True, False, True])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """After a failure, the next address is tried immediately. If all fail, the result is the last error."""
        self.resolver.answer(ADDRESSES)
        self.fail_attempt(0, ConnectionRefusedError())
        self.assertEqual(self.tried(), ["2001:db8::1", "192.0.2.1"])
        self.fail_attempt(1, TimeoutError())
        self.fail_attempt(2, ConnectionRefusedError())
        self.failureResultOf(self.connecting, ConnectionRefusedError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_lastIsSlow(self) -> None:
        """If the last address is slow, the first one may still win."""
        self.resolver.answer(ADDRESSES[:2])
        self.reactor.advance(ATTEMPT_DELAY)
        self.reactor.advance(ATTEMPT_DELAY)
        self.fail_attempt(1, ConnectionRefusedError())
        self.assertNoResult(self.connecting)
        protocol = self.succeed(0)
        self.assertIs(self.successResultOf(self.connecting), protocol)

    def test_many(self) -> None:
        """Of many addresses that do not answer, only a few are tried at the same time; all are tried in the end."""
        self.resolver.answer([IPv4Address("TCP", f"192.0.2.{number}", 25) for number in range(200)])
        for _ in range(100):
            self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(len(self.tried()), AT_ONCE)
        for number in range(200):
            self.assertNoResult(self.connecting)
            self.fail_attempt(number, TimeoutError())
            self.assertLessEqual(len(self.tried()) - number - 1, AT_ONCE)
        self.assertEqual(len(set(self.tried())), 200)
        self.failureResultOf(self.connecting, TimeoutError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_noAddress(self) -> None:
        """A name without addresses is an error."""
        self.resolver.answer([])
        self.failureResultOf(self.connecting, DNSLookupError)

    def test_invalid(self) -> None:
        """A name that no DNS server can know is an error at once."""
        for host in "a" * 64 + ".example", "a..example":
            connecting = HostEndpoint(self.reactor, host, 25, 30).connect(Factory.forProtocol(Protocol))
            self.failureResultOf(connecting, DNSLookupError)
        for host in "::1", "fe80::1%lo", "192.0.2.1", "b\u00fccher.example", "mx.example.":
            self.assertNoResult(HostEndpoint(self.reactor, host, 25, 30).connect(Factory.forProtocol(Protocol)))

    def test_cancelled(self) -> None:
        """Cancelling it cancels its attempts, even while the name is resolved."""
        self.resolver.answer(ADDRESSES)
        self.connecting.cancel()
        self.failureResultOf(self.connecting, ConnectingCancelledError)
        self.assertTrue(self.reactor.connectors[0].stoppedConnecting)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.setUp()
        self.connecting.cancel()
        self.failureResultOf(self.connecting)
        self.resolver.answer(ADDRESSES)
        self.assertEqual(self.tried(), [])
