"""The commands of RFC 5321, their hooks and their replies, in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from string import Formatter
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, TimeoutError
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.support import (
    GREETING,
    MESSAGE,
    PEER,
    TRANSACTION,
    Answer,
    Client,
    LoggingTestCase,
    Waiting,
    answers,
    codes,
    handler,
    in_three_forms,
)
from txsmtpd import SMTP, Envelope, Refused, Reply, Session, syntax
from txsmtpd.engine.lines import ENDLESS_LINE

FOREIGN = [
    b"GET / HTTP/1.1",
    b"POST /x HTTP/1.0",
    b"PUT / HTTP/1.1",
    b"HEAD / HTTP/1.1",
    b"CONNECT mx:25 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"DELETE / HTTP/1.1",
    b"PATCH / HTTP/1.1",
    b"TRACE / HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"get / HTTP/1.1",
    b"SSH-2.0-OpenSSH_9.9",
    b"Host: mx.test",
    b"Subject: an offer",
    b"X-Forwarded-For: 192.0.2.1",
]


def greeted(handler: object = None, **options: Any) -> Client:
    """A client that has sent EHLO."""
    client = Client(handler, **options)
    if client.codes(GREETING) != [250]:
        raise AssertionError("EHLO was not accepted")
    return client


def in_transaction(handler: object = None, **options: Any) -> Client:
    """A client that has sent EHLO, MAIL and RCPT."""
    client = greeted(handler, **options)
    if client.codes(TRANSACTION) != [250, 250]:
        raise AssertionError("MAIL or RCPT was not accepted")
    return client


class Keeper:
    """A handler that keeps its envelopes."""

    def __init__(self, status: Any = "250 2.0.0 Kept") -> None:
        self.envelopes: list[Envelope] = []
        self.status = status

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> Any:
        self.envelopes.append(envelope)
        return self.status


class GreetingTests(SynchronousTestCase):
    """The greeting, HELO and EHLO."""

    def test_welcome(self) -> None:
        """The greeting has the server's name and ident."""
        self.assertEqual(Client().welcome, b"220 mx.test ESMTP txsmtpd\r\n")
        self.assertEqual(Client(ident="Hi").welcome, b"220 mx.test Hi\r\n")
        self.assertEqual(Client(ident="").welcome, b"220 mx.test\r\n")

    def test_helo(self) -> None:
        """The reply to HELO has only the server's name."""
        client = Client()
        self.assertEqual(client.talk(b"HELO client.test\r\n"), b"250 mx.test\r\n")
        self.assertEqual(client.server.session.host_name, "client.test")
        self.assertFalse(client.server.session.extended_smtp)

    def test_ehlo(self) -> None:
        """The reply to EHLO has the server's name and the extensions, in one write."""
        client = Client(data_size_limit=1000)
        client.transport.writes.clear()
        answer = client.ask(b"EHLO client.test")
        self.assertEqual(answer.code, 250)
        self.assertEqual(answer.lines[0], "mx.test")
        self.assertTrue(
            {"SIZE 1000", "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES", "HELP"} <= set(answer.lines[1:]),
            answer.lines,
        )
        self.assertEqual(len(client.transport.writes), 1)
        self.assertEqual(client.server.session.host_name, "client.test")
        self.assertTrue(client.server.session.extended_smtp)

    def test_whatIsOffered(self) -> None:
        """Only extensions that the options allow are offered."""
        self.assertIn("SMTPUTF8", greeted_lines(enable_SMTPUTF8=True))
        self.assertNotIn("SMTPUTF8", greeted_lines())
        for limit in (0, None):
            self.assertFalse([line for line in greeted_lines(data_size_limit=limit) if line.startswith("SIZE")])
        self.assertNotIn("8BITMIME", greeted_lines(decode_data=True))
        self.assertIn("8BITMIME", greeted_lines(decode_data=True, enable_SMTPUTF8=True))

    def test_argument(self) -> None:
        """HELO and EHLO without a name are refused."""
        for line in (b"HELO", b"EHLO", b"HELO ", b"EHLO   "):
            client = Client()
            self.assertEqual((client.ask(line).code, client.ask(b"MAIL FROM:<a@b>").code), (501, 503), line)

    def test_anyName(self) -> None:
        """The name may be an address literal, and other text that clients send."""
        for name in (b"[192.0.2.1]", b"[IPv6:2001:db8::1]", b"localhost", b"my_pc", b"a b", "bücher".encode()):
            self.assertEqual(Client().ask(b"EHLO " + name).code, 250, name)

    def test_endsTransaction(self) -> None:
        """A greeting during a transaction ends it (RFC 5321 4.1.4)."""
        for line in (b"EHLO again", b"HELO again"):
            client = in_transaction()
            self.assertEqual(client.ask(line).code, 250)
            self.assertEqual(client.ask(b"DATA").code, 503)
            self.assertEqual(client.codes(TRANSACTION), [250, 250])

    def test_heloAfterEhlo(self) -> None:
        """HELO after EHLO disables the extensions."""
        client = greeted()
        client.talk(b"HELO client.test\r\n")
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> SIZE=10").code, 501)

    def test_refusedGreeting(self) -> None:
        """A greeting that a hook refuses has no effect."""
        for first in (b"EHLO", b"HELO"):
            hooks = {
                first.decode(): lambda server, session, envelope, name: "550 5.7.1 no" if name == "bad" else "250 x"
            }
            client = Client(handler(**hooks))
            self.assertEqual(client.ask(first + b" bad").code, 550)
            self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 503)
            self.assertEqual(client.ask(first + b" good").code, 250)
            self.assertEqual(client.server.session.host_name, "good")
            self.assertEqual(client.ask(first + b" bad").code, 550)
            self.assertEqual(client.server.session.host_name, "good")

    def test_refusedEhloAfterHelo(self) -> None:
        """A refused EHLO does not enable the extensions."""
        client = Client(handler(EHLO=lambda *arguments: "502 5.5.1 no"))
        self.assertEqual(client.ask(b"HELO client.test").code, 250)
        self.assertEqual(client.ask(b"EHLO client.test").code, 502)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> SIZE=10").code, 501)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 250)


def greeted_lines(**options: Any) -> tuple[str, ...]:
    """The lines of the reply to EHLO."""
    return Client(**options).ask(b"EHLO client.test").lines[1:]


