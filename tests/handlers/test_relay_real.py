"""Relaying over real sockets: to Postfix's smtp-sink, and to another server of this package with TLS and AUTH."""

from __future__ import annotations

import os
import shutil
import smtplib
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.ssl import Certificate as TwistedCertificate
from twisted.internet.ssl import optionsForClientTLS, trustRootFromCertificates
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from tests.support.programs import program
from tests.support.tls import PATIENCE, TLSTestCase
from txsmtpd import SMTPFactory
from txsmtpd.auth import AuthResult
from txsmtpd.handlers import Proxy

SENDER = "a@client.test"
RECIPIENTS = ["b@upstream.test", "c@upstream.test", "d@upstream.test"]
MESSAGE = "Subject: test\r\n\r\nHello\r\n.\r\n..\r\n"


class RelayTestCase(TLSTestCase):
    """A test case with a Proxy that listens on loopback."""

    async def relay(self, host: str, port: int = 25, listen: int = 0, **options: Any) -> int:
        """Listen with a Proxy to this server. Return the port."""
        proxy = Proxy(host, port, **options)
        factory = SMTPFactory(proxy, hostname="relay.test")
        listening = await TCP4ServerEndpoint(reactor, listen, interface="127.0.0.1").listen(factory)

        async def stop() -> None:
            await listening.stopListening()
            factory.abort()
            await factory.drain()
            await proxy.upstream.close()

        self.addCleanup(stop)
        number: int = listening.getHost().port
        return number


def send(port: int, message: str | bytes = MESSAGE, recipients: list[str] = RECIPIENTS) -> Any:
    """Send a message. Return the refused recipients, or the refusal of all."""
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
        try:
            return client.sendmail(SENDER, recipients, message)
        except smtplib.SMTPResponseException as error:
            return error.smtp_code
        except smtplib.SMTPRecipientsRefused as error:
            return {each: code for each, (code, _) in error.recipients.items()}


