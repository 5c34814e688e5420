"""Transcripts: records, the ring buffer, comparisons, output of failing tests, and files."""

from __future__ import annotations

import io
import json
import os
import stat
import unittest
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.reporter import TestResult as TrialResult
from twisted.trial.reporter import UncleanWarningsReporterWrapper
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.auth import test_secrets as secrets
from tests.service.test_commandline import LOOPBACK, CommandLineTestCase
from tests.support import GREETING, MESSAGE, TRANSACTION, Client, LoggingTestCase, handler
from tests.support.auth import Connection, b64
from tests.support.tls import TLSTestCase, send_by_implicit_tls, send_by_starttls
from txsmtpd import SMTP, SMTPFactory, syntax
from txsmtpd.observe.journal import Journal
from txsmtpd.observe.transcript import (
    Closed,
    Connected,
    MailData,
    Record,
    Replied,
    Said,
    TLSBegun,
    Transcript,
    text_of,
)
from txsmtpd.testing import Transcripts, attach


def talked(octets: bytes, hooks: object = None, **options: Any) -> Transcript:
    """The transcript of a client that sent the octets and disconnected."""
    transcripts = Transcripts()
    client = Client(hooks, transcript=transcripts, **options)
    client.say(octets)
    if not client.closed:
        client.vanish()
    return transcripts[-1]


