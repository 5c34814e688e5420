"""The built-in handlers that store nothing, or leave that to a subclass."""

from __future__ import annotations

import email.message
import email.policy
import functools
import io
import sys
import threading
from email import policy
from email.message import EmailMessage
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support.effort import calls_of, grows_faster_than_its_input
from tests.support.malformed import MALFORMED_FIELDS
from txsmtpd.handlers import AsyncMessage, Debugging, Mailbox, Message, Sink
from txsmtpd.interfaces import verifyHandler
from txsmtpd.reply import Refused
from txsmtpd.session import Envelope, Session

MESSAGE = b"Subject: Hi\r\nX-Peer: forged\r\nx-rcptto: forged\r\nX-MAILFROM: forged\r\n\r\nHello\r\n"


class UsageError(Exception):
    """The command line is invalid."""


class Parser:
    def error(self, text):
        raise UsageError(text)


def mail(content=MESSAGE, **attributes):
    session, envelope = Session(), Envelope()
    session.peer = ("192.0.2.1", 4321)
    envelope.mail_from, envelope.rcpt_tos, envelope.content = (
        "a@example.com",
        ["b@example.com", "c@example.com"],
        content,
    )
    for name, value in attributes.items():
        setattr(envelope, name, value)
    return session, envelope


class HandlerTestCase(SynchronousTestCase):
    def deliver(self, handler, *arguments, **attributes):
        """The result of the handler, or a Deferred."""
        return Deferred.fromCoroutine(handler.handle_DATA(None, *mail(*arguments, **attributes)))

    def deliver_into(self, results, *arguments):
        results.append(self.deliver(*arguments))

    def taken(self, handler, *arguments, **attributes):
        return self.successResultOf(self.deliver(handler, *arguments, **attributes))

    def refuses(self, handler, *args):
        error = self.assertRaises(UsageError, handler.from_cli, Parser(), *args)
        self.assertEqual(len(str(error).splitlines()), 1)
        return str(error)


class SinkTests(HandlerTestCase):
    def test_hooks(self):
        """It has no hooks, so the server accepts everything."""
        self.assertTrue(verifyHandler(Sink()))
        self.assertEqual([name for name in dir(Sink) if name.startswith("handle_")], [])

    def test_fromCli(self):
        """On the command line it takes no arguments."""
        self.assertIsInstance(Sink.from_cli(Parser()), Sink)
        self.assertEqual(self.refuses(Sink, "x"), "Sink takes no arguments")


class DebuggingTests(HandlerTestCase):
    def printed(self, *arguments, **attributes):
        stream = io.StringIO()
        self.assertEqual(self.taken(Debugging(stream), *arguments, **attributes), "250 2.0.0 OK")
        return stream.getvalue()

    def test_message(self):
        """A message is printed between two lines, with the client's address at the end of its header."""
        self.assertEqual(
            self.printed(b"Subject: Hi\r\n\r\nHello\r\n\r\nBye\r\n"),
            "---------- MESSAGE FOLLOWS ----------\n"
            "Subject: Hi\nX-Peer: ('192.0.2.1', 4321)\n\nHello\n\nBye\n"
            "------------ END MESSAGE ------------\n",
        )

    def test_options(self):
        """Parameters of MAIL and RCPT are printed before the message."""
        printed = self.printed(b"\r\n", mail_options=["SIZE=3"], rcpt_options=["NOTIFY=NEVER"])
        self.assertIn("mail options: ['SIZE=3']\nrcpt options: ['NOTIFY=NEVER']\n\nX-Peer", printed)
        self.assertIn("FOLLOWS ----------\nrcpt options: ['X']\n\n", self.printed(rcpt_options=["X"]))

    def test_noBody(self):
        """A message without an empty line is printed unchanged."""
        self.assertNotIn("X-Peer", self.printed(b"Subject: Hi\r\n"))
        self.assertNotIn("X-Peer", self.printed(None))

    def test_text(self):
        """With decode_data it does the same."""
        self.assertEqual(self.printed(MESSAGE.decode()), self.printed(MESSAGE))

    def test_terminal(self):
        """Nothing in a message can control the terminal."""
        self.assertIn("\\x1b[2Jhi\t\\x9b\n", self.printed("\x1b[2Jhi\t\x9b\r\n"))

    def test_notUtf8(self):
        """Octets that are not UTF-8 are printed as replacement characters."""
        self.assertIn("\ufffd", self.printed(b"\xff\r\n"))

    def test_asciiStream(self):
        """On an ASCII terminal, mail is still accepted."""
        stream = io.TextIOWrapper(io.BytesIO(), "ascii")
        self.taken(Debugging(stream), "ä\r\n")
        self.assertIn(b"\\xe4", stream.buffer.getvalue())

    def test_fromCli(self):
        """On the command line it takes stdout, stderr or nothing."""
        self.assertIs(Debugging().stream, sys.stdout)
        self.assertIs(Debugging.from_cli(Parser()).stream, sys.stdout)
        self.assertIs(Debugging.from_cli(Parser(), "stdout").stream, sys.stdout)
        self.assertIs(Debugging.from_cli(Parser(), "stderr").stream, sys.stderr)
        self.assertEqual(self.refuses(Debugging, "x"), "Debugging takes stdout or stderr, and raw or summary, not 'x'")
        self.refuses(Debugging, "stdout", "stderr")
        self.refuses(Debugging, "raw", "stdout")
        self.assertIs(Debugging.from_cli(Parser(), "stderr", "raw").raw, True)
        self.assertIs(Debugging.from_cli(Parser(), "summary").raw, False)

    def test_invisible(self):
        """Marks that change the direction of text, and separators of lines, are escaped. Text is not."""
        self.assertIn("\\u202e日本\\u2028\n", self.printed("\u202e日本\u2028\r\n"))


