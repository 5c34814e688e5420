"""AUTH with independent clients over TCP: smtplib and swaks."""

from __future__ import annotations

import smtplib
import subprocess
from collections.abc import Callable
from typing import Any

import trustme
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate, optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from txsmtpd import SMTPFactory, auth
from txsmtpd.auth.scram import channel_binding

MESSAGE = "Subject: hello\r\n\r\nHello\r\n"


class Handler:
    """Records who has sent what."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, str | None]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.taken.append((session.auth_data, envelope.mail_from))
        return "250 2.0.0 Taken"


class ClientTests(TestCase):
    """Real clients log in and send a message, or are refused."""

    timeout = 120

    def setUp(self) -> None:
        self.handler = Handler()

    def serve(self, **options: Any) -> None:
        """Listen, with one user; AUTH is required before mail."""
        checker = InMemoryUsernamePasswordDatabaseDontUse(user=b"sesame")
        defaults = {
            "portal": Portal(auth.NameRealm(), [checker]),
            "auth_mechanisms": [auth.CramMD5()],
            "auth_required": True,
            "auth_require_tls": False,
            "auth_failure_delay": 0.01,
        }
        factory = SMTPFactory(self.handler, **(defaults | options))
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.addCleanup(factory.abort)
        self.port: int = port.getHost().port
        self.flushWarnings()

    def smtplib(self, function: Callable[[smtplib.SMTP], Any]) -> Deferred[Any]:
        """Run the function with a client of smtplib in a thread, and return its result."""

        def run() -> Any:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=60) as client:
                client.ehlo()
                return function(client)

        return deferToThread(run)

    def swaks(self, *arguments: str) -> Deferred[subprocess.CompletedProcess[str]]:
        command = ["swaks", "--server", f"127.0.0.1:{self.port}", "--from", "a@example.com", "--to", "b@example.com",
                   "--ehlo", "client.test", "--timeout", "20", *arguments]  # fmt: skip
        return deferToThread(subprocess.run, command, capture_output=True, text=True, timeout=50)

    async def test_smtplib(self) -> None:
        """Each mechanism of smtplib works, with and without an initial response; so does the one that smtplib
        chooses."""
        self.serve()

        def send(mechanism: str | None, initial: bool) -> Callable[[smtplib.SMTP], Any]:
            def run(client: smtplib.SMTP) -> Any:
                if mechanism is None:
                    client.login("user", "sesame")
                else:
                    client.user, client.password = "user", "sesame"
                    method = getattr(client, f"auth_{mechanism.lower().replace('-', '_')}")
                    client.auth(mechanism, method, initial_response_ok=initial)
                return client.sendmail("a@example.com", "b@example.com", MESSAGE)

            return run

        for mechanism, initial in (("PLAIN", True), ("PLAIN", False), ("LOGIN", True), ("LOGIN", False),
                                   ("CRAM-MD5", False), (None, True)):  # fmt: skip
            self.assertEqual(await self.smtplib(send(mechanism, initial)), {}, mechanism)
        self.assertEqual(self.handler.taken, [("user", "a@example.com")] * 6)

    async def test_smtplibWrong(self) -> None:
        """A wrong password, and no password."""
        self.serve()
        with self.assertRaises(smtplib.SMTPAuthenticationError):
            await self.smtplib(lambda client: client.login("user", "xyzzy"))
        with self.assertRaises(smtplib.SMTPSenderRefused) as caught:
            await self.smtplib(lambda client: client.sendmail("a@example.com", "b@example.com", MESSAGE))
        self.assertEqual(caught.exception.smtp_code, 530)
        self.assertEqual(self.handler.taken, [])

    async def test_asyncAuthenticator(self) -> None:
        """An authenticator that takes time, in the reactor and in a thread, can refuse a client."""

        async def slow(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
            await deferLater(reactor, 0.01)  # type: ignore[arg-type]
            return auth_data == (b"user", b"sesame")

        def blocking(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
            return bool(auth_data == (b"user", b"sesame"))

        for authenticator in (slow, auth.in_thread(blocking)):
            self.serve(portal=None, authenticator=authenticator, auth_mechanisms=())
            with self.assertRaises(smtplib.SMTPAuthenticationError):
                await self.smtplib(lambda client: client.login("user", "xyzzy"))
            code, _ = await self.smtplib(lambda client: client.login("user", "sesame"))
            self.assertEqual(code, 235)

    async def test_guesses(self) -> None:
        """A client that guesses passwords is disconnected after a few attempts."""
        self.serve()

        def guess(client: smtplib.SMTP) -> int:
            for attempt in range(100):
                try:
                    client.user, client.password = "user", f"guess {attempt}"
                    client.auth("PLAIN", client.auth_plain)
                except smtplib.SMTPServerDisconnected:
                    return attempt
                except smtplib.SMTPAuthenticationError:
                    pass
            return 100

        self.assertEqual(await self.smtplib(guess), 3)

    async def test_swaks(self) -> None:
        self.serve()
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5"):
            done = await self.swaks("--auth", mechanism, "--auth-user", "user", "--auth-password", "sesame")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(self.handler.taken, [("user", "a@example.com")] * 3)

    async def test_swaksWrong(self) -> None:
        self.serve()
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5"):
            done = await self.swaks("--auth", mechanism, "--auth-user", "user", "--auth-password", "xyzzy")
            self.assertEqual(done.returncode, 28, done.stdout + done.stderr)  # swaks: authentication failed
            self.assertIn("535 5.7.8", done.stdout)
        self.assertEqual(self.handler.taken, [])


@implementer(IHandshakeListener)
class Binding(Protocol):
    """Starts TLS, and sends what its end exports."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.exported: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        self.transport.startTLS(self.options)  # type: ignore[union-attr]

    def handshakeCompleted(self) -> None:
        self.exported.callback(channel_binding(self))


class ChannelBindingTests(TestCase):
    """tls-exporter (RFC 9266), with real TLS."""

    timeout = 120

    async def test_bothEnds(self) -> None:
        """Both ends of a connection export the same value, and those of another connection export a different one."""
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        chain = [Certificate.loadPEM(pem.bytes()).original for pem in certificate.cert_chain_pems]
        key = PrivateCertificate.loadPEM(certificate.private_key_and_cert_chain_pem.bytes())
        server_options = CertificateOptions(
            privateKey=key.privateKey.original, certificate=chain[0], extraCertChain=chain[1:]
        )
        client_options = optionsForClientTLS("localhost", Certificate.loadPEM(authority.cert_pem.bytes()))
        seen = set()
        for _ in range(2):
            server = Binding(server_options)
            factory = Factory.forProtocol(lambda server=server: server)  # type: ignore[arg-type]
            port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
            client = await connectProtocol(
                TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Binding(client_options)
            )
            here, there = await client.exported, await server.exported
            self.assertEqual(here, there)
            self.assertEqual(len(here), 32)
            seen.add(here)
            client.transport.abortConnection()
            await port.stopListening()
        self.assertEqual(len(seen), 2)
