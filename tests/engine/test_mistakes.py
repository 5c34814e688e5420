"""Replies to unusual messages and addresses, and reports of mistakes in the handler's hooks."""

from __future__ import annotations

import gc
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, TRANSACTION, Answer, Client, LoggingTestCase, answers, codes, handler
from txsmtpd import SMTPFactory
from txsmtpd.controller import UnthreadedController
from txsmtpd.handlers import Sink
from txsmtpd.testing import MailCatcher


class HeaderTests(LoggingTestCase):
    """Messages whose header is too large."""

    def send(self, content: bytes, **options: Any) -> list[Answer]:
        """The replies to a message, by DATA and by BDAT, and to a valid message after it."""
        said = []
        for way in (b"DATA\r\n" + content + b".\r\n", b"BDAT %d LAST\r\n" % len(content) + content):
            client = Client(handler(DATA=lambda *arguments: "250 2.0.0 OK"), **options)
            client.talk(GREETING + TRANSACTION)
            said.append(answers(client.talk(way))[-1])
            self.assertEqual(client.codes(TRANSACTION + b"DATA\r\n\r\n.\r\n"), [250, 250, 354, 250])
        return said

    def test_octets(self) -> None:
        """A header with more octets than header_size_limit gets 552, and the session continues."""
        content = b"A: b\r\n" * 50000 + b"\r\nHello\r\n"
        for answer in self.send(content):
            self.assertEqual(
                (answer.code, answer.text), (552, "5.3.4 The header of the message is larger than 262144 octets")
            )
        self.assertEqual(
            [answer.code for answer in self.send(content, header_size_limit=None, header_field_limit=None)], [250] * 2
        )

    def test_fields(self) -> None:
        """A header with more fields than header_field_limit gets 554."""
        for answer in self.send(b"A: b\r\n" * 2001 + b"\r\n"):
            self.assertEqual(
                (answer.code, answer.text), (554, "5.6.0 The header of the message has more than 2000 fields")
            )
        self.assertEqual([answer.code for answer in self.send(b"A: b\r\n" * 2000 + b"\r\n")], [250] * 2)


class LostRecipientTests(LoggingTestCase):
    """A handle_RCPT that accepts a recipient without appending it."""

    def test_warned(self) -> None:
        """The log reports it once for each handler, with the hook, the handler and the address."""
        factory = SMTPFactory(handler(RCPT=lambda *arguments: "250 2.1.5 OK"))
        for _ in range(2):
            client = Client(factory=factory)
            client.talk(GREETING + TRANSACTION)
            self.assertEqual(client.ask(b"DATA").code, 503)
        [warning] = self.logged("warn")
        for words in "handle_RCPT of SimpleNamespace", "<b@example.com>", "envelope.drop(address)":
            self.assertIn(words, warning)

    def test_dropped(self) -> None:
        """A recipient that is dropped on purpose causes no warning. A message with only such recipients is accepted and
        discarded, whole or streamed."""
        taken: list[Any] = []

        def drop(server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
            if address.startswith("b"):
                envelope.drop(address)
            else:
                envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"

        def data(server: Any, session: Any, envelope: Any) -> str:
            taken.append(list(envelope.rcpt_tos))
            return "250 2.0.0 OK"

        for way in b"DATA\r\nx\r\n.\r\n", b"BDAT 3 LAST\r\nabc":
            client = Client(handler(RCPT=drop, DATA=data))
            client.talk(GREETING + TRANSACTION)
            self.assertEqual(codes(client.talk(way))[-1], 250)
            self.assertEqual(taken, [])
            client.talk(TRANSACTION + b"RCPT TO:<c@example.com>\r\n")
            self.assertEqual(codes(client.talk(way))[-1], 250)
            self.assertEqual(taken.pop(), ["c@example.com"])
        self.assertEqual(self.logged("warn"), [])

    def test_refused(self) -> None:
        """A recipient that is dropped and then refused does not count as a recipient."""

        def drop(server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
            envelope.drop(address)
            return "550 5.1.1 No"

        client = Client(handler(RCPT=drop))
        client.talk(GREETING + TRANSACTION)
        self.assertEqual(client.ask(b"DATA").code, 503)

    def test_missingReturn(self) -> None:
        """A hook without a return statement is reported by name, with the probable mistake."""
        for name, octets in {"RCPT": TRANSACTION, "DATA": TRANSACTION + b"DATA\r\n.\r\n", "MAIL": TRANSACTION}.items():
            self.events.clear()
            client = Client(handler(**{name: lambda *arguments: None}))
            client.talk(GREETING)
            self.assertIn(b"451", client.talk(octets))
            self.assertIn(
                f'handle_{name} returned None, not a reply such as "250 OK" (missing return?)', self.logged("error")[0]
            )

    def test_otherResults(self) -> None:
        """So is a hook that lacks an await, or that yields. Nothing else is logged, and there is no warning."""

        async def store() -> str:
            return "250 OK"

        async def forgets(*arguments: Any) -> Any:
            return store()

        async def yields(*arguments: Any) -> Any:
            yield "250 OK"

        def generates(*arguments: Any) -> Any:
            yield "250 OK"

        gc.collect()  # collect garbage of earlier tests, such as a loop that is not closed
        self.flushWarnings()
        for hook, hint in (
            (forgets, "missing await?"),
            (yields, "yield in place of return?"),
            (
                generates,
                "yield in place of return?",
            ),
        ):
            self.events.clear()
            client = Client(handler(DATA=hook))
            client.talk(GREETING + TRANSACTION + b"DATA\r\n")
            self.assertEqual(client.ask(b".").code, 451)
            self.assertRegex(
                self.logged("error")[0],
                f'handle_DATA returned <.*, not a reply such as "250 OK" \\({re.escape(hint)}\\)',
            )
            gc.collect()
        self.assertEqual(self.flushWarnings(), [])


class LenientTests(SynchronousTestCase):
    """lenient_addresses."""

    def test_option(self) -> None:
        """The hook gets addresses as they are written. Without the option, they get 553."""
        given: list[str] = []

        def note(server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
            given.append(address)
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"

        octets = rb"MAIL FROM:<DOMAIN\user>" + b"\r\nRCPT TO:< a..b@docomo.example >\r\n"
        client = Client(handler(RCPT=note), lenient_addresses=True)
        client.talk(GREETING)
        self.assertEqual(client.codes(octets), [250, 250])
        self.assertEqual(given, ["a..b@docomo.example"])
        self.assertEqual(client.codes(b"RCPT TO:<a\0b>\r\n"), [500])
        strict = Client(handler(RCPT=note))
        strict.talk(GREETING)
        self.assertEqual(strict.codes(octets), [553, 503])

    def test_defaults(self) -> None:
        """It is off in factories, and on in catchers and controllers, like bare_newlines."""
        for settings, on in (
            (SMTPFactory().settings, False),
            (MailCatcher().factory.settings, True),
            (UnthreadedController(Sink(), loop=object()).factory().settings, True),
        ):
            self.assertEqual((settings.lenient_addresses, settings.bare_newlines), (on, on))