class TransactionTests(SynchronousTestCase):
    """MAIL, RCPT, DATA: one message."""

    def test_message(self) -> None:
        """A whole session: greeting, message, and the end."""
        keeper = Keeper()
        client = Client(keeper)
        said = client.talk(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nQUIT\r\n")
        self.assertEqual(codes(said), [250, 250, 250, 354, 250, 221])
        self.assertTrue(client.closed)
        (envelope,) = keeper.envelopes
        self.assertEqual(envelope.mail_from, "a@example.com")
        self.assertEqual(envelope.rcpt_tos, ["b@example.com"])
        self.assertEqual(envelope.content, MESSAGE)
        self.assertEqual(envelope.original_content, MESSAGE)
        self.assertEqual(envelope.mail_options, [])
        self.assertEqual(envelope.rcpt_options, [])
        self.assertFalse(envelope.smtp_utf8)

    def test_texts(self) -> None:
        """The replies of a session have the enhanced status codes of RFC 3463."""
        client = Client(Keeper())
        found = answers(client.talk(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nRSET\r\nNOOP\r\nQUIT\r\n"))
        self.assertEqual([each.status for each in found][1:3], ["2.1.0", "2.1.5"])
        self.assertEqual([each.status for each in found][3:], [None, "2.0.0", "2.0.0", "2.0.0", "2.0.0"])

    def test_noHandler(self) -> None:
        """Without a handler, messages are accepted and discarded."""
        client = greeted()
        self.assertEqual(client.send_message().code, 250)

    def test_severalMessages(self) -> None:
        """Each message has its own envelope."""
        keeper = Keeper()
        client = greeted(keeper)
        for number in range(3):
            self.assertEqual(client.send_message(b"%d\r\n" % number).code, 250)
        self.assertEqual([each.content for each in keeper.envelopes], [b"0\r\n", b"1\r\n", b"2\r\n"])
        self.assertEqual(len(set(map(id, keeper.envelopes))), 3)
        self.assertEqual([each.rcpt_tos for each in keeper.envelopes], [["b@example.com"]] * 3)

    def test_order(self) -> None:
        """Commands out of order are refused with 503 5.5.1, and have no effect."""
        for before, line in (
            (b"", b"MAIL FROM:<a@b>"),
            (b"", b"RCPT TO:<a@b>"),
            (b"", b"DATA"),
            (GREETING, b"RCPT TO:<a@b>"),
            (GREETING, b"DATA"),
            (GREETING + b"MAIL FROM:<a@b>\r\n", b"MAIL FROM:<a@b>"),
            (GREETING + b"MAIL FROM:<a@b>\r\n", b"DATA"),
            (GREETING + TRANSACTION, b"MAIL FROM:<a@b>"),
            (GREETING + TRANSACTION + b"DATA\r\n.\r\n", b"RCPT TO:<a@b>"),
            (GREETING + TRANSACTION + b"DATA\r\n.\r\n", b"DATA"),
            (GREETING + TRANSACTION + b"RSET\r\n", b"DATA"),
        ):
            client = Client()
            client.talk(before)
            answer = client.ask(line)
            self.assertEqual((answer.code, answer.status), (503, "5.5.1"), (before, line))

    def test_orderBeforeForm(self) -> None:
        """The order of commands is checked before their arguments."""
        client = Client()
        for line in (b"MAIL FROM:<<>", b"RCPT TO:<>", b"DATA now", b"MAIL"):
            self.assertEqual(client.ask(line).code, 503, line)

    def test_dataArgument(self) -> None:
        """DATA, RSET and QUIT take no argument."""
        client = in_transaction()
        for line in (b"DATA now", b"RSET x", b"QUIT now"):
            self.assertEqual(client.ask(line).code, 501, line)
        self.assertEqual(client.ask(b"DATA").code, 354)

    def test_blanksBehind(self) -> None:
        """Spaces after a command are ignored (RFC 5321 4.1.1)."""
        client = greeted()
        self.assertEqual(client.codes(b"NOOP  \r\nRSET \r\nMAIL FROM:<a@b> \r\n"), [250, 250, 250])

    def test_verbInAnyCase(self) -> None:
        """Verbs are case-insensitive."""
        client = Client()
        self.assertEqual(client.codes(b"ehlo x\r\nmail from:<a@b>\r\nRcPt To:<c@d>\r\ndata\r\n.\r\nquit\r\n")[-1], 221)

    def test_addresses(self) -> None:
        """Handlers get addresses as written, without brackets and source routes."""
        keeper = Keeper()
        client = greeted(keeper)
        client.talk(
            b"MAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\nRCPT TO:<@relay.example:c@d.example>\r\n"
            b'RCPT TO:<"quoted part"@example.com>\r\nRCPT TO: e@[192.0.2.1]\r\nDATA\r\n.\r\n'
        )
        (envelope,) = keeper.envelopes
        self.assertEqual(envelope.mail_from, "")
        self.assertEqual(envelope.rcpt_tos, ["Postmaster", "c@d.example", '"quoted part"@example.com', "e@[192.0.2.1]"])

    def test_nullReversePath(self) -> None:
        """A bounce starts a transaction like any other message."""
        client = greeted()
        self.assertEqual(
            client.codes(b"MAIL FROM:<>\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n"), [250, 503, 250, 354]
        )

    def test_wrongAddresses(self) -> None:
        """An invalid address is refused, and the transaction is unchanged."""
        client = greeted()
        self.assertEqual(client.ask(b"MAIL FROM:<a b@c>").code, 553)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b").code, 501)
        self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 503)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 250)
        self.assertEqual(client.ask(b"RCPT TO:<>").code, 553)
        self.assertEqual(client.ask(b"RCPT TO:").code, 501)
        self.assertEqual(client.ask(b"DATA").code, 503)

    def test_sameRecipientTwice(self) -> None:
        """A recipient that is named twice is in the envelope twice."""
        keeper = Keeper()
        client = in_transaction(keeper)
        client.talk(b"RCPT TO:<b@example.com>\r\nDATA\r\n.\r\n")
        self.assertEqual(keeper.envelopes[0].rcpt_tos, ["b@example.com"] * 2)

    def test_dots(self) -> None:
        """Dot-stuffing is removed. Empty messages are messages."""
        keeper = Keeper()
        client = greeted(keeper)
        client.send_message(b"..\r\n...x\r\n")
        client.send_message(b"")
        client.send_message(b"\r\n")
        self.assertEqual([each.content for each in keeper.envelopes], [b".\r\n..x\r\n", b"", b"\r\n"])

    def test_reset(self) -> None:
        """RSET discards the transaction, but not the greeting."""
        keeper = Keeper()
        client = in_transaction(keeper)
        self.assertEqual(client.codes(b"RSET\r\nDATA\r\n"), [250, 503])
        self.assertEqual(client.codes(b"MAIL FROM:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n.\r\n"), [250, 250, 354, 250])
        self.assertEqual((keeper.envelopes[0].mail_from, keeper.envelopes[0].rcpt_tos), ("c@d", ["e@f"]))

    def test_commandsInMessage(self) -> None:
        """Commands in a message are text."""
        keeper = Keeper()
        client = greeted(keeper)
        self.assertEqual(client.send_message(b"QUIT\r\nMAIL FROM:<x@y>\r\n..\r\n").code, 250)
        self.assertFalse(client.closed)
        self.assertEqual(keeper.envelopes[0].content, b"QUIT\r\nMAIL FROM:<x@y>\r\n.\r\n")


class ParameterTests(SynchronousTestCase):
    """SIZE, BODY, SMTPUTF8, and unknown parameters."""

    def assertAnswers(self, client: Client, line: bytes, code: int, status: str | None = None) -> None:
        """The command gets this reply. Then the transaction is reset."""
        answer = client.ask(line)
        self.assertEqual(answer.code, code, (line, answer))
        if status is not None:
            self.assertEqual(answer.status, status, (line, answer))
        client.ask(b"RSET")

    def test_size(self) -> None:
        """A declared size is compared with the limit before the message is sent."""
        client = greeted(data_size_limit=1000, error_delay=0)
        self.assertAnswers(client, b"MAIL FROM:<a@b> SIZE=1000", 250)
        self.assertAnswers(client, b"MAIL FROM:<a@b> size=0", 250)
        self.assertAnswers(client, b"MAIL FROM:<a@b> SIZE=1001", 552, "5.3.4")
        self.assertAnswers(client, b"MAIL FROM:<a@b> SIZE=" + b"9" * 20, 552, "5.3.4")
        for value in (b"", b"=", b"=x", b"=-1", b"=1_0", b"=+1", "=\u0661".encode(), "=²".encode(), b"=" + b"9" * 21):
            self.assertAnswers(client, b"MAIL FROM:<a@b> SIZE" + value, 501, "5.5.4")

    def test_sizeInTransit(self) -> None:
        """A message that is larger than the limit is read to its end, and refused there."""
        keeper = Keeper()
        client = greeted(keeper, data_size_limit=100)
        self.assertEqual(client.send_message(b"x" * 98 + b"\r\n").code, 250)
        answer = client.send_message(b"x" * 99 + b"\r\n")
        self.assertEqual((answer.code, answer.status), (552, "5.3.4"))
        self.assertEqual(client.send_message(b"..23456789\r\n" * 9).code, 250)
        self.assertEqual(len(keeper.envelopes), 2)

    def test_noSizeLimit(self) -> None:
        """Without a limit, a message may have any size."""
        keeper = Keeper()
        client = greeted(keeper, data_size_limit=None)
        self.assertEqual(client.send_message(b"x" * 1_000_000 + b"\r\n").code, 250)
        self.assertEqual(len(keeper.envelopes[0].content or b""), 1_000_002)

    def test_body(self) -> None:
        """BODY is 7BIT or 8BITMIME, case-insensitively, and nothing else."""
        client = greeted()
        self.assertAnswers(client, b"MAIL FROM:<a@b> BODY=7BIT", 250)
        self.assertAnswers(client, b"MAIL FROM:<a@b> body=8bitmime", 250)
        for value in (b"", b"=9BIT", b"=8BITM\xc4\xb1ME", b"=x"):
            self.assertAnswers(client, b"MAIL FROM:<a@b> BODY" + value, 501, "5.5.4")

    def test_options(self) -> None:
        """Handlers get the parameters with their keywords in upper case."""
        keeper = Keeper()
        client = greeted(keeper, enable_SMTPUTF8=True)
        client.talk(b"MAIL FROM:<a@b> size=10 Body=8bitmime smtputf8\r\nRCPT TO:<a@b>\r\nDATA\r\n.\r\n")
        self.assertEqual(keeper.envelopes[0].mail_options, ["SIZE=10", "BODY=8BITMIME", "SMTPUTF8"])
        self.assertTrue(keeper.envelopes[0].smtp_utf8)

    def test_unknown(self) -> None:
        """An unknown parameter is refused with 555 (RFC 5321 4.1.1.11)."""
        client = greeted()
        self.assertAnswers(client, b"MAIL FROM:<a@b> FOO=1", 555, "5.5.4")
        self.assertAnswers(client, b"MAIL FROM:<a@b> MT-PRIORITY=3", 555)
        self.assertAnswers(client, b"MAIL FROM:<a@b> SMTPUTF8", 555)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertAnswers(client, b"RCPT TO:<a@b> SIZE=1", 555)

    def test_twice(self) -> None:
        """A parameter with two values is refused with 501."""
        client = greeted(data_size_limit=100)
        self.assertAnswers(client, b"MAIL FROM:<a@b> SIZE=1 SIZE=1000", 501, "5.5.4")

    def test_twiceTheSame(self) -> None:
        """A repeated parameter with the same value is accepted: Python's smtplib sends SMTPUTF8 twice."""
        client = greeted(enable_SMTPUTF8=True)
        self.assertAnswers(client, b"MAIL FROM:<a@b> SMTPUTF8 BODY=8BITMIME SMTPUTF8 BODY=8BITMIME", 250)

    def test_nameInAnyCharset(self) -> None:
        """A name in HELO or EHLO that is not ASCII is accepted in any charset, and the session continues."""
        names: list[str] = []

        def note(server: Any, session: Any, *rest: Any) -> str:
            names.append(session.host_name)
            return "250 2.1.0 OK"

        for line in ("EHLO büro".encode(), b"HELO b\xfcro"):
            client = Client(handler(MAIL=note))
            self.assertEqual(client.ask(line).code, 250)
            self.assertAnswers(client, b"MAIL FROM:<a@b>", 250)
        self.assertEqual(names, ["büro", "b\ufffdro"])

    def test_afterHelo(self) -> None:
        """Parameters need EHLO."""
        client = Client()
        client.talk(b"HELO client.test\r\n")
        self.assertAnswers(client, b"MAIL FROM:<a@b> SIZE=10", 501, "5.5.4")
        self.assertAnswers(client, b"MAIL FROM:<a@b> FOO", 501)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertAnswers(client, b"RCPT TO:<a@b> FOO", 501)

    def test_refusedMailLeavesNothing(self) -> None:
        """If MAIL is refused because of one parameter, the others have no effect."""
        client = greeted(enable_SMTPUTF8=True)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> SMTPUTF8 FOO").code, 555)
        self.assertEqual(client.ask("MAIL FROM:<ü@b>".encode()).code, 550)
        self.assertFalse(client.server.envelope.smtp_utf8)

    def test_smtputf8(self) -> None:
        """UTF-8 addresses require the SMTPUTF8 parameter, and that requires the option."""
        for options, line, expected in (
            ({}, "MAIL FROM:<ü@b>", (550, "5.6.7")),
            ({}, "MAIL FROM:<a@ü>", (550, "5.6.7")),
            ({"enable_SMTPUTF8": True}, "MAIL FROM:<ü@b>", (550, "5.6.7")),
            ({"enable_SMTPUTF8": True}, "MAIL FROM:<ü@b> SMTPUTF8", (250, "2.1.0")),
            ({"enable_SMTPUTF8": True}, "MAIL FROM:<a@b> SMTPUTF8", (250, "2.1.0")),
            ({"enable_SMTPUTF8": True}, "MAIL FROM:<ü@b> SMTPUTF8=1", (501, "5.5.4")),
        ):
            answer = greeted(**options).ask(line.encode())
            self.assertEqual((answer.code, answer.status), expected, line)

    def test_smtputf8Recipients(self) -> None:
        """UTF-8 recipients require SMTPUTF8 in MAIL (553 5.6.7). Others do not."""
        client = greeted(enable_SMTPUTF8=True)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        answer = client.ask("RCPT TO:<ü@b>".encode())
        self.assertEqual((answer.code, answer.status), (553, "5.6.7"))
        client.talk(b"RSET\r\nMAIL FROM:<a@b> SMTPUTF8\r\n")
        self.assertEqual(client.ask("RCPT TO:<ü@b>".encode()).code, 250)
        self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 250)

    def test_smtputf8Replies(self) -> None:
        """Replies contain characters that are not ASCII only in an SMTPUTF8 transaction (RFC 6531 3.7.4.2)."""
        client = greeted(handler(RCPT=lambda *arguments: "550 5.1.1 für ü"), enable_SMTPUTF8=True)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertEqual(client.talk(b"RCPT TO:<a@b>\r\n"), b"550 5.1.1 f?r ?\r\n")
        client.talk(b"RSET\r\nMAIL FROM:<a@b> SMTPUTF8\r\n")
        self.assertEqual(client.talk(b"RCPT TO:<a@b>\r\n"), "550 5.1.1 für ü\r\n".encode())

    def test_notUTF8(self) -> None:
        """Commands that are not UTF-8 are refused, with and without SMTPUTF8."""
        for options in ({}, {"enable_SMTPUTF8": True}):
            client = greeted(**options)
            self.assertEqual(client.ask(b"MAIL FROM:<\xfc@b>").code, 500)
            self.assertEqual(client.ask(b"VRFY \xff").code, 500)


