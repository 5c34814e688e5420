"""Sessions in memory: tests of servers and clients without ports."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.task import Clock
from twisted.mail.smtp import ESMTPSenderFactory, SMTPClientError
from twisted.trial.unittest import SynchronousTestCase

from tests.support import Waiting, handler
from txsmtpd import Reply, SMTPFactory
from txsmtpd.smtp import TLSSetupException
from txsmtpd.testing import Faults, MemoryConnection, MemorySession, PretendedTLS, read_replies

EHLO = b"EHLO client.test\r\n"


class Keeper:
    """A handler that keeps its input."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, list[str], bytes]] = []
        self.tls: list[Any] = []
        self.causes: list[BaseException] = []

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        self.tls.append(session.ssl)
        return "250 2.0.0 OK"

    def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: BaseException) -> None:
        self.causes.append(cause)


class RepliesTests(SynchronousTestCase):
    """Replies are parsed strictly."""

    def test_severalLines(self) -> None:
        """A reply of several lines is one Reply. The status code of its lines is not part of the text."""
        self.assertEqual(
            read_replies(b"250-mx.test\r\n250 HELP\r\n250-2.0.0 a\r\n250 2.0.0 b\r\n"),
            [Reply(250, None, ["mx.test", "HELP"]), Reply(250, "2.0.0", ["a", "b"])],
        )

    def test_statusOfAnotherClass(self) -> None:
        """Text that looks like a status code and does not agree with the reply code is text."""
        self.assertEqual(read_replies(b"250 5.1.1 x\r\n"), [Reply(250, None, "5.1.1 x")])

    def test_defects(self) -> None:
        """Anything but complete replies is an AssertionError."""
        for octets in b"250 OK", b"250-a\r\n", b"250-a\r\n251 b\r\n", b"hello\r\n", b"250 a\rb\r\n", b"250 \0\r\n":
            self.assertRaises(AssertionError, read_replies, octets)


class SessionTests(SynchronousTestCase):
    """A session by hand."""

    def test_message(self) -> None:
        """One call sends a message with dot-stuffing. The handler gets it unchanged."""
        keeper = Keeper()
        session = MemorySession(keeper)
        for message in b"", b".\r\n", b"a\r\n.b\r\n", b"no end", b"..\r\n.":
            self.assertEqual(session.send(message, "a@x.test", ["b@x.test", "c@x.test"]).code, 250)
            whole = message if message.endswith(b"\r\n") or not message else message + b"\r\n"
            self.assertEqual(keeper.messages.pop(), ("a@x.test", ["b@x.test", "c@x.test"], whole))

    def test_refusedMessage(self) -> None:
        """The refusal of a recipient is the result."""
        refusal = Reply(550, "5.7.1", "not here")
        session = MemorySession(handler(RCPT=lambda *arguments: refusal))
        self.assertEqual(session.send(), refusal)
        self.assertEqual(session.command("NOOP").code, 250)

    def test_command(self) -> None:
        """A command returns its reply. If there is none, or more than one, an AssertionError is raised."""
        session = MemorySession(handler(NOOP=Waiting()))
        self.assertEqual(session.command("HELO x"), Reply(250, None, "mx.test"))
        self.assertRaises(AssertionError, session.command, "VRFY a\r\nVRFY b")
        self.assertRaises(AssertionError, session.command, "NOOP")

    def test_mistakes(self) -> None:
        """str for octets, and bytes for text, are refused, with the right type. A str is one recipient."""
        session = MemorySession()
        for call, given, words in (
            (session.talk, "NOOP\r\n", "b'NOOP"),
            (session.command, b"NOOP", "talk()"),
            (session.send, "Subject: hello", "must be bytes"),
        ):
            self.assertIn(words, str(self.assertRaises(TypeError, call, given)))
        self.assertEqual(session.send(rcpt_tos="bob@example.com").code, 250)

    def test_noReply(self) -> None:
        """A message without a reply fails the test with an explanation."""
        faults = Faults()
        faults.on("message").drop()
        error = self.assertRaises(AssertionError, MemorySession(faults=faults).send)
        self.assertIn("the message got no reply; if a hook waits, ", str(error))

    def test_hookThatWaits(self) -> None:
        """The reply of a hook that the test lets continue is received immediately."""
        hook = Waiting("250 2.0.0 Later")
        session = MemorySession(handler(NOOP=hook))
        self.assertEqual(session.talk(b"NOOP\r\n"), b"")
        hook.fire()
        self.assertEqual(session.heard(), b"250 2.0.0 Later\r\n")

    def test_fiveMinutes(self) -> None:
        """A timeout of five minutes expires after five minutes of the fake clock, and no real time."""
        keeper = Keeper()
        session = MemorySession(keeper)
        self.assertEqual(session.wait(299), b"")
        self.assertEqual(read_replies(session.wait(1))[0].code, 421)
        self.assertTrue(session.closed)
        self.assertIsInstance(keeper.causes[0], TimeoutError)

    def test_factory(self) -> None:
        """A factory serves several sessions, and gets a fake clock if it has none."""
        factory = SMTPFactory(hostname="mx.test")
        first, second = MemorySession(factory), MemorySession(factory)
        self.assertIs(first.clock, second.clock)
        self.assertIsInstance(first.clock, Clock)
        self.assertEqual(len(factory.connections), 2)
        self.assertRaises(TypeError, MemorySession, factory, hostname="other.test")

    def test_cuts(self) -> None:
        """Octets can be sent in any segments."""
        session = MemorySession()
        octets = EHLO + b"NOOP\r\n"
        whole = session.talk(octets)
        self.assertEqual(session.talk(octets, cuts=range(len(octets))), whole)

    def test_quit(self) -> None:
        """After QUIT, the connection is closed cleanly."""
        keeper = Keeper()
        session = MemorySession(keeper)
        self.assertEqual(session.codes(b"QUIT\r\nNOOP\r\n"), [221])
        self.assertTrue(session.closed)
        self.assertIsInstance(keeper.causes[0], ConnectionDone)


