"""STARTTLS (RFC 3207) and implicit TLS (RFC 8314), with real TLS over loopback."""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import warnings
from typing import Any
from unittest.mock import patch

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.mail.smtp import sendmail
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.support import GREETING, HIGH_WATER, TRANSACTION, Client, LoggingTestCase, codes
from tests.support.tls import (
    MESSAGE,
    PATIENCE,
    RECIPIENT,
    SENDER,
    LineClient,
    TLSTestCase,
    combined,
    from_the_first_octet,
    greeted,
    issue,
    secured,
    send_by_implicit_tls,
    send_by_starttls,
    trusting,
    write,
)
from txsmtpd import SMTP, SMTPFactory
from txsmtpd.session import TLSInfo
from txsmtpd.smtp import TLSSetupException
from txsmtpd.tls.certificates import Certificates

ATTACK = b"STARTTLS\r\nRSET\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<evil@example.com>\r\nDATA\r\n"


def in_transaction(client: LineClient) -> LineClient:
    """A client that has sent many commands."""
    client.ask("EHLO before.test")
    client.ask("MAIL FROM:<before@example.com>")
    client.ask("RCPT TO:<before@example.com>")
    return client


class ClientTests(TLSTestCase):
    """Clients of all kinds send mail over TLS, with verification."""

    def assertReceived(self, count: int = 1) -> None:
        self.assertEqual(len(self.handler.messages), count)
        for message, session in zip(self.handler.messages, self.handler.sessions, strict=True):
            self.assertIn(b"Hello", message.content)
            self.assertTrue(session.ssl)

    async def test_smtplibStarttls(self) -> None:
        """smtplib's starttls."""
        await self.run_client(send_by_starttls, await self.serve())
        self.assertReceived()

    async def test_smtplibImplicit(self) -> None:
        """smtplib's SMTP_SSL."""
        await self.run_client(send_by_implicit_tls, await self.serve(implicit_tls=True))
        self.assertReceived()

    async def test_goodbye(self) -> None:
        """A client that has sent QUIT, and closes TCP without closing TLS, as smtplib does, is not a lost
        connection."""
        await self.run_client(send_by_implicit_tls, await self.serve(implicit_tls=True))
        await self.handler.gone
        [cause] = self.handler.causes
        self.assertIsInstance(cause, ConnectionDone)

    async def test_swaks(self) -> None:
        """swaks, with both kinds of TLS."""
        for option, implicit in ("--tls", False), ("--tls-on-connect", True):
            port = await self.serve(implicit_tls=implicit)
            await self.run_program(
                "swaks", "--server", "localhost", "--port", str(port), option, "--from", SENDER, "--to", RECIPIENT,
                "--tls-verify", "--tls-ca-path", str(self.ca_file), "--helo", "client.test", "--body", "Hello",
            )  # fmt: skip
        self.assertReceived(2)

    async def test_curl(self) -> None:
        """curl, with both kinds of TLS."""
        for scheme, implicit in ("smtp", False), ("smtps", True):
            port = await self.serve(implicit_tls=implicit)
            await self.run_program(
                "curl", "--silent", "--show-error", "--ssl-reqd", "--cacert", str(self.ca_file),
                "--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--upload-file", "-", f"{scheme}://localhost:{port}",
                stdin=MESSAGE,
            )  # fmt: skip
        self.assertReceived(2)

    async def test_openssl(self) -> None:
        """openssl s_client, with both kinds of TLS."""
        for more, implicit in (["-starttls", "smtp"], False), ([], True):
            port = await self.serve(implicit_tls=implicit)
            printed = await self.run_program(
                "openssl", "s_client", *more, "-connect", f"localhost:{port}", "-CAfile", str(self.ca_file),
                "-verify_return_error", "-verify_hostname", "localhost", "-quiet", "-crlf", "-ign_eof",
                stdin="EHLO client.test\nQUIT\n",
            )  # fmt: skip
            self.assertIn("221 2.0.0", printed)

    async def test_twisted(self) -> None:
        """Twisted's own sendmail."""
        authorities = patch.dict(os.environ, SSL_CERT_FILE=str(self.ca_file))
        authorities.start()
        self.addCleanup(authorities.stop)
        port = await self.serve()
        await sendmail(
            "localhost",
            SENDER,
            [RECIPIENT],
            MESSAGE.replace("\r\n", "\n").encode(),
            port=port,
            requireTransportSecurity=True,
        )
        self.assertReceived()
        await self.handler.gone

    async def test_login(self) -> None:
        """AUTH is offered only with TLS, of both kinds."""

        def talk(port: int, implicit: bool) -> str:
            if implicit:
                client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, timeout=PATIENCE, context=trusting())
            else:
                client = smtplib.SMTP("localhost", port, timeout=PATIENCE)
                client.ehlo()
                assert not client.has_extn("auth")
                client.starttls(context=trusting())
            with client:
                client.login("alice", "sesame")
                client.sendmail(SENDER, RECIPIENT, MESSAGE)
            return "sent"

        for implicit in False, True:
            port = await self.serve(authenticator=lambda *arguments: True, auth_required=True, implicit_tls=implicit)
            self.assertEqual(await self.run_client(talk, port, implicit), "sent")
        self.assertReceived(2)

    async def test_unixSocket(self) -> None:
        """A Unix socket can use TLS, too."""
        path = self.mktemp()[-60:].replace("/", "_")
        factory = self.factory = SMTPFactory(self.handler, tls_context=Certificates(self.certificate))
        self.addCleanup(self._stop, await serverFromString(reactor, f"unix:{path}").listen(factory))

        def talk() -> str:
            client = LineClient.__new__(LineClient)
            client.socket = socket.socket(socket.AF_UNIX)
            client.socket.settimeout(PATIENCE)
            client.socket.connect(path)
            client._left = b""
            client.reply()
            client.ask("STARTTLS")
            client.secure(trusting())
            return client.ask("QUIT")

        self.assertEqual(await self.run_client(talk), "221 2.0.0 Goodbye")

    async def test_throughEndpointThatSpeaksTLS(self) -> None:
        """An endpoint of Twisted that starts TLS itself counts, too: the session has the TLS state."""
        self.factory = SMTPFactory(self.handler, tls_context=Certificates(self.certificate), require_starttls=True)
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={self.certificate}:certKey={self.certificate}"
        port = await serverFromString(reactor, endpoint).listen(self.factory)
        self.addCleanup(self._stop, port)
        await self.run_client(send_by_implicit_tls, port.getHost().port)
        self.assertReceived()


