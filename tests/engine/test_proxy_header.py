"""Behind a proxy, in memory: which PROXY headers are trusted, their effect, and connections without a valid one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, PEER, TRANSACTION, Client, LoggingTestCase, Waiting, handler, in_three_forms
from tests.wire.test_proxy import V1, V2, WHOLE, version2
from txsmtpd import SMTP, SMTPFactory
from txsmtpd.engine.proxy_header import ProxyHeaderError
from txsmtpd.handlers.trace_header import received
from txsmtpd.log.events import client_text
from txsmtpd.observe.transcript import Transcripts
from txsmtpd.wire.networks import Networks

OWN = ("192.0.2.7", 4321)  # PEER, the address of all proxies in these tests
HEADER = b"PROXY TCP4 203.0.113.9 198.51.100.25 5555 25\r\n"
CLIENT = ("203.0.113.9", 5555)
LOCAL = version2(0)
TRUSTED = ["192.0.2.0/24"]


def proxied(handler: object = None, **options: Any) -> Client:
    """A connection from a trusted proxy, before its header."""
    options.setdefault("proxy_from", TRUSTED)
    return Client(handler, **options)


class HeaderTests(LoggingTestCase):
    """A header from a trusted network."""

    def test_peer(self) -> None:
        """The session's peer is the client of the header. The proxy's address and the header are kept in other
        attributes."""
        for header, peer in (
            (HEADER, CLIENT),
            (V2, OWN),
            (WHOLE, ("2001:db8::7", 4321)),
            (version2(1, 3, 1, bytes(216)), ""),
        ):
            client = proxied()
            self.assertEqual(client.welcome, b"")
            self.assertEqual(client.codes(header), [220])
            session = client.server.session
            self.assertEqual((session.peer, session.proxy_peer), (peer, OWN))
            self.assertEqual(bytes(session.proxy_data.whole_raw), header)

    def test_everySplit(self) -> None:
        """The replies do not depend on how the header and the commands are split."""
        for header in (HEADER, V2):
            octets = header + GREETING + TRANSACTION + b"QUIT\r\n"
            whole = proxied().talk(octets)
            self.assertTrue(whole.startswith(b"220 "))
            cuts: list[Iterable[int]] = [range(len(octets)), *([cut] for cut in range(len(octets)))]
            for each in cuts:
                client = proxied()
                client.say(octets, each)
                self.assertEqual(client.heard(), whole)
                self.assertTrue(client.closed)

    def test_ownConnection(self) -> None:
        """LOCAL, UNKNOWN and unspecified families name no client: the session's peer is the proxy itself."""
        for header in (LOCAL, version2(0, 1, 1, bytes(12)), b"PROXY UNKNOWN\r\n", version2(1, 0, 0, b"abc")):
            client = proxied()
            self.assertEqual(client.codes(header + GREETING), [220, 250])
            session = client.server.session
            self.assertEqual((session.peer, session.proxy_peer), (OWN, None))
            self.assertTrue(session.proxy_data)

    def test_onlyOnce(self) -> None:
        """A second header is an unknown command, and changes nothing."""
        client = proxied()
        self.assertEqual(client.codes(HEADER + V1 + GREETING), [220, 500, 250])
        self.assertEqual(client.server.session.peer, CLIENT)

    def test_untrusted(self) -> None:
        """Other networks need no header: the client gets the greeting immediately, and PROXY is an unknown command."""
        client = Client(proxy_from=["198.51.100.0/24", "unix"])
        self.assertTrue(client.welcome.startswith(b"220 "))
        answer = client.ask(HEADER[:-2])
        self.assertEqual((answer.code, answer.text), (500, "5.5.1 Command PROXY not recognized"))
        session = client.server.session
        self.assertEqual((session.peer, session.proxy_peer, session.proxy_data), (OWN, None, None))
        client.talk(V2)
        self.assertEqual((session.peer, session.proxy_data), (OWN, None))

    def test_off(self) -> None:
        """Without the option, there are no proxies."""
        for options in ({}, {"proxy_from": []}, {"proxy_from": None}):
            client = Client(**options)
            self.assertTrue(client.welcome)
            self.assertEqual(client.ask(HEADER[:-2]).code, 500)

    def test_families(self) -> None:
        """Proxies may connect over IPv4, IPv6 and Unix sockets."""
        mapped = IPv6Address("TCP", "::ffff:192.0.2.7", 1)
        for peer, networks in (
            (PEER, ["192.0.2.7"]),
            (mapped, ["192.0.2.7"]),
            (IPv6Address("TCP", "2001:db8::1", 1), ["2001:db8::/32"]),
            (UNIXAddress("/run/mail"), ["unix"]),
        ):
            client = Client(peer=peer, proxy_from=networks)
            self.assertEqual(client.welcome, b"")
            self.assertEqual(client.codes(HEADER), [220])
            self.assertEqual(client.server.session.peer, CLIENT)

    def test_trace(self) -> None:
        """The Received field of a message names the client."""
        lines: list[bytes] = []

        async def data(server: Any, session: Any, envelope: Any) -> str:
            lines.append(received("mx.test", session, envelope, "1"))
            return "250 2.0.0 OK"

        client = proxied(handler(DATA=data))
        client.talk(HEADER + GREETING)
        self.assertEqual(client.send_message().code, 250)
        self.assertIn(b"from client.test ([203.0.113.9])", lines[0])

    def test_connect(self) -> None:
        """``handle_CONNECT`` is called after the header, and its reply is the first output."""
        peers = []

        def connect(server: Any, session: Any, envelope: Any) -> str:
            peers.append(session.peer)
            return "554 5.7.1 Not you"

        client = proxied(handler(CONNECT=connect))
        self.assertEqual(peers, [])
        self.assertEqual(client.codes(HEADER + GREETING), [554, 503])
        self.assertEqual(peers, [CLIENT])


