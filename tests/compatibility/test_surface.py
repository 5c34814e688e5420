"""Uses of aiosmtpd's classes in existing programs have the same effect here."""

from __future__ import annotations

import asyncio
import ssl
import sys
from abc import ABC, abstractmethod
from email.header import decode_header, make_header
from io import StringIO
from typing import Any
from unittest.mock import Mock

from twisted.trial.unittest import SynchronousTestCase

from tests.support import Client, LoggingTestCase, Waiting, codes, conversation, handler
from txsmtpd import LMTP, SMTP, Envelope, Session, SMTPFactory, handlers, smtp, syntax
from txsmtpd.handlers import AsyncMessage, Debugging, Mailbox, Message, MessageBase, Sink
from txsmtpd.main import parseargs
from txsmtpd.settings import Settings

HELLO = b"EHLO c.test\r\n"


class Own(SMTP):
    """A class that tests may change."""


class Below(Own):
    """Its subclass."""


class Bare:
    """A class without hooks."""


class Word:
    """A handler with an argument."""

    def __init__(self, word: str) -> None:
        if not word:
            raise ValueError("a word is needed")
        self.word = word

    @classmethod
    def from_cli(cls, parser: Any, *arguments: str) -> Word:
        return cls(*arguments)


class CommandTests(SynchronousTestCase):
    """Commands that are replaced after their class was created."""

    def test_patchedClass(self) -> None:
        """Setting or deleting a command of a class takes effect for new connections, including those of subclasses and
        existing factories."""
        factory = SMTPFactory(handler(), protocol=Below)
        self.assertEqual(codes(Client(factory).talk(b"NOOP\r\n")), [250])

        async def smtp_NOOP(server: Any, arg: Any) -> str:
            return "259 patched"

        self.patch(Own, "smtp_NOOP", smtp_NOOP)
        Own.smtp_PING = syntax("PING")(smtp_NOOP)  # type: ignore[attr-defined]
        self.assertEqual(codes(Client(factory).talk(b"NOOP\r\nPING\r\n")), [259, 259])
        del Own.smtp_PING  # type: ignore[attr-defined]
        self.assertEqual(codes(Client(factory).talk(b"PING\r\n")), [500])

    def test_patchedMechanism(self) -> None:
        """The same applies to mechanisms, for new factories."""

        async def auth_TOKEN(server: Any, _: Any, args: Any) -> Any:
            return True

        Own.auth_TOKEN = auth_TOKEN  # type: ignore[attr-defined]
        self.addCleanup(delattr, Own, "auth_TOKEN")
        factory = SMTPFactory(handler(), protocol=Own, auth_require_tls=False)
        self.assertIn(b"AUTH TOKEN", Client(factory).talk(HELLO))

    def test_ofObject(self) -> None:
        """A command may be an attribute of the object, set in its __init__."""

        class Made(SMTP):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.smtp_PING = self.ping
                self.smtp_NOOP = lambda arg: f"259 {arg}"

            async def ping(self, arg: Any) -> str:
                return "259 pong"

        client = Client(SMTPFactory(handler(), protocol=Made))
        self.assertEqual(codes(client.talk(b"PING\r\nNOOP x\r\nRSET\r\n")), [259, 259, 250])

    def test_abstract(self) -> None:
        """A protocol class can be abstract."""

        class Abstract(SMTP, ABC):
            @abstractmethod
            def name(self) -> str:
                """The name."""

        self.assertRaises(TypeError, Abstract)


class ConnectionTests(SynchronousTestCase):
    """Methods of asyncio's protocols."""

    def test_connectionMade(self) -> None:
        """A subclass may override connection_made and call the inherited method."""

        class Counting(SMTP):
            count = 0

            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                Counting.count += 1

        client = Client(SMTPFactory(handler(), protocol=Counting))
        self.assertEqual(codes(client.talk(b"NOOP\r\n")), [250])
        self.assertEqual(Counting.count, 1)