class SinkTests(RelayTestCase):
    """smtp-sink as the next server."""

    def setUp(self) -> None:
        super().setUp()
        self.stores = Path(tempfile.mkdtemp())  # writable for another user, and short enough for a socket
        self.stores.chmod(0o777)
        self.addCleanup(shutil.rmtree, self.stores)

    async def sink(self, *options: str, unix: bool = False) -> Any:
        """Start smtp-sink. Return its address, and the folder of its messages."""
        path = self.stores / "socket"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number = probe.getsockname()[1]
        where = f"unix:{path}" if unix else f"127.0.0.1:{number}"
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        words = [program("smtp-sink", "postfix"), *user, *options, "-d", f"{self.stores}/%H.", where, "100"]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def stop() -> None:
            process.kill()
            process.wait()

        self.addCleanup(stop)

        def wait() -> None:
            for _ in range(200):
                family, address = (socket.AF_UNIX, str(path)) if unix else (socket.AF_INET, ("127.0.0.1", number))
                with socket.socket(family) as probe:
                    if not probe.connect_ex(address):  # type: ignore[arg-type]
                        return
                time.sleep(0.05)
            raise AssertionError("smtp-sink does not listen")

        await deferToThread(wait)
        return (str(path),) if unix else ("127.0.0.1", number)

    def stored(self) -> list[bytes]:
        """The messages that it has received."""
        return [each.read_bytes() for each in self.stores.iterdir() if each.is_file()]

    async def test_taken(self) -> None:
        """A message with dots and three recipients arrives unchanged, with Received and X-Peer."""
        port = await self.relay(*await self.sink())
        self.assertEqual(await self.run_client(send, port), {})
        (message,) = self.stored()
        self.assertEqual(message.count(b"X-Rcpt-Args: <"), 3)
        self.assertIn(b"X-Peer: 127.0.0.1\n\nHello\n.\n..\n", message)
        self.assertIn(b"\nReceived: from ", message)

    async def test_refusing(self) -> None:
        """The client gets each refusal, temporary or permanent, at any point."""
        for option, refused in (("-f", "5"), ("-r", "4")):
            for command in ("MAIL", "RCPT", "DATA", "."):
                port = await self.relay(*await self.sink(option, command))
                answer = await self.run_client(send, port)
                codes = set(answer.values()) if isinstance(answer, dict) else {answer}
                self.assertEqual({str(code)[0] for code in codes}, {refused}, (option, command, answer))

    async def test_closing(self) -> None:
        """If it closes, with 421 or without, the client gets 451, and keeps its connection."""
        for option in ("-q", "-Q"):
            for command in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."):
                port = await self.relay(*await self.sink(option, command))
                answer = await self.run_client(send, port)
                codes = set(answer.values()) if isinstance(answer, dict) else {answer}
                self.assertEqual(codes, {451}, (option, command, answer))

    async def test_premature(self) -> None:
        """If it refuses the message before its end and stops reading, the client gets the refusal."""
        port = await self.relay(*await self.sink("-A", "0"))
        answer = await self.run_client(
            send, port, b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" + b"y" * 5_000_000 + b"\r\n"
        )
        self.assertIn(answer, (550, 451))

    async def test_down(self) -> None:
        """If no server listens, the reply is 451."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = await self.relay("127.0.0.1", probe.getsockname()[1])
            self.assertEqual(await self.run_client(send, port), 451)

    async def test_itself(self) -> None:
        """A Proxy whose next server is itself detects that with the first message, and replies 451."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        await self.relay("127.0.0.1", port, listen=port)

        def refusals() -> list[Any]:
            with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
                client.ehlo()
                return [client.mail(SENDER) for _ in range(2)]

        self.assertEqual(
            await self.run_client(refusals),
            [(451, b"4.4.6 Mail loops back to this server, try again later")] * 2,
        )

    async def test_lmtp(self) -> None:
        """Over LMTP on a Unix socket."""
        port = await self.relay(*await self.sink("-L", unix=True), lmtp=True)
        self.assertEqual(await self.run_client(send, port), {})
        self.assertEqual(len(self.stored()), 1)

    async def test_large(self) -> None:
        """A message of many megabytes arrives complete."""
        port = await self.relay(*await self.sink())
        body = b"".join(b"%07d.%s\r\n" % (number, b"x" * 60) for number in range(150_000))
        self.assertEqual(await self.run_client(send, port, b"Subject: x\r\n\r\n" + body), {})
        (message,) = self.stored()
        self.assertTrue(message.rstrip(b"\n").endswith(body.replace(b"\r\n", b"\n").rstrip(b"\n")))

    async def test_nobodyWaits(self) -> None:
        """While the next server takes seconds for each reply, other sessions are fast."""
        port = await self.relay(*await self.sink("-w", "2"))
        slow = self.run_client(send, port)
        waiting = DeferredList([_of(slow)])

        def noops() -> None:
            with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
                for _ in range(50):
                    client.noop()

        await deferToThread(noops)
        self.assertFalse(waiting.called)
        ((_, answer),) = await waiting
        self.assertEqual(answer, {})