class HookTests(LoggingTestCase):
    """``handle_PROXY``."""

    def test_told(self) -> None:
        """It gets the header and the proxy's address before anything is sent to the client."""
        seen: list[Any] = []

        def proxy(server: Any, session: Any, envelope: Any, proxy_data: Any) -> bool:
            seen.extend([proxy_data, session.proxy_data, session.peer, session.proxy_peer, envelope.mail_from])
            seen.append(client.transport.taken)
            return True

        client = proxied(handler(PROXY=proxy))
        client.talk(HEADER)
        data = client.server.session.proxy_data
        self.assertEqual(seen, [data, data, OWN, OWN, None, b""])
        self.assertEqual(str(data.src_addr), CLIENT[0])
        self.assertEqual(client.server.session.peer, CLIENT)

    def test_decides(self) -> None:
        """A true result continues the session. A false result closes the connection without a reply."""
        for result in (True, "yes", 1, False, None, 0, ""):
            for _, hook in in_three_forms(result):
                client = proxied(handler(PROXY=hook))
                said = client.talk(HEADER + GREETING)
                self.assertEqual((bool(said), client.closed), (bool(result), not result))

    def test_waits(self) -> None:
        """While it waits, no input is lost. The timeout of the header no longer applies."""
        hook = Waiting(True)
        client = proxied(handler(PROXY=hook))
        self.assertEqual(client.talk(HEADER + GREETING), b"")
        client.wait(60)
        hook.fire()
        self.assertEqual(client.codes(b"NOOP\r\n"), [220, 250, 250])

    def test_refusesLater(self) -> None:
        """A false result after a wait closes the connection, too."""
        hook = Waiting(False)
        client = proxied(handler(PROXY=hook))
        client.say(HEADER + GREETING)
        hook.fire()
        self.assertEqual(client.wait(1), b"")
        self.assertTrue(client.closed)
        self.assertEqual(self.logged("warn"), self.logged())

    def test_fails(self) -> None:
        """If it raises an exception, the connection is closed without a reply, and the log has the traceback."""

        def proxy(*arguments: Any) -> bool:
            raise RuntimeError("secret")

        client = proxied(handler(PROXY=proxy))
        self.assertEqual(client.talk(HEADER + GREETING), b"")
        self.assertTrue(client.closed)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_takesTooLong(self) -> None:
        """If it takes too long, the connection is closed."""
        for obedient in (True, False):
            hook = Waiting(True, obedient)
            client = proxied(handler(PROXY=hook), hook_timeout=10)
            client.say(HEADER + GREETING)
            said = client.wait(11)
            self.assertNotIn(b"220", said)
            self.assertTrue(client.closed)

    def test_clientLeaves(self) -> None:
        """If the client disconnects while the hook waits, no refusal is logged."""
        causes: list[Any] = []
        hook = Waiting(True)
        client = proxied(handler(PROXY=hook, DISCONNECT=lambda *arguments: causes.append(arguments[-1])))
        client.say(HEADER)
        client.vanish(ConnectionDone())
        self.assertEqual(hook.cancelled, 1)
        self.assertEqual([type(cause) for cause in causes], [ConnectionDone])
        self.assertEqual(self.logged(), [])

    def test_ownWord(self) -> None:
        """If a hook sets ``session.peer``, its value is kept."""

        def proxy(server: Any, session: Any, envelope: Any, proxy_data: Any) -> bool:
            session.peer = ("198.51.100.1", 1)
            return True

        client = proxied(handler(PROXY=proxy))
        client.talk(HEADER)
        session = client.server.session
        self.assertEqual((session.peer, session.proxy_peer), (("198.51.100.1", 1), OWN))


