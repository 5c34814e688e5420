"""Programs in older styles, and common mistakes: they work, or raise an exception that says what is wrong."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, TRANSACTION, Client, LoggingTestCase, handler
from txsmtpd import SMTP, Extension, Refused, SMTPFactory, syntax
from txsmtpd.auth import AuthResult
from txsmtpd.handlers import Sink
from txsmtpd.session import Session


class Taker:
    """A handler that must be instantiated."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 OK"


class ConstructionTests(SynchronousTestCase):
    """The arguments of a factory."""

    def test_handlerClass(self) -> None:
        """A class in place of its instance is refused, if it has something to call."""
        error = self.assertRaises(TypeError, SMTPFactory, Taker)
        self.assertIn("write Taker(...)", str(error))
        self.assertEqual(SMTPFactory(Sink).handler, Sink)

    def test_protocol(self) -> None:
        """The protocol must be a subclass of SMTP."""
        for wrong in (Sink, SMTP(), None, "SMTP"):
            self.assertRaises(TypeError, SMTPFactory, protocol=wrong)

    def test_keyword(self) -> None:
        """An extension without a valid keyword is refused."""
        for keyword in ("", "X FOO", "X_FOO", "X\r\nFOO", "-X"):
            extension = Extension()
            extension.keyword = keyword
            self.assertRaises(ValueError, SMTPFactory, extensions=[extension])
        self.assertRaises(ValueError, SMTPFactory, extensions=[Extension()])

    def test_ownHelp(self) -> None:
        """An extension replaces any built-in one, and the commands in HELP."""
        extension = Extension()
        extension.keyword = "HELP"
        self.assertEqual(SMTPFactory(extensions=[extension]).settings.offered[-1], extension)

    def test_sessionWithLoop(self) -> None:
        """A session accepts a loop, which becomes its attribute."""
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        self.assertIs(Session(loop).loop, loop)
        self.assertRaises(RuntimeError, getattr, Session(), "loop")


class ClassLimitsTests(SynchronousTestCase):
    """Limits that are attributes of the class."""

    class Strict(SMTP):
        local_part_limit = 3
        line_length_limit = 20
        command_size_limit = 40

    def answers(self, *lines: bytes, **options: Any) -> list[int]:
        client = Client(Taker(), protocol=self.Strict, **options)
        return client.codes(GREETING + b"\r\n".join([*lines, b""]))[1:]

    def test_limits(self) -> None:
        """They work as limits."""
        self.assertEqual(self.answers(b"MAIL FROM:<abcd@x.y>"), [553])
        self.assertEqual(self.answers(b"NOOP " + b"x" * 40), [500])
        message = (b"MAIL FROM:<a@x.y>", b"RCPT TO:<a@x.y>", b"DATA", b"x" * 19, b".")
        self.assertEqual(self.answers(*message), [250, 250, 354, 500])

    def test_options(self) -> None:
        """Options take precedence."""
        self.assertEqual(self.answers(b"MAIL FROM:<abcd@x.y>", local_part_limit=4), [250])


