"""XCLIENT and XFORWARD, and commands of extensions."""

from __future__ import annotations

import subprocess
import warnings
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from tests.engine.test_proxy_header import CLIENT, HEADER, OWN
from tests.support import GREETING, PEER, TRANSACTION, Client, LoggingTestCase, Waiting, handler
from tests.support.programs import program
from tests.support.tls import PATIENCE, RECIPIENT, SENDER, TLSTestCase
from tests.wire.test_proxy import version2
from txsmtpd import SMTP, Extension, Refused, Reply, SMTPFactory, syntax
from txsmtpd.extensions import XClient, XForward
from txsmtpd.handlers.trace_header import received
from txsmtpd.lmtp import LMTP
from txsmtpd.wire.forwarded import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    XClientData,
    XForwardData,
    parse_xclient,
    parse_xforward,
)
from txsmtpd.wire.grammar import encode_xtext

TRUSTED = ["192.0.2.0/24"]
ELSEWHERE = IPv4Address("TCP", "198.51.100.1", 1)


class ParseTests(SynchronousTestCase):
    """Parsing of the attributes."""

    def refusal(self, arg: str, forward: bool = False) -> Reply:
        with self.assertRaises(Refused) as caught:
            parse_xforward(arg, None) if forward else parse_xclient(arg, XClientData())
        reply: Reply = caught.exception.reply
        return reply

    def test_xclient(self) -> None:
        """All attributes of XCLIENT, in upper or lower case, with several spaces between them."""
        said = parse_xclient(
            "NAME=client.test addr=IPV6:2001:DB8::7  PORT=4321 PROTO=esmtp HELO=+5B192.0.2.7]"
            " LOGIN=a+2Bb+40c+20d DESTADDR=198.51.100.25 DESTPORT=25",
            XClientData(said_by=OWN, peer=OWN),
        )
        self.assertEqual(
            said,
            XClientData(
                said_by=OWN,
                peer=("2001:db8::7", 4321),
                name="client.test",
                addr="2001:db8::7",
                port=4321,
                proto="ESMTP",
                helo="[192.0.2.7]",
                login="a+b@c d",
                dest_addr="198.51.100.25",
                dest_port=25,
            ),
        )

    def test_unavailable(self) -> None:
        """An unknown value is None. A name may be missing because of a temporary error."""
        before = XClientData(said_by=OWN, peer=OWN, name="x", addr="203.0.113.9", port=1)
        said = parse_xclient("NAME=[unavailable] ADDR=[UNAVAILABLE] PORT=[Unavailable] LOGIN=[UNAVAILABLE]", before)
        self.assertEqual(said, XClientData(said_by=OWN, peer=("", 0)))
        said = parse_xclient("NAME=[TempUnavail]", before)
        self.assertEqual((said.name, said.name_failed, said.addr), (None, True, "203.0.113.9"))
        self.assertFalse(parse_xclient("NAME=y", said).name_failed)

    def test_again(self) -> None:
        """Name, address and port are kept until they are set again. Protocol, HELO and LOGIN are not kept."""
        first = parse_xclient("NAME=x ADDR=203.0.113.9 HELO=y PROTO=ESMTP LOGIN=z", XClientData(said_by=OWN, peer=OWN))
        self.assertEqual(first.peer, ("203.0.113.9", 0))
        second = parse_xclient("PORT=5", first)
        self.assertEqual((second.name, second.addr, second.peer), ("x", "203.0.113.9", ("203.0.113.9", 5)))
        self.assertEqual((second.helo, second.proto, second.login), (None, None, None))
        self.assertEqual(parse_xclient("PORT=5", XClientData(said_by="", peer="")).peer, "")

    def test_xforward(self) -> None:
        """All attributes of XFORWARD. Addresses need not be IP addresses."""
        said = parse_xforward(
            "NAME=client.test ADDR=IPV6:::1 PORT=1 PROTO=UUCP HELO=h IDENT=3CF6B2 SOURCE=remote", None
        )
        self.assertEqual(
            said,
            XForwardData(
                name="client.test", addr="::1", port=1, proto="UUCP", helo="h", ident="3CF6B2", source="REMOTE"
            ),
        )
        said = parse_xforward("ADDR=uucp!host HELO=[UNAVAILABLE]", said)
        self.assertEqual((said.addr, said.helo, said.ident), ("uucp!host", None, "3CF6B2"))

    def test_malformed(self) -> None:
        """Invalid values are refused with 501 and the name of the attribute."""
        for arg, word in (
            ("FOO=bar", "NAME, ADDR, PORT, PROTO, HELO, LOGIN, DESTADDR, DESTPORT"),
            ("NAME", "as NAME=value"),
            ("=x", "as NAME=value"),
            ("NAME=", "NAME is empty"),
            ("NAME=a NAME=b", "NAME is given twice"),
            ("NAME=" + "x" * 256, "longer than 255"),
            ("NAME=a+20b", "value of NAME"),
            ("NAME=+C3+A4", "value of NAME"),
            ("HELO=a+0D+0Ab", "xtext"),
            ("HELO=a+2", "xtext"),
            ("ADDR=client.test", "value of ADDR"),
            ("ADDR=[192.0.2.1]", "value of ADDR"),
            ("ADDR=192.0.2.256", "value of ADDR"),
            ("ADDR=IPV6:fe80::1+25eth0", "value of ADDR"),
            ("PORT=65536", "value of PORT"),
            ("PORT=-1", "value of PORT"),
            ("PORT=01", "value of PORT"),
            ("PROTO=LMTP", "value of PROTO"),
            ("DESTPORT=x", "value of DESTPORT"),
        ):
            reply = self.refusal(arg)
            self.assertEqual((reply.code, reply.status), (501, "5.5.4"), arg)
            self.assertIn(word, reply.text)
        self.assertIn("IDENT, SOURCE", self.refusal("LOGIN=x", forward=True).text)
        self.assertIn("SOURCE", self.refusal("SOURCE=here", forward=True).text)

    @given(some.sampled_from(XCLIENT_ATTRIBUTES + XFORWARD_ATTRIBUTES), some.text(), some.booleans())
    def test_anything(self, name: str, text: str, forward: bool) -> None:
        """Any text is a value or is refused, encoded or not."""
        for value in (text, encode_xtext(text)):
            try:
                parse_xforward(f"{name}={value}", None) if forward else parse_xclient(f"{name}={value}", XClientData())
            except Refused as refused:
                self.assertEqual(refused.reply.code, 501)