class PretendedTests(SynchronousTestCase):
    """Pretended TLS."""

    def test_starttls(self) -> None:
        """STARTTLS starts TLS from the session's point of view."""
        keeper = Keeper()
        session = MemorySession(keeper, tls_context=PretendedTLS(server_name="mx.test"))
        self.assertIn(b"STARTTLS", session.talk(EHLO))
        session.start_tls()
        self.assertNotIn(b"STARTTLS", session.talk(EHLO))
        session.send()
        self.assertEqual(keeper.tls[0].protocol, "TLSv1.3")
        self.assertEqual(keeper.tls[0].server_name, "mx.test")

    def test_implicit(self) -> None:
        """With implicit TLS, it precedes the greeting."""
        session = MemorySession(tls_context=PretendedTLS(cipher="X"), implicit_tls=True)
        self.assertTrue(session.welcome.startswith(b"220 "))
        self.assertEqual(session.server.session.ssl.cipher, "X")

    def test_stalled(self) -> None:
        """A stalled handshake ends with its timeout."""
        keeper = Keeper()
        session = MemorySession(keeper, tls_context=PretendedTLS(stalled=True), tls_handshake_timeout=30)
        session.start_tls()
        self.assertFalse(session.closed)
        session.wait(30)
        self.assertTrue(session.closed)
        self.assertIsInstance(keeper.causes[0], TLSSetupException)

    def test_failing(self) -> None:
        """A failed handshake ends the connection."""
        keeper = Keeper()
        session = MemorySession(keeper, tls_context=PretendedTLS(failing=True))
        self.assertRaises(AssertionError, session.start_tls)
        self.assertIsInstance(keeper.causes[0], TLSSetupException)

    def test_refused(self) -> None:
        """If STARTTLS is refused, TLS does not start."""
        self.assertRaises(AssertionError, MemorySession().start_tls)

    def test_notForReal(self) -> None:
        """A real transport cannot use it."""
        self.assertRaises(RuntimeError, PretendedTLS().serverConnectionForTLS, None)


class ClientTests(SynchronousTestCase):
    """A client of Twisted, connected in memory."""

    def sender(self, message: bytes = b"Subject: hello\n\nHello\n", **options: Any) -> tuple[Any, Deferred[Any]]:
        done: Deferred[Any] = Deferred()
        factory = ESMTPSenderFactory(
            None,
            None,
            b"a@x.test",
            b"b@x.test",
            BytesIO(message),
            done,
            **(
                {"retries": 0, "timeout": 60, "requireTransportSecurity": False, "requireAuthentication": False}
                | options
            ),
        )
        return factory, done

    def test_reversed(self) -> None:
        """A client in place of the server is refused, with the right type."""
        for client in (ClientFactory(), Protocol()):
            error = self.assertRaises(TypeError, MemoryConnection, handler(), client)
            self.assertIn("the server must be a handler or an SMTPFactory", str(error))

    def test_sends(self) -> None:
        """It sends its message before the constructor returns, however long it is."""
        keeper = Keeper()
        message = b"Subject: hello\n\n" + b"Hello, World!\n" * 20_000
        client, done = self.sender(message)
        MemoryConnection(client, keeper)
        self.successResultOf(done)
        self.assertEqual(keeper.messages, [("a@x.test", ["b@x.test"], message.replace(b"\n", b"\r\n"))])

    def test_pretendedTLS(self) -> None:
        """It starts TLS with a server that pretends TLS."""
        keeper = Keeper()
        client, done = self.sender(contextFactory=object(), requireTransportSecurity=True)
        connection = MemoryConnection(client, keeper, tls_context=PretendedTLS())
        self.successResultOf(done)
        self.assertTrue(keeper.tls[0])
        self.assertTrue(connection.closed)

    def test_timeout(self) -> None:
        """Its own timeout uses the same clock."""
        client, done = self.sender()
        connection = MemoryConnection(client, handler(MAIL=Waiting(obedient=False)), hook_timeout=None)
        connection.advance(59)
        self.assertNoResult(done)
        connection.advance(2)
        self.failureResultOf(done, SMTPClientError)

    def test_vanish(self) -> None:
        """Both ends are notified when the connection is lost."""
        keeper = Keeper()
        client, done = self.sender()
        hook = Waiting()
        keeper.handle_MAIL = hook  # type: ignore[attr-defined]
        connection = MemoryConnection(client, keeper)
        connection.vanish()
        self.assertEqual((connection.closed, hook.cancelled), (True, 1))
        self.failureResultOf(done)
        self.assertEqual(keeper.messages, [])

    def test_again(self) -> None:
        """A client factory may connect again, to a new server protocol."""
        keeper = Keeper()
        greetings = iter(["421 4.3.2 not now", "421 4.3.2 not yet", None])
        keeper.handle_CONNECT = lambda *arguments: next(greetings)  # type: ignore[attr-defined]
        client, done = self.sender(retries=5)
        MemoryConnection(client, keeper)
        self.successResultOf(done)
        self.assertEqual(len(keeper.causes), 3)
