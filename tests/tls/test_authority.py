"""TLS without setup, valid and deliberately invalid."""

from __future__ import annotations

import os
import smtplib
import ssl
import stat
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from txsmtpd.smtp import TLSSetupException
from txsmtpd.testing import Authority, MailCatcher, MemorySession
from txsmtpd.tls.authority import WRONG

SENDER, RECIPIENT, MESSAGE = "a@x.test", "b@x.test", "Subject: secure\r\n\r\nHello\r\n"


class AuthorityTests(SynchronousTestCase):
    """Writing the authority's certificate."""

    def test_write(self) -> None:
        """The file is replaced in one step, and everybody may read it."""
        path = Path(self.mktemp())
        path.write_text("before")
        authority = Authority()
        authority.write(path)
        self.assertEqual(path.read_bytes(), authority.pem)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o644)
        self.assertEqual([each.name for each in path.parent.iterdir() if each.name.startswith(f".{path.name}")], [])

    def test_noFolder(self) -> None:
        """A missing folder is an error."""
        self.assertRaises(FileNotFoundError, Authority().write, os.path.join(self.mktemp(), "ca.pem"))


class MemoryTests(SynchronousTestCase):
    """Real TLS, in memory."""

    def setUp(self) -> None:
        self.authority = Authority()

    def test_starttls(self) -> None:
        """A session starts TLS with STARTTLS, verifies the certificate, and sends a message."""
        catcher = MailCatcher(tls="starttls")
        session = catcher.session()
        session.start_tls(catcher.authority.client_options())
        self.assertEqual(session.send().code, 250)
        tls = catcher.messages[0].tls
        assert tls is not None
        self.assertEqual((tls.protocol, tls.server_name), ("TLSv1.3", "localhost"))
        self.assertEqual(session.codes(b"QUIT\r\n"), [221])
        self.assertTrue(session.closed)

    def test_implicit(self) -> None:
        """It can also use implicit TLS. A long reply and a long message arrive."""
        catcher = MailCatcher(tls="implicit")
        session = catcher.session()
        self.assertTrue(session.welcome.startswith(b"220 localhost "))
        self.assertEqual(session.send(b"Hello\r\n" * 100_000).code, 250)
        self.assertEqual(len(catcher.messages[0].content), 700_000)

    def test_notTrusted(self) -> None:
        """If a client does not trust the authority, its handshake fails, and so does the server's."""
        for how in "expired", "not-yet-valid", "wrong-name", "unknown-authority":
            session = MemorySession(tls_context=self.authority.wrong(how))
            self.assertRaises(AssertionError, session.start_tls, self.authority.client_options())
            self.flushLoggedErrors(SSL.Error)

    def test_stalled(self) -> None:
        """A stalled handshake continues until its timeout."""
        causes: list[BaseException] = []

        class Handler:
            def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: BaseException) -> None:
                causes.append(cause)

        session = MemorySession(Handler(), tls_context=self.authority.wrong("stalled"), reactor=Clock())
        session.start_tls(self.authority.client_options())
        session.wait(31)
        self.assertTrue(session.closed)
        self.assertIsInstance(causes[0], TLSSetupException)


class ClientTests(TestCase):
    """Clients of the standard library, over a port, with verification."""

    def send(self, catcher: MailCatcher, host: str, context: ssl.SSLContext | None = None) -> None:
        context = context or catcher.client_context()
        if catcher.tls == "implicit":
            client: smtplib.SMTP = smtplib.SMTP_SSL(host, catcher.port, context=context, timeout=5)
        else:
            client = smtplib.SMTP(host, catcher.port, timeout=5)
        with client:
            if catcher.tls == "starttls":
                client.starttls(context=context)
            client.sendmail(SENDER, RECIPIENT, MESSAGE)

    async def test_right(self) -> None:
        """Both kinds of TLS work, with the name and the address of this host."""
        for tls in "starttls", "implicit":
            catcher = MailCatcher.for_test(self, tls=tls)
            for host in "localhost", "127.0.0.1":
                await deferToThread(self.send, catcher, host)
            self.assertEqual([mail.tls is not None for mail in catcher.messages], [True, True])
            self.assertEqual(catcher.url.partition(":")[0], "smtps" if tls == "implicit" else "smtp")

    async def test_ready(self) -> None:
        """The client that the catcher connects uses TLS."""
        for tls in "starttls", "implicit":
            catcher = MailCatcher.for_test(self, tls=tls)

            def send(catcher: MailCatcher) -> None:
                with catcher.smtplib() as client:
                    client.sendmail(SENDER, RECIPIENT, MESSAGE)

            await deferToThread(send, catcher)
            self.assertTrue(catcher.messages[0].tls)

    async def test_wrong(self) -> None:
        """Each invalid certificate fails the client's verification, with its own reason."""
        reasons = {
            "expired": "expired",
            "not-yet-valid": "not yet valid",
            "wrong-name": "mismatch",
            "unknown-authority": "unable to get local issuer",
        }
        self.assertEqual({*reasons, "stalled"}, set(WRONG))
        for tls in "starttls", "implicit":
            for how, reason in reasons.items():
                catcher = MailCatcher.for_test(self, tls=tls, wrong=how)
                error = await self.assertFailure(
                    deferToThread(self.send, catcher, "localhost"), ssl.SSLCertVerificationError
                )
                self.assertIn(reason, str(error))
                self.assertEqual(catcher.messages, [])

    async def test_defaultTrust(self) -> None:
        """A client with the default configuration does not trust the certificate."""
        catcher = MailCatcher.for_test(self, tls="starttls")
        failing = deferToThread(self.send, catcher, "localhost", ssl.create_default_context())
        await self.assertFailure(failing, ssl.SSLCertVerificationError)

    async def test_stalled(self) -> None:
        """With a stalled handshake, the client's timeout expires."""
        catcher = MailCatcher.for_test(self, tls="starttls", wrong="stalled")

        def begin() -> None:
            with smtplib.SMTP("localhost", catcher.port, timeout=0.2) as client:
                client.starttls(context=catcher.client_context())

        await self.assertFailure(deferToThread(begin), TimeoutError)