class ForgettingTests(TLSTestCase):
    """Data from before TLS is discarded, and so is input after STARTTLS (RFC 3207 4.2)."""

    async def test_state(self) -> None:
        """The greeting, the transaction and attributes of a handler are discarded. The client's address is not."""
        sessions = []

        def noted(server: Any, session: Any, envelope: Any, hostname: str) -> str:
            session.host_name = hostname
            session.note = "this"
            sessions.append(session)
            return "250 mx.test"

        self.handler.handle_EHLO = noted  # type: ignore[attr-defined]

        def talk(port: int) -> list[str]:
            client = in_transaction(greeted(port))
            client.ask("STARTTLS")
            client.secure(trusting())
            said = [client.ask("MAIL FROM:<a@example.com>"), client.ask("EHLO after.test"), client.ask("DATA")]
            return [*said, client.ask("QUIT")]

        said = await self.run_client(talk, await self.serve())
        self.assertEqual([reply[:3] for reply in said], ["503", "250", "503", "221"])
        before, after = sessions
        self.assertIsNot(before, after)
        self.assertIsNone(before.ssl)
        self.assertTrue(after.ssl)
        self.assertEqual((after.id, after.peer), (before.id, before.peer))

    async def test_proxyData(self) -> None:
        """The data of a PROXY header are not from the client, and are kept."""

        def talk(port: int) -> LineClient:
            return secured(port)

        port = await self.serve()
        client = await self.run_client(greeted, port)
        self.connection().session.proxy_data = "from the proxy"

        def go_on() -> None:
            client.ask("STARTTLS")
            client.secure(trusting())
            client.ask("NOOP")

        await self.run_client(go_on)
        self.assertEqual(self.connection().session.proxy_data, "from the proxy")
        await self.run_client(client.close)

    async def test_authentication(self) -> None:
        """A client that authenticated without TLS is not authenticated with TLS."""

        def talk(port: int) -> list[str]:
            client = greeted(port)
            client.ask("EHLO before.test")
            said = [client.ask("AUTH PLAIN AGFsaWNlAHNlc2FtZQ==")]
            client.ask("STARTTLS")
            client.secure(trusting())
            return [*said, client.ask("EHLO after.test"), client.ask("MAIL FROM:<a@example.com>")]

        options = {"auth_required": True, "auth_require_tls": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            port = await self.serve(authenticator=lambda *arguments: True, **options)
        self.assertEqual([reply[:3] for reply in await self.run_client(talk, port)], ["235", "250", "530"])

    async def test_budgets(self) -> None:
        """Errors before TLS still count."""

        def talk(port: int) -> str:
            client = greeted(port)
            for _ in range(3):
                client.ask("NONSENSE")
            client.ask("STARTTLS")
            client.secure(trusting())
            return client.ask("NONSENSE")

        self.assertEqual((await self.run_client(talk, await self.serve(error_limit=4)))[:3], "421")

    async def test_injection(self) -> None:
        """Commands after STARTTLS in the same segment are never executed, and leave nothing in the session."""

        def talk(port: int) -> list[str]:
            client = in_transaction(greeted(port))
            client.send(ATTACK)
            said = [client.reply()]
            client.secure(trusting())
            return [*said, client.ask("MAIL FROM:<a@example.com>"), client.ask("EHLO x.test"), client.ask("DATA")]

        said = await self.run_client(talk, await self.serve())
        self.assertEqual([reply[:3] for reply in said], ["220", "503", "250", "503"])

    async def test_injectionAtEveryCut(self) -> None:
        """The same is true if the segment is split at any octet."""
        executed: list[str] = []
        self.handler.handle_MAIL = lambda *arguments: executed.append("MAIL")  # type: ignore[attr-defined]
        self.handler.handle_RSET = lambda *arguments: executed.append("RSET")  # type: ignore[attr-defined]
        port = await self.serve()

        def shake_hands(client: LineClient) -> str | None:
            """Return the reply to MAIL within TLS, or None if there is no TLS."""
            assert client.reply() == "220 2.0.0 Ready to start TLS"
            try:
                client.secure(trusting())
            except (ssl.SSLError, ConnectionError):
                return None
            return client.ask("MAIL FROM:<a@example.com>")

        for cut in range(len(ATTACK) + 1):
            client = await self.run_client(greeted, port)
            server = self.connection()
            await self.run_client(client.ask, "EHLO before.test")
            gone = self.handler.gone = Deferred()
            server.dataReceived(ATTACK[:cut])
            if ATTACK[cut:]:
                server.transport.protocol.dataReceived(ATTACK[cut:])  # as the transport passes on the next octets
            answer = await self.run_client(shake_hands, client)
            in_one_segment = cut < len(b"STARTTLS\r\n") or cut == len(ATTACK)
            self.assertEqual(answer, "503 5.5.1 Send HELO or EHLO first" if in_one_segment else None, cut)
            await self.run_client(client.close)
            await gone
        self.assertEqual(executed, [])

    async def test_halfALine(self) -> None:
        """An incomplete line before TLS is not joined with the first line in TLS."""

        def talk(port: int) -> list[str]:
            client = greeted(port)
            client.send(b"STARTTLS\r\nNOO")
            said = [client.reply()]
            client.secure(trusting())
            return [*said, client.ask("P"), client.ask("NOOP")]

        said = await self.run_client(talk, await self.serve())
        self.assertEqual([reply[:3] for reply in said], ["220", "500", "250"])

    async def test_behindSlowHook(self) -> None:
        """Input that arrives while a hook delays STARTTLS is discarded, too."""
        waits: Deferred[str] = Deferred()
        asked: Deferred[None] = Deferred()

        def slow(*arguments: Any) -> Deferred[str]:
            asked.callback(None)
            return waits

        self.handler.handle_NOOP = slow  # type: ignore[attr-defined]
        port = await self.serve(buffer_limit=1000)
        client = await self.run_client(greeted, port)
        flood = b"MAIL FROM:<evil@example.com>\r\n" * 10_000  # more than one read
        await self.run_client(client.send, b"NOOP\r\nSTARTTLS\r\n" + flood)
        await asked
        server = self.connection()
        while not server._connection._reading_paused:
            await deferLater(reactor, 0, lambda: None)
        waits.callback("250 OK")

        def go_on() -> list[str]:
            return [client.reply(), client.reply(), client.reply()]

        said = await self.run_client(go_on)
        # The rest of the flood was still in the kernel. It is not TLS, so the handshake fails.
        self.assertEqual([reply[:3] for reply in said], ["250", "220", ""])
        await self.handler.gone
        self.assertIsInstance(self.handler.causes[0], TLSSetupException)


class CommandTests(TLSTestCase):
    """STARTTLS as a command."""

    async def test_insideTLS(self) -> None:
        """With TLS, STARTTLS is neither offered nor listed, and is refused."""
        for implicit, connect in (False, secured), (True, from_the_first_octet):

            def talk(port: int, connect: Any = connect) -> tuple[str, str, str, str]:
                client = connect(port)
                return client.ask("EHLO x.test"), client.ask("HELP"), client.ask("STARTTLS"), client.ask("NOOP")

            ehlo, help_, again, noop = await self.run_client(talk, await self.serve(implicit_tls=implicit))
            self.assertNotIn("STARTTLS", ehlo)
            self.assertNotIn("STARTTLS", help_)
            self.assertEqual(again, "503 5.5.1 TLS is already active")
            self.assertEqual(noop[:3], "250")

    async def test_batches(self) -> None:
        """Thousands of commands that arrive at once are all executed in order, over TLS as well."""
        for implicit, connect in (False, secured), (True, from_the_first_octet):

            def talk(port: int, connect: Any = connect) -> list[str]:
                client = connect(port)
                client.ask("EHLO x.test")
                client.send(b"NOOP\r\nRSET\r\n" * 1000 + b"QUIT\r\n")
                return [client.reply() for _ in range(2001)]

            said = await self.run_client(talk, await self.serve(implicit_tls=implicit, junk_command_limit=None))
            self.assertEqual([reply[:3] for reply in said], ["250"] * 2000 + ["221"])

    async def test_required(self) -> None:
        """If TLS is required, only NOOP, EHLO, STARTTLS and QUIT are accepted without TLS. With TLS, all commands
        are."""

        def talk(port: int) -> tuple[list[str], list[str]]:
            client = greeted(port)
            verbs = "HELO x", "MAIL FROM:<a@example.com>", "RSET", "HELP", "VRFY a", "NOOP", "EHLO x", "STARTTLS"
            clear = [client.ask(verb) for verb in verbs]
            client.secure(trusting())
            return clear, [client.ask(verb) for verb in ("HELO x", "MAIL FROM:<a@example.com>", "RSET", "QUIT")]

        clear, secure = await self.run_client(talk, await self.serve(require_starttls=True))
        self.assertEqual([reply[:3] for reply in clear], ["530"] * 5 + ["250", "250", "220"])
        self.assertEqual(clear[0], "530 5.7.0 Must issue a STARTTLS command first")
        self.assertEqual([reply[:3] for reply in secure], ["250", "250", "250", "221"])

    async def test_requiredAndImplicit(self) -> None:
        """Implicit TLS satisfies require_starttls."""
        await self.run_client(send_by_implicit_tls, await self.serve(implicit_tls=True, require_starttls=True))
        self.assertEqual(len(self.handler.messages), 1)

    async def test_hookRefuses(self) -> None:
        """If handle_STARTTLS returns a false result, in any form, all commands except QUIT are refused."""

        async def coroutine(*arguments: Any) -> bool:
            return False

        def deferred(*arguments: Any) -> Deferred[bool]:
            return deferLater(reactor, 0, lambda: False)

        def talk(port: int) -> list[str]:
            client = secured(port)
            return [client.ask(line) for line in ("EHLO x", "NOOP", "MAIL FROM:<a@example.com>", "NONSENSE", "QUIT")]

        for hook in coroutine, deferred, lambda *arguments: None:
            self.handler.handle_STARTTLS = hook  # type: ignore[attr-defined]
            said = await self.run_client(talk, await self.serve())
            self.assertEqual([reply[:9] for reply in said], ["554 5.7.0"] * 3 + ["500 5.5.1", "221 2.0.0"])

    async def test_hookRefusesImplicitTLS(self) -> None:
        """The hook also decides about implicit TLS, before the greeting."""
        self.handler.handle_STARTTLS = lambda *arguments: False  # type: ignore[attr-defined]

        def talk(port: int) -> list[str]:
            client = LineClient(port)
            client.secure(trusting())
            return [client.reply(), client.ask("EHLO x"), client.ask("QUIT")]

        said = await self.run_client(talk, await self.serve(implicit_tls=True))
        self.assertEqual([reply[:3] for reply in said], ["554", "554", "221"])

    async def test_hookFails(self) -> None:
        """If handle_STARTTLS raises, the connection is closed, with both kinds of TLS."""

        def failing(*arguments: Any) -> bool:
            raise ZeroDivisionError

        def talk(port: int, implicit: bool) -> list[str]:
            client = LineClient(port) if implicit else greeted(port)
            if not implicit:
                client.ask("STARTTLS")
            client.secure(trusting())
            return [client.reply(), client.reply()]

        self.handler.handle_STARTTLS = failing  # type: ignore[attr-defined]
        for implicit in False, True:
            said = await self.run_client(talk, await self.serve(implicit_tls=implicit), implicit)
            self.assertEqual(said, ["451 4.3.0 failed", ""])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    async def test_hookSeesTerms(self) -> None:
        """handle_STARTTLS can read the TLS state, and may accept it."""
        seen: list[Any] = []

        def agree(server: Any, session: Any, envelope: Any) -> bool:
            seen.append((server.session is session, session.ssl, session.host_name, envelope.mail_from))
            return True

        self.handler.handle_STARTTLS = agree  # type: ignore[attr-defined]
        await self.run_client(send_by_starttls, await self.serve())
        ((same, terms, host_name, mail_from),) = seen
        self.assertTrue(same)
        self.assertEqual(terms.protocol, "TLSv1.3")
        self.assertIsNone(host_name)
        self.assertIsNone(mail_from)

    async def test_ownCommand(self) -> None:
        """A subclass may override STARTTLS, and call the inherited method."""
        seen: list[str] = []

        class Own(SMTP):
            async def smtp_STARTTLS(self, arg: str | None) -> None:
                seen.append("before")
                await super().smtp_STARTTLS(None)
                seen.append("after")

        await self.run_client(send_by_starttls, await self.serve(protocol=Own))
        self.assertEqual(seen, ["before", "after"])
        self.assertEqual(len(self.handler.messages), 1)


class MemoryTests(SynchronousTestCase):
    """The command without TLS."""

    def test_noContext(self) -> None:
        """Without a certificate, STARTTLS is neither offered nor listed, and gets 454."""
        client = Client()
        self.assertNotIn("STARTTLS", client.ask(b"EHLO x.test").text)
        self.assertNotIn("STARTTLS", client.ask(b"HELP").text)
        self.assertEqual((client.ask(b"STARTTLS").code, client.ask(b"STARTTLS now").code), (454, 454))

    def test_noStartTLS(self) -> None:
        """The same is true for a transport without startTLS, such as standard input and output. Everything else
        works."""
        transport = StringTransport()
        server = SMTPFactory(reactor=Clock(), tls_context=contexts()).buildProtocol(None)
        server.makeConnection(transport)
        server.dataReceived(GREETING + b"STARTTLS\r\n" + TRANSACTION)
        self.assertNotIn(b"STARTTLS", transport.value())
        self.assertEqual(codes(transport.value()), [220, 250, 454, 250, 250])

    def test_unreadReplies(self) -> None:
        """If a client's unread replies fill the transport when it sends STARTTLS, it is read again for its
        handshake."""
        client = Client(tls_context=contexts(), junk_command_limit=None)
        begun: list[Any] = []
        client.transport.startTLS = begun.append  # type: ignore[attr-defined]
        client.stop_reading()
        client.say(b"NOOP\r\n" * (HIGH_WATER // len(b"250 2.0.0 OK\r\n")))
        self.assertEqual(client.transport.pauses, 0)
        client.say(b"STARTTLS\r\n")
        self.assertEqual((client.transport.pauses, client.reading, len(begun)), (1, True, 1))
        client.vanish()

    def test_argument(self) -> None:
        """STARTTLS takes no argument."""
        client = Client(tls_context=contexts())
        client.transport.startTLS = None  # type: ignore[attr-defined]
        answer = client.ask(b"STARTTLS now")
        self.assertEqual((answer.code, answer.lines), (501, ("5.5.4 Syntax: STARTTLS",)))

    def test_implicitWithoutStartTLS(self) -> None:
        """A transport without startTLS cannot use implicit TLS: the connection closes without a greeting."""
        transport = StringTransport()
        server = SMTPFactory(reactor=Clock(), tls_context=contexts(), implicit_tls=True).buildProtocol(None)
        server.makeConnection(transport)
        self.assertEqual((transport.value(), transport.disconnecting), (b"", True))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)


class SettingsTests(SynchronousTestCase):
    """The options of TLS are checked when the server is created."""

    def test_somethingElse(self) -> None:
        """An object that is not a TLS context is refused."""
        self.assertRaises(TypeError, SMTPFactory, tls_context="server.pem")

    def test_withoutContext(self) -> None:
        """TLS cannot be required or implicit without a certificate."""
        self.assertRaises(ValueError, SMTPFactory, require_starttls=True)
        self.assertRaises(ValueError, SMTPFactory, implicit_tls=True)

    def test_keyDoesNotFit(self) -> None:
        """A key that does not match its certificate is found at the start."""
        good, other = contexts(), contexts()
        bad = CertificateOptions(privateKey=other.privateKey, certificate=good.certificate)
        error = self.assertRaises(ValueError, SMTPFactory, tls_context=bad)
        self.assertIn("tls_context does not work", str(error))


def contexts() -> CertificateOptions:
    """A CertificateOptions, as an application creates it."""
    pem = combined(issue("localhost"))
    return CertificateOptions(
        privateKey=load_pem_private_key(pem, None),  # type: ignore[arg-type]
        certificate=x509.load_pem_x509_certificate(pem),  # type: ignore[arg-type]
    )


class KnowledgeTests(TLSTestCase):
    """The TLS state of a connection."""

    async def known(self, context: ssl.SSLContext, implicit: bool, **certificates: Any) -> TLSInfo:
        """The server's TLS state of a client with this context."""
        port = await self.serve(implicit_tls=implicit, tls_context=Certificates(self.certificate, **certificates))

        def talk() -> None:
            client = (from_the_first_octet if implicit else secured)(port, context)
            client.ask("EHLO x.test")
            client.ask("MAIL FROM:<a@example.com>")
            client.ask("RCPT TO:<a@example.com>")
            client.ask("DATA")
            assert client.ask(".")[:3] == "250"
            client.ask("QUIT")
            client.close()

        await self.run_client(talk)
        return self.handler.sessions[-1].ssl

    async def test_terms(self) -> None:
        """Protocol, cipher, server name, and whether channel binding is possible, with both kinds of TLS."""
        for implicit in False, True:
            context = trusting()
            info = await self.known(context, implicit)
            self.assertEqual(info, TLSInfo("TLSv1.3", info.cipher, None, server_name="localhost", binds=True))
            self.assertIn("AES", info.cipher + "CHACHA20-AES")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            info = await self.known(context, implicit)
            self.assertEqual((info.protocol, info.binds), ("TLSv1.2", False))

    async def test_optionalClientCertificate(self) -> None:
        """If client certificates are optional, the handler gets the certificate of a client that has one."""
        leaf = issue("client.test")
        for implicit in False, True:
            self.assertIsNone((await self.known(trusting(), implicit, client_ca=self.ca_file)).peer_certificate)
            info = await self.known(trusting(leaf), implicit, client_ca=self.ca_file)
            self.assertEqual(
                info.peer_certificate.public_bytes(Encoding.PEM),
                leaf.cert_chain_pems[0].bytes(),
            )

    async def test_certificateOfStranger(self) -> None:
        """A certificate of an unknown authority fails the handshake."""
        stranger = issue("client.test", ca=trustme.CA())
        port = await self.serve(tls_context=Certificates(self.certificate, client_ca=self.ca_file))
        self.assertEqual(await self.run_client(refused_client, port, trusting(stranger)), "")
        await self.handler.gone
        (error,) = self.handler.errors
        self.assertIn("verify failed", str(error))

    async def test_requiredClientCertificate(self) -> None:
        """If client certificates are required, clients without one fail."""
        context = Certificates(self.certificate, client_ca=self.ca_file, require_client_certificate=True)
        port = await self.serve(tls_context=context)
        self.assertEqual(await self.run_client(refused_client, port, trusting()), "")
        leaf = issue("client.test")
        self.assertEqual(await self.run_client(lambda: secured(port, trusting(leaf)).ask("NOOP")), "250 2.0.0 OK")

    async def test_oldVersions(self) -> None:
        """TLS 1.1 is refused."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        self.assertEqual(await self.run_client(refused_client, await self.serve(), context), "")


def refused_client(port: int, context: ssl.SSLContext) -> str:
    """Return the reply to NOOP; ``""`` if there is no TLS. (In TLS 1.3, the client notices only then.)"""
    try:
        return secured(port, context).ask("NOOP")
    except (ssl.SSLError, ConnectionError):
        return ""


class FailureTests(TLSTestCase, LoggingTestCase):
    """Handshakes that fail or never end, and clients that do not close TLS."""

    def setUp(self) -> None:
        TLSTestCase.setUp(self)
        LoggingTestCase.setUp(self)
        self.clock = Clock()

    async def test_noTLS(self) -> None:
        """A client without TLS: handle_exception is called, one line is logged, and the connection closes."""
        for implicit in False, True:
            self.handler.gone = Deferred()

            def talk(port: int, implicit: bool = implicit) -> None:
                client = LineClient(port) if implicit else greeted(port)
                if not implicit:
                    client.ask("STARTTLS")
                client.send(b"GET / HTTP/1.0\r\n\r\n")
                while client.socket.recv(100):
                    pass  # an alert

            self.events.clear()
            await self.run_client(talk, await self.serve(implicit_tls=implicit))
            await self.handler.gone
            self.assertIsInstance(self.handler.errors[-1], TLSSetupException)
            self.assertIs(self.handler.causes[-1], self.handler.errors[-1])
            self.assertIsInstance(self.handler.errors[-1].__cause__, Exception)
            (line,) = [line for line in self.logged() if "handshake" in line]
            self.assertIn("the TLS handshake failed: ", line)
            self.assertEqual(self.errors_logged(), 0)
            self.assertEqual(self.flushLoggedErrors(), [])

    async def test_gone(self) -> None:
        """A client that disconnects during the handshake."""

        def talk(port: int) -> None:
            client = greeted(port)
            client.ask("STARTTLS")
            client.close()

        await self.run_client(talk, await self.serve())
        await self.handler.gone
        self.assertIsInstance(self.handler.causes[0], TLSSetupException)

    async def test_hookFails(self) -> None:
        """A handle_exception that fails is logged, and has no other effect."""

        def failing(error: Exception) -> str:
            raise ZeroDivisionError

        self.handler.handle_exception = failing  # type: ignore[method-assign]

        def talk(port: int) -> None:
            client = greeted(port)
            client.ask("STARTTLS")
            client.close()

        await self.run_client(talk, await self.serve())
        await self.handler.gone
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_stalled(self) -> None:
        """A client that stalls during the handshake is disconnected after the timeout."""
        for implicit in False, True:
            self.handler.gone = Deferred()

            def begin(port: int, implicit: bool = implicit) -> LineClient:
                client = LineClient(port) if implicit else greeted(port)
                if not implicit:
                    client.ask("STARTTLS")
                client.send(b"\x16\x03\x01\x02\x00\x01")  # the first octets of a ClientHello
                return client

            port = await self.serve(implicit_tls=implicit, reactor=self.clock, hook_timeout=1)
            client = await self.run_client(begin, port)
            while not self.factory.connections:
                await deferLater(reactor, 0, lambda: None)
            self.clock.advance(29)
            self.assertEqual(len(self.factory.connections), 1)
            self.clock.advance(1)
            self.assertEqual(await self.run_client(client.reply), "")
            await self.handler.gone
            self.assertEqual(len(self.factory.connections), 0)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertIsInstance(self.handler.causes[-1].__cause__, TimeoutError)

    async def test_hookTimeoutStillHolds(self) -> None:
        """After the handshake, handle_STARTTLS has the timeout of hooks."""
        waits: Deferred[bool] = Deferred()
        asked: Deferred[None] = Deferred()

        def never(*arguments: Any) -> Deferred[bool]:
            reactor.callLater(0, asked.callback, None)  # then the hook's turn has started
            return waits

        self.handler.handle_STARTTLS = never  # type: ignore[attr-defined]
        port = await self.serve(reactor=self.clock, hook_timeout=40)
        client = await self.run_client(secured, port)
        await asked
        self.clock.advance(39)
        self.assertFalse(waits.called)
        self.clock.advance(1)
        self.assertEqual(await self.run_client(client.reply), "451 4.3.0 Processing timed out, try again later")

    async def test_noCloseNotify(self) -> None:
        """A client that never sends close_notify is disconnected soon after the server has closed."""
        port = await self.serve(reactor=self.clock)

        def talk() -> LineClient:
            client = secured(port)
            assert client.ask("QUIT")[:3] == "221"
            return client  # it answers the server's close_notify only if it reads

        client = await self.run_client(talk)
        self.assertEqual(len(self.factory.connections), 1)
        self.clock.advance(10)
        await self.handler.gone
        self.assertEqual(len(self.factory.connections), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        await self.run_client(client.close)

    async def test_idle(self) -> None:
        """The idle timeout applies within TLS."""
        port = await self.serve(reactor=self.clock)
        client = await self.run_client(secured, port)
        await self.run_client(client.ask, "NOOP")
        self.clock.advance(300)
        self.assertEqual((await self.run_client(client.reply))[:9], "421 4.4.2")
        await self.run_client(client.close)
        await self.handler.gone

    async def test_closeNotifyInTheMiddle(self) -> None:
        """close_notify ends the input: octets after it without TLS are ignored, and the message is not accepted."""
        port = await self.serve()

        def talk() -> bytes:
            client = secured(port)
            client.ask("EHLO x.test")
            client.ask("MAIL FROM:<a@example.com>")
            client.ask("RCPT TO:<a@example.com>")
            client.ask("DATA")
            client.send(b"Subject: half\r\n")
            plain = client.socket.unwrap()  # type: ignore[attr-defined]
            try:
                plain.sendall(b"\r\n.\r\nNOOP\r\n")
                return plain.recv(1000)
            except ConnectionError:
                return b""

        self.assertEqual(await self.run_client(talk), b"")
        await self.handler.gone
        self.assertEqual(self.handler.messages, [])

    async def test_nothingAfterQuit(self) -> None:
        """Commands after QUIT within TLS are not executed."""
        executed: list[str] = []
        self.handler.handle_NOOP = lambda *arguments: executed.append("NOOP")  # type: ignore[attr-defined]
        port = await self.serve()

        def talk() -> list[str]:
            client = secured(port)
            client.send(b"QUIT\r\nNOOP\r\nNOOP\r\n")
            said = [client.reply(), client.reply()]
            client.close()
            return said

        said = await self.run_client(talk)
        self.assertEqual(said, ["221 2.0.0 Goodbye", ""])
        self.assertEqual(executed, [])
        await self.handler.gone

    async def test_shutdownInHandshake(self) -> None:
        """A server that shuts down does not wait for handshakes."""
        port = await self.serve(reactor=self.clock)
        client = await self.run_client(greeted, port)
        await self.run_client(client.ask, "STARTTLS")
        await self.factory.drain()
        self.assertEqual(self.handler.errors, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        await self.run_client(client.close)

    async def test_brokenContext(self) -> None:
        """If a tls_context fails when a client connects, the connection closes, and the log has the reason."""

        @implementer(IOpenSSLServerConnectionCreator)
        class Broken:
            def serverConnectionForTLS(self, protocol: Any) -> Any:
                raise ZeroDivisionError("broken")

        port = await self.serve(tls_context=Broken())

        def talk() -> list[str]:
            client = greeted(port)
            return [client.ask("STARTTLS"), client.reply()]

        said = await self.run_client(talk)
        self.assertEqual([reply[:3] for reply in said], ["220", ""])
        await self.handler.gone
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.factory.connections), 0)

    async def test_bulk(self) -> None:
        """A large message, and a client that reads late, work over TLS as without it."""
        port = await self.serve(junk_command_limit=None)

        def talk() -> str:
            client = secured(port)
            client.send(b"NOOP\r\n" * 20000)
            for _ in range(20000):
                assert client.reply()[:3] == "250"
            client.ask("EHLO x.test")
            client.ask("MAIL FROM:<a@example.com>")
            client.ask("RCPT TO:<a@example.com>")
            client.ask("DATA")
            client.send(b"x" * 70 + b"\r\n" + b"Hello, hello, hello\r\n" * 200_000)
            return client.ask(".")

        self.assertEqual((await self.run_client(talk))[:3], "250")
        self.assertEqual(len(self.handler.messages[0].content), 72 + 21 * 200_000)


class RenewalTests(TLSTestCase):
    """Certificates are renewed while the server runs."""

    async def test_whileMessagesFlow(self) -> None:
        """If the file is replaced while messages are sent, the next handshake uses the new one, and no message is
        lost."""
        now = Clock()
        port = await self.serve(tls_context=Certificates(self.certificate, clock=now.seconds))
        started: Deferred[None] = Deferred()
        count = 40

        def flow() -> None:
            with smtplib.SMTP("localhost", port, timeout=PATIENCE) as client:
                client.starttls(context=trusting())
                for n in range(count):
                    client.sendmail(SENDER, RECIPIENT, MESSAGE)
                    if n == 5:
                        reactor.callFromThread(started.callback, None)

        def served() -> bytes | None:
            client = secured(port)
            shown = client.socket.getpeercert(binary_form=True)  # type: ignore[attr-defined]
            client.ask("QUIT")
            client.close()
            return shown

        first = await self.run_client(served)
        flowing = deferToThread(flow)
        await started
        write(self.certificate, combined(issue("localhost", "127.0.0.1")))
        now.advance(1)
        second = await self.run_client(served)
        await flowing
        self.assertNotEqual(first, second)
        self.assertEqual(len(self.handler.messages), count)
