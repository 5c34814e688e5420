"""ESMTP extensions as units: built-in and custom ones (RFC 5321 2.2.2)."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, Client, LoggingTestCase
from txsmtpd import Envelope, Extension, Refused
from txsmtpd.extensions import SMTPUTF8, EightBitMIME, Keyword, Size


class Priority(Extension):
    """A custom extension (RFC 6710)."""

    keyword = "MT-PRIORITY"
    mail_growth = 15

    def parameter(self, server: Any) -> str | None:
        return "MIXER"

    def asked(self, envelope: Envelope, value: str | None) -> str | None:
        if value is None:
            raise Refused("501 5.5.4 MT-PRIORITY needs a value")
        envelope.priority = int(value)  # type: ignore[attr-defined]
        return f"{int(value):+d}"

    mail_parameters = {"MT-PRIORITY": asked}


class Notify(Extension):
    """An extension with a parameter of RCPT, offered only after a first greeting."""

    keyword = "X-NOTIFY"
    rcpt_growth = 50

    def parameter(self, server: Any) -> str | None:
        return "" if server.session.authenticated else None

    def asked(self, envelope: Envelope, value: str | None) -> None:
        envelope.notify = value  # type: ignore[attr-defined]

    rcpt_parameters = {"x-notify": asked}


class OwnExtensionTests(LoggingTestCase):
    """Extensions passed to the factory."""

    def test_offered(self) -> None:
        """EHLO offers it, with its parameter."""
        answer = Client(extensions=[Priority()]).ask(b"EHLO x")
        self.assertIn("MT-PRIORITY MIXER", answer.lines)
        self.assertIn("PIPELINING", answer.lines)

    def test_notOfferedNow(self) -> None:
        """An extension whose parameter is None is not offered now."""
        client = Client(extensions=[Notify()])
        self.assertNotIn("X-NOTIFY", client.ask(b"EHLO x").lines)
        client.server.session.authenticated = True
        self.assertIn("X-NOTIFY", client.ask(b"EHLO x").lines)

    def test_mailParameter(self) -> None:
        """It gets its parameter of MAIL, and handlers get the value that it returns."""
        client = Client(extensions=[Priority()])
        client.talk(GREETING)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> mt-priority=3 SIZE=10").code, 250)
        self.assertEqual(client.server.envelope.priority, 3)
        self.assertEqual(client.server.envelope.mail_options, ["MT-PRIORITY=+3", "SIZE=10"])

    def test_refuses(self) -> None:
        """It refuses a value with its own reply, and no transaction is open then."""
        client = Client(extensions=[Priority()])
        client.talk(GREETING)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> MT-PRIORITY").code, 501)
        self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 503)

    def test_fails(self) -> None:
        """If it raises an exception, the client gets 451, and the log has the traceback."""
        client = Client(extensions=[Priority()])
        client.talk(GREETING)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> MT-PRIORITY=high").code, 451)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 250)

    def test_rcptParameter(self) -> None:
        """It gets its parameter of RCPT, in whatever case that is declared. MAIL does not accept it."""
        client = Client(extensions=[Notify()])
        client.talk(GREETING)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> X-NOTIFY=NEVER").code, 555)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 250)
        self.assertEqual(client.ask(b"RCPT TO:<a@b> X-NOTIFY=NEVER").code, 250)
        self.assertEqual(client.server.envelope.notify, "NEVER")
        self.assertEqual(client.server.envelope.rcpt_options, ["X-NOTIFY=NEVER"])

    def test_growth(self) -> None:
        """It increases the length of its command, and of no other."""
        client = Client(extensions=[Notify()], data_size_limit=None)
        client.talk(GREETING + b"MAIL FROM:<a@b>\r\n")
        line = b"RCPT TO:<" + b"x" * (562 - len(b"RCPT TO:<@b>")) + b"@b>"
        self.assertEqual(len(line), 562)
        self.assertEqual(client.ask(line).code, 250)
        self.assertEqual(client.ask(line[:9] + b"x" + line[9:]).code, 500)
        self.assertEqual(client.ask(b"NOOP " + b"x" * 508).code, 500)

    def test_inPlaceOfBuiltIn(self) -> None:
        """An extension with the keyword of a built-in one replaces it."""

        class OwnSize(Size):
            def parameter(self, server: Any) -> str:
                return "77"

        lines = Client(extensions=[OwnSize(10)]).ask(b"EHLO x").lines
        self.assertEqual([line for line in lines if line.startswith("SIZE")], ["SIZE 77"])

    def test_keywordOnly(self) -> None:
        """An extension that only has a keyword needs no class."""
        self.assertIn("X-HELLO", Client(extensions=[Keyword("X-HELLO")]).ask(b"EHLO x").lines)

    def test_helpIsLast(self) -> None:
        """The reply to EHLO ends with HELP, whatever is added."""
        self.assertEqual(Client(extensions=[Priority()]).ask(b"EHLO x").lines[-1], "HELP")


class BuiltInTests(SynchronousTestCase):
    """The built-in extensions by themselves."""

    def refusal(self, take: Any, *arguments: Any) -> int:
        """Return the code of its refusal."""
        return int(self.assertRaises(Refused, take, *arguments).reply.code)

    def test_size(self) -> None:
        """SIZE declares its limit, and refuses larger sizes. A limit of 0 is no limit."""
        size = Size(100)
        self.assertEqual(size.parameter(None), "100")
        size.declared(Envelope(), "100")
        self.assertEqual(self.refusal(size.declared, Envelope(), "101"), 552)
        self.assertEqual(self.refusal(size.declared, Envelope(), None), 501)
        Size(0).declared(Envelope(), "99999999999999999999")

    def test_body(self) -> None:
        """The values of BODY are case-insensitive, in ASCII."""
        body = EightBitMIME()
        self.assertEqual(body.body(Envelope(), "8bitMime"), "8BITMIME")
        for value in (None, "", "8BIT", "7\u0131BIT", "8B\u0131TMIME", "8BITM\u0131ME"):
            self.assertEqual(self.refusal(body.body, Envelope(), value), 501, value)

    def test_smtputf8(self) -> None:
        """SMTPUTF8 takes no value, and marks the envelope."""
        envelope = Envelope()
        SMTPUTF8().asked(envelope, None)
        self.assertTrue(envelope.smtp_utf8)
        self.assertEqual(self.refusal(SMTPUTF8().asked, Envelope(), "1"), 501)
