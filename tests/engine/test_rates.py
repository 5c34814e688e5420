"""Replies to clients that exceed rates: connections, messages, recipients, TLS sessions, logins."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from tests.support import GREETING, TRANSACTION, Client, LoggingTestCase, answers, codes
from txsmtpd import SMTP, SMTPFactory
from txsmtpd.limits import Limits, Retry

LOCAL = IPv4Address("TCP", "127.0.0.1", 4321)
MAIL = b"MAIL FROM:<a@example.com>\r\nRSET\r\n"


def other(number: int) -> IPv4Address:
    return IPv4Address("TCP", f"192.0.2.{number}", 4321)


def plain(login: str, password: str = "wrong") -> bytes:
    return b"AUTH PLAIN " + b64encode(f"\0{login}\0{password}".encode()) + b"\r\n"


def knows(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> bool:
    return bool(data.password == b"right")


class RateTests(LoggingTestCase):
    """``rates``."""

    def test_messages(self) -> None:
        """A message above the rate gets 450 at MAIL, with the time to wait. After that time, it is accepted."""
        client = Client(rates={"messages": "60/min,burst=2"}, junk_command_limit=None)
        client.talk(GREETING)
        said = answers(client.talk(MAIL * 3))
        self.assertEqual([answer.code for answer in said], [250, 250, 250, 250, 450, 250])
        self.assertEqual(said[4].text, "4.7.1 Too many messages, try again in 1 second")
        client.wait(1)
        self.assertEqual(codes(client.talk(MAIL)), [250, 250])

    def test_ownCommand(self) -> None:
        """A command that is an attribute of the protocol object counts like the command that it replaces."""

        class Own(SMTP):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.smtp_MAIL = super().smtp_MAIL  # type: ignore[method-assign]  # what is tested

        for rates, last in (({"messages": "60/min,burst=1"}, 450), (None, 250)):
            client = Client(SMTPFactory(rates=rates, protocol=Own))
            client.talk(b"EHLO c.example\r\n")
            said = codes(client.talk(b"MAIL FROM:<a@a.example>\r\nRSET\r\nMAIL FROM:<a@a.example>\r\n"))
            self.assertEqual(said, [250, 250, last])

    def test_recipients(self) -> None:
        """A recipient above the rate gets 450. The message is sent to the earlier ones."""
        client = Client(rates={"recipients": "2/hour"})
        said = client.talk(GREETING + TRANSACTION + b"RCPT TO:<c@x.test>\r\nRCPT TO:<d@x.test>\r\nDATA\r\nx\r\n.\r\n")
        self.assertEqual(codes(said)[-5:], [250, 250, 450, 354, 250])
        self.assertIn("4.7.1 Too many recipients, try again in 1800 seconds", answers(said)[-3].text)

    def test_connections(self) -> None:
        """A connection above the rate gets 421 in place of the greeting."""
        factory = SMTPFactory(rates={"connections": "2/min"})
        clients = [Client(factory=factory, peer=other(1)) for _ in range(3)]
        self.assertEqual([client.closed for client in clients], [False, False, True])
        self.assertEqual(
            answers(clients[2].transport.taken)[0].text,
            "4.7.0 Too many connections from your network, try again in 30 seconds",
        )
        self.assertFalse(Client(factory=factory, peer=other(2)).closed)

    def test_sharedByNetwork(self) -> None:
        """Clients of one network count together: an IPv6 /64, and an IPv4 address in both forms."""
        for peers in (
            [IPv6Address("TCP", f"2001:db8::{number}", 1) for number in range(3)],
            [IPv4Address("TCP", "192.0.2.1", 1), IPv6Address("TCP", "::ffff:192.0.2.1", 1)] * 2,
        ):
            factory = SMTPFactory(rates={"messages": "2/min"})
            said = [codes(Client(factory=factory, peer=peer).talk(GREETING + MAIL))[1] for peer in peers]
            self.assertEqual(said[:3], [250, 250, 450])

    def test_prefixes(self) -> None:
        """The prefix length of networks is an option."""
        factory = SMTPFactory(rates={"messages": "1/min"}, network_prefixes=(24, 48))
        said = [codes(Client(factory=factory, peer=other(number)).talk(GREETING + MAIL))[1] for number in (1, 200)]
        self.assertEqual(said, [250, 450])

    def test_unlimited(self) -> None:
        """Loopback has no limits, unless other networks are exempt instead."""
        rates = {"messages": "1/min"}
        self.assertEqual(set(codes(Client(peer=LOCAL, rates=rates).talk(GREETING + MAIL * 9))), {250})
        mine = Client(peer=other(1), rates=rates, unlimited_networks=["192.0.2.0/24"])
        self.assertEqual(set(codes(mine.talk(GREETING + MAIL * 9))), {250})
        local = Client(peer=LOCAL, rates=rates, unlimited_networks=[])
        self.assertIn(450, codes(local.talk(GREETING + MAIL * 9)))

    def test_login(self) -> None:
        """Authenticated clients are counted by their login, from all networks."""
        options: dict[str, Any] = {"authenticator": knows, "auth_require_tls": False}
        factory = SMTPFactory(rates={"messages": "2/min"}, **options)

        def mail(number: int, login: str) -> int:
            client = Client(factory=factory, peer=other(number))
            return codes(client.talk(GREETING + plain(login, "right") + MAIL))[2]

        self.assertEqual([mail(number, "fred") for number in (1, 2, 3)], [250, 250, 450])
        self.assertEqual(mail(1, "anna"), 250)

    def test_log(self) -> None:
        """The log has one line about the decision, with the client's address."""
        client = Client(rates={"messages": "1/min"})
        client.talk(GREETING + MAIL * 2)
        [line] = [each for each in self.logged("info") if "refused" in each]
        self.assertRegex(
            line, r"^\S+ MAIL refused, client 192\.0\.2\.7:4321(, from <a@example.com>)?: 450 4\.7\.1 Too many"
        )

    def test_settings(self) -> None:
        """Invalid rates, unknown kinds, and a limiter together with rates are refused when the factory is created."""
        for options, kind, text in [
            ({"rates": {"messages": "many"}}, ValueError, "is not a rate"),
            ({"rates": {"mails": "1/s"}}, ValueError, "there is no rate of 'mails'"),
            ({"auth_failures_per_network": "x"}, ValueError, "is not a rate"),
            ({"limiter": object()}, TypeError, "provides ILimiter"),
            ({"limiter": Limits(), "rates": {"messages": "1/s"}}, TypeError, "exclude each other"),
            ({"network_prefixes": (0, 64)}, ValueError, "prefix lengths"),
            ({"unlimited_networks": ["192.0.2.1/24"]}, ValueError, "unlimited_networks"),
        ]:
            self.assertIn(text, str(self.assertRaises(kind, SMTPFactory, **options)))