class SummaryTests(HandlerTestCase):
    """Debugging on a terminal."""

    def printed(self, content, **attributes):
        stream = io.StringIO()
        stream.isatty = lambda: True
        self.taken(Debugging(stream), content, **attributes)
        return stream.getvalue()

    def test_message(self):
        """The summary has the envelope, the important header fields, the text, and a list of attachments."""
        message = EmailMessage()
        message["From"] = "Ann <a@example.com>"
        message["Subject"] = "Grüße"
        message["X-Mailer"] = "hidden"
        message.set_content("Guten Tag!\n")
        message.add_alternative("<p>Guten Tag!</p>", subtype="html")
        message.add_attachment(b"%PDF" * 1000, maintype="application", subtype="pdf", filename="invoice.pdf")
        lines = self.printed(message.as_bytes(policy=policy.SMTP)).splitlines()
        self.assertIn("Envelope: from <", lines[1])
        self.assertEqual(
            lines[2:-1],
            [
                "From: Ann <a@example.com>",
                "Subject: Grüße",
                "",
                "Guten Tag!",
                "[Attachment: invoice.pdf, application/pdf, 4,000 octets]",
            ],
        )

    def test_harmless(self):
        """Nothing in a message can control the terminal, wherever it is and however it is encoded."""
        evil = "=?utf-8?q?=1B[2J=C2=9B=E2=80=AE?="
        octets = (
            f"From: {evil}\r\nSubject: {evil}\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
            f"--b\r\n\r\n\x1b[2J\x9b\u202e\r\n"
            f'--b\r\nContent-Type: a\x1b[2J/b\r\nContent-Disposition: attachment; filename="{evil}\x1b"\r\n\r\n'
            f"x\r\n--b--\r\n"
        )
        printed = self.printed(octets.encode())
        self.assertTrue(all(line.isprintable() for line in printed.splitlines()), printed)
        self.assertIn("\\x1b[2J", printed)

    def test_long(self):
        """A long text and many attachments are truncated, with a note."""
        self.assertIn("[6,000 characters more]", self.printed(b"Subject: x\r\n\r\n" + 10_000 * b"x"))
        part = b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n"
        content = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + 30 * part + b"--b--\r\n"
        self.assertIn("[10 attachments more]", self.printed(content))

    def test_raw(self):
        """The source is printed on request."""
        stream = io.StringIO()
        stream.isatty = lambda: True
        self.taken(Debugging(stream, raw=True), MESSAGE)
        self.assertIn("MESSAGE FOLLOWS", stream.getvalue())

    @given(st.binary())
    def test_anything(self, octets):
        """Any message is printed safely."""
        for line in self.printed(octets).splitlines():
            self.assertTrue(line.replace("\t", " ").isprintable(), line)


class Keeping(Message):
    result = None

    def handle_message(self, message):
        self.message = message
        return self.result