class SmallCommandsTests(SynchronousTestCase):
    """RSET, NOOP, QUIT, VRFY, EXPN, HELP, and unknown commands."""

    def test_beforeGreeting(self) -> None:
        """NOOP, RSET, HELP, VRFY, EXPN and QUIT require no greeting."""
        client = Client()
        self.assertEqual(
            client.codes(b"NOOP\r\nNOOP with words\r\nRSET\r\nHELP\r\nVRFY a@b\r\nEXPN a\r\nQUIT\r\n"),
            [250, 250, 250, 214, 252, 502, 221],
        )

    def test_noopInTransaction(self) -> None:
        """NOOP, VRFY and HELP do not affect a transaction."""
        client = in_transaction()
        self.assertEqual(client.codes(b"NOOP\r\nVRFY a@b\r\nHELP\r\nDATA\r\n"), [250, 252, 214, 354])

    def test_vrfy(self) -> None:
        """VRFY neither confirms nor denies, and refuses invalid addresses."""
        client = Client()
        self.assertEqual(client.ask(b"VRFY").code, 501)
        for argument in (b"user", b"<user@example.com>", b"user@example.com"):
            answer = client.ask(b"VRFY " + argument)
            self.assertEqual((answer.code, answer.status), (252, "2.0.0"))
        self.assertEqual(client.ask(b"VRFY a(b)c").code, 502)

    def test_expn(self) -> None:
        """EXPN is not implemented, and HELP does not list it."""
        client = Client()
        self.assertEqual(client.ask(b"EXPN list").code, 502)
        self.assertNotIn("EXPN", client.ask(b"HELP").text.split())

    def test_help(self) -> None:
        """HELP lists the commands, and shows the syntax of each."""
        client = Client()
        answer = client.ask(b"HELP")
        self.assertEqual(answer.code, 214)
        for verb in ["HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "HELP"]:
            self.assertIn(verb, answer.text.split())
            self.assertEqual(client.ask(f"HELP {verb.lower()}".encode()).code, 214)
        self.assertEqual(client.ask(b"HELP DATA").text, "2.0.0 Syntax: DATA")
        self.assertEqual(client.ask(b"HELP nosuch").code, 504)
        self.assertEqual(client.ask(b"HELP EXPN").code, 504)

    def test_helpAfterEhlo(self) -> None:
        """HELP shows parameters to clients that have sent EHLO."""
        client = Client()
        before = client.ask(b"HELP MAIL").text
        client.talk(GREETING)
        after = client.ask(b"HELP MAIL").text
        self.assertTrue(after.startswith(before) and len(after) > len(before), (before, after))

    def test_helpInASCII(self) -> None:
        """HELP does not accept letters that fold to ASCII."""
        self.assertEqual(Client().ask("HELP R\u017fET".encode()).code, 504)

    def test_quit(self) -> None:
        """After QUIT, no command is executed."""
        keeper = Keeper()
        client = in_transaction(keeper)
        said = client.talk(b"QUIT\r\nDATA\r\n" + MESSAGE + b".\r\nNOOP\r\n")
        self.assertEqual(codes(said), [221])
        self.assertTrue(client.closed)
        self.assertEqual(keeper.envelopes, [])

    def test_unknown(self) -> None:
        """An unknown command is refused with 500, and the session continues."""
        client = Client(error_delay=0)
        for line in (
            b"FOO",
            b"XYZZY plugh",
            b"MAILFROM",
            b"DATA\t",
            b"123",
            b"-",
            b" NOOP",
            b"",
            b"smtp_NOOP",
            b"__class__",
        ):
            self.assertEqual(client.ask(line).code, 500, line)
        self.assertEqual(client.ask(b"NOOP").code, 250)

    def test_lookalikeVerbs(self) -> None:
        """Letters that fold to ASCII do not match a verb."""
        client = Client()
        for line in ("R\u017fET", "\u212aELP", "\uff2e\uff2f\uff2f\uff30", "no\u00adop"):
            self.assertEqual(client.ask(line.encode()).code, 500, line)

    def test_controlCharacters(self) -> None:
        """A control character in a command is refused with 500, and nothing of the command is repeated in the reply."""
        for character in (b"\0", b"\r", b"\x01", b"\t", b"\x0b", b"\x1b", b"\x7f", b"\xc2\x85", b"\xe2\x80\xa8"):
            client = in_transaction()
            for line in (
                b"RCPT TO:<a" + character + b"b@c>",
                b"RCPT TO:<a@b>" + character + b"<c@d>",
                b"FO" + character + b"O x",
            ):
                answer = client.ask(line)
                self.assertEqual(answer.code, 500, line)
            self.assertEqual(client.server.envelope.rcpt_tos, ["b@example.com"])

    def test_nothingEchoed(self) -> None:
        """Replies repeat input of the client only if it consists of plain words."""
        client = greeted()
        for line in (b"FO\x1b[31mO", b"EHLO \x1b[31m", b"MAIL FROM:<a@b> \x1b=1", b"VRFY \x1b", b"HELP \x1b", b"\x1b"):
            self.assertNotIn(b"\x1b", client.talk(line + b"\r\n"))


class LineTests(SynchronousTestCase):
    """Invalid lines."""

    def test_commandSize(self) -> None:
        """A command line may have 512 octets. A longer one is refused with 500, and has no other effect."""
        client = greeted()
        self.assertEqual(client.ask(b"NOOP " + b"x" * (512 - 5)).code, 250)
        answer = client.ask(b"NOOP " + b"x" * (513 - 5))
        self.assertEqual((answer.code, answer.status), (500, "5.5.2"))
        self.assertEqual(client.ask(b"NOOP").code, 250)

    def test_mailMayBeLonger(self) -> None:
        """Extensions increase the length of MAIL, and of no other command."""
        client = greeted(data_size_limit=1000)
        room = 512 + 26 - len(b"MAIL FROM:<@b.example> SIZE=10")
        self.assertEqual(client.ask(b"MAIL FROM:<" + b"x" * room + b"@b.example> SIZE=10").code, 250)
        self.assertEqual(client.ask(b"RCPT TO:<" + b"x" * 530 + b"@b>").code, 500)

    def test_tailIsNoCommand(self) -> None:
        """The rest of a line that is too long is never executed, however the line is split."""
        line = b"NOOP " + b"x" * 5000 + b"MAIL FROM:<a@b>\r\n"
        for size in (1, 100, 511, 512, 513, 514, 600, 5005, 5010):
            client = greeted()
            client.say(line, range(size, len(line), size))
            self.assertEqual(codes(client.heard()), [500], size)
            self.assertIsNone(client.server.envelope.mail_from)

    def test_endlessLine(self) -> None:
        """A line of more than 2 MiB ends the session with 421, whether it ends or not."""
        for line in (b"x" * (ENDLESS_LINE + 10), b"x" * (ENDLESS_LINE + 10) + b"\r\n"):
            client = greeted()
            client.say(line, range(10_000, len(line), 10_000))
            self.assertEqual(codes(client.heard()), [421])
            self.assertTrue(client.closed)

    def test_bareLF(self) -> None:
        """A command that ends with LF alone is refused immediately with 500, and not executed."""
        client = greeted()
        self.assertEqual(client.codes(b"MAIL FROM:<a@b>\n"), [500])
        self.assertIsNone(client.server.envelope.mail_from)
        self.assertEqual(client.codes(b"NOOP\nNOOP\nNOOP\r\n"), [500, 500, 250])
        self.assertEqual(client.codes(b"\n"), [500])

    def test_bareCR(self) -> None:
        """A CR does not end a line."""
        client = greeted()
        self.assertEqual(client.codes(b"NOOP\rRSET\r"), [])
        self.assertEqual(client.codes(b"\n"), [500])
        self.assertEqual(client.codes(b"NOOP\r\r\n"), [500])

    def test_foreign(self) -> None:
        """A line of another protocol, or of a message's header, ends the session with 554."""
        for line in FOREIGN:
            for before in (b"", GREETING):
                keeper = Keeper()
                client = Client(keeper)
                client.talk(before)
                rest = b"\r\nHost: x\r\n\r\n" + GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n"
                self.assertEqual(client.codes(line + rest), [554], line)
                self.assertTrue(client.closed)
                self.assertEqual(keeper.envelopes, [])

    def test_headerWithoutBlank(self) -> None:
        """So does a header line without a space after its colon."""
        client = Client()
        self.assertEqual(client.codes(b"Host:mx.test\r\nEHLO x\r\n"), [554])

    def test_tlsHello(self) -> None:
        """A TLS handshake on a connection without TLS ends the session with one reply."""
        for hello in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x80\x2e\x01\x03\x01", b"\x16"):
            for before in (b"", GREETING, b"NOOP\r\n"):
                client = Client()
                client.talk(before)
                self.assertIn(b"554 5.5.1 TLS without STARTTLS is not accepted on this port", client.talk(hello))
                self.assertTrue(client.closed)

    def test_foreignBeforeGreeting(self) -> None:
        """Input of another protocol that arrives before the greeting ends the session after the greeting."""
        hook = Waiting(None)
        client = Client(handler(CONNECT=hook))
        client.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        hook.fire()
        self.assertEqual(codes(client.heard()), [220, 554])


class LimitTests(SynchronousTestCase):
    """Limits, each with its own reply."""

    def test_localPart(self) -> None:
        """A local part above the limit is refused with 553."""
        client = greeted(local_part_limit=10)
        self.assertEqual(client.codes(b"MAIL FROM:<12345678901@b>\r\nMAIL FROM:<1234567890@b>\r\n"), [553, 250])
        self.assertEqual(client.codes(b"RCPT TO:<12345678901@b>\r\nRCPT TO:<1234567890@b>\r\n"), [553, 250])
        self.assertEqual(greeted().ask(b"MAIL FROM:<" + b"x" * 400 + b"@b>").code, 250)

    def test_recipients(self) -> None:
        """Recipients above the limit are refused with 452 4.5.3. The others get the message."""
        keeper = Keeper()
        client = greeted(keeper, recipient_limit=2)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertEqual(client.codes(b"RCPT TO:<a@b>\r\n" * 4), [250, 250, 452, 452])
        self.assertEqual(client.codes(b"DATA\r\n.\r\n"), [354, 250])
        self.assertEqual(len(keeper.envelopes[0].rcpt_tos), 2)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 250)

    def test_callLimit(self) -> None:
        """A number limits how often each command may be sent."""
        client = Client(command_call_limit=2)
        self.assertEqual(client.codes(b"NOOP\r\nRSET\r\nNOOP\r\nRSET\r\nnoop\r\nRSET\r\n"), [250, 250, 250, 250, 421])
        self.assertTrue(client.closed)

    def test_callLimitByName(self) -> None:
        """A mapping limits commands by name. "*" applies to the others, with a default of 20."""
        client = Client(command_call_limit={"noop": 1, "*": 2})
        self.assertEqual(client.codes(b"NOOP\r\nRSET\r\nRSET\r\nNOOP\r\n"), [250, 250, 250, 421])
        client = Client(command_call_limit={"NOOP": 1, "*": 2})
        self.assertEqual(client.codes(b"RSET\r\nRSET\r\nRSET\r\n"), [250, 250, 421])
        client = Client(command_call_limit={"NOOP": 30})
        self.assertEqual(client.codes(b"NOOP\r\n" * 30 + b"RSET\r\n" * 21), [250] * 50 + [421])

    def test_noCallLimit(self) -> None:
        """Without the option, commands may be sent any number of times."""
        client = Client(junk_command_limit=None)
        self.assertEqual(client.codes(b"NOOP\r\n" * 500), [250] * 500)

    def test_errors(self) -> None:
        """After this number of malformed, unknown or misplaced commands, the session ends with 421."""
        client = Client(error_limit=3)
        self.assertEqual(client.codes(b"FOO\r\nRCPT TO:<a@b>\r\nNOOP\r\nHELO\r\nNOOP\r\n"), [500, 503, 250, 421])
        self.assertTrue(client.closed)
        self.assertEqual(codes(Client(error_delay=0).talk(b"FOO\r\n" * 30)), [500] * 19 + [421])
        client = Client(error_limit=None, error_delay=0)
        self.assertEqual(codes(client.talk(b"FOO\r\n" * 300)), [500] * 300)

    def test_lineErrorsCount(self) -> None:
        """Lines without CR, and lines that are too long, count as errors."""
        self.assertEqual(codes(Client(error_limit=3).talk(b"NOOP\n" * 5)), [500, 500, 421])
        self.assertEqual(codes(Client(error_limit=3).talk((b"x" * 999 + b"\r\n") * 5)), [500, 500, 421])

    def test_refusedRecipientsAreNoErrors(self) -> None:
        """Recipients that a hook refuses do not count as errors of the client."""
        client = greeted(handler(RCPT=lambda *arguments: "550 5.1.1 unknown"), error_limit=3)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertEqual(client.codes(b"RCPT TO:<a@b>\r\n" * 20), [550] * 20)

    def test_junk(self) -> None:
        """After this number of junk commands, the session ends with 421."""
        client = Client(junk_command_limit=4)
        self.assertEqual(
            client.codes(b"NOOP\r\nRSET\r\nVRFY a@b\r\nEHLO x\r\nHELP\r\nNOOP\r\n"), [250, 250, 252, 250, 421]
        )
        self.assertTrue(client.closed)
        self.assertEqual(codes(Client().talk(b"NOOP\r\n" * 110)), [250] * 100 + [421])

    def test_junkAfterMessage(self) -> None:
        """A message resets the count."""
        client = greeted(junk_command_limit=4)
        for _ in range(5):
            self.assertEqual(client.codes(b"NOOP\r\nRSET\r\nNOOP\r\n"), [250, 250, 250])
            self.assertEqual(client.send_message().code, 250)

    def test_dataLine(self) -> None:
        """A message with a line above the limit is refused at its end."""
        client = greeted(line_length_limit=100)
        self.assertEqual(client.send_message(b"x" * 98 + b"\r\n").code, 250)
        answer = client.send_message(b"x" * 99 + b"\r\n")
        self.assertEqual((answer.code, answer.status), (500, "5.6.0"))
        self.assertEqual(client.send_message().code, 250)
        self.assertEqual(greeted().send_message(b"x" * 100_000 + b"\r\n").code, 250)