class LimiterTests(LoggingTestCase):
    """A custom limiter."""

    def test_waits(self) -> None:
        """It may return an awaitable. The client's further commands wait for it."""
        asked: list[Deferred[Any]] = []

        class Slow:
            def admit(self, kind: str, key: str) -> Awaitable[Retry | None]:
                asked.append(Deferred())
                return asked[-1]

            def auth_failed(self, network: str, name: str) -> int:
                return 1

        client = Client(limiter=Slow())
        self.assertEqual(client.talk(b""), b"")
        asked.pop().callback(None)
        self.assertEqual(codes(client.talk(b""))[-1:], [220])
        self.assertEqual(codes(client.talk(GREETING + MAIL)), [250])
        asked.pop().callback(Retry(7))
        self.assertEqual(codes(client.talk(b"")), [450, 250])

    def test_shared(self) -> None:
        """Factories with the same limiter share its limits."""
        limits = Limits({"messages": "1/min"})
        said = [codes(Client(limiter=limits, peer=other(1)).talk(GREETING + MAIL))[1] for _ in range(2)]
        self.assertEqual(said, [250, 450])

    def test_fails(self) -> None:
        """If it raises an exception, the reply is 451, as for a hook. The session continues."""

        class Broken:
            kinds = frozenset(["messages"])

            def admit(self, kind: str, key: str) -> None:
                raise LookupError

            def auth_failed(self, network: str, name: str) -> int:
                return 1

        client = Client(limiter=Broken())
        self.assertEqual(codes(client.talk(GREETING + MAIL)), [250, 451, 250])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)