class MessageTests(HandlerTestCase):
    def test_abstract(self):
        """A subclass must define handle_message."""
        for abstract in (Message, AsyncMessage):
            self.assertRaises(TypeError, abstract)

    def test_message(self):
        """The handler gets the parsed message, and the reply is 250."""
        handler = Keeping()
        self.assertEqual(self.taken(handler), "250 2.0.0 OK")
        self.assertIs(type(handler.message), email.message.Message)
        self.assertEqual(handler.message["subject"], "Hi")
        self.assertEqual(handler.message.get_payload(), "Hello\r\n")

    def test_fields(self):
        """X-Peer, X-MailFrom and X-RcptTo are from the server. The client's fields with these names are removed."""
        for message_class in (None, email.message.EmailMessage):
            handler = Keeping(message_class)
            self.taken(handler)
            for name, value in {
                "X-Peer": "('192.0.2.1', 4321)",
                "X-MailFrom": "a@example.com",
                "X-RcptTo": "b@example.com, c@example.com",
            }.items():
                self.assertEqual(handler.message.get_all(name), [value])

    def test_hostileAddress(self):
        """A line end in an address, if there could be one, does not end the field."""
        for message_class in (None, email.message.EmailMessage):
            handler = Keeping(message_class)
            self.taken(handler, mail_from="a\r\nBcc: b")
            self.assertEqual(handler.message["X-MailFrom"], "a??Bcc: b")

    def test_emailMessage(self):
        """All methods of an EmailMessage work."""
        handler = Keeping(email.message.EmailMessage)
        self.taken(handler)
        self.assertEqual(handler.message.get_content(), "Hello\r\n")

    def test_ownClass(self):
        """A custom message class is used."""

        class Own(email.message.Message):
            pass

        handler = Keeping(Own)
        self.taken(handler)
        self.assertIsInstance(handler.message, Own)

    def test_text(self):
        """With decode_data, the str is parsed."""
        handler = Keeping()
        for content in (MESSAGE.decode(), bytearray(MESSAGE)):
            self.taken(handler, content)
            self.assertEqual(handler.message["Subject"], "Hi")

    def test_wrongContent(self):
        """Content that is neither bytes nor str is a TypeError."""
        for content in (None, 5):
            error = self.failureResultOf(self.deliver(Keeping(), content), TypeError)
            self.assertIn(type(content).__name__, str(error.value))

    def test_status(self):
        """A status that the handler returns is the reply."""
        handler = Keeping()
        handler.result = "550 5.7.1 No"
        self.assertEqual(self.taken(handler), "550 5.7.1 No")

    def test_nested(self):
        """A message that is nested too deeply gets a permanent refusal."""
        depth = 3000
        content = b"".join(
            b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(depth)
        )
        self.assertEqual(self.failureResultOf(self.deliver(Keeping(), content), Refused).value.reply.code, 554)

    def test_prepareMessage(self):
        """A subclass may override prepare_message."""

        class Prepared(Keeping):
            def prepare_message(self, session, envelope):
                message = super().prepare_message(session, envelope)
                message["X-Own"] = "x"
                return message

        handler = Prepared()
        self.taken(handler)
        self.assertEqual(handler.message["X-Own"], "x")

    def test_fromCli(self):
        """On the command line, a subclass takes no arguments unless it has its own from_cli."""
        self.assertIsInstance(Keeping.from_cli(Parser()), Keeping)
        self.assertEqual(self.refuses(Keeping, "x"), "Keeping takes no arguments")

    def test_disguised(self):
        """Encoded words in an address are not decoded in X-MailFrom, even after the message is written and parsed
        again."""
        path = "=?utf-8?q?root=40corp=2Eexample=2C=0D=0AX:_y?=@evil.example"
        for message_class in (None, email.message.EmailMessage):
            handler = Keeping(message_class)
            self.taken(handler, mail_from=path, rcpt_tos=["b@example.com", path])
            again = email.message_from_bytes(handler.message.as_bytes(), policy=email.policy.default)
            for message in handler.message, again:
                self.assertEqual(message["X-MailFrom"], path)
                self.assertEqual(message["X-RcptTo"], f"b@example.com, {path}")
                self.assertEqual(message.keys(), ["Subject", "X-Peer", "X-MailFrom", "X-RcptTo"])

    def test_manyRecipients(self):
        """The addresses of a thousand recipients with quoted spaces are not parsed, whatever the message class is."""
        recipients = ['"' + "a " * 30 + f'{number}"@example.com' for number in range(1000)]
        for message_class in (None, email.message.EmailMessage):
            handler = Keeping(message_class)
            calls = calls_of(lambda handler=handler: self.taken(handler, rcpt_tos=recipients))
            self.assertLess(calls, 10_000)  # parsing the recipients takes more than 100,000 calls
            self.assertEqual(handler.message["X-RcptTo"], ", ".join(recipients))

    def test_bounds(self):
        """Messages with too many parts, too many lines or too deeply nested parts get a permanent refusal before most
        of the message is parsed."""
        multipart = b"Content-Type: multipart/mixed; boundary=a\r\n\r\n"
        nested = b"".join(b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(300))
        for content in (
            multipart + b"--a\r\n\r\n" * 2000,
            multipart + b"--a\r\n\r\n" * 10**6,
            nested + b"\r\n" * 2**17,
            b"Content-Type: message/rfc822\r\n\r\n" + nested + b"\r\n" * 2**17,
            b"Content-Type: message/rfc822\r\n\r\n" * 5000,
            b"a:b\r\n" * 3 * 10**6,
            b"Subject: x\r\n\r\n" + b"\r\n" * 3 * 10**6,
        ):
            for message_class in (None, email.message.EmailMessage):
                results = []
                calls = calls_of(functools.partial(self.deliver_into, results, Keeping(message_class), content))
                refused = self.failureResultOf(results[0], Refused)
                self.assertEqual((refused.value.reply.code, refused.value.reply.status), (554, "5.6.0"))
                self.assertLess(calls, 500_000)

    def test_malformed(self):
        """The handler gets a message whatever its fields are, and reading them raises nothing."""
        for field in MALFORMED_FIELDS:
            for message_class in (None, email.message.EmailMessage):
                handler = Keeping(message_class)
                self.taken(handler, field + b"\r\n\r\nx\r\n")
                for part in handler.message.walk():
                    part.items(), part.get_content_type(), part.get_content_charset(), part.get_filename()


