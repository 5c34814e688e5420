"""Programs in the style of aiosmtpd. They run with aiosmtpd, if it is installed, and with this package; only the import
differs."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import smtplib
import socket
from base64 import b64encode
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.bridges.reactor_thread import spare_trial_worker

MESSAGE = "From: a@example.com\r\nSubject: A test\r\n\r\nHello\r\n"


class Programs:
    """The tests. A subclass provides the modules that they import."""

    package: str

    def setUp(self: Any) -> None:
        self.smtp = self.module("smtp")
        self.controllers = self.module("controller")
        self.handlers = self.module("handlers")

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")

    def start(self: Any, handler: Any, kind: Any = None, **options: Any) -> Any:
        """Return a controller that listens until the end of the test."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        controller = (kind or self.controllers.Controller)(handler, hostname="127.0.0.1", port=port, **options)
        controller.start()
        self.addCleanup(controller.stop)
        return controller

    def client(self: Any, controller: Any) -> smtplib.SMTP:
        client = smtplib.SMTP(controller.hostname, controller.port, timeout=30)
        self.addCleanup(client.close)
        return client

    def send(self: Any, controller: Any, *recipients: str) -> dict[str, Any]:
        refused = self.client(controller).sendmail("a@example.com", recipients or ["b@example.com"], MESSAGE)
        return dict(refused)

    def test_recipients(self: Any) -> None:
        """A hook that accepts some recipients, and a hook that gets the message and uses asyncio."""

        class Domain:
            def __init__(self) -> None:
                self.kept: list[Any] = []

            async def handle_RCPT(
                self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]
            ) -> str:
                await asyncio.sleep(0)
                if not address.endswith("@example.com"):
                    return "550 this domain is not ours"
                envelope.rcpt_tos.append(address)
                return "250 OK"

            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                await asyncio.sleep(0)
                self.kept.append((envelope.mail_from, envelope.rcpt_tos, envelope.content, session.host_name))
                return "250 Message accepted"

        handler = Domain()
        refused = self.send(self.start(handler), "b@example.com", "c@example.org")
        self.assertEqual({address: code for address, (code, _) in refused.items()}, {"c@example.org": 550})
        ((sender, recipients, content, name),) = handler.kept
        self.assertEqual((sender, recipients, content), ("a@example.com", ["b@example.com"], MESSAGE.encode()))
        self.assertTrue(name)

    def test_allHooks(self: Any) -> None:
        """Hooks of all commands set what the server would set. Their status is the reply."""

        class All:
            def __init__(self) -> None:
                self.calls: list[str] = []

            async def handle_HELO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
                self.calls.append("HELO")
                session.host_name = hostname
                return f"250 {server.hostname} greets {hostname}"

            async def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: str) -> str:
                self.calls.append(f"NOOP {arg}")
                return "250 nothing done"

            async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> str:
                self.calls.append(f"VRFY {address}")
                return "252 who knows"

            async def handle_MAIL(
                self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]
            ) -> str:
                self.calls.append(f"MAIL {address} {mail_options}")
                envelope.mail_from = address
                envelope.mail_options.extend(mail_options)
                return "250 sender noted"

            async def handle_RSET(self, server: Any, session: Any, envelope: Any) -> str:
                self.calls.append(f"RSET {envelope.mail_from}")
                return "250 forgotten"

            async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:
                self.calls.append("QUIT")
                return "221 so long"

        handler = All()
        client = self.client(self.start(handler, server_hostname="mx.test"))
        self.assertEqual(client.helo("me.test"), (250, b"mx.test greets me.test"))
        self.assertEqual(client.docmd("NOOP", "x"), (250, b"nothing done"))
        self.assertEqual(client.verify("b@example.com"), (252, b"who knows"))
        self.assertEqual(client.mail("a@example.com"), (250, b"sender noted"))
        self.assertEqual(client.rset(), (250, b"forgotten"))
        self.assertEqual(client.quit(), (221, b"so long"))
        self.assertEqual(
            handler.calls,
            ["HELO", "NOOP x", "VRFY b@example.com", "MAIL a@example.com []", "RSET None", "QUIT"],
        )

    def test_ehloResponses(self: Any) -> None:
        """A hook of EHLO that gets the lines and returns other lines."""

        class Announces:
            async def handle_EHLO(
                self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
            ) -> list[str]:
                session.host_name = hostname
                return [*responses[:-1], "250-X-COLOUR red", responses[-1]]

        client = self.client(self.start(Announces()))
        client.ehlo("me.test")
        self.assertEqual(client.esmtp_features.get("x-colour"), "red")
        self.assertTrue(client.has_extn("help"))
        self.assertEqual(client.mail("a@example.com")[0], 250)

    def test_ehloLastLine(self: Any) -> None:
        """A hook of EHLO in the older form, which returns the last line."""

        class Announces:
            async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
                session.host_name = hostname
                return "250 HELP"

        client = self.client(self.start(Announces()))
        self.assertEqual(client.ehlo("me.test")[0], 250)
        self.assertTrue(client.has_extn("help"))
        self.assertTrue(client.has_extn("size"))
        self.flushWarnings()

    def test_authenticator(self: Any) -> None:
        """A function that checks a login and a password, and its information about the user."""
        smtp = self.smtp

        def decide(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
            if not isinstance(auth_data, smtp.LoginPassword) or mechanism not in ("LOGIN", "PLAIN"):
                return smtp.AuthResult(success=False, handled=False)
            if auth_data.login == b"user" and auth_data.password == b"secret":
                return smtp.AuthResult(success=True, auth_data={"name": "A user"})
            return smtp.AuthResult(success=False, handled=False)

        class Who:
            def __init__(self) -> None:
                self.seen: list[Any] = []

            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                self.seen.append((session.authenticated, session.auth_data))
                return "250 OK"

        handler = Who()
        controller = self.start(handler, authenticator=decide, auth_required=True, auth_require_tls=False)
        client = self.client(controller)
        self.assertRaises(smtplib.SMTPSenderRefused, client.sendmail, "a@example.com", "b@example.com", MESSAGE)
        client.login("user", "secret")
        client.sendmail("a@example.com", "b@example.com", MESSAGE)
        self.assertRaises(smtplib.SMTPAuthenticationError, self.client(controller).login, "user", "wrong")
        self.assertEqual(handler.seen, [(True, {"name": "A user"})])
        self.flushWarnings()

    def test_authMethod(self: Any) -> None:
        """A mechanism of the handler, which sends challenges, and a disabled mechanism."""
        smtp = self.smtp

        class Tokens:
            async def auth_TOKEN(self, server: Any, args: list[str]) -> Any:
                answer = await server.challenge_auth("token?")
                if answer is smtp.MISSING:
                    return smtp.AuthResult(success=False)
                return smtp.AuthResult(success=answer == b"sesame", handled=False, auth_data=answer)

            @smtp.auth_mechanism("X-ONE-TIME")
            async def auth_once(self, server: Any, args: list[str]) -> Any:
                return smtp.AuthResult(success=True, auth_data="once")

        controller = self.start(Tokens(), auth_require_tls=False, auth_exclude_mechanism=["LOGIN"])
        client = self.client(controller)
        client.ehlo()
        offered = client.esmtp_features["auth"].split()
        self.assertIn("TOKEN", offered)
        self.assertIn("X-ONE-TIME", offered)
        self.assertNotIn("LOGIN", offered)
        self.assertEqual(client.docmd("AUTH TOKEN"), (334, b64encode(b"token?")))
        self.assertEqual(client.docmd(b64encode(b"nothing").decode())[0], 535)
        client.docmd("AUTH TOKEN")
        self.assertEqual(client.docmd(b64encode(b"sesame").decode())[0], 235)
        other = self.client(controller)
        other.ehlo()
        self.assertEqual(other.docmd("AUTH X-ONE-TIME")[0], 235)

    def test_ownCommands(self: Any) -> None:
        """A subclass with an additional command, which HELP lists, and a changed command; created by factory()."""
        smtp, controllers = self.smtp, self.controllers

        class Greeting(smtp.SMTP):  # type: ignore[name-defined, misc]
            @smtp.syntax("GREET [name]")
            async def smtp_GREET(self, arg: str | None) -> None:
                await self.push(f"250 Hello, {arg or 'stranger'}")

            @smtp.syntax("SECRET", when="tls_context")
            async def smtp_SECRET(self, arg: str | None) -> None:
                await self.push("250 hush")

            async def smtp_VRFY(self, arg: str | None) -> None:
                await self.push("502 not told")

        class Greets(controllers.Controller):  # type: ignore[name-defined, misc]
            def factory(self) -> Any:
                return Greeting(self.handler, **self.SMTP_kwargs)

        client = self.client(self.start(self.handlers.Sink(), Greets))
        self.assertEqual(client.docmd("GREET", "Ann"), (250, b"Hello, Ann"))
        self.assertEqual(client.docmd("greet"), (250, b"Hello, stranger"))
        self.assertEqual(client.verify("x@example.com")[0], 502)
        help_text = client.docmd("HELP")[1].decode()
        self.assertIn("GREET", help_text)
        self.assertNotIn("SECRET", help_text)
        self.assertIn(b"GREET [name]", client.docmd("HELP", "greet")[1])

    def test_ownSession(self: Any) -> None:
        """Custom classes of sessions and envelopes, and attributes that hooks add to them."""
        smtp, controllers = self.smtp, self.controllers

        class Noted(smtp.Envelope):  # type: ignore[name-defined, misc]
            note = "none"

        class Own(smtp.SMTP):  # type: ignore[name-defined, misc]
            def _create_envelope(self) -> Any:
                return Noted()

        class Makes(controllers.Controller):  # type: ignore[name-defined, misc]
            def factory(self) -> Any:
                return Own(self.handler)

        class Counts:
            def __init__(self) -> None:
                self.seen: list[Any] = []

            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                session.count = getattr(session, "count", 0) + 1
                self.seen.append((session.count, envelope.note))
                return "250 OK"

        handler = Counts()
        client = self.client(self.start(handler, Makes))
        for _ in range(2):
            client.sendmail("a@example.com", "b@example.com", MESSAGE)
        self.assertEqual(handler.seen, [(1, "none"), (2, "none")])

    def test_message(self: Any) -> None:
        """Handlers that get a parsed message: a plain method, or a coroutine that uses asyncio."""
        handlers = self.handlers
        kept: list[Any] = []

        class Plain(handlers.Message):  # type: ignore[name-defined, misc]
            def handle_message(self, message: Any) -> None:
                kept.append(message)

        class Async(handlers.AsyncMessage):  # type: ignore[name-defined, misc]
            async def handle_message(self, message: Any) -> None:
                await asyncio.sleep(0)
                kept.append(message)

        for kind in (Plain, Async):
            self.send(self.start(kind()), "b@example.com", "c@example.com")
        for message in kept:
            self.assertEqual(message["Subject"], "A test")
            self.assertEqual(message["X-MailFrom"], "a@example.com")
            self.assertEqual(message["X-RcptTo"], "b@example.com, c@example.com")
            self.assertTrue(message["X-Peer"])
        self.assertEqual(len(kept), 2)

    def test_mailbox(self: Any) -> None:
        """A maildir, which the standard library reads."""
        import mailbox

        folder = str(Path(self.mktemp()).absolute())
        self.send(self.start(self.handlers.Mailbox(folder)))
        (message,) = mailbox.Maildir(folder, create=False)
        self.assertEqual((message["Subject"], message.get_payload().strip()), ("A test", "Hello"))

    def test_debugging(self: Any) -> None:
        """Messages printed to a stream."""
        from io import StringIO

        stream = StringIO()
        self.send(self.start(self.handlers.Debugging(stream)))
        self.assertIn("Subject: A test\n", stream.getvalue())
        self.assertIn("X-Peer: ", stream.getvalue())

    def test_exception(self: Any) -> None:
        """A hook that returns the reply to an exception."""

        class Fails:
            async def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: str) -> str:
                raise ValueError("on purpose")

            async def handle_exception(self, error: Exception) -> str:
                return f"542 {type(error).__name__}"

        self.assertEqual(self.client(self.start(Fails())).noop(), (542, b"ValueError"))
        self.flushLoggedErrors(ValueError)

    def test_limits(self: Any) -> None:
        """Options: the size of messages, their encoding, and limits of commands."""

        class Keeps:
            content: Any = None

            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                self.content = envelope.content
                return "250 OK"

        handler = Keeps()
        controller = self.start(
            handler, data_size_limit=1000, decode_data=True, enable_SMTPUTF8=True, command_call_limit={"NOOP": 1}
        )
        client = self.client(controller)
        client.ehlo()
        self.assertEqual(client.esmtp_features["size"], "1000")
        client.sendmail("a@example.com", "b@example.com", "Subject: ü\r\n\r\n".encode())
        self.assertEqual(handler.content, "Subject: ü\r\n\r\n")
        self.assertRaises(smtplib.SMTPSenderRefused, client.sendmail, "a@example.com", "b@x.test", "x" * 2000)
        self.assertEqual([client.noop()[0], client.noop()[0]], [250, 421])

    def test_constants(self: Any) -> None:
        """Names that programs import."""
        smtp = self.smtp
        self.assertEqual((smtp.DATA_SIZE_DEFAULT, smtp.CALL_LIMIT_DEFAULT), (2**25, 20))
        self.assertTrue(smtp.__version__)
        for name in ("AuthCallbackType", "AuthMechanismType", "AuthenticatorType", "TLSSetupException"):
            self.assertTrue(hasattr(smtp, name), name)
        said: list[Any] = []
        smtp.sanitized_log(lambda message, *more: said.append((message, *more)), "%r", b"AUTH PLAIN c2VjcmV0")
        self.assertEqual(said, [("%r", b"AUTH PLAIN ********")])