class AuthTests(LoggingTestCase):
    """Password guessing over many connections."""

    def factory(self, **options: Any) -> SMTPFactory:
        return SMTPFactory(authenticator=knows, auth_require_tls=False, auth_failure_delay=0, **options)

    def attempt(self, factory: SMTPFactory, login: str, number: int = 1, password: str = "wrong") -> int:
        client = Client(factory=factory, peer=other(number))
        return codes(client.talk(GREETING + plain(login, password)))[-1]

    def test_names(self) -> None:
        """A network that fails with too many distinct names gets 454, whatever the password is."""
        factory = self.factory(auth_failures_per_network="3/10min")
        said = [self.attempt(factory, f"name{number}") for number in range(4)]
        self.assertEqual(said, [535, 535, 535, 454])
        self.assertEqual(self.attempt(factory, "fred", password="right"), 454)
        self.assertEqual(self.attempt(factory, "fred", 2, "right"), 235)

    def test_default(self) -> None:
        """The default limit is twenty names in ten minutes."""
        factory = self.factory()
        self.assertEqual([self.attempt(factory, f"name{number}") for number in range(21)], [535] * 20 + [454])

    def test_oldPassword(self) -> None:
        """One name may fail any number of times, and is never locked."""
        factory = self.factory()
        self.assertEqual({self.attempt(factory, "fred") for _ in range(50)}, {535})
        self.assertEqual(self.attempt(factory, "fred", password="right"), 235)

    def test_slowedDown(self) -> None:
        """The delay of its reply doubles each time, up to ten seconds, from all networks."""
        factory = SMTPFactory(authenticator=knows, auth_require_tls=False)
        waits = []
        for number in range(6):
            client = Client(factory=factory, peer=other(number))
            client.talk(GREETING)
            said, waited = client.talk(plain("fred")), 0
            while not said:
                said, waited = client.wait(1), waited + 1
            waits.append(waited)
        self.assertEqual(waits, [1, 2, 4, 8, 10, 10])

    def test_unlimited(self) -> None:
        """Failures from loopback are not counted."""
        factory = self.factory(auth_failures_per_network="1/10min")
        for number in range(5):
            client = Client(factory=factory, peer=LOCAL)
            self.assertEqual(codes(client.talk(GREETING + plain(f"name{number}")))[-1], 535)


class PlacesTests(LoggingTestCase):
    """``connection_limit_per_network``."""

    def test_network(self) -> None:
        """A network may have a limited number of connections. Other networks are not affected."""
        factory = SMTPFactory(connection_limit_per_network=2)
        clients = [Client(factory=factory, peer=IPv6Address("TCP", f"2001:db8::{each}", 1)) for each in range(3)]
        self.assertEqual([client.closed for client in clients], [False, False, True])
        self.assertEqual(codes(clients[2].transport.taken), [421])
        self.assertFalse(Client(factory=factory, peer=IPv6Address("TCP", "2001:db8:0:1::1", 1)).closed)
        clients[0].talk(b"QUIT\r\n")
        self.assertFalse(Client(factory=factory, peer=IPv6Address("TCP", "2001:db8::9", 1)).closed)
        self.assertEqual(factory.refused["network"], 1)

    def test_unlimited(self) -> None:
        """Loopback may have any number."""
        factory = SMTPFactory(connection_limit_per_network=1)
        self.assertEqual({Client(factory=factory, peer=LOCAL).closed for _ in range(9)}, {False})

    def test_log(self) -> None:
        """Refusals are logged with the address. A flood of them is not logged completely."""
        factory = SMTPFactory(connection_limit_per_network=0)
        for _ in range(100):
            Client(factory=factory, peer=other(1))
        lines = [line for line in self.logged("info") if "refused" in line]
        self.assertEqual(len(lines), 3)
        self.assertEqual(
            lines[0],
            "connection refused, client 192.0.2.1:4321: 421 4.7.0 Too many connections, try again later;"
            " its network has too many connections",
        )
        Client(factory=factory, peer=other(2))
        self.assertIn("client 192.0.2.2:4321", self.logged("info")[-1])

    def test_proxy(self) -> None:
        """Behind a proxy, limits and rates apply to the client that the header names."""
        factory = SMTPFactory(connection_limit_per_network=1, rates={"messages": "1/min"}, proxy_from=["10.0.0.0/8"])
        proxy = IPv4Address("TCP", "10.0.0.1", 1)

        def forwarded(host: str) -> Client:
            client = Client(factory=factory, peer=proxy)
            client.talk(f"PROXY TCP4 {host} 192.0.2.99 1 25\r\n".encode())
            return client

        first, again, another = forwarded("192.0.2.1"), forwarded("192.0.2.1"), forwarded("192.0.2.2")
        self.assertEqual([client.closed for client in (first, again, another)], [False, True, False])
        self.assertEqual(codes(first.talk(GREETING + MAIL * 2)), [250, 250, 250, 450, 250])
        self.assertEqual(codes(another.talk(GREETING + MAIL)), [250, 250, 250])