class BadHeaderTests(LoggingTestCase):
    """An invalid or late header closes the connection without a reply, and with one line in the log."""

    def setUp(self) -> None:
        super().setUp()
        self.causes: list[BaseException] = []
        self.handler = handler(DISCONNECT=lambda *arguments: self.causes.append(arguments[-1]))

    def assertEnded(self, client: Client, why: str, cause: type[BaseException] = ProxyHeaderError) -> None:
        """Assert that the connection has ended as expected."""
        self.assertTrue(client.closed)
        self.assertEqual(client.transport.taken, b"")
        (line,) = self.logged()
        self.assertIn(f"PROXY header from {client_text(OWN)} refused: ", line)
        self.assertIn(why, line)
        self.assertTrue(line.isprintable())
        self.assertEqual([type(each) for each in self.causes], [cause])
        self.assertEqual(client.clock.getDelayedCalls(), [])
        self.events.clear()
        self.causes.clear()

    def test_garbage(self) -> None:
        """Other protocols, SMTP included, and slightly malformed headers."""
        for octets, why in (
            (GREETING, "there is no PROXY header"),
            (b"GET / HTTP/1.1\r\n\r\n", "there is no PROXY header"),
            (b"\x16\x03\x01\x02\x00\x01", "there is no PROXY header"),
            (b"PROXY TCP4 localhost 2.2.2.2 3 4\r\n", "an address is not an IPv4 address"),
            (b"PROXY \x1b[31m\r\n", "the protocol is not TCP4"),
            (V2[:12] + b"\x31" + V2[13:], "unknown version 3"),
            (WHOLE[:-1] + b"\0", "the checksum is wrong"),
        ):
            client = proxied(self.handler)
            client.say(octets + GREETING)
            self.assertFalse(client.server.session.proxy_data)
            self.assertEqual(client.server.session.peer, OWN)
            self.assertEnded(client, why)

    def test_tooLong(self) -> None:
        """A header without an end is read only up to the maximum length of a header."""
        for octets in (b"PROXY " + b"x" * 200, V2[:14] + b"\xff\xff" + bytes(100)):
            for cuts in ([], range(len(octets))):
                client = proxied(self.handler)
                client.say(octets, cuts)
                self.assertEnded(client, "the header is longer than")

    def test_slow(self) -> None:
        """The timeout is five seconds, for silent clients and for those that send one octet at a time."""
        client = proxied(self.handler)
        client.wait(4.9)
        self.assertFalse(client.closed)
        client.wait(0.2)
        self.assertIsNone(client.server.session.proxy_data)
        self.assertEnded(client, "it did not arrive in time", TimeoutError)
        client = proxied(self.handler)
        for octet in range(len(HEADER)):
            client.say(HEADER[octet : octet + 1])
            client.wait(0.5)
        self.assertEnded(client, "it did not arrive in time", TimeoutError)

    def test_ownTimeout(self) -> None:
        """The timeout is an option."""
        client = proxied(self.handler, proxy_protocol_timeout=60)
        client.wait(59)
        self.assertFalse(client.closed)
        client.wait(2)
        self.assertEnded(client, "it did not arrive in time", TimeoutError)
        client = proxied(self.handler, proxy_protocol_timeout=60, timeout=10)
        client.wait(11)
        self.assertEnded(client, "it did not arrive in time", TimeoutError)

    def test_timeIsOver(self) -> None:
        """After the header, its timeout no longer applies."""
        client = proxied(self.handler)
        self.assertEqual(client.codes(HEADER), [220])
        client.wait(100)
        self.assertFalse(client.closed)
        self.assertEqual(client.codes(GREETING), [250])

    def test_truncated(self) -> None:
        """The connection is lost or half-closed within the header."""
        for octets, why in ((b"", "there is no header"), (HEADER[:20], "not complete"), (V2[:20], "not complete")):
            client = proxied(self.handler)
            client.say(octets)
            client.vanish(ConnectionDone())
            self.assertEnded(client, why)
            client = proxied(self.handler)
            client.say(octets)
            client.half_close()
            self.assertEnded(client, why)

    def test_halfClose(self) -> None:
        """A client that half-closes after the header and its commands gets its replies."""
        client = proxied(self.handler)
        client.say(HEADER + GREETING + b"QUIT\r\n")
        client.half_close()
        self.assertEqual(
            [line[:3] for line in client.heard().splitlines() if line[3:4] != b"-"], [b"220", b"250", b"221"]
        )

    def test_shutdown(self) -> None:
        """A server that shuts down does not wait for a header, and sends nothing to clients without one."""
        for end in ("drain", "abort"):
            client = proxied(self.handler)
            getattr(client.factory, end)()
            client.wait(0.25)
            self.assertTrue(client.closed)
            self.assertEqual((client.transport.taken, self.logged()), (b"", []))
            self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_withinTLS(self) -> None:
        """If the endpoint starts TLS, the server cannot read the header, and does not wait for it."""

        class Wrapped(StringTransport, TLSMemoryBIOProtocol):
            def __init__(self) -> None:
                StringTransport.__init__(self, peerAddress=PEER)

            def setTcpNoDelay(self, enabled: bool) -> None:
                pass

        clock = Clock()
        factory = SMTPFactory(self.handler, proxy_from=TRUSTED, reactor=clock)
        transport = Wrapped()
        factory.buildProtocol(PEER).makeConnection(transport)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(transport.value(), b"")
        self.assertIn("use implicit_tls", self.logged("warn")[0])


