"""The mail catcher: its mail, its inboxes, and waiting for mail."""

from __future__ import annotations

import asyncio
import gc
import re
import smtplib
import threading
import unittest
import warnings
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from unittest import IsolatedAsyncioTestCase

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support import Client, codes
from tests.support.effort import times_a_bare_server
from tests.support.malformed import MALFORMED_FIELDS
from txsmtpd.session import TLSInfo
from txsmtpd.testing import Faults, Mail, MailCatcher, NoMailArrived, UnexpectedMail
from txsmtpd.testing.inbox import Inbox, Query, Store


def message(subject: str, body: str = "Hello", **fields: str) -> bytes:
    header = {"Subject": subject} | {name.replace("_", "-"): value for name, value in fields.items()}
    return "".join(f"{name}: {value}\r\n" for name, value in header.items()).encode() + f"\r\n{body}\r\n".encode()


def send(catcher: MailCatcher, subject: str, to: str = "bob@example.com", **fields: str) -> None:
    """Send a message in memory."""
    session = catcher.session()
    reply = session.send(message(subject, **fields), "ann@example.com", [to])
    assert reply.code == 250, reply
    session.talk(b"QUIT\r\n")


def send_by_smtplib(catcher: MailCatcher, subject: str = "hello", to: str = "bob@example.com") -> None:
    """Send a message as a program would."""
    with catcher.smtplib() as client:
        client.sendmail("ann@example.com", [to], message(subject))


class MailTests(SynchronousTestCase):
    """The attributes of a caught message."""

    def caught(self, content: bytes = message("hello"), **options: Any) -> Mail:
        catcher = MailCatcher(**options)
        catcher.session().send(content, "", ["bob@example.com", "eve@example.com"])
        (mail,) = catcher.messages
        return mail

    def test_envelope(self) -> None:
        """The mail has the envelope. The content is as received."""
        mail = self.caught()
        self.assertEqual((mail.mail_from, mail.rcpt_tos), ("", ("bob@example.com", "eve@example.com")))
        self.assertEqual(mail.content, message("hello"))
        self.assertEqual((mail.peer, mail.host_name), (("192.0.2.7", 4321), "client.test"))
        self.assertEqual((mail.tls, mail.user), (None, None))
        self.assertTrue(mail.session_id)

    def test_parsed(self) -> None:
        """Subject and text are decoded, and the message is parsed once."""
        mail = self.caught(
            b"Subject: =?utf-8?b?w7xiZXI=?=\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xbcber\r\n"
        )
        self.assertEqual((mail.subject, mail.text), ("über", "über\n"))
        self.assertIs(mail.message, mail.message)

    def test_nothing(self) -> None:
        """An empty message has neither."""
        mail = self.caught(b"")
        self.assertEqual((mail.subject, mail.text), ("", "\n" if mail.text else ""))

    def test_unknownCharset(self) -> None:
        """A body in an unknown or invalid charset is still decoded."""
        for charset in ("nosuch", "idna", "hex"):
            header = f"Content-Type: text/plain; charset={charset}\r\n\r\n".encode()
            mail = Mail("a@x.test", ("b@x.test",), header + "caf\u00e9 ".encode() + b"x" * 80 + b"\xff\r\n")
            self.assertEqual(mail.text, "caf\u00e9 " + "x" * 80 + "\ufffd\n")

    def test_decodedData(self) -> None:
        """The content is bytes, even if handlers get str."""
        self.assertEqual(self.caught(decode_data=True).content, message("hello"))

    def test_json(self) -> None:
        """A mail is the same after its conversion to JSON and back."""
        mail = Mail(
            "a@x", ("b@x",), b"\0\xff", ("SIZE=1",), (), ("::1", 25), "c", TLSInfo("TLSv1.3", "X"), "ann", "1.1", 7.0
        )
        self.assertEqual(vars(Mail.from_json(mail.to_json())), vars(mail))