class OurTests(Programs, SynchronousTestCase):
    """With the modules of this package."""

    package = "txsmtpd"

    def start(self, handler: Any, kind: Any = None, **options: Any) -> Any:
        # Trial has installed another reactor than asyncio's. Programs without a reactor do not need this option.
        return super().start(handler, kind, asyncio=True, **options)


class TheirTests(Programs, SynchronousTestCase):
    """With the modules of aiosmtpd: the tests hold there, too."""

    package = "aiosmtpd"

    def setUp(self) -> None:
        if importlib.util.find_spec("aiosmtpd") is None:
            raise SkipTest("aiosmtpd is not installed")
        spare_trial_worker()  # its threads warn
        super().setUp()


class DifferenceTests(SynchronousTestCase):
    """Programs that must be changed get an exception that says how."""

    def test_inheritedAreCoroutines(self) -> None:
        """A subclass can override any command and await the inherited method."""
        from inspect import iscoroutinefunction

        from txsmtpd.lmtp import LMTP
        from txsmtpd.smtp import SMTP

        for protocol in (SMTP, LMTP):
            methods = {command.verb: command.method for command in protocol.commands.values()}
            self.assertIn("DATA", methods)
            self.assertEqual([verb for verb, method in methods.items() if not iscoroutinefunction(method)], [])

    def test_formerHooks(self) -> None:
        """Methods that would never be called are refused when the class is created."""
        from txsmtpd.smtp import SMTP

        for name in ("connection_lost", "data_received"):
            error = self.assertRaises(TypeError, type, "Own", (SMTP,), {name: lambda self: None})
            self.assertIn(f"Own.{name} would never be called", str(error))
