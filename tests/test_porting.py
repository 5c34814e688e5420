"""Programs in the style of old, and mistakes that are easily made: they work, or say at once what is wrong."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, TRANSACTION, Client, LoggingTestCase, handler
from txsmtpd import SMTP, Extension, SMTPFactory, syntax
from txsmtpd.handlers import Sink
from txsmtpd.session import Session


class Taker:
    """A handler that should be made before it is used."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 OK"


class ConstructionTests(SynchronousTestCase):
    """What a factory is given."""

    def test_handlerClass(self) -> None:
        """A class where its object was meant is refused; a class with nothing to call does."""
        error = self.assertRaises(TypeError, SMTPFactory, Taker)
        self.assertIn("write Taker(...)", str(error))
        self.assertEqual(SMTPFactory(Sink).handler, Sink)

    def test_protocol(self) -> None:
        """The protocol must be a class of ours."""
        for wrong in (Sink, SMTP(), None, "SMTP"):
            self.assertRaises(TypeError, SMTPFactory, protocol=wrong)

    def test_keyword(self) -> None:
        """An extension without a proper keyword is refused."""
        for keyword in ("", "X FOO", "X_FOO", "X\r\nFOO", "-X"):
            extension = Extension()
            extension.keyword = keyword
            self.assertRaises(ValueError, SMTPFactory, extensions=[extension])
        self.assertRaises(ValueError, SMTPFactory, extensions=[Extension()])

    def test_ownHelp(self) -> None:
        """An extension takes the place of any built-in one, HELP too."""
        extension = Extension()
        extension.keyword = "HELP"
        self.assertEqual(SMTPFactory(extensions=[extension]).settings.offered[-1], extension)

    def test_sessionWithLoop(self) -> None:
        """A session may be given a loop, and does nothing with it."""
        self.assertIsNone(Session(object()).host_name)


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
        """They are limits."""
        self.assertEqual(self.answers(b"MAIL FROM:<abcd@x.y>"), [553])
        self.assertEqual(self.answers(b"NOOP " + b"x" * 40), [500])
        message = (b"MAIL FROM:<a@x.y>", b"RCPT TO:<a@x.y>", b"DATA", b"x" * 19, b".")
        self.assertEqual(self.answers(*message), [250, 250, 354, 500])

    def test_options(self) -> None:
        """Options count more."""
        self.assertEqual(self.answers(b"MAIL FROM:<abcd@x.y>", local_part_limit=4), [250])


class NoReplyTests(LoggingTestCase):
    """An override that forgets to return what super() gives."""

    class Forgetful(SMTP):
        @syntax("MAIL FROM:<address>")
        async def smtp_MAIL(self, arg: str | None) -> Any:
            reply = await super().smtp_MAIL(arg)
            return reply if self.event_handler.returns == "MAIL" else None

        async def smtp_RCPT(self, arg: str | None) -> Any:
            await super().smtp_RCPT(arg)

    def test_forgotten(self) -> None:
        """The client is told that it failed, and nothing of what it did stays; the log tells what to do."""
        for returns, expected in (("", [451, 503, 503]), ("MAIL", [250, 451, 503])):
            client = Client(handler(), protocol=self.Forgetful)
            client.server.settings.handler.returns = returns
            client.talk(GREETING)
            self.assertEqual(client.codes(TRANSACTION + b"DATA\r\n"), expected)
        self.assertIn("must return what super() does", "".join(self.logged("error")))