class ContentTests(SynchronousTestCase):
    """The contents of a mail."""

    def test_parts(self) -> None:
        """HTML, attachments, links, To, Cc and all fields are available, decoded."""
        made = EmailMessage()
        made["Subject"], made["To"], made["Cc"] = "Grüße", "Bob <bob@example.com>, eve@example.com", "ann@example.com"
        made["X-Test"] = "17"
        made.set_content("Hallo\n")
        made.add_alternative('<a href="https://example.com/a">hier</a>', subtype="html")
        made.add_attachment(b"%PDF", "application", "pdf", filename="Rechnung.pdf")
        mail = Mail("a@x.test", ("bob@example.com",), made.as_bytes())
        self.assertEqual((mail.to, mail.cc), (("bob@example.com", "eve@example.com"), ("ann@example.com",)))
        self.assertEqual((mail.headers["subject"], mail.headers["X-Test"]), ("Grüße", "17"))
        self.assertEqual((mail.text, mail.links), ("Hallo\n", ["https://example.com/a"]))
        self.assertIn("<a href", mail.html)
        [attachment] = mail.attachments
        self.assertEqual(
            (attachment.name, attachment.type, attachment.content), ("Rechnung.pdf", "application/pdf", b"%PDF")
        )

    def test_malformed(self) -> None:
        """No mail makes its attributes, str(), a wait for other mail, or the text of a failure raise an exception."""
        catcher = MailCatcher(reactor=Clock(), count=10**6)
        waiting = catcher.next(to="eve@example.com", subject="other", header={"x-test": "1"})
        missing = catcher.next(subject="none", timeout=1)
        session = catcher.session()
        for field in MALFORMED_FIELDS:
            content = field + b"\r\n\r\ntext\xe9\r\n"
            self.assertEqual(session.send(content).code, 250, content)
            mail = catcher.messages[-1]
            for name in ("subject", "text", "html", "to", "cc", "headers", "attachments", "links", "message"):
                getattr(mail, name)
            str(mail), repr(mail), mail.to_json()
        catcher.find(subject="hello", header={"To": "x", "Content-Type": "text/plain"})
        self.assertNoResult(waiting)
        send(catcher, "other", "eve@example.com", X_Test="1")
        self.assertEqual(self.successResultOf(waiting).subject, "other")
        catcher.factory.settings.reactor.advance(1)
        self.assertIn("mail that arrived", str(self.failureResultOf(missing, NoMailArrived).value))  # type: ignore[arg-type]

    def test_match(self) -> None:
        """A match function that raises LookupError for other mail does not match it. Its other exceptions are raised to
        the waiting code, not to the sender."""
        catcher = MailCatcher(reactor=Clock())
        waiting = catcher.next(match=lambda mail: mail.headers["X-Test"] == "1" and mail.attachments[0])
        mistaken = catcher.next(match=lambda mail: mail.subjekt)  # type: ignore[attr-defined]
        send(catcher, "one")
        self.assertNoResult(waiting)
        self.failureResultOf(mistaken, AttributeError)  # type: ignore[arg-type]
        self.assertEqual(catcher.find(match=lambda mail: mail.links[3]), [])
        self.assertRaises(AttributeError, catcher.find, match=lambda mail: mail.subjekt)

    def test_bareNewlines(self) -> None:
        """A message with LF line ends, as of as_bytes(), is kept unchanged, and an attribute shows it."""
        catcher = MailCatcher()
        session = catcher.session()
        session.talk(b"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
        self.assertIn(b"250", session.talk(b"Subject: one\n\nHello\n\r\n.\r\n"))
        session.send(b"Subject: two\r\n\r\nHello\r\n")
        self.assertEqual([mail.bare_newlines for mail in catcher.messages], [True, False])
        self.assertEqual(catcher.messages[0].content, b"Subject: one\n\nHello\n\r\n")
        self.assertEqual(catcher.messages[0].subject, "one")
        [said] = catcher.said()
        self.assertIn("octets, with CR or LF alone", said)
        self.assertEqual(said.count("alone"), 1)


class NoneTests(SynchronousTestCase):
    """Checks that no mail arrives."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.catcher = MailCatcher(reactor=self.clock)

    def test_now(self) -> None:
        """Mail that is there and was not returned before fails the check, and is shown. Returned mail and other mail do
        not."""
        self.catcher.assert_none()
        send(self.catcher, "one")
        error = self.assertRaises(UnexpectedMail, self.catcher.assert_none, subject="one")
        self.assertIn("mail subject 'one' arrived, but none was expected:\n  from 'ann@example.com'", str(error))
        self.catcher.assert_none(subject="two")
        self.catcher.inbox(to="eve@example.com").assert_none()
        self.successResultOf(self.catcher.next())
        self.catcher.assert_none()

    def test_later(self) -> None:
        """Mail that arrives within the time fails the check immediately. Without mail, the check succeeds at the
        end."""
        none = Deferred.fromCoroutine(self.catcher.none_comes(timeout=5, subject="one"))
        some = Deferred.fromCoroutine(self.catcher.none_comes(timeout=5, subject="two"))
        send(self.catcher, "two")
        self.failureResultOf(some, UnexpectedMail)
        self.assertNoResult(none)
        self.clock.advance(5)
        self.successResultOf(none)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_length(self) -> None:
        """len() is the number of messages. A catcher is true even without any."""
        self.assertEqual((len(self.catcher), bool(self.catcher)), (0, True))
        send(self.catcher, "one")
        send(self.catcher, "two", "eve@example.com")
        self.assertEqual((len(self.catcher), len(self.catcher.inbox(to="eve@example.com"))), (2, 1))


class BulkTests(SynchronousTestCase):
    """Real senders."""

    def test_bulk(self) -> None:
        """Hundreds of refusals, NOOPs and RSETs do not end a session."""

        class Picky(MailCatcher):
            def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
                return "550 5.1.1 nobody"

        session = Picky().session()
        session.talk(b"EHLO x\r\n")
        for line in b"NOOP", b"RSET", b"VRFY a", b"RCPT TO:<>", b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET":
            session.talk(b"\r\n".join([line] * 500) + b"\r\n")
        self.assertEqual(session.codes(b"NOOP\r\n"), [250])

    def test_utf8(self) -> None:
        """Addresses and header fields may be in UTF-8."""
        session = MailCatcher().session()
        self.assertIn(b"SMTPUTF8", session.talk(b"EHLO x\r\n"))
        self.assertEqual(session.codes("MAIL FROM:<jürgen@x.test> SMTPUTF8\r\n".encode()), [250])


class AuthTests(SynchronousTestCase):
    """Which users may authenticate."""

    def test_anybody(self) -> None:
        """By default, any user may authenticate, and the mail has the user name."""
        catcher = MailCatcher()
        session = catcher.session()
        self.assertEqual(session.codes(b"EHLO x\r\nAUTH PLAIN AGFubgBzZXNhbWU=\r\n"), [250, 235])
        session.send()
        self.assertEqual([mail.user for mail in catcher.inbox(user="ann").messages], ["ann"])

    def test_users(self) -> None:
        """With *users*, only these may. Refusals are not delayed."""
        session = MailCatcher(users={"ann": "sesame"}).session()
        self.assertEqual(
            session.codes(b"EHLO x\r\nAUTH PLAIN AGFubgBub25zZW5zZQ==\r\nAUTH PLAIN AGFubgBzZXNhbWU=\r\n"),
            [250, 535, 235],
        )


class InboxTests(SynchronousTestCase):
    """Inboxes."""

    def test_keys(self) -> None:
        """An inbox is for a recipient, a domain, a sender, a subject or a header field. Its mail is in order."""
        catcher = MailCatcher()
        send(catcher, "one", "Bob@Example.com", X_Test="17")
        by_field = catcher.inbox(header={"x-test": "17"})
        send(catcher, "two", "bob@example.org", X_Test="18")
        send(catcher, "three", "eve@example.com", X_Test="17")

        def subjects(inbox: Inbox) -> list[str]:
            return [mail.subject for mail in inbox.messages]

        self.assertEqual(subjects(catcher.inbox(to="bob@example.com")), ["one"])
        self.assertEqual(subjects(catcher.inbox(domain="EXAMPLE.com")), ["one", "three"])
        self.assertEqual(subjects(catcher.inbox(sender="ann@example.com")), ["one", "two", "three"])
        self.assertEqual(subjects(catcher.inbox(subject="two")), ["two"])
        self.assertEqual(subjects(catcher.inbox(subject=re.compile("^t"))), ["two", "three"])
        self.assertEqual(subjects(catcher.inbox(match=lambda mail: b"17" in mail.content)), ["one", "three"])
        self.assertEqual(subjects(by_field), ["one", "three"])
        self.assertEqual(subjects(by_field.inbox(domain="example.com").inbox(subject="three")), ["three"])
        self.assertEqual([mail.subject for mail in catcher.find(subject="two")], ["two"])
        self.assertEqual(subjects(catcher.inbox(to="nobody@example.com")), [])

    def test_clear(self) -> None:
        """Clearing an inbox keeps the mail of others. Clearing the catcher removes everything."""
        catcher = MailCatcher()
        for to in "a@one.test", "b@two.test":
            send(catcher, "hello", to)
        catcher.inbox(domain="one.test").clear()
        self.assertEqual([mail.rcpt_tos for mail in catcher.messages], [("b@two.test",)])
        self.assertEqual(catcher.inbox(domain="one.test").messages, [])
        catcher.clear()
        self.assertEqual(catcher.messages, [])

    def test_misspelt(self) -> None:
        """An unknown criterion is an error that suggests the most similar one. So is a value that cannot match."""
        catcher = MailCatcher()
        for ask in (catcher.inbox, catcher.find, catcher.wait, catcher.next):
            self.assertIn("did you mean subject?", str(self.assertRaises(TypeError, ask, subjekt="hello")))
        self.assertIn("there are to,", str(self.assertRaises(TypeError, catcher.find, qqq="hello")))
        for name, value in {"to": ["bob@x.test"], "subject": b"hello", "user": 1, "header": {"X-Test": 17}}.items():
            self.assertIn("must be a string", str(self.assertRaises(TypeError, catcher.find, **{name: value})))

    def test_manyInboxes(self) -> None:
        """Reading one of a thousand inboxes examines only its own mail."""
        store = Store(20_000, 2**30)
        for number in range(10_000):
            store.add(Mail("", (f"u{number % 1000}@x.test",), b""))
        looked = 0

        def look(mail: Mail) -> bool:
            nonlocal looked
            looked += 1
            return True

        inbox = Inbox(store, Query(to="u7@x.test", match=look))
        self.assertEqual((len(inbox.messages), looked), (10, 10))


class BoundsTests(SynchronousTestCase):
    """The amount of kept mail is limited."""

    def test_count(self) -> None:
        """The oldest messages are dropped, from inboxes, too, and the text of a failure says so."""
        catcher = MailCatcher(count=2, reactor=Clock())
        inbox = catcher.inbox(to="bob@example.com")
        self.assertEqual(inbox.messages, [])
        for subject in "one", "two", "three":
            send(catcher, subject)
        self.assertEqual([mail.subject for mail in catcher.messages], ["two", "three"])
        self.assertEqual([mail.subject for mail in inbox.messages], ["two", "three"])
        missing = catcher.next(subject="one", timeout=1)
        catcher.factory.settings.reactor.advance(1)
        self.assertIn(
            "1 older messages were dropped, because of the limits",
            str(self.failureResultOf(missing, NoMailArrived).value),
        )  # type: ignore[arg-type]

    def test_octets(self) -> None:
        """They are also dropped for large ones. The newest is always kept."""
        catcher = MailCatcher(octets=1000)
        for size in 400, 500, 2000:
            catcher.session().send(b"x" * size + b"\r\n")
        self.assertEqual([len(mail.content) for mail in catcher.messages], [2002])

    def test_age(self) -> None:
        """They are dropped when they are too old, even without new mail."""
        now = [100.0]
        store = Store(10, 1000, age=60, clock=lambda: now[0])
        for arrived in 100.0, 130.0:
            store.add(Mail("", ("b@x.test",), b"x", arrived=arrived))
        inbox = Inbox(store, Query(to="b@x.test"))
        self.assertEqual(len(inbox.messages), 2)
        now[0] = 160.0
        self.assertEqual([mail.arrived for mail in inbox.messages], [130.0])


class NextTests(SynchronousTestCase):
    """Waiting for mail, in memory, with a fake clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.catcher = MailCatcher(reactor=self.clock)

    def test_there(self) -> None:
        """Mail that is already there is returned immediately, in order, and each mail once."""
        for subject in "one", "two":
            send(self.catcher, subject)
        self.assertEqual(self.successResultOf(self.catcher.next()).subject, "one")
        self.assertEqual(self.successResultOf(self.catcher.next()).subject, "two")
        self.assertNoResult(self.catcher.next())
        self.assertEqual(len(self.catcher.messages), 2)

    def test_arrival(self) -> None:
        """It fires when the matching mail arrives, and not for other mail. Its delayed call is cancelled."""
        waiting = self.catcher.next(to="eve@example.com", subject=re.compile("wo"))
        for subject, to in ("two", "bob@example.com"), ("one", "eve@example.com"):
            send(self.catcher, subject, to)
        self.assertNoResult(waiting)
        send(self.catcher, "two", "eve@example.com")
        self.assertEqual(self.successResultOf(waiting).subject, "two")
        self.assertEqual(len(self.clock.getDelayedCalls()), 0)

    def test_missing(self) -> None:
        """After the timeout, the exception has the criteria, and the mail that did arrive."""
        send(self.catcher, "one")
        self.successResultOf(self.catcher.next())
        send(self.catcher, "two", "eve@example.com")
        waiting = self.catcher.inbox(sender="ann@example.com").next(subject="three", timeout=300)
        self.clock.advance(299)
        self.assertNoResult(waiting)
        self.clock.advance(1)
        text = str(self.failureResultOf(waiting, NoMailArrived).value)
        self.assertEqual(
            text.splitlines(),
            [
                "no mail sender 'ann@example.com', subject 'three' arrived within 300 seconds",
                "mail that arrived (2):",
                "  from 'ann@example.com' to ['bob@example.com'], subject 'one'",
                "  from 'ann@example.com' to ['eve@example.com'], subject 'two'",
            ],
        )
        send(self.catcher, "three")

    def test_nothing(self) -> None:
        """It also says if no mail arrived at all."""
        waiting = self.catcher.next(timeout=1)
        self.clock.advance(1)
        self.assertIn("nothing arrived at all", str(self.failureResultOf(waiting, NoMailArrived).value))

    def test_cancelled(self) -> None:
        """A cancelled wait takes no mail from others."""
        waiting = self.catcher.next()
        waiting.addErrback(lambda failure: None)  # type: ignore[attr-defined]
        waiting.cancel()  # type: ignore[attr-defined]
        send(self.catcher, "one")
        self.assertEqual(self.successResultOf(self.catcher.next()).subject, "one")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_twoWait(self) -> None:
        """Two waits get different mails, in order. Waits of separate inboxes each get the same one."""
        first, second = self.catcher.next(), self.catcher.next()
        inbox = self.catcher.inbox(to="bob@example.com").next()
        send(self.catcher, "one")
        self.assertEqual(self.successResultOf(inbox).subject, "one")
        self.assertEqual(self.successResultOf(first).subject, "one")
        self.assertNoResult(second)
        send(self.catcher, "two")
        self.assertEqual(self.successResultOf(second).subject, "two")


class OptionsTests(SynchronousTestCase):
    """The options of a catcher."""

    def test_hooks(self) -> None:
        """A subclass may refuse mail, which is then not caught."""

        class Picky(MailCatcher):
            def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
                return "550 5.1.1 nobody"

        catcher = Picky()
        self.assertEqual(catcher.session().send().code, 550)
        self.assertEqual(catcher.messages, [])

    def test_wrong(self) -> None:
        """Options that contradict each other are refused, with a valid alternative."""
        self.assertRaises(ValueError, MailCatcher, tls="ssl")
        self.assertRaises(ValueError, MailCatcher, wrong="expired")
        error = self.assertRaises(ValueError, MailCatcher, tls="starttls", wrong="rotten")
        self.assertIn("not-yet-valid", str(error))
        self.assertRaises(TypeError, MailCatcher, data_sise_limit=1)
        for name, near in (
            ("tsl", "tls"),
            ("user", "users"),
            ("fault", "faults"),
            ("strict_handlers", "strict_handler"),
        ):
            error = self.assertRaises(TypeError, MailCatcher, **{name: 1})
            self.assertEqual(str(error), f"unknown option {name!r}; did you mean {near}?")

    def test_wrongTimeout(self) -> None:
        """A timeout that is not a number is refused when the test begins to wait."""
        catcher = MailCatcher()
        for wait in (catcher.wait, catcher.next, catcher.assert_none):
            error = self.assertRaises(TypeError, wait, timeout="5")  # type: ignore[arg-type]  # that is the mistake
            self.assertEqual(str(error), "timeout must be a number of seconds, not '5'")

    def test_faults(self) -> None:
        """A catcher has faults, for the connections that come after their first use; a test may also give its own."""
        catcher = MailCatcher()
        before = catcher.session()
        self.assertEqual(before.send().code, 250)
        catcher.faults.on("rcpt").first(1).reply("451 4.7.1 Later")
        self.assertIs(catcher.faults, catcher.faults)
        self.assertEqual([before.send().code, catcher.session().send().code], [250, 451])
        self.assertEqual(Client(catcher.factory).talk(b"HELO c\r\n")[:3], b"250")
        self.assertEqual(catcher.session().send().code, 250)
        self.assertEqual(len(catcher.faults.fired), 1)
        own = Faults()
        self.assertIs(MailCatcher(faults=own).faults, own)

    def test_faultsBeforeTheFirst(self) -> None:
        """Faults also apply to sessions in memory that are made later, and to the listening server."""
        catcher = MailCatcher()
        catcher.faults.on("rcpt").reply("451 4.7.1 Later")
        self.assertEqual(catcher.session().send().code, 451)
        said = Client(catcher.factory).talk(b"HELO c\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n")
        self.assertEqual(codes(said)[-1], 451)

    def test_notUnderstood(self) -> None:
        """Mistakes that would matter only when mail arrives or a client logs in are refused immediately, with the
        fix."""
        for wrong, error, words in (
            ({"port": 2525}, TypeError, "start"),
            ({"users": ["ann"]}, TypeError, "sesame"),
            ({"count": "5"}, TypeError, "count must be a number"),
            ({"count": 0}, ValueError, "more than 0"),
            ({"octets": -1}, ValueError, "more than 0"),
            ({"age": "1"}, TypeError, "age must be a number"),
            ({"age": -1.5}, ValueError, "more than 0"),
        ):
            self.assertIn(words, str(self.assertRaises(error, MailCatcher, **wrong)))

    def test_notATest(self) -> None:
        """for_test with a class, or with an object that is not a test, is refused, with the fix."""
        for case in (unittest.TestCase, self.id):
            self.assertIn("addClassCleanup", str(self.assertRaises(TypeError, MailCatcher.for_test, case)))

    def test_awaited(self) -> None:
        """Awaiting a catcher raises an exception that says that it is already started, and how to use it in a
        coroutine."""

        async def mistaken() -> None:
            await MailCatcher.for_test(self)  # type: ignore[misc]  # that is the mistake

        words = str(self.assertRaises(TypeError, mistaken().send, None))
        self.assertIn("not awaited", words)
        self.assertIn("async with", words)

    def test_notListening(self) -> None:
        """A catcher that does not listen has no port. The exception says how to start it."""
        error = self.assertRaises(RuntimeError, lambda: MailCatcher().port)
        self.assertIn("for_test", str(error))
        self.assertIn("does not listen", repr(MailCatcher()))

    def test_synchronousTestCase(self) -> None:
        """In a test without a reactor, it serves in memory."""
        catcher = MailCatcher.for_test(self)
        send(catcher, "hello")
        self.assertEqual(catcher.messages[0].subject, "hello")


class TrialTests(TestCase):
    """A catcher on the reactor of trial."""

    def setUp(self) -> None:
        self.catcher = MailCatcher.for_test(self)

    async def test_next(self) -> None:
        """Mail over a port is awaited. Its client has already got its reply."""
        sent = deferToThread(send_by_smtplib, self.catcher)
        mail = await self.catcher.next(to="bob@example.com")
        self.assertEqual((mail.subject, mail.peer[0]), ("hello", "127.0.0.1"))
        await sent

    def test_blockingBefore(self) -> None:
        """A plain test can also use it: the reactor does not run yet, and would not run while the test waits."""
        self.assertIn("await next()", str(self.assertRaises(RuntimeError, self.catcher.wait)))
        self.assertIn("none_comes()", str(self.assertRaises(RuntimeError, self.catcher.assert_none, timeout=1)))

    async def test_blocking(self) -> None:
        """Code in a thread can wait, too. In the reactor's own thread, a wait is refused, because it would never
        end."""
        waiting = deferToThread(self.catcher.wait, subject="hello")
        await deferToThread(send_by_smtplib, self.catcher)
        self.assertEqual((await waiting).subject, "hello")
        self.assertRaises(RuntimeError, self.catcher.wait)

    async def test_missing(self) -> None:
        """A wait without mail ends in time, in a thread, too."""
        with self.assertRaises(NoMailArrived):
            await self.catcher.next(timeout=0.01)
        with self.assertRaises(NoMailArrived):
            await deferToThread(self.catcher.wait, timeout=0.01)

    async def test_forgotten(self) -> None:
        """A wait that is not cancelled, and a client that stays connected, leave the reactor clean."""
        self.catcher.next(timeout=3600)
        client = await deferToThread(smtplib.SMTP, *self.catcher.address)
        self.addCleanup(client.close)

    async def test_settings(self) -> None:
        """The address of the server, in the forms that different kinds of code need."""
        port = self.catcher.port
        self.assertEqual(self.catcher.address, ("127.0.0.1", port))
        self.assertEqual(self.catcher.url, f"smtp://127.0.0.1:{port}")
        self.assertEqual(
            self.catcher.environment(),
            {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(port), "SMTP_URL": f"smtp://127.0.0.1:{port}"},
        )
        self.assertEqual(self.catcher.django_settings()["EMAIL_PORT"], port)
        self.assertIn(str(port), repr(self.catcher))
        self.assertRaises(RuntimeError, self.catcher.listen)

    async def test_context(self) -> None:
        """As a context manager, it uses the running reactor."""
        async with MailCatcher() as catcher:
            self.assertNotEqual(catcher.port, self.catcher.port)
            await deferToThread(send_by_smtplib, catcher)
            self.assertEqual(len(catcher.messages), 1)
        self.assertRaises(RuntimeError, lambda: catcher.port)


class PlainTests(unittest.TestCase):
    """A catcher for tests without Twisted: the reactor runs in a separate thread."""

    def test_smtplib(self) -> None:
        """Mail that smtplib has sent is there when the call returns."""
        catcher = MailCatcher.for_test(self)
        send_by_smtplib(catcher)
        self.assertEqual([mail.subject for mail in catcher.messages], ["hello"])

    def test_wait(self) -> None:
        """A test can wait for mail that a thread sends."""
        with MailCatcher() as catcher:
            thread = threading.Thread(target=send_by_smtplib, args=(catcher, "later"))
            thread.start()
            self.assertEqual(catcher.wait(subject="later").subject, "later")
            thread.join()

    def test_none(self) -> None:
        """A test can wait to check that no mail arrives."""
        with MailCatcher() as catcher:
            catcher.assert_none(timeout=0.01)
            send_by_smtplib(catcher)
            with self.assertRaises(UnexpectedMail):
                catcher.assert_none(timeout=0.01)

    def test_next(self) -> None:
        """Outside of the reactor and asyncio, next() raises an exception that says so."""
        with MailCatcher() as catcher:
            with self.assertRaises(RuntimeError) as caught:
                catcher.next(to="bob@x.test")
            self.assertIn("wait()", str(caught.exception))

    def test_quick(self) -> None:
        """A catcher starts and stops as fast as a minimal server, so that each test can have its own."""

        def on_port() -> None:
            with MailCatcher():
                pass

        def in_memory() -> None:
            MailCatcher().session().command("QUIT")

        for use in on_port, in_memory:
            self.assertLess(times_a_bare_server(use), 20, use.__name__)

    def test_again(self) -> None:
        """A catcher can be started again after a stop, and keeps its mail."""
        catcher = MailCatcher()
        for number in 1, 2:
            with catcher:
                send_by_smtplib(catcher)
            self.assertEqual(len(catcher.messages), number)

    def test_portInUse(self) -> None:
        """If it cannot listen, it raises an exception, and leaves nothing behind."""
        with MailCatcher() as catcher, self.assertRaises(CannotListenError) as caught:
            MailCatcher().start(port=catcher.port)
        self.assertIn("listen", str(caught.exception))
        self.assertFalse(reactor.running)  # type: ignore[attr-defined]


class AsyncioTests(IsolatedAsyncioTestCase):
    """A catcher for tests that run in asyncio."""

    async def test_next(self) -> None:
        """next() can be awaited in an asyncio loop."""
        async with MailCatcher() as catcher:
            sending = asyncio.get_running_loop().run_in_executor(None, send_by_smtplib, catcher)
            mail = await catcher.next(to="bob@example.com")
            self.assertEqual(mail.subject, "hello")
            await sending
            self.assertEqual([each.subject for each in catcher.messages], ["hello"])

    async def test_there(self) -> None:
        """Mail that is already there is returned immediately."""
        async with MailCatcher() as catcher:
            await asyncio.to_thread(send_by_smtplib, catcher)
            self.assertEqual((await catcher.next()).subject, "hello")

    async def test_missing(self) -> None:
        """If no mail arrives in time, an exception is raised."""
        async with MailCatcher() as catcher:
            with self.assertRaises(NoMailArrived):
                await catcher.next(timeout=0.01)

    async def test_cancelled(self) -> None:
        """A cancelled task leaves no waiter."""
        async with MailCatcher() as catcher:
            task = asyncio.ensure_future(self.await_mail(catcher))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(send_by_smtplib, catcher)
            self.assertEqual((await catcher.next()).subject, "hello")

    async def await_mail(self, catcher: MailCatcher) -> Mail:
        return await catcher.next()


class LeavingsTests(unittest.TestCase):
    """A catcher leaves nothing behind."""

    def test_files(self) -> None:
        """It leaves neither sockets nor files, even if its own authority was written to a file."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            with MailCatcher(tls="starttls") as catcher:
                path = Path(catcher.environment()["SSL_CERT_FILE"])
                self.assertTrue(path.exists())
                send_by_smtplib(catcher)
            self.assertFalse(path.exists())
            gc.collect()
