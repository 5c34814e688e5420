"""TLS with an ssl.SSLContext."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from cryptography.x509 import DNSName, ExtensionOID
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls import (
    RECIPIENT,
    SENDER,
    Collecting,
    LineClient,
    TLSTestCase,
    authority,
    from_the_first_octet,
    greeted,
    issue,
    secured,
    send_by_implicit_tls,
    send_by_starttls,
    trusting,
)
from txsmtpd import SMTPFactory
from txsmtpd.auth import Scram
from txsmtpd.engine.handshake import TLSSetupException


def context_of(certificate: Path) -> ssl.SSLContext:
    """A context as programs create it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


ALTERNATIVE_NAME = ExtensionOID.SUBJECT_ALTERNATIVE_NAME


class ContextTests(SynchronousTestCase):
    """Checks before any client connects."""

    def test_forClients(self) -> None:
        """A client context is refused when the server is created."""
        error = self.assertRaises(ValueError, SMTPFactory, tls_context=ssl.create_default_context())
        self.assertIn("CLIENT_AUTH", str(error))


class SessionTests(TLSTestCase):
    """Sessions with real clients."""

    def setUp(self) -> None:
        super().setUp()
        self.context = context_of(self.certificate)

    async def test_starttls(self) -> None:
        """STARTTLS with smtplib: the message arrives, and the session has the TLS state."""
        port = await self.serve(tls_context=self.context)
        await self.run_client(send_by_starttls, port)
        (session,) = self.handler.sessions
        self.assertEqual(session.ssl.protocol, "TLSv1.3")
        self.assertIn("AES", session.ssl.cipher)
        self.assertIsNone(session.ssl.peer_certificate)

    async def test_implicit(self) -> None:
        """Implicit TLS."""
        port = await self.serve(tls_context=self.context, implicit_tls=True)
        await self.run_client(send_by_implicit_tls, port)
        self.assertEqual(len(self.handler.messages), 1)

    async def test_large(self) -> None:
        """Messages and replies of many records are unchanged, in TLS 1.2, too."""
        message = b"".join(b"%06d %s\r\n" % (n, b"x" * 90) for n in range(30_000))
        port = await self.serve(
            Collecting(handle_NOOP=lambda *more: "\n".join(["250-" + "y" * 400] * 500 + ["250 end"])),
            tls_context=self.context,
        )
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            limited = trusting()
            limited.maximum_version = version

            def talk(context: ssl.SSLContext = limited) -> str:
                client = secured(port, context)
                client.ask("EHLO client.test")
                client.ask(f"MAIL FROM:<{SENDER}>")
                client.ask(f"RCPT TO:<{RECIPIENT}>")
                client.ask("DATA")
                client.send(message + b".\r\n")
                stored = client.reply()
                long = client.ask("NOOP")
                client.ask("QUIT")
                client.close()
                self.assertEqual(len(long.splitlines()), 501)
                return stored

            self.assertEqual(await self.run_client(talk), "250 2.0.0 OK")
        handler = self.factory.handler
        assert isinstance(handler, Collecting)
        self.assertEqual([each.content for each in handler.messages], [message] * 2)

    async def test_clientCertificate(self) -> None:
        """A client's certificate is verified, and available in the session. Without one, the handshake fails."""
        self.context.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(self.context)
        port = await self.serve(tls_context=self.context)

        def talk(context: ssl.SSLContext) -> str:
            client = secured(port, context)
            try:
                return client.ask("EHLO client.test")
            except ssl.SSLError:
                return ""
            finally:
                client.close()

        certificates = []
        self.handler.handle_STARTTLS = lambda *more: True  # type: ignore[attr-defined]
        self.assertEqual((await self.run_client(talk, trusting()))[:3], "")
        await self.handler.gone
        self.assertIsInstance(self.handler.causes[0], TLSSetupException)

        def known(server: object, session: object, envelope: object, hostname: str, responses: list[str]) -> list[str]:
            certificates.append(session.ssl.peer_certificate)  # type: ignore[attr-defined]
            return responses

        port = await self.serve(Collecting(handle_EHLO=known), tls_context=self.context)
        self.assertEqual((await self.run_client(talk, trusting(issue("client.test"))))[:3], "250")
        self.assertIn(
            "client.test",
            certificates[0].extensions.get_extension_for_oid(ALTERNATIVE_NAME).value.get_values_for_type(DNSName),
        )

    async def test_garbage(self) -> None:
        """Input that is not TLS fails the handshake. The cause has the reason."""
        port = await self.serve(tls_context=self.context)

        def talk() -> bytes:
            client = greeted(port)
            client.ask("STARTTLS")
            client.send(b"EHLO client.test\r\n" * 10)
            try:
                while client.socket.recv(1000):
                    pass
            except ConnectionError:
                pass
            client.close()
            return b""

        await self.run_client(talk)
        await self.handler.gone
        (cause,) = self.handler.causes
        self.assertIsInstance(cause, TLSSetupException)
        self.assertIn("wrong version number", str(cause))

    async def test_vanishes(self) -> None:
        """A client that closes TCP without closing TLS is a lost connection, and not an error."""
        port = await self.serve(tls_context=self.context)

        def talk() -> None:
            client = secured(port)
            client.ask("EHLO client.test")
            socket.socket.shutdown(client.socket, socket.SHUT_RDWR)
            client.close()

        await self.run_client(talk)
        await self.handler.gone
        self.assertNotIsInstance(self.handler.causes[0], TLSSetupException)

    async def test_ends(self) -> None:
        """TLS is closed before the connection, from either side."""
        port = await self.serve(tls_context=self.context, implicit_tls=True)

        def quits() -> bytes:
            client: LineClient = from_the_first_octet(port)
            client.ask("QUIT")
            end: bytes = client.socket.recv(100)  # raises ssl.SSLEOFError if TLS was not closed
            client.close()
            return end

        def unwraps() -> str:
            client: LineClient = from_the_first_octet(port)
            answer = client.ask("NOOP")
            client.socket.unwrap().close()  # type: ignore[attr-defined]
            return answer

        self.assertEqual(await self.run_client(quits), b"")
        self.assertEqual(await self.run_client(unwraps), "250 2.0.0 OK")

    async def test_binding(self) -> None:
        """Mechanisms that need the exporter of TLS are not offered, since the standard library has none."""
        mechanisms = [Scram("SHA-256", lambda login: None, plus=plus) for plus in (False, True)]
        for context, offered in ((self.context, False), (None, True)):
            options = {"tls_context": context} if context else {}
            port = await self.serve(auth_mechanisms=mechanisms, **options)

            def talk(port: int = port) -> str:
                client = secured(port)
                answer = client.ask("EHLO client.test")
                client.close()
                return answer

            answer = await self.run_client(talk)
            self.assertIn("SCRAM-SHA-256", answer)
            self.assertEqual("SCRAM-SHA-256-PLUS" in answer, offered)