def _of(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


class TLSAndAuthTests(RelayTestCase):
    """Another server of this package as the next one, which requires TLS and a password."""

    def trusted(self, name: str = "localhost") -> Any:
        """The trust of a client that has the authority of the tests."""
        root = trustRootFromCertificates([TwistedCertificate.loadPEM(self.ca_file.read_bytes())])
        return optionsForClientTLS(name, trustRoot=root)

    async def upstream(self, **options: Any) -> int:
        """A server with TLS that accepts one password."""

        def decide(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            return AuthResult(success=data.login == b"relay" and data.password == b"secret")

        return await self.serve(authenticator=decide, auth_required=True, auth_failure_delay=0, **options)

    async def attempt(self, port: int, **options: Any) -> Any:
        """Send a message through a Proxy with these options, and return the result."""
        relay = await self.relay("localhost", port, connect_timeout=PATIENCE, **options)
        return await self.run_client(send, relay)

    async def test_starttls(self) -> None:
        """With STARTTLS, a verified certificate, and a login."""
        port = await self.upstream(require_starttls=True)
        self.assertEqual(
            await self.attempt(port, tls="required", tls_context=self.trusted(), username="relay", password="secret"),
            {},
        )
        (session,) = self.handler.sessions
        self.assertTrue(session.ssl and session.authenticated)

    async def test_implicit(self) -> None:
        """With implicit TLS, and a large message."""
        port = await self.upstream(implicit_tls=True)
        relay = await self.relay(
            "localhost", port, tls="implicit", tls_context=self.trusted(), username="relay", password="secret"
        )
        body = b"Subject: x\r\n\r\n" + b"y" * 990 + b"\r\n"
        self.assertEqual(await self.run_client(send, relay, body + (b"z" * 998 + b"\r\n") * 5000), {})
        self.assertEqual(await self.run_client(send, relay), {})
        self.assertGreater(len(self.handler.messages[0].content), 5_000_000)
        self.assertIs(self.handler.sessions[0], self.handler.sessions[1])

    async def test_notTrusted(self) -> None:
        """A certificate of an unknown authority, or for another name, results in 451, and no password is sent. The log
        has the reason."""
        port = await self.upstream()
        for context, why in (None, "certificate verify failed"), (self.trusted("other.test"), "other.test"):
            options: dict[str, Any] = {"tls": "required", "username": "relay", "password": "secret"}
            with capturedLogs() as events:
                self.assertEqual(await self.attempt(port, tls_context=context, **options), 451)
            logged = [str(formatEvent(each)) for each in events]
            self.assertTrue(any("TLS with the next server failed: " in each and why in each for each in logged), logged)
        self.assertEqual((self.handler.messages, self.handler.sessions), ([], []))

    async def test_opportunistic(self) -> None:
        """TLS without verification if it is offered, and plain text otherwise. The password is not sent."""
        port = await self.serve()
        self.assertEqual(await self.attempt(port), {})
        self.assertTrue(self.handler.sessions[0].ssl)
        port = await self.serve(tls_context=None)
        self.assertEqual(await self.attempt(port), {})
        self.assertEqual(await self.attempt(port, tls="opportunistic", username="relay", password="secret"), 451)
        self.assertEqual(await self.attempt(port, tls="required"), 451)
        self.assertEqual(len(self.handler.messages), 2)

    async def test_notLetIn(self) -> None:
        """With a wrong password, or without one, the client gets a temporary refusal without details of the login."""
        port = await self.upstream()
        options: dict[str, Any] = {"tls": "required", "tls_context": self.trusted()}
        self.assertEqual(await self.attempt(port, username="relay", password="wrong", **options), 451)
        self.assertEqual(await self.attempt(port, **options), 530)
        self.assertEqual(self.handler.messages, [])

    async def test_mechanisms(self) -> None:
        """PLAIN, LOGIN and CRAM-MD5, as the next server offers them."""
        from txsmtpd.auth.cram_md5 import CramMD5

        for excluded in ((), ("PLAIN",)):
            port = await self.upstream(auth_exclude_mechanism=excluded)
            options: dict[str, Any] = {"tls_context": self.trusted(), "username": "relay", "password": "secret"}
            self.assertEqual(await self.attempt(port, **options), {})

        def decide(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            return AuthResult(success=mechanism == "CRAM-MD5" and data.checkPassword(b"secret"))

        port = await self.serve(
            authenticator=decide,
            auth_mechanisms=[CramMD5()],
            auth_exclude_mechanism=["PLAIN", "LOGIN"],
            auth_required=True,
        )
        self.assertEqual(await self.attempt(port, **options), {})