class AttributeTests(SynchronousTestCase):
    """Options as attributes."""

    def test_set(self) -> None:
        """Attributes that a subclass sets in its __init__ take effect for that connection."""

        class Small(SMTP):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.data_size_limit = 100
                self.local_part_limit = 3
                self.hostname = "mine.test"
                self.__ident__ = "My server"

        said, _ = conversation(HELLO + b"MAIL FROM:<anne@example.com>\r\n", protocol=Small)
        self.assertTrue(said.startswith(b"220 mine.test My server\r\n"))
        self.assertIn(b"SIZE 100\r\n", said)
        self.assertEqual(codes(said)[-1], 553)

    def test_wrong(self) -> None:
        """An invalid value is refused when it is set."""
        with self.assertRaises(TypeError):
            SMTP().data_size_limit = "much"

    def test_read(self) -> None:
        """Programs may read the options of a server."""
        server = SMTP(line_length_limit=2000)
        self.assertEqual((server.line_length_limit, server.require_starttls, server.local_part_limit), (2000, False, 0))
        self.assertEqual(server.command_size_limits["DATA"], server.max_command_size_limit)
        self.assertGreater(server.command_size_limits["MAIL"], server.max_command_size_limit)

    def test_commandSizeLimits(self) -> None:
        """A subclass may increase the limit of a command after EHLO for its own connections."""

        class Long(SMTP):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.command_size_limits["NOOP"] = 1024

        line = b"NOOP " + b"x" * 1000 + b"\r\n"
        for kind, replies in (Long, [500, 250, 250]), (SMTP, [500, 250, 500]):
            said, _ = conversation(line + HELLO + line, protocol=kind)
            self.assertEqual(codes(said)[1:], replies)
        self.assertEqual((Long().max_command_size_limit, SMTP().max_command_size_limit), (1024, 512))
        with self.assertRaises(TypeError):
            SMTP().command_size_limits["NOOP"] = "much"  # type: ignore[assignment]  # the mistake

    def test_readPrivately(self) -> None:
        """Limits are available by names that aiosmtpd uses."""
        server: Any = SMTP(handler(PROXY=Waiting()), proxy_protocol_timeout=5, command_call_limit={"NOOP": 3, "*": 9})
        self.assertEqual((server._proxy_timeout, server._call_limit_default), (5, 9))

    def test_beforeTheConnection(self) -> None:
        """A protocol without a connection has no session and no envelope."""
        server = SMTP(handler())
        self.assertIsNone(server.session)
        self.assertIsNone(server.envelope)

    def test_privateAttributes(self) -> None:
        """The exception for a private attribute of aiosmtpd's protocol names the replacement."""
        server: Any = Own(handler())
        for name, instead in (("_getaddr", "parse_mail"), ("_reader", "challenge_auth"), ("_loop", "loop")):
            error = self.assertRaises(AttributeError, getattr, server, name)
            self.assertIn(f"'Own' object has no attribute {name!r}; use {instead}", str(error))
        error = self.assertRaises(AttributeError, getattr, server, "_nothing")
        self.assertEqual(str(error), "'Own' object has no attribute '_nothing'")

    def test_tlsProtocol(self) -> None:
        """Hooks may test whether the connection uses TLS by a private name. Without a connection it is None."""
        seen: list[Any] = [SMTP(handler())._tls_protocol]
        hook = handler(NOOP=lambda server, *arguments: seen.append(server._tls_protocol) or "250 OK")
        client = Client(SMTPFactory(hook))
        client.talk(b"NOOP\r\n")
        client.server.session.ssl = "a session"
        client.talk(b"NOOP\r\n")
        self.assertEqual(seen, [None, None, "a session"])

    def test_setByPrograms(self) -> None:
        """A subclass or an object may set the private attributes that programs read."""
        for name in ("_tls_protocol", "_authenticator", "_proxy_timeout", "_call_limit_default"):
            of_class: Any = type("Own", (SMTP,), {name: property(lambda server: "own")})(handler())
            self.assertEqual(getattr(of_class, name), "own")
            server: Any = SMTP(handler())
            setattr(server, name, "set")
            self.assertEqual(getattr(server, name), "set")

    def test_notices(self) -> None:
        """A protocol that a program creates itself logs its mechanisms, and options that will keep clients out."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for options, told in (
            ({}, "INFO:mail.log:Available AUTH mechanisms: none"),
            (
                {"authenticator": print, "auth_require_tls": False},
                "INFO:mail.log:Available AUTH mechanisms: LOGIN PLAIN",
            ),
            ({"authenticator": print}, "WARNING:mail.log:auth_require_tls == True, but there is no tls_context"),
            ({"proxy_protocol_timeout": 3}, "ERROR:mail.log:proxy_protocol_timeout without proxy_from"),
            ({"tls_context": context}, "WARNING:mail.log:tls_context.verify_mode not in"),
        ):
            context.verify_mode = ssl.CERT_REQUIRED
            with self.assertLogs("mail.log", "INFO") as logged:
                SMTP(handler(), **options)
            self.assertTrue(any(line.startswith(told) for line in logged.output), logged.output)
        context.verify_mode = ssl.CERT_OPTIONAL
        with self.assertLogs("mail.log", "INFO") as logged:
            SMTP(handler(), tls_context=context)
        self.assertEqual(len(logged.output), 1)

    def test_names(self) -> None:
        """The names of the module exist."""
        self.assertEqual(smtp.BOGUS_LIMIT, Settings(handler=None).error_limit)
        self.assertEqual(smtp.__ident__, SMTP().__ident__)
        self.assertEqual((handlers.COMMASPACE, handlers.CRLF, handlers.EMPTYBYTES), (", ", b"\r\n", b""))
        self.assertEqual(handlers.NLCRE.split(b"a\r\nb\rc\nd"), [b"a", b"b", b"c", b"d"])
        loop = smtp.make_loop()
        self.assertIsInstance(loop, asyncio.AbstractEventLoop)
        loop.close()

    def test_hostnameWithPort(self) -> None:
        """Some programs pass the address that they listen on as the server's name."""
        self.assertEqual(SMTP(handler(), hostname="127.0.0.1:8025").hostname, "127.0.0.1:8025")
        for wrong in ("-a:25", "a b:25", "a:b"):
            self.assertRaises(ValueError, SMTP, handler(), hostname=wrong)

    def test_authenticatorOfTheHandler(self) -> None:
        """An authenticator that is not callable is accepted only if the handler's own methods may use it."""

        class Checker:
            async def auth_PLAIN(self, server: Any, args: Any) -> Any:
                return True

        client = Client(SMTPFactory(Checker(), authenticator=object(), auth_require_tls=False))
        self.assertIn(b"AUTH PLAIN\r\n", client.talk(HELLO))
        self.assertRaises(TypeError, SMTPFactory, handler(), authenticator=object())