class EverybodyTests(SynchronousTestCase):
    """``proxy_protocol_timeout`` alone: all peers are proxies, and the handler decides."""

    def test_everybody(self) -> None:
        """All connections must start with a header, from any network."""
        hooks = handler(PROXY=lambda *arguments: True)
        for peer in (PEER, IPv6Address("TCP", "::1", 1), UNIXAddress(None)):
            client = Client(hooks, peer=peer, proxy_protocol_timeout=3)
            self.assertEqual(client.welcome, b"")
            self.assertEqual(client.codes(HEADER), [220])
            client = Client(hooks, peer=peer, proxy_protocol_timeout=3)
            client.wait(3.25)
            self.assertTrue(client.closed)

    def test_networks(self) -> None:
        """Together with ``proxy_from`` it is only the timeout."""
        self.assertTrue(Client(proxy_protocol_timeout=3, proxy_from=["198.51.100.1"]).welcome)
        self.assertTrue(Client(proxy_protocol_timeout=3, proxy_from=[]).welcome)

    def test_needsHook(self) -> None:
        """Without a hook that decides, clients could claim any address. Therefore the factory refuses the options."""
        error = self.assertRaises(ValueError, SMTPFactory, proxy_protocol_timeout=5)
        self.assertIn("give proxy_from too", str(error))

    def test_nobodyDecides(self) -> None:
        """If a program creates such a protocol itself, the log reports it, and all connections are closed."""
        with self.assertLogs("mail.log", "ERROR"):
            server = SMTP(handler(), proxy_protocol_timeout=5, reactor=Clock())
        transport = StringTransport()
        server.makeConnection(transport)
        server.dataReceived(HEADER)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(transport.value(), b"")

    def test_values(self) -> None:
        """Invalid timeouts are refused. A timeout that is shorter than a retransmission causes a warning."""
        for value in (0, -1, float("nan")):
            self.assertRaises(ValueError, SMTPFactory, proxy_from=TRUSTED, proxy_protocol_timeout=value)
        for wrong in ("5", True):
            self.assertRaises(TypeError, SMTPFactory, proxy_from=TRUSTED, proxy_protocol_timeout=wrong)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            SMTPFactory(proxy_from=TRUSTED, proxy_protocol_timeout=3)
            self.assertEqual(warned, [])
            SMTPFactory(proxy_from=TRUSTED, proxy_protocol_timeout=2.9)
            self.assertIn("proxy_protocol_timeout < 3.0", str(warned[0].message))

    def test_badNetworks(self) -> None:
        """Invalid networks are refused when the factory is created."""
        self.assertRaises(ValueError, SMTPFactory, proxy_from=["localhost"])
        self.assertRaises(TypeError, SMTPFactory, proxy_from="192.0.2.0/24")

    def test_mappedNetwork(self) -> None:
        """An IPv4 network may be written as an IPv4-mapped IPv6 network."""
        for network in "::ffff:192.0.2.0/120", "::ffff:192.0.2.7", "::ffff:0:0/96":
            self.assertEqual(Client(proxy_from=[network]).welcome, b"", network)
        for network in "::ffff:192.0.3.0/120", "::/0":
            self.assertTrue(Client(proxy_from=[network]).welcome, network)

    def test_nobody(self) -> None:
        """Only the peer ``""`` counts as a Unix socket, and not other peers without a valid address."""
        networks = Networks("proxy_from", ["unix", "192.0.2.0/24"])
        self.assertIn("", networks)
        for peer in None, "192.0.2.7", ["192.0.2.7", 1], ("", 0), ("unix", 0):
            self.assertNotIn(peer, networks)