class BareNewlineTests(SynchronousTestCase):
    """Bare CR and LF in a message."""

    def test_refused(self) -> None:
        """A message with a bare CR or LF is refused with 550 5.6.0 at its end."""
        keeper = Keeper()
        client = greeted(keeper)
        for message in (b"a\nb\r\n", b"a\rb\r\n", b"a\r\r\n"):
            answer = client.send_message(message)
            self.assertEqual((answer.code, answer.status), (550, "5.6.0"), message)
        self.assertEqual(keeper.envelopes, [])
        self.assertEqual(client.send_message().code, 250)

    def test_kept(self) -> None:
        """With bare_newlines, they are kept unchanged."""
        keeper = Keeper()
        client = greeted(keeper, bare_newlines=True)
        self.assertEqual(client.send_message(b"a\nb\rc\n.\nd\r\n").code, 250)
        self.assertEqual(keeper.envelopes[0].content, b"a\nb\rc\n.\nd\r\n")

    def test_nul(self) -> None:
        """A NUL in a message is an ordinary octet."""
        keeper = Keeper()
        self.assertEqual(greeted(keeper).send_message(b"a\0b\r\n").code, 250)
        self.assertEqual(keeper.envelopes[0].content, b"a\0b\r\n")


class DecodeDataTests(SynchronousTestCase):
    """Messages as str."""

    def test_text(self) -> None:
        """With decode_data, the content is str, and the octets are in another attribute."""
        keeper = Keeper()
        self.assertEqual(greeted(keeper, decode_data=True).send_message(b"abc\r\n").code, 250)
        self.assertEqual(keeper.envelopes[0].content, "abc\r\n")
        self.assertEqual(keeper.envelopes[0].original_content, b"abc\r\n")

    def test_notASCII(self) -> None:
        """Without SMTPUTF8, a message that is not ASCII is refused, and the session continues."""
        keeper = Keeper()
        client = greeted(keeper, decode_data=True)
        self.assertEqual(client.send_message("ü\r\n".encode()).code // 100, 5)
        self.assertEqual(client.send_message(b"x\r\n").code, 250)
        self.assertEqual(len(keeper.envelopes), 1)

    def test_utf8(self) -> None:
        """With SMTPUTF8, it is decoded from UTF-8, and other octets are preserved."""
        keeper = Keeper()
        client = greeted(keeper, decode_data=True, enable_SMTPUTF8=True)
        self.assertEqual(client.send_message("ü\r\n".encode()).code, 250)
        self.assertEqual(client.send_message(b"\xff\r\n").code, 250)
        self.assertEqual(keeper.envelopes[0].content, "ü\r\n")
        content = keeper.envelopes[1].content
        assert isinstance(content, str)
        self.assertEqual(content.encode("utf-8", "surrogateescape"), b"\xff\r\n")


# For each hook: its name, the octets to send before, the command that calls it, and the arguments after server, session
# and envelope.
HOOKS: list[tuple[str, bytes, bytes, tuple[Any, ...]]] = [
    ("HELO", b"", b"HELO client.test", ("client.test",)),
    ("NOOP", b"", b"NOOP", (None,)),
    ("NOOP", b"", b"NOOP two words", ("two words",)),
    ("RSET", b"", b"RSET", ()),
    ("QUIT", b"", b"QUIT", ()),
    ("VRFY", b"", b"VRFY <user@example.com>", ("user@example.com",)),
    ("MAIL", GREETING, b"MAIL FROM:<a@example.com>", ("a@example.com", [])),
    ("MAIL", GREETING, b"MAIL FROM:<> size=10 BODY=8bitmime", ("", ["SIZE=10", "BODY=8BITMIME"])),
    ("RCPT", GREETING + b"MAIL FROM:<>\r\n", b"RCPT TO:<b@example.com>", ("b@example.com", [])),
    ("DATA", GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE, b".", ()),
]


class HookTests(LoggingTestCase):
    """Hooks: their arguments, and the effect of their results."""

    def test_arguments(self) -> None:
        """Each hook gets the server, the session, the envelope, and the data of its command."""
        for name, before, line, expected in HOOKS:
            calls: list[tuple[Any, ...]] = []

            def hook(*arguments: Any, calls: list[tuple[Any, ...]] = calls) -> str:
                calls.append(arguments)
                return "250 2.0.0 asked"

            client = Client(handler(**{name: hook}))
            session = client.server.session
            client.talk(before)
            envelope = client.server.envelope
            self.assertEqual(client.ask(line), Answer(250, ("2.0.0 asked",)), name)
            (call,) = calls
            self.assertEqual(call[3:], expected, name)
            self.assertIs(call[0], client.server)
            self.assertIs(call[1], session)
            if name not in ("HELO", "RSET"):  # these have a new envelope
                self.assertIs(call[2], envelope)
            else:
                self.assertIsInstance(call[2], Envelope)

    def test_threeForms(self) -> None:
        """A hook may be a coroutine function, return a Deferred, or be a plain function."""
        for name, before, line, _ in HOOKS:
            for form, hook in in_three_forms("250 2.0.0 asked"):
                client = Client(handler(**{name: hook}))
                client.talk(before)
                self.assertEqual(client.ask(line), Answer(250, ("2.0.0 asked",)), (name, form))

    def test_laterForms(self) -> None:
        """A hook may return its status later, as a coroutine or a Deferred. No reply is sent before."""
        for name, before, line, _ in HOOKS:
            for coroutine in (True, False):
                clock = Clock()

                async def waits(*arguments: Any, clock: Clock = clock) -> str:
                    await deferLater(clock, 1)
                    await deferLater(clock, 1)
                    return "250 2.0.0 at last"

                def later(*arguments: Any, clock: Clock = clock) -> Deferred[str]:
                    return deferLater(clock, 2, lambda: "250 2.0.0 at last")

                client = Client(handler(**{name: waits if coroutine else later}), reactor=clock)
                client.talk(before)
                self.assertEqual(client.talk(line + b"\r\n"), b"", name)
                self.assertEqual(client.wait(1.5), b"", name)
                self.assertEqual(client.wait(0.5), b"250 2.0.0 at last\r\n", name)

    def test_status(self) -> None:
        """A status may be a string, a Reply or bytes, of one line or several."""
        for status, expected in (
            ("250 2.0.0 one", b"250 2.0.0 one\r\n"),
            (Reply(250, "2.0.0", "two"), b"250 2.0.0 two\r\n"),
            (b"250 2.0.0 three", b"250 2.0.0 three\r\n"),
            ("550-5.7.1 four\r\n550 5.7.1 five", b"550-5.7.1 four\r\n550 5.7.1 five\r\n"),
            ("250", b"250 \r\n"),
            ("250 2.0.0 ends\r\n", b"250 2.0.0 ends\r\n"),
            ("550 5.7.1 \x1b[31m\0", b"550 5.7.1 ?[31m?\r\n"),
        ):
            client = Client(handler(NOOP=lambda *arguments, status=status: status))
            self.assertEqual(client.talk(b"NOOP\r\n"), expected, status)

    def test_noStatus(self) -> None:
        """If the result of a hook is not a status, the client gets 451, and a log line names the hook."""
        for name, before, line, _ in HOOKS:
            for result in (
                None,
                250,
                "garbage",
                "",
                "354 go on",
                "334 ",
                b"\xff\xfe",
                object(),
                ["250 OK", "250 OK"],  # only DATA of LMTP allows one status for each recipient, and there is only one
                "250 a\n550 b",
            ):
                for form, hook in in_three_forms(result):
                    self.events.clear()
                    client = Client(handler(**{name: hook}))
                    client.talk(before)
                    answer = client.ask(line)
                    self.assertEqual((answer.code, answer.status), (451, "4.3.0"), (name, result, form))
                    self.assertEqual(self.errors_logged(), 1, (name, result, form))
                    self.assertIn(name, self.logged("error")[0])

    def test_refused(self) -> None:
        """A hook may refuse by raising Refused. No error is logged."""

        async def coroutine(*arguments: Any) -> str:
            raise Refused("550 5.7.1 not you")

        def plain(*arguments: Any) -> str:
            raise Refused(Reply(550, "5.7.1", "not you"))

        def deferred(*arguments: Any) -> Deferred[str]:
            return fail(Refused("550 5.7.1 not you"))

        for name, before, line, _ in HOOKS:
            for hook in (coroutine, plain, deferred):
                client = Client(handler(**{name: hook}))
                client.talk(before)
                self.assertEqual(client.ask(line), Answer(550, ("5.7.1 not you",)), (name, hook))
        self.assertEqual(self.logged("critical") + self.logged("error"), [])

    def test_raises(self) -> None:
        """If a hook raises an exception, the client gets 451 without details, and the log has the traceback."""

        async def coroutine(*arguments: Any) -> str:
            raise LookupError("the secret of the house")

        def plain(*arguments: Any) -> str:
            raise LookupError("the secret of the house")

        def deferred(*arguments: Any) -> Deferred[str]:
            return fail(LookupError("the secret of the house"))

        for name, before, line, _ in HOOKS:
            for hook in (coroutine, plain, deferred):
                client = Client(handler(**{name: hook}))
                client.talk(before)
                said = client.talk(line + b"\r\n")
                self.assertEqual([(each.code, each.status) for each in answers(said)], [(451, "4.3.0")], name)
                self.assertNotIn(b"secret", said)
                self.assertNotIn(b"LookupError", said)
                self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
                if name != "QUIT":
                    self.assertEqual(client.ask(b"HELP").code, 214)

    def test_421(self) -> None:
        """A hook that returns 421 closes the connection, and no further command is executed."""
        for name, before, line, _ in HOOKS:
            for status in ("421 4.3.2 bye", Reply(421, "4.3.2", "bye")):
                client = Client(handler(**{name: lambda *arguments, status=status: status}))
                client.talk(before)
                self.assertEqual(client.talk(line + b"\r\nNOOP\r\nNOOP\r\n"), b"421 4.3.2 bye\r\n", name)
                self.assertTrue(client.closed)

    def test_raises421(self) -> None:
        """So does a hook that raises it."""

        def hook(*arguments: Any) -> str:
            raise Refused("421 4.3.2 bye")

        client = Client(handler(NOOP=hook))
        self.assertEqual(client.talk(b"NOOP\r\nNOOP\r\n"), b"421 4.3.2 bye\r\n")
        self.assertTrue(client.closed)

    def test_quitClosesAnyway(self) -> None:
        """After QUIT the connection closes, whatever its hook does."""

        def raises(*arguments: Any) -> str:
            raise Refused("550 5.7.1 stay")

        for hook in (lambda *arguments: "250 stay", lambda *arguments: None, raises):
            client = Client(handler(QUIT=hook))
            self.assertEqual(len(answers(client.talk(b"QUIT\r\nNOOP\r\n"))), 1)
            self.assertTrue(client.closed)

    def test_methodsOfHandlers(self) -> None:
        """Hooks are methods, including inherited ones. A handler may have any number of them."""

        class Base:
            async def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str | None) -> str:
                return "250 2.0.0 from the base"

        class Derived(Base):
            pass

        self.assertEqual(Client(Derived()).ask(b"NOOP").text, "2.0.0 from the base")
        self.assertEqual(Client(None).ask(b"NOOP").code, 250)

    def test_attributesOfTheirOwn(self) -> None:
        """Handlers may set their own attributes on session and envelope."""
        seen: list[tuple[int, int]] = []

        class Handler:
            def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
                session.count = getattr(session, "count", 0) + 1
                envelope.number = session.count
                return "250 2.1.0 OK"

            def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                seen.append((session.count, envelope.number))
                return "250 2.0.0 OK"

        client = greeted(Handler())
        client.send_message()
        client.send_message()
        self.assertEqual(seen, [(1, 1), (2, 2)])

    def test_serverAttributes(self) -> None:
        """A hook can read the server's handler, name, limits and transport."""
        client = Client(Keeper(), data_size_limit=77, enable_SMTPUTF8=True)
        server = client.server
        self.assertIs(server.event_handler, client.factory.handler)
        self.assertEqual((server.hostname, server.data_size_limit, server.enable_SMTPUTF8), ("mx.test", 77, True))
        self.assertIs(server.transport, client.transport)
        self.assertEqual(server.session.peer, (PEER.host, PEER.port))