class HookTests(LoggingTestCase):
    """Older hooks, and replies that hooks push."""

    def test_methodsOfTheServer(self) -> None:
        """ehlo_hook and rset_hook of a server's class are called, with a warning. Lines that ehlo_hook pushes follow
        the line with the host name."""

        class Hooked(SMTP):
            async def ehlo_hook(self) -> None:
                await self.push("250-X-MINE")

            def rset_hook(self) -> None:
                self.push("250-first")

        client = Client(SMTPFactory(handler(), protocol=Hooked, hostname="mx.test"))
        lines = client.talk(HELLO).splitlines()
        self.assertEqual((lines[0], lines[-2], lines[-1]), (b"250-mx.test", b"250-X-MINE", b"250 HELP"))
        self.assertEqual(client.talk(b"RSET\r\n")[:4], b"250-")
        self.assertEqual([each["category"] for each in self.flushWarnings()], [DeprecationWarning] * 2)

    def test_pushedByEHLO(self) -> None:
        """A handle_EHLO with four arguments may push additional lines."""

        async def handle_EHLO(server: Any, session: Any, envelope: Any, hostname: str) -> str:
            await server.push("250-AUTH PLAIN")
            return "250 HELP"

        lines = Client(SMTPFactory(handler(EHLO=handle_EHLO), hostname="mx.test")).talk(HELLO).splitlines()
        self.assertEqual((lines[0], lines[-2:]), (b"250-mx.test", [b"250-AUTH PLAIN", b"250 HELP"]))

    def test_calledByCommands(self) -> None:
        """A command of a subclass may call a hook by the private name, and test whether there is one."""

        class Asking(SMTP):
            async def smtp_TEST(self, arg: str | None) -> str:
                status = await self._call_handler_hook("TEST", arg)
                return "502 no hook" if status is smtp.MISSING else str(status)

        async def waiting(server: Any, session: Any, envelope: Any, arg: str | None) -> str:
            return f"250 {arg} {session.host_name}"

        for hook, reply in (
            (handler(), b"502 no hook"),
            (handler(TEST=lambda *arguments: "251 plain"), b"251 plain"),
            (handler(TEST=waiting), b"250 now c.test"),
        ):
            client = Client(SMTPFactory(hook, protocol=Asking))
            client.talk(HELLO)
            self.assertEqual(client.talk(b"TEST now\r\n"), reply + b"\r\n")

    def test_bothRaise(self) -> None:
        """A hook raises an exception, and so does handle_exception, with an exception whose str() fails: the reply is
        500, and the session ends."""

        class Unspeakable(Exception):
            def __str__(self) -> str:
                raise ZeroDivisionError

        class Fails:
            async def handle_NOOP(self, *arguments: Any) -> str:
                raise LookupError

            async def handle_exception(self, error: Any) -> str:
                raise Unspeakable

        self.assertEqual(codes(Client(SMTPFactory(Fails())).talk(b"NOOP\r\nRSET\r\n")), [500, 250])
        self.flushLoggedErrors()

    def test_ownCode(self) -> None:
        """A hook's reply code is sent, whatever it is."""
        for code in (299, 499, 599):
            client = Client(SMTPFactory(handler(NOOP=lambda *arguments, code=code: f"{code} mine")))
            self.assertEqual(codes(client.talk(b"NOOP\r\n")), [code])