class LimitTests(SynchronousTestCase):
    """``connection_limit_per_host`` behind a proxy."""

    def factory(self) -> SMTPFactory:
        return SMTPFactory(
            hostname="mx.test", reactor=Clock(), proxy_from=TRUSTED, connection_limit_per_host=2, timeout=None
        )

    def test_clients(self) -> None:
        """Connections count for the client that the header names, not for the proxy."""
        factory = self.factory()
        ports = range(5551, 5554)
        first, second, third = (self.connected(factory, HEADER.replace(b"5555", str(port).encode())) for port in ports)
        self.assertEqual([first.closed, second.closed, third.closed], [False, False, True])
        self.assertTrue(third.transport.taken.startswith(b"421 4.7.0 Too many connections"))
        for client in range(10, 14):
            self.assertFalse(self.connected(factory, HEADER.replace(b".9 ", b".%d " % client)).closed)
        first.vanish()
        self.assertFalse(self.connected(factory, HEADER).closed)
        self.assertTrue(self.connected(factory, HEADER).closed)

    def test_own(self) -> None:
        """The proxy's own connections are not limited. Direct clients are."""
        factory = self.factory()
        for _ in range(5):
            self.assertFalse(self.connected(factory, LOCAL).closed)
        elsewhere = IPv4Address("TCP", "198.51.100.9", 1)
        direct = [Client(peer=elsewhere, factory=factory) for _ in range(3)]
        self.assertEqual([client.welcome[:3] for client in direct], [b"220", b"220", b"421"])

    def test_gone(self) -> None:
        """Nothing is kept about clients that have disconnected, with or without a header."""
        factory = self.factory()
        clients = [self.connected(factory, octets) for octets in (HEADER, HEADER, HEADER, LOCAL, b"", b"EHLO\r\n")]
        for client in clients:
            if not client.closed:
                client.vanish()
        self.assertEqual([(places.taken, places._of) for places in factory.places], [({}, {})])
        self.assertEqual(factory.connections, set())

    def connected(self, factory: SMTPFactory, octets: bytes) -> Client:
        client = Client(factory=factory)
        client.say(octets)
        return client


class StartTLSTests(SynchronousTestCase):
    """What STARTTLS discards, and what it keeps."""

    def test_forget(self) -> None:
        """STARTTLS keeps the client's address, because the connection provides it and not the client."""
        client = proxied()
        client.talk(HEADER + GREETING)
        before = client.server.session
        client.server._reset_session()
        after = client.server.session
        self.assertIsNot(after, before)
        self.assertEqual((after.peer, after.proxy_peer, after.host_name), (CLIENT, OWN, None))
        self.assertIs(after.proxy_data, before.proxy_data)


class SubclassTests(SynchronousTestCase):
    """Custom servers."""

    def test_greet(self) -> None:
        """A subclass without a factory works behind a proxy, too."""
        server = SMTP(proxy_from=TRUSTED, hostname="mx.test", reactor=Clock())
        transport = StringTransport(peerAddress=PEER)
        server.makeConnection(transport)
        self.assertEqual(transport.value(), b"")
        server.dataReceived(HEADER)
        self.assertEqual(transport.value(), b"220 mx.test ESMTP txsmtpd\r\n")


class TranscriptTests(SynchronousTestCase):
    """A header in a transcript."""

    def test_kept(self) -> None:
        """A transcript has the client of the header, or the error. The header does not count as mail data."""
        for header, shown in (
            (HEADER, "for 203.0.113.9:5555"),
            (LOCAL, "the proxy's own connection"),
            (b"EHLO client.test\r\n", "there is no PROXY header"),
        ):
            kept = Transcripts()
            proxied(transcript=kept).talk(header)
            (transcript,) = kept
            self.assertIn(f"(PROXY header: {shown})", str(transcript))
            self.assertNotIn("octets", str(transcript))