class GreetingHookTests(LoggingTestCase):
    """handle_HELO and handle_EHLO, in both forms."""

    def test_ehloWithResponses(self) -> None:
        """The newer form of handle_EHLO gets the lines of the reply, and returns those to send."""
        given: list[list[str]] = []

        class Handler:
            async def handle_EHLO(
                self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
            ) -> list[str]:
                given.append(list(responses))
                session.host_name = hostname
                return ["250-mx.test", "250-X-SPECIAL 1", "250 HELP"]

        client = Client(Handler())
        self.assertEqual(client.talk(GREETING), b"250-mx.test\r\n250-X-SPECIAL 1\r\n250 HELP\r\n")
        self.assertEqual(given[0][0], "250-mx.test")
        self.assertIn("250-PIPELINING", given[0])
        self.assertTrue(given[0][-1].startswith("250 "))
        self.assertTrue(all(line.startswith("250-") for line in given[0][:-1]))
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> BODY=7BIT").code, 250)

    def test_ehloUnchanged(self) -> None:
        """Returning the lines unchanged sends the same reply as without the hook."""
        client = Client(handler(EHLO=lambda server, session, envelope, hostname, responses: responses))
        self.assertEqual(client.talk(GREETING), Client().talk(GREETING))

    def test_ehloStatus(self) -> None:
        """The newer form may refuse with a status."""
        client = Client(handler(EHLO=lambda server, session, envelope, hostname, responses: "550 5.7.1 no"))
        self.assertEqual(client.ask(b"EHLO x").code, 550)
        client = Client(
            handler(EHLO=lambda server, session, envelope, hostname, responses: ["550-5.7.1 a", "550 5.7.1 b"])
        )
        self.assertEqual(client.ask(b"EHLO x").code, 550)

    def test_ehloOldForm(self) -> None:
        """The older form returns a status, whose text becomes the last line."""

        class Handler:
            async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str) -> str:
                session.host_name = hostname
                return "250 X-LAST"

        answer = Client(Handler()).ask(b"EHLO client.test")
        self.assertEqual((answer.lines[0], answer.lines[-1]), ("mx.test", "X-LAST"))
        self.assertIn("PIPELINING", answer.lines)

    def test_ehloWrongResults(self) -> None:
        """An invalid result for EHLO becomes 451, is logged, and is not a greeting."""
        new: Callable[[Any], Any] = lambda result: lambda server, session, envelope, hostname, responses: result  # noqa: E731
        old: Callable[[Any], Any] = lambda result: lambda server, session, envelope, hostname: result  # noqa: E731
        for form in (new, old):
            for result in (None, 250, [], [250], [b"250 x"], ["garbage"], ["250-a", "550 b"], "", "354 x", {"250": 1}):
                self.events.clear()
                client = Client(handler(EHLO=form(result)))
                self.assertEqual(client.codes(b"EHLO x\r\nMAIL FROM:<a@b>\r\n"), [451, 503], result)
                self.assertEqual(self.errors_logged(), 1, result)

    def test_ehloListNotForgery(self) -> None:
        """A line that contains a line end cannot forge another reply."""
        client = Client(
            handler(EHLO=lambda server, session, envelope, hostname, responses: ["250-a\r\n250 b", "250 c"])
        )
        self.assertEqual(client.codes(GREETING), [250])

    def test_forgottenHostName(self) -> None:
        """If a hook accepts the greeting without setting host_name, the server sets it."""
        for verb in ("HELO", "EHLO"):
            client = Client(handler(**{verb: lambda server, session, envelope, hostname: "250 OK"}))
            client.talk(f"{verb} client.test\r\n".encode())
            self.assertEqual(client.server.session.host_name, "client.test")
            self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 250)

    def test_hostNameKept(self) -> None:
        """A host_name that a hook has set is kept."""

        def hook(server: SMTP, session: Session, envelope: Envelope, hostname: str) -> str:
            session.host_name = "other.test"
            return "250 OK"

        for verb in ("HELO", "EHLO"):
            client = Client(handler(**{verb: hook}))
            client.talk(f"{verb} client.test\r\n".encode())
            self.assertEqual(client.server.session.host_name, "other.test")

    def test_failedGreeting(self) -> None:
        """A greeting whose hook fails changes nothing."""

        def hook(server: SMTP, session: Session, envelope: Envelope, hostname: str) -> str:
            if hostname == "bad":
                raise LookupError("bad")
            return "250 OK"

        client = Client(handler(HELO=hook))
        self.assertEqual(client.codes(b"EHLO first\r\nHELO bad\r\nMAIL FROM:<a@b> SIZE=1\r\n"), [250, 451, 250])
        self.assertEqual(client.server.session.host_name, "first")
        self.flushLoggedErrors(LookupError)