class WireTests(SynchronousTestCase):
    """Commands."""

    def test_vrfyWithSMTPUTF8(self) -> None:
        """VRFY accepts the parameter SMTPUTF8 if it is offered (RFC 6531 3.7.4.2)."""
        line = b"VRFY anne@example.com SMTPUTF8\r\n"
        self.assertEqual(codes(Client(SMTPFactory(handler(), enable_SMTPUTF8=True)).talk(line)), [252])
        self.assertEqual(codes(Client(SMTPFactory(handler())).talk(line)), [502])

    def test_longMail(self) -> None:
        """The length that extensions add to MAIL applies after EHLO."""
        line = b"MAIL FROM:<anne@example.com>".ljust(520) + b"\r\n"
        client = Client(SMTPFactory(handler()))
        self.assertEqual(codes(client.talk(line)), [500])
        client.talk(HELLO)
        self.assertNotEqual(codes(client.talk(line)), [500])

    def test_repliesInLMTP(self) -> None:
        """In LMTP, a status that consists of several complete replies is one reply for each recipient (RFC 2033
        4.2)."""
        hook = handler(DATA=lambda *arguments: "250 Ok\r\n550 no\r\n250 Ok")
        client = Client(SMTPFactory(hook, protocol=LMTP))
        client.talk(b"LHLO c.test\r\nMAIL FROM:<a@example.com>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 3)
        client.talk(b"DATA\r\n")
        self.assertEqual(codes(client.talk(b"\r\n.\r\n")), [250, 550, 250])


class ModuleTests(SynchronousTestCase):
    """Functions, and handlers that are used without a server."""

    def test_parseargs(self) -> None:
        """A program can parse the arguments of the command line without starting a server."""
        _, given = parseargs(["-n", "-s", "100", "-l", "mx.test:25", "--no-requiretls"])
        self.assertEqual((given.host, given.port, given.size), ("mx.test", 25, 100))
        self.assertEqual((given.setuid, given.requiretls), (False, False))
        self.assertIsInstance(given.handler, Debugging)
        self.assertIsInstance(parseargs(["-c", "aiosmtpd.handlers.Sink"])[1].handler, Sink)
        self.patch(sys, "stderr", StringIO())
        for wrong in (
            ["-l", ":x"],
            ["-c", "nowhere.Handler"],
            ["-s", "x"],
            ["-c", "txsmtpd.handlers.Sink", "x"],
            ["-c", "tests.compatibility.test_surface.Own", "x"],
            ["-c", "txsmtpd.handlers", "x"],
            ["-c", "txsmtpd.handlers"],
            ["--tlscert", __file__],
            ["--tlscert", __file__, "--tlskey", "nowhere"],
        ):
            self.assertEqual(self.assertRaises(SystemExit, parseargs, wrong).code, 2)

    def test_parseargsHandler(self) -> None:
        """A handler can be made from any class. Exceptions of its constructor are raised."""
        _, given = parseargs(["-c", "tests.compatibility.test_surface.Bare"])
        self.assertIsInstance(given.handler, Bare)
        _, given = parseargs(["-c", "tests.compatibility.test_surface.Word", "hello"])
        self.assertEqual(given.handler.word, "hello")
        self.assertRaises(TypeError, parseargs, ["-c", "tests.compatibility.test_surface.Word"])
        self.assertRaises(ValueError, parseargs, ["-c", "tests.compatibility.test_surface.Word", ""])
        self.assertIsInstance(parseargs(["-c", "sink"])[1].handler, Sink)

    def test_mailboxAlone(self) -> None:
        """A test may call a Mailbox with any object as the server, in an asyncio loop."""
        session, envelope = Session(), Envelope()
        envelope.mail_from, envelope.rcpt_tos, envelope.content = "müller@example.com", ["b@example.com"], b"x\r\n"
        mailbox = Mailbox(self.mktemp())
        status = asyncio.run(mailbox.handle_DATA(Mock(), session, envelope))
        self.assertEqual(status[:3], "250")
        (message,) = mailbox.mailbox
        self.assertEqual(str(make_header(decode_header(message["X-MailFrom"]))), "müller@example.com")
        mailbox.close()

    def test_messageBase(self) -> None:
        """The base class of Message and AsyncMessage has aiosmtpd's name."""
        for kind in (Message, AsyncMessage):
            self.assertTrue(issubclass(kind, MessageBase))