class NoReplyTests(LoggingTestCase):
    """Overrides that return None."""

    def test_awaited(self) -> None:
        """An override that has awaited the inherited command and returns None still sends its reply."""

        def forgetful(name: str) -> Any:
            async def command(self: Any, arg: str | None) -> None:
                await getattr(super(Forgetful, self), name)(arg)

            return command

        verbs = ("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT")
        Forgetful = type("Forgetful", (SMTP,), {f"smtp_{verb}": forgetful(f"smtp_{verb}") for verb in verbs})
        lines = (
            b"MAIL FROM:<x\r\nHELO a\r\n"
            + GREETING
            + TRANSACTION
            + b"DATA\r\nhi\r\n.\r\n"
            + b"VRFY a\r\nEXPN a\r\nHELP\r\nHELP DATA\r\nHELP NO\r\nNOOP\r\nRSET\r\nQUIT\r\n"
        )
        expected = Client(Taker()).talk(lines)
        client = Client(Taker(), protocol=Forgetful)
        self.assertEqual(client.talk(lines), expected)
        self.assertIn(b"354 ", expected)

    def test_authentication(self) -> None:
        """The same applies to AUTH."""

        class Forgetful(SMTP):
            async def smtp_AUTH(self, arg: str | None) -> None:
                await super().smtp_AUTH(arg)

        def decide(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            return AuthResult(success=data.password == b"sesame")

        client = Client(protocol=Forgetful, authenticator=decide, auth_require_tls=False, auth_failure_delay=0)
        client.talk(GREETING)
        self.assertEqual(client.codes(b"AUTH PLAIN AHUAbm8=\r\nAUTH PLAIN AHUAc2VzYW1l\r\n"), [535, 235])

    def test_closed(self) -> None:
        """An override that has closed the connection may return None. The client sees the end, and no error is
        logged."""
        for close in "loseConnection", "abortConnection":

            class Closes(SMTP):
                how = close

                async def smtp_NOOP(self, arg: str | None) -> None:
                    getattr(self.transport, self.how)()

            client = Client(handler(), protocol=Closes)
            client.talk(GREETING)
            self.assertEqual(client.talk(b"NOOP\r\nNOOP\r\n"), b"")
            self.assertTrue(client.closed)
        self.assertEqual(self.logged("error"), [])

    def test_nothing(self) -> None:
        """An override that returns None without a reply has failed: its changes are undone, and the log says what to
        do."""

        class Silent(SMTP):
            async def smtp_RCPT(self, arg: str | None) -> None:
                self.envelope.rcpt_tos.append("somebody@example.com")

        client = Client(handler(), protocol=Silent)
        client.talk(GREETING)
        self.assertEqual(client.codes(TRANSACTION + b"DATA\r\n"), [250, 451, 503])
        self.assertIn("it must return a reply", "".join(self.logged("error")))


class OddServersTests(LoggingTestCase):
    """Subclasses and hooks may do these things without breaking the session."""

    def test_pushedRefusalOfAChunk(self) -> None:
        """The octets of a chunk are not executed as commands, even if an override has pushed its reply."""

        class Pushing(SMTP):
            async def smtp_BDAT(self, arg: str) -> Any:
                await self.push("503 5.5.1 not here")

        client = Client(handler(), protocol=Pushing)
        client.talk(GREETING + TRANSACTION)
        self.assertEqual(client.codes(b"BDAT 6\r\nNOOP\r\nNOOP\r\n"), [503, 250])

    def test_syntaxAgain(self) -> None:
        """A new syntax keeps the declaration of the argument."""

        class Anew(SMTP):
            @syntax("EHLO hostname [more]")
            async def smtp_EHLO(self, arg: str) -> Any:
                return await super().smtp_EHLO(arg)

        self.assertEqual(Client(handler(), protocol=Anew).codes(b"EHLO\r\n"), [501])

    def test_refusedGreetingKeepsTheTransaction(self) -> None:
        """EHLO that is refused counts as not sent (RFC 5321 4.1.4)."""
        answers = iter(["250 HELP", "550 5.7.1 no"])
        client = Client(handler(EHLO=lambda server, session, envelope, hostname: next(answers)))
        client.talk(GREETING + TRANSACTION)
        self.assertEqual(client.codes(GREETING + b"DATA\r\n"), [550, 354])

    def test_sendLineInOrder(self) -> None:
        """A line that a command sends follows the earlier replies."""

        class Lines(SMTP):
            def smtp_LINE(self, arg: str | None) -> str:
                self.sendLine(b"250-first")
                return "250 second"

        client = Client(handler(), protocol=Lines)
        self.assertEqual(client.talk(b"NOOP\r\nLINE\r\n"), b"250 2.0.0 OK\r\n250-first\r\n250 second\r\n")

    def test_contextsApart(self) -> None:
        """A ContextVar that one connection sets does not affect other connections."""
        name: ContextVar[str] = ContextVar("name", default="nobody")
        seen = []

        async def greet(server: Any, session: Any, envelope: Any, hostname: str) -> str:
            seen.append(name.get())
            name.set(hostname)
            return "250 HELP"

        for _ in range(2):
            Client(handler(EHLO=greet)).talk(GREETING)
        self.assertEqual(seen, ["nobody", "nobody"])

    def test_anyFactory(self) -> None:
        """A plain ServerFactory of Twisted works, too."""
        factory = Factory.forProtocol(lambda: SMTP(handler(), reactor=Clock()))  # type: ignore[arg-type]
        server: Any = factory.buildProtocol(None)  # type: ignore[arg-type]
        transport = StringTransport()
        server.makeConnection(transport)
        self.assertTrue(transport.value().startswith(b"220 "))
        server.connectionLost()

    def test_hookClosesTheTransport(self) -> None:
        """Commands after one whose hook has closed the transport are not executed."""
        seen = []

        def close(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
            seen.append(address)
            server.transport.loseConnection()
            return "550 5.7.1 no"

        client = Client(handler(RCPT=close))
        client.talk(GREETING + TRANSACTION + b"RCPT TO:<c@example.com>\r\n")
        self.assertEqual(seen, ["b@example.com"])

    def test_intermediateRefusal(self) -> None:
        """A hook cannot reply 354."""

        def refuse(*arguments: Any) -> None:
            raise Refused("354 go on")

        client = Client(handler(RCPT=refuse))
        self.assertEqual(client.codes(GREETING + TRANSACTION), [250, 250, 451])


class MethodsTests(LoggingTestCase):
    """Methods of the server's class that programs call or override."""

    def test_handleException(self) -> None:
        """A subclass can return its own status for an exception. The inherited method calls the handler's hook, or
        returns 451."""

        class Own(SMTP):
            async def handle_exception(self, error: BaseException) -> Any:
                if isinstance(error, KeyError):
                    return "542 a key"
                return super().handle_exception(error)

        def fail(server: Any, session: Any, envelope: Any, arg: str | None) -> str:
            raise KeyError if arg else IndexError

        for hooks, expected in (({}, 451), ({"exception": lambda error: "543 own"}, 543)):
            client = Client(handler(NOOP=fail, **hooks), protocol=Own)
            self.assertEqual(client.codes(b"NOOP x\r\nNOOP\r\n"), [542, expected])
        self.flushLoggedErrors(KeyError, IndexError)

    def test_checks(self) -> None:
        """A command can check whether the client has greeted. If not, the refusal has been sent."""

        class Own(SMTP):
            async def smtp_TIME(self, arg: str | None) -> Any:
                if await self.check_helo_needed() or await self.check_auth_needed("TIME"):
                    return None
                return "250 late"

        client = Client(handler(), protocol=Own)
        self.assertEqual(client.codes(b"TIME\r\n" + GREETING + b"TIME\r\n"), [503, 250, 250])