class RecordTests(SynchronousTestCase):
    """The records."""

    def test_session(self) -> None:
        """Everything that is sent is recorded, in order, with types; the beginning, the end, and the size of the
        message."""
        transcript = talked(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nQUIT\r\n")
        self.assertEqual(
            transcript,
            [
                "* connected from 192.0.2.7:4321",
                "S: 220 mx.test",
                "C: EHLO client.test",
                "S: 250 mx.test",
                "C: MAIL FROM:<a@example.com>",
                "S: 250 2.1.0",
                "C: RCPT TO:<b@example.com>",
                "S: 250 2.1.5",
                "C: DATA",
                "S: 354",
                f"D: {len(MESSAGE)} octets",
                "S: 250 2.0.0",
                "C: QUIT",
                "S: 221",
                "* closed: ConnectionDone",
            ],
        )
        kinds = [type(record) for record in transcript]
        self.assertEqual(kinds[:3] + kinds[-5:], [Connected, Replied, Said, MailData, Replied, Said, Replied, Closed])
        self.assertTrue(transcript.closed)

    def test_everyCut(self) -> None:
        """The transcript does not depend on how the input is split."""
        octets = GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nNOOP\nAUTH PLAIN x\r\ny\r\nQUIT\r\n"
        expected = talked(octets).lines
        for cut in range(1, len(octets)):
            transcripts = Transcripts()
            Client(transcript=transcripts).say(octets, [cut])
            self.assertEqual(transcripts[0].lines, expected, cut)

    def test_times(self) -> None:
        """Records have the time since the beginning of the session, by the factory's clock."""
        clock = Clock()
        clock.advance(1000)
        transcripts = Transcripts()
        client = Client(transcript=transcripts, reactor=clock)
        client.wait(2)
        client.talk(b"NOOP\r\n")
        client.wait(300)
        self.assertEqual([record.at for record in transcripts[0]], [0, 0, 2, 2, 302, 302])
        self.assertEqual(transcripts[0], ["S: 220", "C: NOOP", "S: 250", "S: 421 4.4.2"])
        self.assertEqual(str(transcripts[0]).splitlines()[3], "   2.000 C: NOOP")

    def test_linesThatAreNone(self) -> None:
        """Lines that are too long, or end with LF, are recorded with their first octets."""
        transcript = talked(b"NOOP \xc3\xbc\n" + b"NOOP " + b"x" * 20000 + b"\r\n\x00\x1b[2J\r\n\x16\x03\x01")
        self.assertEqual(
            [record.line for record in transcript if isinstance(record, Said)],
            [
                "(a line ended by LF alone: NOOP \u00fc)",
                "(a line that is too long: NOOP xxxxxxxxxxx)",
                r"\x00\x1b[2J",
                "(the start of TLS)",
            ],
        )

    def test_chunks(self) -> None:
        """Each chunk is a record, even if it is discarded or incomplete."""
        transcript = talked(GREETING + TRANSACTION + b"BDAT 3\r\nabcBDAT 2 LAST\r\ndeBDAT 4\r\nabcdBDAT 9\r\nab")
        data = [record for record in transcript if isinstance(record, MailData)]
        self.assertEqual([(each.octets, each.complete) for each in data], [(3, True), (2, True), (4, True), (2, False)])
        self.assertEqual(str(data[-1]), "D: 2 octets, and no end")

    def test_pushed(self) -> None:
        """Replies that a command pushes are recorded in order."""

        class Talkative(SMTP):
            @syntax("PING")
            async def smtp_PING(self, arg: str | None) -> str:
                await self.push("250-one")
                return "250 two"

        transcript = talked(b"PING\r\n", protocol=Talkative)
        self.assertEqual(transcript, ["S: 220", "C: PING", "S: 250-one", "S: 250 two"])

    def test_failures(self) -> None:
        """An exception of a hook is recorded with its type."""

        def fails(*arguments: Any) -> str:
            raise ZeroDivisionError("hidden")

        transcript = talked(b"NOOP\r\n", handler(NOOP=fails))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIn("* NOOP failed: ZeroDivisionError", transcript.lines)
        self.assertNotIn("hidden", str(transcript))

    def test_disconnectHook(self) -> None:
        """When the handler is notified of the end of the connection, its transcript is complete."""
        seen = []
        transcripts = Transcripts()
        hook = handler(DISCONNECT=lambda server, session, *more: seen.append(transcripts.of(session.id)))
        client = Client(hook, transcript=transcripts)
        client.talk(b"QUIT\r\n")
        self.assertTrue(seen[0] is transcripts[0] and transcripts[0].closed)

    def test_offCostsNothing(self) -> None:
        """Without transcripts, the class of the protocol is the one that was passed. With them, it is created once."""
        self.assertIs(SMTPFactory().protocol, SMTP)
        first, second = (SMTPFactory(transcript=Transcripts()).protocol for _ in "ab")
        self.assertIs(first, second)
        self.assertTrue(issubclass(first, SMTP))

    def test_noTranscripts(self) -> None:
        """An invalid value is refused when the factory is created."""
        for wrong in (True, "file", Transcripts):
            with self.assertRaisesRegex(TypeError, "transcript must be"):
                SMTPFactory(transcript=wrong)  # type: ignore[arg-type]


class ComparisonTests(SynchronousTestCase):
    """Comparisons of transcripts with lists."""

    def setUp(self) -> None:
        self.transcript = talked(b"EHLO a\r\nQUIT\r\n")

    def test_prefixes(self) -> None:
        """Lines need only be prefixes of replies, or of any line of a reply."""
        for reply in ("S: 250", "S: 250-mx.test", "S: 250 mx.test", "S: 250-SIZE", "S: 250 HELP"):
            self.assertEqual(self.transcript, ["S: 220", "C: EHLO a", reply, "C: QUIT", "S: 221 2.0.0"])

    def test_different(self) -> None:
        """Everything else is different: another reply, another line, missing or additional lines, another order."""
        good = ["S: 220", "C: EHLO a", "S: 250", "C: QUIT", "S: 221"]
        for wrong in (
            [],
            good[:-1],
            [*good, "S: 250"],
            ["S: 220", "C: EHLO", *good[2:]],
            ["S: 221", *good[1:]],
            [*good[:2], "S: 250 SIZES", *good[3:]],
            [good[1], good[0], *good[2:]],
            [*good, "* closed"],
        ):
            self.assertNotEqual(self.transcript, wrong)
            with self.assertRaises(AssertionError):
                self.transcript.check(wrong)
        self.assertEqual(self.transcript, good)
        self.transcript.check(good)

    def test_otherThings(self) -> None:
        """It is equal to itself, and to no other object."""
        self.assertEqual(self.transcript, self.transcript)
        self.assertNotEqual(self.transcript, talked(b"EHLO a\r\nQUIT\r\n"))
        self.assertNotEqual(self.transcript, str(self.transcript))
        self.assertNotEqual(self.transcript, [1])

    def test_words(self) -> None:
        """A failed check names the first difference, and has the whole transcript."""
        with self.assertRaises(AssertionError) as caught:
            self.transcript.check(["S: 220", "C: EHLO b"])
        message = str(caught.exception)
        self.assertIn("line 2: expected 'C: EHLO b', but there was 'C: EHLO a'", message)
        self.assertIn("   0.000 C: QUIT", message)


class RingTests(SynchronousTestCase):
    """The limits."""

    def test_sessions(self) -> None:
        """The latest ones are kept."""
        transcripts = Transcripts(sessions=3)
        factory = Client(transcript=transcripts).factory
        for _ in range(10):
            last = Client(factory=factory).server.session.id
        self.assertEqual(len(transcripts), 3)
        self.assertEqual(transcripts[-1].session, last)
        self.assertIs(transcripts.of(last), transcripts[-1])
        self.assertIsNone(transcripts.of("none"))

    def test_octets(self) -> None:
        """An endless session is limited to its last records, and says how many were dropped."""
        transcripts = Transcripts(octets=20_000)
        client = Client(transcript=transcripts, junk_command_limit=None)
        for number in range(1000):
            client.talk(b"NOOP %d\r\n" % number)
        (transcript,) = transcripts
        self.assertIn(f"{transcript.forgotten} records before these are gone", str(transcript))
        self.assertEqual(len(transcript) + transcript.forgotten, 2 + 2000)
        self.assertLess(len(transcript), 140)
        self.assertEqual(transcript.lines[-2:], ["C: NOOP 999", "S: 250 2.0.0 OK"])

    def test_manySmallSessions(self) -> None:
        """The limit on octets applies to many sessions together. Those that are dropped completely are not listed."""
        transcripts = Transcripts(sessions=1000, octets=20_000)
        factory = Client(transcript=transcripts).factory
        for _ in range(500):
            Client(factory=factory).talk(b"QUIT\r\n")
        self.assertLess(sum(map(len, transcripts)), 140)
        self.assertGreater(len(transcripts), 10)

    def test_silentForLong(self) -> None:
        """A dropped session is listed again when it continues."""
        transcripts = Transcripts(sessions=2)
        first = Client(transcript=transcripts)
        for _ in range(5):
            Client(factory=first.factory)
        self.assertIsNone(transcripts.of(first.server.session.id))
        first.talk(b"NOOP\r\n")
        self.assertEqual(transcripts[-1], ["C: NOOP", "S: 250"])
        self.assertEqual(transcripts[-1].forgotten, 2)

    def test_clear(self) -> None:
        """Earlier records are removed, and later ones are kept."""
        transcripts = Transcripts()
        client = Client(transcript=transcripts)
        transcripts.clear()
        self.assertEqual((len(transcripts), str(transcripts)), (0, "no session"))
        client.talk(b"QUIT\r\n")
        self.assertEqual(transcripts[0], ["C: QUIT", "S: 221"])

    def test_tell(self) -> None:
        """A callback can get each record, without any being kept."""
        told: list[Record] = []
        transcripts = Transcripts(sessions=0, tell=lambda transcript, record: told.append(record))
        Client(transcript=transcripts).talk(b"QUIT\r\n")
        self.assertEqual([each.mark for each in told], ["*", "S:", "C:", "S:", "*"])
        self.assertEqual(len(transcripts), 0)

    def test_nothing(self) -> None:
        """Invalid limits are refused."""
        for bounds in ({"sessions": 0}, {"sessions": -1}, {"octets": -1}):
            with self.assertRaises(ValueError):
                Transcripts(**bounds)


class SecretTests(LoggingTestCase):
    """A secret, sent in all possible ways."""

    def setUp(self) -> None:
        super().setUp()
        self.told: list[str] = []
        self.transcripts = Transcripts(sessions=10, tell=lambda transcript, record: self.told.append(repr(record)))

    def assertSilent(self, what: str) -> None:
        texts = (*map(str, self.transcripts), *map(repr, self.transcripts), *self.told)
        self.assertGreater(len(texts), 5)
        for text in texts:
            for trace in secrets.TRACES:
                self.assertNotIn(trace, text, what)
        self.transcripts.clear()
        self.told.clear()

    def connection(self, decide: Any, handler: Any = secrets.Handler, **options: Any) -> Connection:
        mechanisms = [
            secrets.auth.CramMD5(),
            secrets.auth.XOAuth2(),
            secrets.auth.OAuthBearer(),
            secrets.auth.Scram("SHA-256", lambda name: None),
        ]
        defaults: dict[str, Any] = {
            "authenticator": decide,
            "auth_mechanisms": mechanisms,
            "auth_attempt_limit": None,
            "transcript": self.transcripts,
        }
        return Connection(handler(decide), **(defaults | options))

    def test_everyMechanism(self) -> None:
        """Valid, invalid, cancelled, malformed and too long responses, with and without pipelining, and with hooks that
        raise, leave no secret."""
        for decide in secrets.DECIDERS:
            for name, lines in secrets.DIALOGS.items():
                client = self.connection(decide)
                for line in lines:
                    client.say(line)
                client.server.connectionLost(Failure(ConnectionLost()))
                self.connection(decide, secrets.RudeHandler).say(*lines)
                self.flushLoggedErrors()
                self.assertSilent(f"{name}, {decide.__name__}")

    def test_refused(self) -> None:
        """Refusals of AUTH without TLS, EHLO or an authenticator leave none either, even octet by octet."""
        for options in (
            {"auth_require_tls": True},
            {"authenticator": None, "auth_mechanisms": ()},
            {"ehlo": False},
            {"command_call_limit": 0},
        ):
            for name, lines in secrets.DIALOGS.items():
                self.connection(secrets.right, **options).say(*lines)
                client = self.connection(secrets.right, **options)
                for line in lines:
                    for octet in line[:2000]:
                        client.send(bytes([octet]))
                    client.send(line[2000:] + b"\r\n")
                self.assertSilent(name)

    def test_shown(self) -> None:
        """The remaining records still show what happened."""
        self.connection(secrets.wrong).say(b"AUTH LOGIN", b64("user"), b64(secrets.CANARY))
        lines = self.transcripts[0].lines[-6:]
        self.assertEqual(
            lines,
            [
                "C: AUTH LOGIN",
                "S: 334 ********",
                "C: ********",
                "S: 334 ********",
                "C: ********",
                "S: 535 5.7.8 Authentication credentials invalid",
            ],
        )

    def test_theEye(self) -> None:
        """The test would detect a leak."""
        self.connection(secrets.right).say(b"NOOP " + secrets.CANARY.encode())
        with self.assertRaises(self.failureException):
            self.assertSilent("NOOP")


class TLSTests(TLSTestCase):
    """Sessions in TLS."""

    async def recorded(self, send: Any, **options: Any) -> Transcript:
        transcripts = Transcripts()
        port = await self.serve(transcript=transcripts, **options)
        await self.run_client(send, port)
        await self.handler.gone
        return transcripts[-1]

    async def test_starttls(self) -> None:
        """The start of TLS is recorded at its place, and the transcript continues."""
        transcript = await self.recorded(send_by_starttls)
        lines = transcript.lines
        begun = next(n for n, record in enumerate(transcript) if isinstance(record, TLSBegun))
        self.assertEqual(lines[begun - 2], "C: STARTTLS")
        self.assertTrue(lines[begun - 1].startswith("S: 220 2.0.0"))
        self.assertRegex(lines[begun], r"\* TLSv1\.3 with TLS_")
        self.assertEqual(lines[-2][:6], "S: 221")

    async def test_implicit(self) -> None:
        """With implicit TLS, it precedes the greeting."""
        transcript = await self.recorded(send_by_implicit_tls, implicit_tls=True)
        self.assertEqual([record.kind for record in transcript][:3], ["connected", "tls", "server"])


def wrapped_result() -> Any:
    """A result object as the command trial has it, which returns lists for any attribute."""
    return UncleanWarningsReporterWrapper(TrialResult())


class ReportTests(SynchronousTestCase):
    """The output of a failing test."""

    def printed(self, base: type, result: Any, method: str = "test_fails", attached_in: str = "setUp") -> str:
        def begin(test: Any) -> None:
            transcripts = Transcripts()
            attach(test, transcripts)
            Client(transcript=transcripts).talk(b"NOOP here\r\n")

        class Case(base):  # type: ignore[misc]
            def setUp(self) -> None:
                if "setUp" in attached_in:
                    begin(self)
                if "fails" in attached_in:
                    self.fail("as it should")

            def test_passes(self) -> None:
                if attached_in == "test":
                    begin(self)

            def test_fails(self) -> None:
                self.test_passes()
                self.fail("as it should")

            def test_breaks(self) -> None:
                self.test_passes()
                raise ZeroDivisionError

            def test_skips(self) -> None:
                self.test_passes()
                raise unittest.SkipTest("not now")

            def test_failsInPart(self) -> None:
                self.test_passes()
                with self.subTest("a part"):
                    self.fail("as it should")

            def test_failsInCleanup(self) -> None:
                self.addCleanup(self.fail, "as it should")
                self.test_passes()
                self.addCleanup(self.fail, "as it should")

            def test_failsInTearDown(self) -> None:
                self.test_passes()
                self.tearDown = self.fail

            def test_logs(self) -> None:
                self.test_passes()
                Logger().failure("as it should", Failure(ZeroDivisionError()))

            async def test_failsLate(self) -> None:
                self.test_passes()
                await Deferred.fromCoroutine(self.later())

            async def later(self) -> None:
                self.fail("as it should")

            @unittest.expectedFailure
            def test_passesUnexpectedly(self) -> None:
                self.test_passes()

        stream = io.StringIO()
        with redirect_stderr(stream):
            Case(method).run(result())
        return stream.getvalue()

    def test_fails(self) -> None:
        """In test cases of trial and unittest, attached in setUp or in the test, the transcript is printed with the
        test's name."""
        for base in (SynchronousTestCase, TestCase, unittest.TestCase):
            for result in (TrialResult, wrapped_result, unittest.TestResult):
                for attached_in in ("setUp", "test"):
                    for method in ("test_fails", "test_breaks", "test_failsInCleanup", "test_failsInTearDown"):
                        printed = self.printed(base, result, method, attached_in)
                        self.assertIn("C: NOOP here", printed, (base, result, method, attached_in))
                        self.assertIn(f"Case.{method}: transcripts", printed)

    def test_setUp(self) -> None:
        """The same is true if setUp fails after it."""
        for base in (SynchronousTestCase, TestCase, unittest.TestCase):
            for result in (TrialResult, wrapped_result, unittest.TestResult):
                self.assertIn("C: NOOP here", self.printed(base, result, attached_in="setUp, which fails"))

    def test_logged(self) -> None:
        """The same is true if an error was logged, for which trial fails a test at its end."""
        for base in (SynchronousTestCase, TestCase):
            for result in (TrialResult, wrapped_result):
                self.assertIn("C: NOOP here", self.printed(base, result, "test_logs"))

    def test_unexpected(self) -> None:
        """The same is true if a test was expected to fail, and does not."""
        self.assertIn("C: NOOP here", self.printed(unittest.TestCase, unittest.TestResult, "test_passesUnexpectedly"))

    def test_several(self) -> None:
        """Several transcripts are printed once each, and the result object gets the usual calls."""
        told = unittest.TestResult()

        class Case(unittest.TestCase):
            def setUp(self) -> None:
                for word in ("one", "two"):
                    transcripts = Transcripts()
                    attach(self, transcripts)
                    Client(transcript=transcripts).talk(b"NOOP %s\r\n" % word.encode())

            def test_fails(self) -> None:
                self.fail("as it should")

            def test_passes(self) -> None:
                pass

        with redirect_stderr(io.StringIO()) as stream:
            Case("test_fails").run(told)
            Case("test_passes").run(told)
        printed = stream.getvalue()
        self.assertEqual((printed.count("C: NOOP one"), printed.count("C: NOOP two")), (1, 1))
        self.assertEqual((told.testsRun, len(told.failures), len(told.errors)), (2, 1, 0))

    def test_late(self) -> None:
        """The same is true in a test that is a coroutine."""
        self.assertIn("C: NOOP here", self.printed(TestCase, TrialResult, "test_failsLate"))

    def test_part(self) -> None:
        """The same is true in a test with a failing subtest."""
        self.assertIn("C: NOOP here", self.printed(unittest.TestCase, unittest.TestResult, "test_failsInPart"))

    def test_passes(self) -> None:
        """A test that passes or is skipped prints nothing."""
        for base in (SynchronousTestCase, TestCase, unittest.TestCase):
            for result in (TrialResult, unittest.TestResult):
                for method in ("test_passes", "test_skips"):
                    for attached_in in ("setUp", "test"):
                        self.assertEqual(self.printed(base, result, method, attached_in), "", (base, result, method))


class JournalTests(LoggingTestCase):
    """Transcripts in a file."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.mktemp()

    def journal(self) -> Journal:
        journal = Journal(self.path)
        self.addCleanup(journal.close)
        return journal

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.path).read_text("utf-8").splitlines()]

    def test_lines(self) -> None:
        """Each record is a line of JSON, written immediately, with its session, its kind and its fields."""
        client = Client(transcript=Transcripts(sessions=0, tell=self.journal()))
        self.assertEqual([line["kind"] for line in self.lines()], ["connected", "server"])
        client.talk("NOOP \u00fc\r\n".encode())
        line = self.lines()[2]
        self.assertRegex(line.pop("time"), r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
        self.assertEqual(line, {"session": client.server.session.id, "kind": "client", "at": 0, "line": "NOOP \u00fc"})

    def test_private(self) -> None:
        """Only its owner can read the file, and earlier lines are kept."""
        for _ in range(2):
            Client(transcript=Transcripts(sessions=0, tell=self.journal()))
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.assertEqual(len(self.lines()), 4)

    def test_pipe(self) -> None:
        """A pipe without a reader is refused immediately."""
        os.mkfifo(self.path)
        with self.assertRaises(OSError):
            Journal(self.path)

    def test_full(self) -> None:
        """A full disk is logged once. Sessions continue."""
        journal = Journal("/dev/full")
        self.addCleanup(journal.close)
        client = Client(transcript=Transcripts(tell=journal))
        self.assertEqual(client.codes(b"NOOP\r\nNOOP\r\n"), [250, 250])
        self.assertEqual(self.errors_logged(), 1)
        self.assertIn("No space left", self.logged("error")[0])
        self.flushLoggedErrors()

    def test_torn(self) -> None:
        """A line that is incomplete because the disk was full does not affect the next one."""
        journal = self.journal()
        client = Client(transcript=Transcripts(tell=journal))
        whole, room = os.write, [5, 0]

        def write(file: int, octets: bytes) -> int:
            if not room:
                return whole(file, octets)
            if not room[0]:
                room.clear()
                raise OSError(28, "No space left on device")
            return whole(file, octets[: room.pop(0)])

        self.patch(os, "write", write)
        client.talk(b"NOOP\r\n")
        lines = Path(self.path).read_text().splitlines()
        self.assertEqual([len(lines), lines[2], json.loads(lines[3])["kind"]], [4, '{"tim', "server"])
        self.flushLoggedErrors()


class TextTests(SynchronousTestCase):
    """Octets as readable text."""

    def test_text(self) -> None:
        """UTF-8 is decoded, line ends separate lines, and nothing reaches a terminal unescaped."""
        self.assertEqual(text_of("250-\u00fc\r\n250 b".encode()), "250-\u00fc\n250 b")
        self.assertEqual(text_of(b"\xff\x1b\r\x00\xe2\x80\xa8"), r"\xff\x1b\r\x00\u2028")
        self.assertEqual(len(text_of(b"x" * 5000)), 1003)


class CommandLineTests(CommandLineTestCase):
    """``--transcript``."""

    def test_file(self) -> None:
        """All listeners write to it immediately, without passwords."""
        process = self.smtpd(LOOPBACK, LOOPBACK, "--handler=sink", "--transcript=said.jsonl")
        for port in (process.port(), process.port()):
            client = self.connect(port)
            client.reply()
            client.say("NOOP hello")
            client.say(f"AUTH PLAIN {secrets.CANARY}")
        text = Path(self.folder, "said.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        self.assertEqual(len({line["session"] for line in lines}), 2)
        self.assertEqual(
            [line["line"] for line in lines if line["kind"] == "client"], ["NOOP hello", "AUTH PLAIN ********"] * 2
        )
        self.assertNotIn(secrets.CANARY, text)

    def test_refused(self) -> None:
        """The error for a file that cannot be written is one line and status 64."""
        self.assertOneLine(self.smtpd("--transcript=none/said.jsonl"), 64, "--transcript=none/said.jsonl: No such file")
        self.assertOneLine(self.smtpd(TXSMTPD_TRANSCRIPT="."), 64, "TXSMTPD_TRANSCRIPT=.: Is a directory")