def many_fields(number):
    return b"".join(b"X-%d: a\r\n" % each for each in range(number)) + b"\r\nx\r\n"


class ThreadTests(TestCase):
    """Where messages are parsed."""

    async def deliver(self, handler, content):
        await deferLater(reactor, 0)  # once it runs
        server = SimpleNamespace(settings=SimpleNamespace(clock=lambda: reactor), hostname="mx.example")
        return await handler.handle_DATA(server, *mail(content))

    async def test_large(self):
        """A message of more than a few KiB is parsed in a thread, a short one directly. The handler is called in the
        reactor's thread."""
        ours = threading.get_ident()

        class Handler(Keeping):
            def prepare_message(self, session, envelope):
                self.parsed = threading.get_ident()
                return super().prepare_message(session, envelope)

            def handle_message(self, message):
                self.handled = threading.get_ident()

        for content, at_once in ((MESSAGE, True), (MESSAGE + b"x" * 10000, False)):
            handler = Handler()
            await self.deliver(handler, content)
            self.assertEqual((handler.parsed == ours, handler.handled), (at_once, ours))

    async def test_mailbox(self):
        """The same is true for a Mailbox that changes messages."""

        class Handler(Mailbox):
            def prepare_message(self, session, envelope):
                self.parsed = threading.get_ident()
                return super().prepare_message(session, envelope)

        handler = Handler(self.mktemp(), durable=False)
        await self.deliver(handler, many_fields(20_000))
        self.assertNotEqual(handler.parsed, threading.get_ident())
        self.assertEqual(len(handler.mailbox), 1)

    def test_manyFields(self):
        """The time in which a Mailbox changes a message is proportional to the number of fields."""
        handler = Mailbox(self.mktemp(), durable=False)
        taken = grows_faster_than_its_input(
            lambda content: handler.prepare_message(*mail(content)).as_bytes(), many_fields, 2_000
        )
        self.assertEqual(taken, "")


class AsyncMessageTests(HandlerTestCase):
    def handler(self, result):
        class Handler(AsyncMessage):
            def handle_message(self, message):
                return result

        return Handler(loop=None)

    def test_coroutine(self):
        """handle_message may be a coroutine function. Its status is the reply."""

        class Handler(AsyncMessage):
            async def handle_message(self, message):
                return f"250 2.0.0 {message['subject']}"

        self.assertEqual(self.taken(Handler()), "250 2.0.0 Hi")

    def test_deferred(self):
        """It may return a Deferred: the reply waits for it."""
        waiting = Deferred()
        answer = self.deliver(self.handler(waiting))
        self.assertNoResult(answer)
        waiting.callback(None)
        self.assertEqual(self.successResultOf(answer), "250 2.0.0 OK")

    def test_plain(self):
        """It may be a plain function."""
        self.assertEqual(self.taken(self.handler(None)), "250 2.0.0 OK")
        self.assertEqual(self.taken(self.handler("451 4.3.0 No")), "451 4.3.0 No")

    def test_failure(self):
        """The server gets its exceptions."""
        waiting = Deferred()
        answer = self.deliver(self.handler(waiting))
        waiting.errback(KeyError("x"))
        self.failureResultOf(answer, KeyError)


class MailboxFromCliTests(HandlerTestCase):
    def test_folder(self):
        """On the command line, a Mailbox takes its folder."""
        folder = self.mktemp()
        self.assertEqual(Mailbox.from_cli(Parser(), folder).mail_dir, folder)

    def test_wrong(self):
        """Without a folder, with several, or with an unusable one, the error is one line."""
        self.assertIn("needs the folder", self.refuses(Mailbox))
        self.assertIn("needs the folder", self.refuses(Mailbox, ""))
        self.assertIn("takes one folder, not 2", self.refuses(Mailbox, "a", "b"))
        self.assertRegex(
            self.refuses(Mailbox, self.mktemp() + "/x"), "^/.*: the folder for the maildir does not exist$"
        )
        self.assertIn("must be a folder", self.refuses(Mailbox, __file__))
