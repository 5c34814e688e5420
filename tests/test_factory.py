"""The factory: connections, their limits, and shared data."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import txsmtpd
from tests.support import GREETING, PEER, TRANSACTION, Client, Waiting, answers, codes, handler
from txsmtpd import SMTP, SMTPFactory

OTHER = IPv4Address("TCP", "192.0.2.8", 4321)


def factory(hooks: object = None, **options: Any) -> SMTPFactory:
    """A factory with a fake clock."""
    return SMTPFactory(hooks, hostname="mx.test", reactor=Clock(), **options)


class MemoryTests(SynchronousTestCase):
    """The memory of idle connections."""

    def test_idle(self) -> None:
        """An idle connection is small, whatever other connections have done before."""

        class Server(SMTP):
            """A separate class: Python lays out the instances of a class according to the first ones."""

        made = factory(handler(), protocol=Server)
        Client(factory=made).talk(b"QUIT\r\n")
        Client(factory=made).talk(GREETING + TRANSACTION + b"DATA\r\nhi\r\n.\r\nHELP\r\nQUIT\r\n")
        busy = [Client(factory=made) for _ in range(20)]
        for client in busy:
            client.talk(GREETING + b"MAIL FROM:<a@example.com>\r\n")
        tracemalloc.start(15)
        try:
            before = tracemalloc.take_snapshot()
            idle = [Client(factory=made) for _ in range(50)]
            for client in idle:
                client.talk(GREETING + b"MAIL FROM:<a@example.com>\r\n")
            after = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        package = Path(txsmtpd.__file__).parent
        ours = [tracemalloc.Filter(True, f"{package}/*.py"), tracemalloc.Filter(False, f"{package}/testing/*.py")]
        changes = after.filter_traces(ours).compare_to(before.filter_traces(ours), "filename")
        self.assertLess(sum(each.size_diff for each in changes) / len(idle), 1700)


class FactoryTests(SynchronousTestCase):
    """Creating connections."""

    def test_interface(self) -> None:
        """Any endpoint can listen with it."""
        verifyObject(IProtocolFactory, factory())

    def test_protocol(self) -> None:
        """It creates protocols of the given class, all with the same settings."""

        class Server(SMTP):
            pass

        made = factory(protocol=Server)
        first, second = made.buildProtocol(PEER), made.buildProtocol(PEER)
        assert isinstance(first, Server) and isinstance(second, Server)
        self.assertIs(first.settings, second.settings)
        self.assertIs(first.factory, made)
        self.assertIsNot(first, second)

    def test_handler(self) -> None:
        """All connections share one handler."""
        hooks = handler()
        made = factory(hooks)
        self.assertIs(made.handler, hooks)
        self.assertIs(Client(factory=made).server.event_handler, hooks)

    def test_unknownOption(self) -> None:
        """An unknown option is a TypeError immediately, which names the most similar one."""
        error = self.assertRaises(TypeError, SMTPFactory, None, data_size_limits=5)
        self.assertIn("data_size_limit", str(error))
        self.assertRaises(TypeError, SMTPFactory, None, nosuchthing=1)

    def test_nothingShared(self) -> None:
        """Connections are independent: the commands of one do not affect another."""
        made = factory(command_call_limit=3)
        first, second = Client(factory=made), Client(factory=made)
        self.assertEqual(first.codes(GREETING + TRANSACTION + b"NOOP\r\nNOOP\r\nNOOP\r\n"), [250] * 6)
        self.assertEqual(second.codes(b"RCPT TO:<a@b>\r\n" + b"NOOP\r\n" * 4), [503, 250, 250, 250, 421])
        self.assertEqual(first.codes(b"DATA\r\n"), [354])
        self.assertNotEqual(first.server.session.id, second.server.session.id)

    def test_unixSocket(self) -> None:
        """A client on a Unix socket has an empty peer, and is served like others."""
        client = Client(peer=UNIXAddress(None))
        self.assertEqual(client.server.session.peer, "")
        self.assertEqual(client.send_message().code if client.codes(GREETING) == [250] else 0, 250)

    def test_mappedAddress(self) -> None:
        """An IPv4 client of an IPv6 listener has its IPv4 address as peer."""
        client = Client(peer=IPv4Address("TCP", "::ffff:192.0.2.7", 4321))
        self.assertEqual(client.server.session.peer, ("192.0.2.7", 4321))

    def test_knowsConnections(self) -> None:
        """The factory tracks open connections."""
        made = factory()
        first, second = Client(factory=made), Client(factory=made)
        self.assertEqual(made.connections, {first.server, second.server})
        first.talk(b"QUIT\r\n")
        self.assertEqual(made.connections, {second.server})
        second.vanish()
        self.assertEqual(made.connections, set())


class LimitTests(SynchronousTestCase):
    """Connections at the same time."""

    def assertTurnedAway(self, client: Client) -> None:
        """Assert that the client got 421 4.7.0 and was disconnected, without a session."""
        (answer,) = answers(client.welcome)
        self.assertEqual((answer.code, answer.status), (421, "4.7.0"))
        self.assertTrue(client.closed)
        self.assertNotIsInstance(client.server, SMTP)

    def test_total(self) -> None:
        """Above the limit, clients get 421, until others have disconnected."""
        made = factory(connection_limit=2)
        first, second = Client(factory=made), Client(factory=made)
        self.assertTurnedAway(Client(factory=made))
        self.assertTurnedAway(Client(factory=made, peer=OTHER))
        self.assertEqual((first.codes(b"NOOP\r\n"), second.codes(b"NOOP\r\n")), ([250], [250]))
        first.vanish()
        self.assertEqual(codes(Client(factory=made).welcome), [220])
        self.assertTurnedAway(Client(factory=made))

    def test_perHost(self) -> None:
        """The limit for one address does not affect other addresses."""
        made = factory(connection_limit_per_host=1)
        first = Client(factory=made)
        self.assertTurnedAway(Client(factory=made, peer=IPv4Address("TCP", PEER.host, 99)))
        second = Client(factory=made, peer=OTHER)
        self.assertEqual(codes(second.welcome), [220])
        first.talk(b"QUIT\r\n")
        self.assertEqual(codes(Client(factory=made).welcome), [220])

    def test_perHostForgets(self) -> None:
        """Nothing is kept about addresses without connections."""
        made = factory(connection_limit_per_host=1)
        for number in range(100):
            client = Client(factory=made, peer=IPv4Address("TCP", f"192.0.2.{number}", 1))
            client.vanish()
        self.assertEqual([(places.taken, places._of) for places in made.places], [({}, {})])

    def test_perHostOnUnixSocket(self) -> None:
        """Clients on a Unix socket have no address, and no such limit."""
        made = factory(connection_limit_per_host=1)
        clients = [Client(factory=made, peer=UNIXAddress(None)) for _ in range(3)]
        self.assertEqual([codes(client.welcome) for client in clients], [[220]] * 3)

    def test_noHooksForTheTurnedAway(self) -> None:
        """Hooks are not called for clients above the limit."""
        hook = Waiting(None)
        made = factory(handler(CONNECT=hook), connection_limit=1)
        Client(factory=made)
        self.assertTurnedAway(Client(factory=made))
        self.assertEqual(len(hook.calls), 1)

    def test_talksAnyway(self) -> None:
        """Input of a rejected client is ignored."""
        made = factory(connection_limit=0)
        client = Client(factory=made)
        assert isinstance(client.server, Protocol)
        client.server.dataReceived(GREETING)
        self.assertEqual(client.heard(), b"")

    def test_checked(self) -> None:
        """An invalid limit is refused when the factory is created."""
        for name in ("connection_limit", "connection_limit_per_host"):
            for value in ("5", 2.5, True, [1]):
                self.assertRaises(TypeError, SMTPFactory, None, **{name: value})
            self.assertRaises(ValueError, SMTPFactory, None, **{name: -1})