class TransactionHookTests(LoggingTestCase):
    """handle_MAIL, handle_RCPT, handle_DATA and the transaction."""

    def test_forgottenMailFrom(self) -> None:
        """If a hook accepts MAIL without setting mail_from, the server sets it, even to the null path."""
        for path in ("a@b", ""):
            client = greeted(handler(MAIL=lambda *arguments: "250 OK"))
            client.ask(f"MAIL FROM:<{path}>".encode())
            self.assertEqual(client.server.envelope.mail_from, path)
            self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 250)

    def test_mailFromKept(self) -> None:
        """A mail_from that a hook has set is kept."""

        def hook(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
            envelope.mail_from = "other@b"
            return "250 OK"

        client = greeted(handler(MAIL=hook))
        client.ask(b"MAIL FROM:<a@b>")
        self.assertEqual(client.server.envelope.mail_from, "other@b")

    def test_refusedMail(self) -> None:
        """If a hook refuses MAIL or fails, no transaction is open, even if the hook had set mail_from."""

        def refuses(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str | None:
            envelope.mail_from = address
            if address == "raise@b":
                raise LookupError
            return {"none@b": None, "later@b": "450 4.7.1 later", "354@b": "354 go on"}.get(address, "550 5.7.1 no")

        client = greeted(handler(MAIL=refuses))
        for path, code in (("no", 550), ("later", 450), ("none", 451), ("354", 451), ("raise", 451)):
            self.assertEqual(client.ask(f"MAIL FROM:<{path}@b>".encode()).code, code)
            self.assertIsNone(client.server.envelope.mail_from)
            self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 503)
        self.flushLoggedErrors(LookupError)

    def test_recipientNotAppended(self) -> None:
        """A recipient that a hook accepts without appending it is dropped. Without recipients, DATA is refused."""

        def hook(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
            if address == "keep@b":
                envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"

        client = greeted(handler(RCPT=hook))
        self.assertEqual(client.codes(b"MAIL FROM:<a@b>\r\nRCPT TO:<drop@b>\r\nDATA\r\n"), [250, 250, 503])
        self.assertEqual(client.codes(b"RCPT TO:<keep@b>\r\nDATA\r\n"), [250, 354])
        self.assertEqual(client.server.envelope.rcpt_tos, ["keep@b"])

    def test_refusedRecipients(self) -> None:
        """Refused recipients do not affect the others in the transaction."""
        keeper = Keeper()

        def hook(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
            if address.startswith("no"):
                return "550 5.1.1 unknown"
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"

        keeper.handle_RCPT = hook  # type: ignore[attr-defined]
        client = greeted(keeper)
        said = client.codes(
            b"MAIL FROM:<a@b>\r\nRCPT TO:<no1@b>\r\nRCPT TO:<yes@b>\r\nRCPT TO:<no2@b>\r\nDATA\r\n.\r\n"
        )
        self.assertEqual(said, [250, 550, 250, 550, 354, 250])
        self.assertEqual(keeper.envelopes[0].rcpt_tos, ["yes@b"])

    def test_recipientAppendedThenFailed(self) -> None:
        """A recipient whose hook fails after appending it is refused, and does not get the message."""
        keeper = Keeper()

        def hook(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str | None:
            envelope.rcpt_tos.append(address)
            if address == "raise@b":
                raise LookupError
            return None if address == "none@b" else "250 2.1.5 OK"

        keeper.handle_RCPT = hook  # type: ignore[attr-defined]
        client = greeted(keeper)
        said = client.codes(
            b"MAIL FROM:<a@b>\r\nRCPT TO:<none@b>\r\nRCPT TO:<raise@b>\r\nRCPT TO:<c@b>\r\nDATA\r\n.\r\n"
        )
        self.flushLoggedErrors(LookupError)
        self.assertEqual(said, [250, 451, 451, 250, 354, 250])
        self.assertEqual(keeper.envelopes[0].rcpt_tos, ["c@b"])

    def test_dataRefused(self) -> None:
        """If a hook refuses a message, the transaction ends, and the session continues."""
        for status, code in (("550 5.7.1 no", 550), ("451 4.3.0 later", 451), ("554 5.6.0 no", 554), (None, 451)):
            keeper = Keeper(status)
            client = greeted(keeper)
            self.assertEqual(client.send_message().code, code)
            self.assertEqual(client.ask(b"DATA").code, 503)
            keeper.status = "250 2.0.0 OK"
            self.assertEqual(client.send_message().code, 250)

    def test_dataFails(self) -> None:
        """If a DATA hook raises, the transaction ends, and the session continues."""
        fails = [True]

        async def hook(server: Any, session: Any, envelope: Envelope) -> str:
            if fails.pop():
                raise LookupError("disk")
            return "250 2.0.0 OK"

        fails = [False, True]
        client = greeted(handler(DATA=hook))
        self.assertEqual(client.send_message().code, 451)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.assertEqual(client.ask(b"RCPT TO:<a@b>").code, 503)
        self.assertEqual(client.send_message().code, 250)

    def test_envelopeStaysWithHandler(self) -> None:
        """An envelope that a handler keeps does not change with the client's next commands."""
        keeper = Keeper()
        client = greeted(keeper)
        client.send_message(b"first\r\n")
        client.talk(b"MAIL FROM:<x@y>\r\nRCPT TO:<z@y>\r\nRSET\r\n")
        self.assertEqual(keeper.envelopes[0].rcpt_tos, ["b@example.com"])
        self.assertEqual(keeper.envelopes[0].content, b"first\r\n")

    def test_rsetHook(self) -> None:
        """handle_RSET gets a new envelope. The transaction has ended, whatever it returns."""
        seen: list[str | None] = []

        def hook(server: Any, session: Any, envelope: Envelope) -> str:
            seen.append(envelope.mail_from)
            return "550 5.7.1 no"

        client = in_transaction(handler(RSET=hook))
        self.assertEqual(client.codes(b"RSET\r\nDATA\r\n"), [550, 503])
        self.assertEqual(seen, [None])


class ExceptionHookTests(LoggingTestCase):
    """handle_exception."""

    def ask(self, exception_hook: Callable[..., Any], error: Exception | None = None) -> Answer:
        """The reply to a command whose hook raises."""
        cause = error or LookupError("secret")

        def fails(*arguments: Any) -> str:
            raise cause

        client = Client(handler(NOOP=fails, exception=exception_hook))
        answer = client.ask(b"NOOP")
        self.assertEqual(client.ask(b"RSET").code, 250)
        return answer

    def test_words(self) -> None:
        """handle_exception gets the exception, and returns the reply, in all three forms."""
        for form, hook in in_three_forms("542 5.3.0 worded"):
            errors: list[BaseException] = []

            def keeps(error: BaseException, hook: Any = hook, errors: list[BaseException] = errors) -> Any:
                errors.append(error)
                return hook(error)

            self.assertEqual(self.ask(keeps), Answer(542, ("5.3.0 worded",)), form)
            self.assertIsInstance(errors[0], LookupError)
            self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_none(self) -> None:
        """If it returns None, the reply is 451."""
        for result in (None, "garbage", 451, "354 go on"):
            self.assertEqual(self.ask(lambda error, result=result: result).code, 451)
            self.flushLoggedErrors(LookupError)

    def test_raises(self) -> None:
        """If it fails, too, the reply is 500 without details, and both exceptions are logged."""

        def plain(error: BaseException) -> str:
            raise KeyError("another secret")

        async def coroutine(error: BaseException) -> str:
            raise KeyError("another secret")

        for hook in (plain, coroutine):
            answer = self.ask(hook)
            self.assertEqual(answer.code, 500)
            self.assertNotIn("secret", answer.text)
            self.assertEqual(len(self.flushLoggedErrors(LookupError)), 2)  # KeyError is a LookupError

    def test_notForRefusals(self) -> None:
        """Refused is not passed to it."""
        self.assertEqual(self.ask(lambda error: "542 5.3.0 worded", Refused("550 5.7.1 no")).code, 550)

    def test_multiLine(self) -> None:
        """If a hook returns the text of the exception, that cannot forge a reply."""
        error = LookupError("x\r\n250 2.0.0 forged\r\n\x1b")

        def hook(error: BaseException) -> str:
            return f"451 4.3.0 {error.args[0]}"

        fails = handler(NOOP=lambda *arguments: fail(error), exception=hook)
        said = Client(fails).talk(b"NOOP\r\n")
        self.assertEqual(codes(said), [451])
        self.flushLoggedErrors(LookupError)


class ProcessMessageTests(LoggingTestCase):
    """The deprecated hook process_message."""

    def client(self, process_message: Callable[..., Any]) -> Client:
        """A client of a handler that has only process_message."""
        client = greeted(handler(process_message=process_message))
        self.assertEqual(len(self.flushWarnings()), 1)
        return client

    def test_arguments(self) -> None:
        """process_message gets the peer, the reverse-path, the recipients and the message."""
        calls: list[tuple[Any, ...]] = []
        client = self.client(lambda *arguments: calls.append(arguments))
        self.assertEqual(client.send_message().code, 250)
        self.assertEqual(calls, [((PEER.host, PEER.port), "a@example.com", ["b@example.com"], MESSAGE)])

    def test_threeForms(self) -> None:
        """It may be a coroutine function, return a Deferred, or be plain. None means 250."""
        for result, code in ((None, 250), ("250 2.0.0 OK", 250), ("550 5.7.1 no", 550), ("garbage", 451), (0, 451)):
            for form, hook in in_three_forms(result):
                self.assertEqual(self.client(hook).send_message().code, code, (result, form))
                self.assertEqual([each["category"] for each in self.flushWarnings()], [DeprecationWarning])

    def test_raises(self) -> None:
        """If it raises, the reply is 451, and the session continues."""

        def fails(*arguments: Any) -> None:
            raise LookupError

        client = self.client(fails)
        self.assertEqual(client.send_message().code, 451)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.assertEqual(client.ask(b"NOOP").code, 250)

    def test_dataHookWins(self) -> None:
        """It is not used if the handler has handle_DATA."""
        client = greeted(handler(process_message=lambda *arguments: "550 old", DATA=lambda *arguments: "250 new"))
        self.assertEqual(client.send_message().code, 250)
        self.assertEqual(self.flushWarnings(), [])


class ConnectTests(LoggingTestCase):
    """handle_CONNECT."""

    def test_none(self) -> None:
        """None means the usual greeting."""
        for form, hook in in_three_forms(None):
            client = Client(handler(CONNECT=hook))
            self.assertEqual(client.welcome, b"220 mx.test ESMTP txsmtpd\r\n", form)
            self.assertEqual(client.ask(b"EHLO x").code, 250)

    def test_arguments(self) -> None:
        """It gets the server, the session with the peer, and the envelope."""
        calls: list[tuple[Any, ...]] = []
        client = Client(handler(CONNECT=lambda *arguments: calls.append((*arguments, arguments[1].peer))))
        ((server, session, envelope, peer),) = calls
        self.assertIs(server, client.server)
        self.assertIs(session, client.server.session)
        self.assertIs(envelope, client.server.envelope)
        self.assertEqual(peer, (PEER.host, PEER.port))

    def test_220(self) -> None:
        """A 220 status is the greeting."""
        for form, hook in in_three_forms("220 mx.test ready for you"):
            self.assertEqual(Client(handler(CONNECT=hook)).welcome, b"220 mx.test ready for you\r\n", form)

    def test_otherSuccess(self) -> None:
        """Another 2yz means the usual greeting."""
        self.assertEqual(Client(handler(CONNECT=lambda *arguments: "250 OK")).welcome, b"220 mx.test ESMTP txsmtpd\r\n")

    def test_554(self) -> None:
        """After 5yz, all commands except QUIT get 503 (RFC 5321 3.1)."""
        for form, hook in in_three_forms("554 5.7.1 not you"):
            client = Client(handler(CONNECT=hook))
            self.assertEqual(client.welcome, b"554 5.7.1 not you\r\n", form)
            self.assertEqual(client.codes(GREETING + TRANSACTION + b"DATA\r\nNOOP\r\nHELP\r\n"), [503] * 6)
            self.assertEqual(client.codes(b"QUIT\r\n"), [221])
            self.assertTrue(client.closed)

    def test_4yz(self) -> None:
        """After 4yz the connection closes."""
        for status in ("421 4.7.0 busy", "450 4.7.0 later", "garbage", 7):
            client = Client(handler(CONNECT=lambda *arguments, status=status: status))
            self.assertEqual(codes(client.welcome)[0] // 100, 4, status)
            self.assertTrue(client.closed, status)

    def test_raises554(self) -> None:
        """A hook that raises Refused rejects the client like one that returns the status."""

        def hook(*arguments: Any) -> str:
            raise Refused("554 5.7.1 not you")

        client = Client(handler(CONNECT=hook))
        self.assertEqual(client.welcome, b"554 5.7.1 not you\r\n")
        self.assertEqual(client.codes(GREETING + b"QUIT\r\n"), [503, 221])

    def test_raises450(self) -> None:
        """So does a hook that raises a 4yz."""

        async def hook(*arguments: Any) -> str:
            raise Refused("450 4.7.1 later")

        client = Client(handler(CONNECT=hook))
        self.assertEqual(client.welcome, b"450 4.7.1 later\r\n")
        self.assertTrue(client.closed)

    def test_raises354(self) -> None:
        """A hook that raises a reply that cannot be final rejects the client: 451, and the connection closes."""

        async def hook(*arguments: Any) -> str:
            raise Refused("354 go on")

        client = Client(handler(CONNECT=hook))
        self.assertEqual(codes(client.welcome), [451])
        self.assertTrue(client.closed)

    def test_fails(self) -> None:
        """If the hook fails, the client is disconnected."""

        async def hook(*arguments: Any) -> str:
            raise LookupError("no database")

        client = Client(handler(CONNECT=hook))
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.assertEqual(codes(client.welcome)[0] // 100, 4)
        self.assertTrue(client.closed)

    def test_takesTooLong(self) -> None:
        """If the hook takes too long, the client is disconnected."""
        client = Client(handler(CONNECT=Waiting()), hook_timeout=5)
        self.assertEqual(codes(client.wait(6))[0] // 100, 4)
        self.assertTrue(client.closed)

    def test_waits(self) -> None:
        """While it waits, nothing is sent, and early input of the client waits, too."""
        hook = Waiting(None)
        client = Client(handler(CONNECT=hook))
        self.assertEqual(client.talk(GREETING), b"")
        hook.fire()
        self.assertEqual(codes(client.heard()), [220, 250])


class DisconnectTests(LoggingTestCase):
    """handle_DISCONNECT."""

    def causes(self, act: Callable[[Client], object], **hooks: Any) -> list[type]:
        """The types of the causes that the hook got."""
        causes: list[type] = []

        def hook(server: Any, session: Any, envelope: Any, cause: BaseException) -> None:
            causes.append(type(cause))

        client = Client(handler(DISCONNECT=hook, **hooks))
        act(client)
        client.wait(700, step=10)
        self.assertTrue(client.closed)
        return causes

    def test_once(self) -> None:
        """It is called exactly once, with the cause, however the connection ends."""

        def reset(client: Client) -> None:
            client.vanish(ConnectionLost())

        def leaves(client: Client) -> None:
            client.vanish(ConnectionDone())

        def aborts(client: Client) -> None:
            client.factory.abort()
            client.settle()

        def deaf(client: Client) -> None:
            client.stop_reading()
            client.say(b"QUIT\r\n")

        for act, expected in (
            (lambda client: client.talk(b"QUIT\r\n"), ConnectionDone),
            (lambda client: client.talk(b"GET / HTTP/1.1\r\n"), ConnectionDone),
            (lambda client: client.half_close(), ConnectionDone),
            (leaves, ConnectionDone),
            (reset, ConnectionLost),
            (aborts, ConnectionDone),
            (deaf, ConnectionAborted),
            (lambda client: None, TimeoutError),
        ):
            [cause] = self.causes(act)
            self.assertTrue(issubclass(cause, expected), cause)

    def test_whileHookWaits(self) -> None:
        """It is also called once if the client disconnects while a hook waits."""
        hook = Waiting()

        def act(client: Client) -> None:
            client.say(b"NOOP\r\n")
            client.vanish()

        self.assertEqual(self.causes(act, NOOP=hook), [ConnectionLost])
        self.assertEqual(hook.cancelled, 1)

    def test_connectRefused(self) -> None:
        """It is also called once for a rejected client."""
        self.assertEqual(self.causes(lambda client: None, CONNECT=lambda *arguments: "421 4.7.0 no"), [ConnectionDone])

    def test_fails(self) -> None:
        """If it fails, the log has a traceback, in each of its forms."""

        def plain(*arguments: Any) -> None:
            raise LookupError

        async def coroutine(*arguments: Any) -> None:
            raise LookupError

        for hook in (plain, coroutine, lambda *arguments: fail(LookupError())):
            client = Client(handler(DISCONNECT=hook))
            client.talk(b"QUIT\r\n")
            self.assertTrue(client.closed)
            self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)


class TimeTests(LoggingTestCase):
    """Idle clients, slow hooks, and the end of connections."""

    def test_idle(self) -> None:
        """A client that is idle for the timeout gets 421 4.4.2, and the connection closes."""
        client = Client(timeout=30)
        self.assertEqual(client.wait(29.5), b"")
        answer = answers(client.wait(1))[0]
        self.assertEqual((answer.code, answer.status), (421, "4.4.2"))
        self.assertTrue(client.closed)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_fromLastOctet(self) -> None:
        """The timeout restarts with each octet, in commands and in a message."""
        client = in_transaction(timeout=30, data_rate_minimum=None)
        client.wait(20)
        client.say(b"DA")
        client.wait(20)
        self.assertEqual(client.codes(b"TA\r\n"), [354])
        for _ in range(5):
            client.wait(20)
            client.say(b"x")
        self.assertFalse(client.closed)
        self.assertEqual(codes(client.wait(31)), [421])

    def test_noTimeout(self) -> None:
        """Without a limit, a client may be idle forever."""
        client = Client(timeout=None)
        client.wait(1_000_000, step=10_000)
        self.assertEqual(client.ask(b"NOOP").code, 250)

    def test_standsStillWhileHookWorks(self) -> None:
        """The timeout does not run while a hook runs."""
        hook = Waiting()
        client = Client(handler(NOOP=hook), timeout=30, hook_timeout=None)
        client.say(b"NOOP\r\n")
        self.assertEqual(client.wait(1000, step=10), b"")
        hook.fire()
        self.assertEqual(codes(client.wait(29)), [250])
        self.assertEqual(codes(client.wait(2)), [421])

    def test_hookTimeout(self) -> None:
        """A hook that takes too long is cancelled, the client gets 451, and the session continues."""
        for name, before, line, _ in HOOKS:
            if name == "QUIT":
                continue
            self.events.clear()
            hook = Waiting()
            client = Client(handler(**{name: hook}), hook_timeout=60)
            client.talk(before)
            client.say(line + b"\r\n")
            self.assertEqual(client.wait(59), b"", name)
            answer = answers(client.wait(2))[0]
            self.assertEqual((answer.code, answer.status), (451, "4.3.0"), name)
            self.assertEqual(hook.cancelled, 1)
            self.assertEqual(self.errors_logged(), 1)
            self.assertFalse(client.closed)
            self.assertEqual(client.ask(b"HELP").code, 214)

    def test_hookTimeoutOfDeferred(self) -> None:
        """So is a Deferred that does not handle cancellation."""
        never: Deferred[str] = Deferred()
        client = Client(handler(NOOP=lambda *arguments: never), hook_timeout=60)
        client.say(b"NOOP\r\nRSET\r\n")
        self.assertEqual(codes(client.wait(61)), [451, 250])
        never.callback("250 too late")
        self.assertEqual(client.wait(1), b"")

    def test_lateFailure(self) -> None:
        """If a hook raises while it is cancelled, the client gets one reply, and the exception is logged."""

        async def hook(*arguments: Any) -> str:
            try:
                await Deferred()
            finally:
                raise LookupError("while cleaning up")

        client = Client(handler(NOOP=hook), hook_timeout=60)
        client.say(b"NOOP\r\nRSET\r\n")
        self.assertEqual(codes(client.wait(61)), [451, 250])
        self.flushLoggedErrors(LookupError)

    def test_disobedientHook(self) -> None:
        """If a hook ignores the cancellation, the session ends with 421, and its late result is discarded."""
        hook = Waiting(obedient=False)
        client = Client(handler(NOOP=hook), hook_timeout=60)
        client.say(b"NOOP\r\nRSET\r\n")
        self.assertEqual(codes(client.wait(61)), [421])
        self.assertTrue(client.closed)
        hook.fire()
        self.assertEqual(client.wait(1), b"")

    def test_linger(self) -> None:
        """A closing connection whose client does not read is aborted after a while."""
        client = Client(linger=10)
        client.stop_reading()
        client.say(b"QUIT\r\n")
        client.wait(9.5)
        self.assertFalse(client.transport.aborted)
        client.wait(1)
        self.assertTrue(client.transport.aborted)
        self.assertTrue(client.closed)

    def test_noTimersLeft(self) -> None:
        """A connection that has ended leaves no timer behind."""
        for act in (b"QUIT\r\n", b"NOOP\r\n"):
            client = Client()
            client.say(act)
            if not client.closed:
                client.vanish()
            self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_noTimersLeftByWaitingHook(self) -> None:
        """Neither does one that ended while a hook waited."""
        client = Client(handler(NOOP=Waiting()))
        client.say(b"NOOP\r\n")
        client.vanish()
        self.assertEqual(client.clock.getDelayedCalls(), [])


class SubclassTests(LoggingTestCase):
    """Servers with custom commands."""

    def test_ping(self) -> None:
        """A method smtp_PING with @syntax is a command, and HELP shows it."""

        class Server(SMTP):
            @syntax("PING [ignored]")
            async def smtp_PING(self, arg: str | None) -> str:
                return "259 Pong"

        client = Client(protocol=Server)
        self.assertEqual(client.talk(b"PING\r\nping x\r\n"), b"259 Pong\r\n259 Pong\r\n")
        self.assertIn("PING", client.ask(b"HELP").text.split())
        self.assertEqual(client.ask(b"HELP PING").text, "2.0.0 Syntax: PING [ignored]")
        self.assertEqual(Client().ask(b"PING").code, 500)

    def test_forms(self) -> None:
        """A command may be a coroutine, return a Deferred, or be plain. It may return any status, or push it."""

        class Server(SMTP):
            def smtp_PLAIN(self, arg: str | None) -> str:
                return f"250 2.0.0 {arg}"

            def smtp_DEFER(self, arg: str | None) -> Deferred[str]:
                return succeed("250 2.0.0 deferred")

            async def smtp_REPLY(self, arg: str | None) -> Reply:
                return Reply(250, "2.0.0", "reply")

            async def smtp_PUSH(self, arg: str | None) -> None:
                await self.push("250 2.0.0 pushed")

            async def smtp_FORGET(self, arg: str | None) -> None:
                self.push("250 2.0.0 not awaited")

            def smtp_PARTS(self, arg: str | None) -> str:
                self.push("250-2.0.0 one")
                self.push(b"250-2.0.0 two\r\n250-2.0.0 three")
                return "250 2.0.0 four"

            async def smtp_RAISE(self, arg: str | None) -> str:
                raise Refused("550 5.7.1 raised")

            def smtp_CLOSE(self, arg: str | None) -> str:
                return "421 4.0.0 closing"

        client = Client(protocol=Server)
        self.assertEqual(
            client.talk(b"PLAIN x y\r\nDEFER\r\nREPLY\r\nPUSH\r\nFORGET\r\nRAISE\r\nPARTS\r\n"),
            b"250 2.0.0 x y\r\n250 2.0.0 deferred\r\n250 2.0.0 reply\r\n250 2.0.0 pushed\r\n250 2.0.0 not awaited\r\n"
            b"550 5.7.1 raised\r\n250-2.0.0 one\r\n250-2.0.0 two\r\n250-2.0.0 three\r\n250 2.0.0 four\r\n",
        )
        self.assertEqual(client.codes(b"CLOSE\r\nNOOP\r\n"), [421])
        self.assertTrue(client.closed)

    def test_noReply(self) -> None:
        """If a command returns no status, the client gets 451, and the log has a line."""

        class Server(SMTP):
            async def smtp_NONE(self, arg: str | None) -> None:
                pass

            def smtp_NUMBER(self, arg: str | None) -> int:
                return 250

            def smtp_PART(self, arg: str | None) -> None:
                self.push("250-part")

        client = Client(protocol=Server)
        self.assertEqual(client.codes(b"NONE\r\nNUMBER\r\nNONE\r\n"), [451, 451, 451])
        self.assertEqual(self.errors_logged(), 3)

    def test_pushWrong(self) -> None:
        """Pushing an invalid status is an error of the command, and nothing of it is sent."""

        class Server(SMTP):
            def smtp_BAD(self, arg: str | None) -> None:
                self.push("garbage")

            def smtp_WORSE(self, arg: str | None) -> None:
                self.push(None)  # type: ignore[arg-type]

        client = Client(protocol=Server)
        self.assertEqual(client.codes(b"BAD\r\nWORSE\r\nNOOP\r\n"), [451, 451, 250])
        self.assertEqual(len(self.flushLoggedErrors(ValueError, TypeError)), 2)

    def test_mailKeepsItsRules(self) -> None:
        """A subclass that overrides MAIL keeps its rules, with its own syntax and without."""

        class Plain(SMTP):
            async def smtp_MAIL(self, arg: str | None) -> Reply:
                return await super().smtp_MAIL(arg)

        class Declared(SMTP):
            @syntax("MAIL FROM:<me>")
            async def smtp_MAIL(self, arg: str | None) -> Reply:
                return await super().smtp_MAIL(arg)

        class Grandchild(Plain):
            @syntax("MAIL FROM:<you>")
            def smtp_MAIL(self, arg: str | None) -> str:
                self.envelope.mail_from = "x@y"
                return "250 OK"

        for protocol in (Plain, Declared, Grandchild):
            client = Client(protocol=protocol)
            said = client.codes(b"MAIL FROM:<a@b>\r\nEHLO x\r\nMAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n")
            self.assertEqual(said, [503, 250, 250, 503], protocol)
        self.assertIn("MAIL FROM:<me>", Client(protocol=Declared).ask(b"HELP MAIL").text)

    def test_mixin(self) -> None:
        """Rules are inherited from all base classes, so that a mixin cannot remove them."""

        class Audit:
            async def smtp_MAIL(self, arg: str | None) -> Any:
                return await super().smtp_MAIL(arg)  # type: ignore[misc]

        class Server(Audit, SMTP):
            pass

        self.assertEqual(
            Client(protocol=Server).codes(b"MAIL FROM:<a@b>\r\nEHLO x\r\nMAIL FROM:<a@b>\r\n"), [503, 250, 250]
        )

    def test_withdrawn(self) -> None:
        """smtp_HELO = None removes a command."""

        class Server(SMTP):
            smtp_HELO = None  # type: ignore[assignment]

        client = Client(protocol=Server)
        self.assertEqual(client.codes(b"HELO x\r\nEHLO x\r\n"), [500, 250])
        self.assertNotIn("HELO", client.ask(b"HELP").text.split())
        self.assertEqual(client.ask(b"HELP HELO").code, 504)

    def test_ownSessionAndEnvelope(self) -> None:
        """A subclass may have its own classes of sessions and envelopes."""

        class OwnSession(Session):
            visits = 0

        class OwnEnvelope(Envelope):
            score = 0.5

        class Server(SMTP):
            def _create_session(self) -> Session:
                return OwnSession()

            def _create_envelope(self) -> Envelope:
                return OwnEnvelope()

        seen: list[tuple[type, type]] = []

        def hook(server: Any, session: Any, envelope: Any) -> str:
            seen.append((type(session), type(envelope)))
            return "250 OK"

        client = greeted(
            handler(DATA=hook, CONNECT=lambda *arguments: seen.append((type(arguments[1]), type(arguments[2])))),
            protocol=Server,
        )
        client.send_message()
        client.send_message()
        self.assertEqual(seen, [(OwnSession, OwnEnvelope)] * 3)

    def test_standalone(self) -> None:
        """A server can be created without a factory, from a handler and options."""
        server = SMTP(Keeper(), hostname="alone.test", reactor=Clock())
        transport = StringTransport()
        server.makeConnection(transport)
        server.dataReceived(b"EHLO x\r\n")
        self.assertEqual(codes(transport.value()), [220, 250])
        self.assertRaises(TypeError, SMTP, None, nosuch=1)


class LogTests(LoggingTestCase):
    """The contents of the log, and what it never contains."""

    def assertFit(self) -> None:
        """Every event can be formatted as JSON. No line of it controls a terminal or contains a traceback."""
        self.assertTrue(self.events)
        for event in self.events:
            # Other observers in the process add their own fields.
            fields = {name: event[name] for _, name, _, _ in Formatter().parse(event["log_format"]) if name}
            json.dumps(fields)
            for value in fields.values():
                self.assertIsInstance(value, str | int | float | bool | None)
            line = formatEvent(event)
            self.assertTrue(line.isprintable(), line)
            self.assertNotIn("log_failure", event)
            self.assertLess(len(line), 5000)
            self.assertNotIn("Unable to format", line)

    def test_peersDoings(self) -> None:
        """Whatever a peer does is logged in plain fields, without a traceback."""
        lines = [
            *FOREIGN,
            b"FO\x1b]0;x\x07O",
            b"\0" * 50,
            b"x" * 600,
            b"EHLO \xff",
            b"\r",
            b"RCPT TO:<a@b>\x1b[31m",
            b"NOOP\n",
        ]
        lines += [b"\x16\x03\x01", b"y" * 70_000, "ü\u2028\u202e".encode(), b"{session} {0} %s %(x)s {"]
        for line in lines:
            for before in (b"", GREETING, GREETING + TRANSACTION):
                client = Client(Keeper(), log_dialogue=not before, log_messages=True)
                client.talk(before)
                client.talk(line + b"\r\n")
                client.vanish()
        self.assertFit()

    def test_message(self) -> None:
        """With log_messages, each message and each end of a connection is logged."""
        client = greeted(Keeper(), log_messages=True)
        client.send_message()
        client.talk(b"QUIT\r\n")
        self.assertFit()
        told = "\n".join(self.logged("info"))
        for word in ("a@example.com", "b@example.com", client.server.session.id, "connection closed", PEER.host):
            self.assertIn(word, told)

    def test_quiet(self) -> None:
        """Without it, an ordinary session logs nothing."""
        client = greeted(Keeper())
        client.send_message()
        client.talk(b"QUIT\r\n")
        self.assertEqual(self.logged(), [])

    def test_refusals(self) -> None:
        """Each refusal is logged once, with the session's id and the reply."""
        client = Client()
        client.talk(b"FOO\r\n")
        (line,) = self.logged()
        self.assertIn(client.server.session.id, line)
        self.assertIn("500", line)

    def told(self, octets: bytes, each: object = None, **options: Any) -> str:
        """The log line about the refusal of the last of these lines."""
        self.events.clear()
        Client(each, peer=IPv4Address("TCP", "192.0.2.9", 4712), **options).talk(octets)
        return [line for line in self.logged() if " refused, " in line][-1].partition(" ")[2]

    def test_refusedSender(self) -> None:
        """The log line of a refused MAIL has the client and the sender."""
        self.assertEqual(
            self.told(GREETING + b"MAIL FROM:<a@b.example> SIZE=99999999999\r\n"),
            "MAIL refused, client 192.0.2.9:4712, from <a@b.example>: 552 5.3.4 Message size exceeds the limit",
        )

    def test_refusedRecipient(self) -> None:
        """The log line of a refused RCPT has the client, the sender and the recipient."""
        refusing = handler(RCPT=lambda *arguments: "550 5.1.1 No such user")
        for path in b"<c@example.com>", b"c@example.com":
            self.assertRegex(
                self.told(GREETING + b"MAIL FROM:<a@b.example>\r\nRCPT TO:" + path + b"\r\n", refusing),
                r"^RCPT refused, client 192\.0\.2\.9:4712, from <a@b\.example> to <c@example\.com>: 5",
            )

    def test_refusedMessage(self) -> None:
        """The log line of a refused message has all of them, whatever refuses it."""

        def raises(*arguments: object) -> None:
            raise ValueError

        for hook, reply in (
            (lambda *arguments: "554 5.7.1 Spam", "554 5.7.1 Spam"),
            (raises, "451 4.3.0"),
            (lambda *arguments: None, "451 4.3.0"),
        ):
            line = self.told(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n", handler(DATA=hook))
            self.assertIn(
                "DATA refused, client 192.0.2.9:4712, from <a@example.com> to <b@example.com>: " + reply, line
            )
            self.flushLoggedErrors(ValueError)
        line = self.told(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n", data_size_limit=3)
        self.assertIn("from <a@example.com> to <b@example.com>: 552", line)

    def test_refusedBefore(self) -> None:
        """Before a transaction, it has only the client, and nothing of the previous transaction."""
        self.assertEqual(
            self.told(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nFOO\r\n"),
            "FOO refused, client 192.0.2.9:4712: 500 5.5.1 Command FOO not recognized",
        )

    def test_limit(self) -> None:
        """A client cannot fill the log: lines beyond the limit become one line at the end. Accepted messages are always
        logged."""
        client = Client(handler(RCPT=lambda *arguments: "550 5.1.1 No"), log_limit=10, error_limit=None, error_delay=0)
        client.talk(GREETING + b"MAIL FROM:<a@b.example>\r\n" + 1000 * b"RCPT TO:<c@example.com>\r\n")
        self.assertEqual(len(self.logged()), 10)
        client.vanish()
        self.assertIn(" 990 more log lines of this session were suppressed, client 192.0.2.7:4321", self.logged()[-1])

    def test_dialogue(self) -> None:
        """With log_dialogue, each line of the client and each reply is logged, at debug level."""
        client = Client(log_dialogue=True)
        client.talk(b"NOOP one\r\nQUIT\r\n")
        told = self.logged("debug")
        self.assertTrue(any("NOOP one" in line for line in told))
        self.assertTrue(any("221" in line for line in told))
        self.assertFit()

    def test_dialogueOfSeveralLines(self) -> None:
        """A reply of several lines is one line in the log."""
        client = greeted(log_dialogue=True)
        client.talk(b"QUIT\r\n")
        self.assertFit()

    def test_hookFailure(self) -> None:
        """An exception in a hook is logged once, with its traceback, the session and the verb."""

        def hook(*arguments: Any) -> str:
            raise LookupError("no such thing")

        client = Client(handler(NOOP=hook))
        client.talk(b"NOOP\r\n")
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        (event,) = [event for event in self.events if "log_failure" in event]
        self.assertIn(client.server.session.id, formatEvent(event))
        self.assertIn("NOOP", formatEvent(event))

    def test_hookText(self) -> None:
        """The text of a hook's invalid result is logged without control characters."""
        client = Client(handler(NOOP=lambda *arguments: "no status\r\nforged line \x1b[31m" * 100))
        client.talk(b"NOOP\r\n")
        self.assertFit()

    def test_refusalText(self) -> None:
        """A refusal of several lines is one line in the log."""
        client = Client(handler(NOOP=lambda *arguments: "550-5.7.1 one\r\n550 5.7.1 two\x1b"))
        client.talk(b"NOOP\r\n")
        self.assertFit()


class LeaveTests(SynchronousTestCase):
    """A server that shuts down."""

    def test_idle(self) -> None:
        """Clients between transactions get 421 4.3.2 immediately."""
        for before in (b"", GREETING):
            client = Client()
            client.talk(before)
            done = client.factory.drain()
            client.settle()
            answer = answers(client.heard())[0]
            self.assertEqual((answer.code, answer.status), (421, "4.3.2"))
            self.assertTrue(client.closed)
            self.successResultOf(done)

    def test_inTransaction(self) -> None:
        """A client in a transaction may complete it, and then gets 421."""
        keeper = Keeper()
        client = in_transaction(keeper)
        done = client.factory.drain()
        client.settle()
        self.assertEqual(client.heard(), b"")
        self.assertNoResult(done)
        self.assertEqual(client.codes(b"DATA\r\n" + MESSAGE), [354])
        self.assertEqual(client.codes(b".\r\nMAIL FROM:<a@b>\r\n"), [250, 421])
        self.assertEqual(len(keeper.envelopes), 1)
        self.assertTrue(client.closed)
        self.successResultOf(done)

    def test_reset(self) -> None:
        """RSET ends the transaction, and so the session."""
        client = in_transaction()
        client.factory.drain()
        self.assertEqual(client.codes(b"RSET\r\nNOOP\r\n"), [250, 421])

    def test_whileHookWaits(self) -> None:
        """A running hook may complete: its reply is sent before the 421."""
        hook = Waiting()
        client = in_transaction(handler(DATA=hook))
        client.talk(b"DATA\r\n.\r\n")
        done = client.factory.drain()
        client.settle()
        self.assertEqual(client.heard(), b"")
        hook.fire()
        client.settle()
        self.assertEqual(codes(client.heard()), [250, 421])
        self.successResultOf(done)

    def test_whileGreetingWaits(self) -> None:
        """A client that waits for its greeting gets it, and then 421."""
        hook = Waiting(None)
        client = Client(handler(CONNECT=hook))
        client.factory.drain()
        hook.fire()
        client.settle()
        self.assertEqual(codes(client.heard()), [220, 421])
        self.assertTrue(client.closed)

    def test_nobody(self) -> None:
        """Without connections, it finishes immediately."""
        client = Client()
        client.vanish()
        self.successResultOf(client.factory.drain())

    def test_several(self) -> None:
        """The Deferred fires when the last connection has ended."""
        first = in_transaction()
        second = Client(factory=first.factory)
        third = Client(factory=first.factory)
        done = first.factory.drain()
        second.settle()
        third.settle()
        self.assertTrue(second.closed and third.closed)
        self.assertNoResult(done)
        first.vanish()
        self.successResultOf(done)

    def test_abort(self) -> None:
        """abort() ends all connections immediately, even those with hooks. Clients that do not wait for a reply get
        421."""
        hook = Waiting()
        first = Client(handler(NOOP=hook))
        second = Client(factory=first.factory)
        first.say(b"NOOP\r\n")
        first.factory.abort()
        first.settle()
        second.settle()
        self.assertTrue(first.closed and second.closed)
        self.assertEqual((codes(first.heard()), codes(second.heard())), ([], [421]))
        self.assertEqual(hook.cancelled, 1)
        self.assertEqual(first.factory.connections, set())