class XClientTests(LoggingTestCase):
    """XCLIENT."""

    def client(self, handler: object = None, **options: Any) -> Client:
        options.setdefault("extensions", [XClient(TRUSTED)])
        return Client(handler, **options)

    def test_offered(self) -> None:
        """EHLO and HELP show it only to clients that may use it. From others it is refused."""
        client = self.client()
        self.assertIn(
            "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT", client.ask(b"EHLO client.test").lines
        )
        self.assertIn("XCLIENT", client.ask(b"HELP").text)
        client = self.client(peer=ELSEWHERE)
        self.assertNotIn("XCLIENT", client.ask(b"EHLO client.test").text)
        self.assertNotIn("XCLIENT", client.ask(b"HELP").text)
        answer = client.ask(b"XCLIENT ADDR=203.0.113.9")
        self.assertEqual((answer.code, answer.status), (550, "5.7.0"))
        self.assertEqual(client.server.session.peer, (ELSEWHERE.host, ELSEWHERE.port))
        self.assertEqual(Client().ask(b"XCLIENT ADDR=203.0.113.9").code, 500)

    def test_peer(self) -> None:
        """The session restarts with a greeting, for the client that was named. Everything that was sent before is
        discarded."""
        client = self.client()
        client.talk(GREETING)
        before = client.server.session
        answer = client.ask(b"XCLIENT NAME=client.test ADDR=203.0.113.9 PORT=5555")
        self.assertEqual((answer.code, answer.text), (220, "mx.test ESMTP txsmtpd"))
        session = client.server.session
        self.assertIsNot(session, before)
        self.assertEqual((session.id, session.peer, session.host_name), (before.id, CLIENT, None))
        self.assertEqual((session.xclient.name, session.xclient.said_by), ("client.test", OWN))
        self.assertEqual((session.authenticated, session.extended_smtp), (None, False))
        self.assertEqual(client.codes(TRANSACTION), [503, 503])
        self.assertEqual(client.codes(b"EHLO real.client.test\r\n" + TRANSACTION), [250, 250, 250])
        header = received("mx.test", client.server.session, client.server.envelope, "1")
        self.assertIn(b"from real.client.test ([203.0.113.9])", header)

    def test_helo(self) -> None:
        """HELO and PROTO replace the client's greeting: MAIL may follow immediately."""
        client = self.client()
        self.assertEqual(client.codes(b"XCLIENT HELO=c.test PROTO=ESMTP\r\n" + TRANSACTION), [220, 250, 250])
        session = client.server.session
        self.assertEqual((session.host_name, session.extended_smtp, session.peer), ("c.test", True, OWN))
        client = self.client()
        client.talk(b"XCLIENT HELO=c.test\r\n")
        self.assertFalse(client.server.session.extended_smtp)

    def test_login(self) -> None:
        """LOGIN authenticates the session, until the next XCLIENT without it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning about passwords without TLS
            client = self.client(auth_required=True, auth_require_tls=False, authenticator=lambda *arguments: True)
        client.talk(b"XCLIENT LOGIN=bob+40example.com\r\n" + GREETING)
        session = client.server.session
        self.assertEqual(
            (session.authenticated, session.auth_data, session.login_data), (True, *["bob@example.com"] * 2)
        )
        self.assertEqual(client.codes(TRANSACTION + b"RSET\r\n"), [250, 250, 250])
        client.talk(b"XCLIENT ADDR=203.0.113.9\r\n" + GREETING)
        self.assertEqual(client.codes(TRANSACTION), [530, 530])

    def test_transaction(self) -> None:
        """During a message, or a transaction, it is refused."""
        client = self.client()
        client.talk(GREETING + TRANSACTION)
        answer = client.ask(b"XCLIENT ADDR=203.0.113.9")
        self.assertEqual((answer.code, answer.status), (503, "5.5.1"))
        self.assertEqual((client.server.session.peer, client.server.envelope.rcpt_tos), (OWN, ["b@example.com"]))

    def test_malformed(self) -> None:
        """A malformed command changes nothing."""
        client = self.client()
        client.talk(GREETING)
        for line in (b"XCLIENT", b"XCLIENT ADDR", b"XCLIENT NAME=x ADDR=nowhere", b"XCLIENT FOO=1"):
            self.assertEqual(client.ask(line).code, 501, line)
        session = client.server.session
        self.assertEqual((session.peer, session.xclient, session.host_name), (OWN, None, "client.test"))

    def test_again(self) -> None:
        """Another XCLIENT may follow, whatever address the first one had: the connection is trusted."""
        client = self.client()
        self.assertEqual(
            client.codes(b"XCLIENT ADDR=203.0.113.9\r\nXCLIENT ADDR=IPV6:2001:db8::1 PORT=7\r\n"), [220, 220]
        )
        self.assertEqual(client.server.session.peer, ("2001:db8::1", 7))
        self.assertEqual(client.server.session.connection_peer, OWN)
        self.assertIn("XCLIENT", client.ask(b"EHLO client.test").text)
        client = self.client(peer=ELSEWHERE)
        client.server.session.peer = ("203.0.113.9", 1)
        self.assertEqual(client.ask(b"XCLIENT ADDR=192.0.2.7").code, 550)

    def test_unavailable(self) -> None:
        """A client without an address belongs to no network, and is not on a Unix socket."""
        client = self.client(extensions=[XClient([*TRUSTED, "unix"])])
        client.talk(b"XCLIENT ADDR=[UNAVAILABLE]\r\nEHLO client.test\r\n")
        session = client.server.session
        self.assertEqual(session.peer, ("", 0))
        self.assertIn(b"Received: from client.test\n", received("mx.test", session, client.server.envelope, "1"))

    def test_unix(self) -> None:
        """Clients on Unix sockets may be trusted."""
        client = self.client(peer=UNIXAddress(None), extensions=[XClient(["unix"])])
        self.assertEqual(client.ask(b"XCLIENT ADDR=203.0.113.9").code, 220)

    def test_connect(self) -> None:
        """``handle_CONNECT`` is called for the new client, too, and may wait or reject it."""
        peers: list[Any] = []

        def connect(server: Any, session: Any, envelope: Any) -> str | None:
            peers.append(session.peer)
            return "554 5.7.1 Not you" if session.peer[0] == "203.0.113.9" else None

        client = self.client(handler(CONNECT=connect))
        self.assertEqual(
            client.codes(b"XCLIENT ADDR=203.0.113.8\r\nXCLIENT ADDR=203.0.113.9\r\nNOOP\r\n"), [220, 554, 503]
        )
        self.assertEqual(peers, [OWN, ("203.0.113.8", 0), ("203.0.113.9", 0)])
        waiting = Waiting(None)
        client = self.client(handler(CONNECT=waiting))
        waiting.fire()
        self.assertEqual(client.codes(b"XCLIENT ADDR=203.0.113.8\r\n" + GREETING), [220])
        waiting.fire()
        self.assertEqual(client.codes(b""), [220, 250])

    def test_startTLS(self) -> None:
        """STARTTLS discards the data of an XCLIENT without TLS (RFC 3207 4.2)."""
        client = self.client()
        client.talk(b"XCLIENT ADDR=203.0.113.9\r\n")
        client.server._reset_session()
        session = client.server.session
        self.assertEqual((session.peer, session.xclient), (OWN, None))

    def test_behindProxy(self) -> None:
        """The client of a trusted proxy is not the proxy: the client itself must be trusted."""
        options: dict[str, Any] = {"proxy_from": TRUSTED, "extensions": [XClient(TRUSTED)]}
        client = self.client(**options)
        self.assertEqual(client.codes(HEADER + b"XCLIENT ADDR=10.0.0.1\r\n"), [220, 550])
        options["extensions"] = [XClient(["203.0.113.0/24"])]
        client = self.client(**options)
        self.assertEqual(client.codes(HEADER + b"XCLIENT ADDR=10.0.0.1\r\n"), [220, 220])
        session = client.server.session
        self.assertEqual((session.peer, session.connection_peer, session.proxy_peer), (("10.0.0.1", 0), CLIENT, OWN))
        self.assertTrue(session.proxy_data)

    def test_unixBehindProxy(self) -> None:
        """A Unix socket in a PROXY header is not on this host, unless the proxy itself is on a Unix socket."""
        header = version2(1, 3, 1, bytes(216))
        for peer, code in (PEER, 550), (UNIXAddress(None), 220):
            client = self.client(peer=peer, proxy_from=[*TRUSTED, "unix"], extensions=[XClient(["unix"])])
            self.assertEqual(client.codes(header + b"XCLIENT ADDR=10.0.0.1\r\n"), [220, code])

    def test_hookedPeer(self) -> None:
        """A hook that sets the peer in another form does not make it trusted."""

        def proxy(server: Any, session: Any, envelope: Any, proxy_data: Any) -> bool:
            session.peer = str(proxy_data.src_addr)
            return True

        client = self.client(handler(PROXY=proxy), proxy_from=TRUSTED, extensions=[XClient(["unix"])])
        self.assertEqual(client.codes(HEADER + b"XCLIENT ADDR=10.0.0.1\r\n"), [220, 550])

    def test_lmtp(self) -> None:
        """It is offered in LMTP, too, where each greeting allows parameters."""
        client = self.client(factory=None, protocol=LMTP)
        self.assertEqual(client.codes(b"XCLIENT ADDR=203.0.113.9\r\nLHLO client.test\r\n"), [220, 250])
        self.assertEqual(client.codes(b"XCLIENT HELO=c.test\r\nMAIL FROM:<a@example.com> SIZE=1\r\n"), [220, 250])

    def test_networks(self) -> None:
        """Invalid networks are refused when the extension is created."""
        self.assertIn("XCLIENT", str(self.assertRaises(ValueError, XClient, ["localhost"])))
        self.assertIn("XFORWARD", str(self.assertRaises(TypeError, XForward, "10.0.0.0/8")))


class XForwardTests(SynchronousTestCase):
    """XFORWARD."""

    def setUp(self) -> None:
        self.seen: list[Any] = []

        async def data(server: Any, session: Any, envelope: Any) -> str:
            self.seen.append(envelope.xforward)
            return "250 2.0.0 OK"

        self.handler = handler(DATA=data)

    def client(self, **options: Any) -> Client:
        client = Client(self.handler, extensions=[XForward(TRUSTED)], **options)
        client.talk(GREETING)
        return client

    def test_transaction(self) -> None:
        """It describes the next message, in one command or several, and no other message."""
        client = self.client()
        self.assertIn("XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE", client.ask(b"EHLO client.test").lines)
        self.assertEqual(client.codes(b"XFORWARD NAME=c.test ADDR=203.0.113.9\r\nXFORWARD IDENT=1\r\n"), [250, 250])
        client.send_message()
        client.send_message()
        self.assertEqual(self.seen, [XForwardData(name="c.test", addr="203.0.113.9", ident="1"), None])
        self.assertEqual((client.server.session.peer, client.server.session.xclient), (OWN, None))

    def test_reset(self) -> None:
        """RSET and a new greeting discard it."""
        client = self.client()
        for line in (b"RSET", b"EHLO client.test"):
            client.ask(b"XFORWARD IDENT=1")
            client.ask(line)
            self.assertIsNone(client.server.envelope.xforward)

    def test_refused(self) -> None:
        """It is refused from other networks, in a transaction, and if malformed."""
        self.assertEqual(self.client(peer=ELSEWHERE).ask(b"XFORWARD IDENT=1").code, 550)
        self.assertNotIn("XFORWARD", self.client(peer=ELSEWHERE).ask(b"EHLO x").text)
        client = self.client()
        self.assertEqual(client.ask(b"XFORWARD LOGIN=x").code, 501)
        self.assertEqual(client.ask(b"XFORWARD").code, 501)
        client.talk(TRANSACTION)
        self.assertEqual(client.ask(b"XFORWARD IDENT=1").code, 503)
        self.assertIsNone(client.server.envelope.xforward)


class Ping(Extension):
    """An extension with a command."""

    keyword = "X-PING"

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def parameter(self, server: Any) -> str | None:
        return "" if server.session.extended_smtp else None

    @syntax("PING [word]")
    async def smtp_PING(self, server: Any, arg: str | None) -> str:
        return f"250 2.0.0 {self.answer} {arg} {server.hostname}"


class CommandTests(SynchronousTestCase):
    """Commands of extensions."""

    def test_command(self) -> None:
        """A method smtp_VERB of an extension is a command of the servers that have it. HELP lists it while it is
        offered."""
        client = Client(extensions=[Ping("pong")])
        self.assertNotIn("PING", client.ask(b"HELP").text)
        client.talk(GREETING)
        self.assertIn("PING", client.ask(b"HELP").text)
        self.assertIn("PING [word]", client.ask(b"HELP PING").text)
        self.assertEqual(client.ask(b"ping me").text, "2.0.0 pong me mx.test")

    def test_apart(self) -> None:
        """Other servers do not have the command."""
        first, second = Client(extensions=[Ping("one")]), Client(extensions=[Ping("two")])
        self.assertEqual([each.ask(b"PING x").text[6:9] for each in (first, second)], ["one", "two"])
        self.assertEqual(Client().ask(b"PING").code, 500)
        self.assertNotIn(b"PING", SMTP.commands)
        self.assertEqual(dict(SMTPFactory().settings.commands), {})

    def test_subclass(self) -> None:
        """Each class of protocols has its own commands in addition. All connections of the class share the table."""
        factory = SMTPFactory(extensions=[Ping("pong")])
        first, second = Client(factory=factory), Client(factory=factory)
        self.assertIs(first.server.commands, second.server.commands)
        factory.protocol = type("Own", (SMTP,), {"smtp_PONG": lambda server, arg: "250 2.0.0 own"})
        self.assertEqual(Client(factory=factory).codes(b"PING x\r\nPONG\r\n"), [250, 250])
        self.assertEqual(Client(factory=SMTPFactory(extensions=[Ping("pong")])).codes(b"PONG\r\n"), [500])


class SwaksTests(TLSTestCase):
    """swaks, which supports XCLIENT."""

    async def test_swaks(self) -> None:
        """swaks sends the offered attributes, gets a new greeting, and delivers as the client."""
        path = program("swaks", "swaks")
        port = await self.serve(extensions=[XClient(["127.0.0.1"])])
        words = ["--xclient-addr", "203.0.113.9", "--xclient-name", "client.test", "--xclient-port", "5555"]
        words += ["--xclient-helo", "[192.0.2.1]", "--xclient-proto", "ESMTP", "--xclient-login", "a b=c+d"]
        await self.run_program(
            *[path, "--server", f"127.0.0.1:{port}", "--from", SENDER, "--to", RECIPIENT, "--helo", "swaks.test"],
            *[*words, "--xclient-delim", "--xclient-destaddr", "198.51.100.25", "--timeout", str(PATIENCE)],
        )
        (session,) = self.handler.sessions
        self.assertEqual((session.peer, session.host_name), (CLIENT, "swaks.test"))
        self.assertEqual((session.xclient.name, session.xclient.dest_addr), ("client.test", "198.51.100.25"))

    async def test_inTLS(self) -> None:
        """TLS continues, and the session has it."""
        path = program("swaks", "swaks")
        port = await self.serve(extensions=[XClient(["127.0.0.1"])], require_starttls=True)
        words = [path, "--server", f"127.0.0.1:{port}", "--from", SENDER, "--to", RECIPIENT, "--tls"]
        await self.run_program(*words, "--xclient-addr", "203.0.113.9", "--xclient-login", "a b=c+d")
        (session,) = self.handler.sessions
        self.assertEqual((session.peer, session.login_data), (("203.0.113.9", 0), "a b=c+d"))
        self.assertTrue(session.ssl)

    async def test_untrusted(self) -> None:
        """From other networks, swaks gets no offer, and gives up."""
        path = program("swaks", "swaks")
        port = await self.serve(extensions=[XClient(["192.0.2.1"])])

        def attempt() -> str:
            words = ["--xclient-addr", "203.0.113.9", "--from", SENDER, "--to", RECIPIENT]
            done = subprocess.run(
                [path, "--server", f"127.0.0.1:{port}", *words], capture_output=True, text=True, timeout=PATIENCE
            )
            return done.stdout

        said = await self.run_client(attempt)
        self.assertIn("220 mx.test", said)
        self.assertNotIn("XCLIENT", said)
        self.assertEqual(self.handler.sessions, [])
