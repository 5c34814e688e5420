"""Lines of the log: their format, escapes, limited tracebacks, and the limit of one session."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from tests.support.effort import calls_of
from txsmtpd.log import events
from txsmtpd.log.events import EVENTS, Recipients, client_text
from txsmtpd.log.lines import LONGEST, PLACES, Lines, Tracebacks, continued
from txsmtpd.log.printable import one_line, printable
from txsmtpd.log.session import SessionLog
from txsmtpd.log.sinks import TWISTED
from txsmtpd.observe.http import PromptSite

FIELDS = {
    "sender": "a@example.com",
    "recipients": Recipients.of(["b@example.com"]),
    "octets": 12,
    "client": "192.0.2.7:4321",
    "reply": "250 2.0.0 OK",
}


def raised(text: str = "broken") -> ValueError:
    """An exception that is always raised at the same place."""
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


class LinesTestCase(SynchronousTestCase):
    """Collects lines."""

    def setUp(self) -> None:
        self.written: list[str] = []

    def lines(self, **options: Any) -> Lines:
        return Lines(self.written.append, now=lambda: 1_700_000_000.125, **options)

    def fields(self) -> dict[str, Any]:
        """The one line that was written, parsed as JSON."""
        [line] = self.written
        self.written.clear()
        found: dict[str, Any] = json.loads(line)
        return found


class TextTests(LinesTestCase):
    """The text format."""

    def test_event(self) -> None:
        """A line has the time with its time zone, the level, the session and the text."""
        self.lines().emit(events.MESSAGE, "s1", FIELDS)
        [line] = self.written
        time, level, rest = line.split(maxsplit=2)
        self.assertRegex(time, r"^2023-11-1[45]T\d\d:\d\d:\d\d\.125[+-]\d\d:\d\d$")
        self.assertEqual(level, "info")
        self.assertEqual(
            rest,
            "s1 message from <a@example.com> to <b@example.com>, 12 octets, client 192.0.2.7:4321: 250 2.0.0 OK\n",
        )

    def test_level(self) -> None:
        """Events below the level are not written."""
        lines = self.lines(level=events.WARN)
        lines.emit(events.MESSAGE, "s1", FIELDS)
        lines({"log_level": LogLevel.info, "log_format": "hello", "log_namespace": "txsmtpd"})
        self.assertEqual(self.written, [])

    def test_others(self) -> None:
        """Events of other software have its name. Those of this package have none."""
        for namespace, text in ("txsmtpd.relay", "hello"), ("twisted.web", "[twisted.web] hello"):
            self.lines()({"log_level": LogLevel.warn, "log_format": "hello", "log_namespace": namespace})
            self.assertEqual(self.written.pop()[29:], f" warn  {text}\n")

    def test_saidBetter(self) -> None:
        """Twisted's events about its ports and its reactor have level debug, because the server logs the same itself. A
        program's events of the same logger are logged unchanged, and so are warnings."""
        format_, said = (
            "{log_text}",
            [
                ("log_legacy", "SMTPFactory starting on 8025"),
                ("log_legacy", "SMTPFactory starting on '/run/smtp.sock'"),
                ("log_legacy", "(TCP Port 8025 Closed)"),
                ("twisted.application.runner._runner.Runner", "Starting reactor..."),
                ("twisted.internet.base", "Main loop terminated."),
            ],
        )
        for namespace, text in said:
            event = {"log_level": LogLevel.info, "log_format": format_, "log_text": text, "log_namespace": namespace}
            self.lines()(event)
            self.assertEqual(self.written, [])
            self.lines(level=events.DEBUG)(event)
            self.assertEqual(self.written.pop()[29:], f" debug [{namespace}] {text}\n")
            self.lines()({**event, "log_level": LogLevel.warn})
            self.assertEqual(self.written.pop()[29:], f" warn  [{namespace}] {text}\n")
            self.lines()({**event, "log_text": f"my {text}"})
            self.assertEqual(self.written.pop()[29:], f" info  [{namespace}] my {text}\n")

    def test_idleBrowser(self) -> None:
        """A connection of HTTP that ends because it is idle is logged with level debug: each browser has some."""
        debug = self.lines(level=events.DEBUG)
        for written in [], [" debug Timing out client: "]:
            clock = Clock()
            site = PromptSite(Resource(), timeout=60, reactor=clock)
            protocol, transport = site.buildProtocol(None), StringTransport()
            protocol.makeConnection(transport)
            observer = debug if written else self.lines()
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)
            clock.advance(60)
            self.assertTrue(transport.disconnecting)
            self.assertEqual([line[29:55] for line in self.written], written)

    def test_longText(self) -> None:
        """The length of a line is limited."""
        self.lines().emit(events.MESSAGE, "s1", {**FIELDS, "reply": "x" * 100_000})
        self.assertLess(len(self.written[0]), LONGEST + 60)

    @given(st.text())
    def test_forged(self, text: str) -> None:
        """Whatever a client sends, the result is one printable line."""
        self.written.clear()
        self.lines().emit(events.REFUSED, "s1", {"command": text, "client": "c", "transaction": "", "reply": text})
        [line] = "".join(self.written).rstrip("\n").split("\n")[:1]
        self.assertTrue(line.isprintable())
        for other in "".join(self.written).splitlines()[1:]:
            self.assertTrue(other.startswith("    | ") and other.isprintable(), other)

    def test_invisible(self) -> None:
        """Marks that change the direction of text, separators of lines and escape sequences are escaped."""
        self.lines().emit(events.FOLDED, "s1", {"replies": "\u202eabc\u2028\x1b[2J\x9b\ud800"})
        text = "".join(self.written)
        for each in "\\u202e", "\\x1b[2J", "\\x9b", "\\ud800":
            self.assertIn(each, text)
        self.assertTrue(all(line.isprintable() for line in text.splitlines()))


class JSONTests(LinesTestCase):
    """The JSON format."""

    def test_event(self) -> None:
        """An event is an object with its name and fields."""
        self.lines(as_json=True).emit(events.MESSAGE, "s1", FIELDS)
        found = self.fields()
        self.assertRegex(found.pop("time"), r"\.125[+-]\d\d:\d\d$")
        self.assertEqual(
            found,
            {
                "level": "info",
                "event": "message",
                "session": "s1",
                "sender": "a@example.com",
                "recipients": ["b@example.com"],
                "octets": 12,
                "client": "192.0.2.7:4321",
                "reply": "250 2.0.0 OK",
            },
        )

    def test_failure(self) -> None:
        """An exception is a field, and its traceback is another one."""
        self.lines(as_json=True).emit(events.FAILED, "s1", {"where": "handle_DATA", "why": ""}, raised())
        found = self.fields()
        self.assertEqual(found["error"], "ValueError: broken")
        self.assertIn("in raised", found["traceback"])

    def test_others(self) -> None:
        """Events of other software have the event "log"."""
        self.lines(as_json=True)({"log_level": LogLevel.warn, "log_format": "a {b}", "b": 1, "log_namespace": "x"})
        found = self.fields()
        self.assertEqual((found["event"], found["source"], found["text"]), ("log", "x", "a 1"))

    def test_lost(self) -> None:
        """So do events about lost lines."""
        found = json.loads(self.lines(as_json=True).lost(3, "No space left on device"))
        self.assertEqual((found["event"], found["count"], found["level"]), ("lost", 3, "error"))

    @given(st.text())
    def test_ascii(self, text: str) -> None:
        """A line is ASCII, whatever it contains."""
        self.written.clear()
        self.lines(as_json=True).emit(events.FOLDED, "s1", {"replies": text})
        [line] = self.written
        self.assertTrue(line.isascii() and line.count("\n") == 1 and line[:-1].isprintable())
        self.assertEqual(json.loads(line)["replies"], text)


class TracebackTests(LinesTestCase):
    """Tracebacks."""

    def test_once(self) -> None:
        """A place that raises repeatedly logs its traceback once, and then one line. Later the number is logged."""
        now = 0.0
        tracebacks = Tracebacks(lambda: now)
        self.assertIn("ValueError: broken", tracebacks.of(raised()) or "")
        for _ in range(3):
            self.assertIs(tracebacks.of(raised("other text")), None)
        now = 61.0
        self.assertIn("(3 more like this were not shown)", tracebacks.of(raised()) or "")

    def test_places(self) -> None:
        """Two places, and two types, have separate tracebacks. The number of remembered places is limited."""
        tracebacks = Tracebacks(lambda: 0.0)
        self.assertIsNot(tracebacks.of(raised()), None)
        self.assertIsNot(tracebacks.of(KeyError("never raised")), None)
        for number in range(2 * PLACES):
            tracebacks.of(type(f"E{number}", (Exception,), {})())
        self.assertEqual(len(tracebacks._places), PLACES)

    def test_inText(self) -> None:
        """In text, the lines of a traceback are marked as continuations, and escaped."""
        self.lines().emit(events.FAILED, "s1", {"where": "handle_DATA", "why": ""}, raised("\x1b[2J"))
        first, *others = "".join(self.written).splitlines()
        self.assertTrue(first.endswith("s1 handle_DATA failed: ValueError: \\x1b[2J"), first)
        self.assertGreater(len(others), 2)
        for line in others:
            self.assertTrue(line.startswith("    | ") and line.isprintable())

    def test_failures(self) -> None:
        """A failure of twisted.logger is handled in the same way."""
        lines = self.lines()
        globalLogPublisher.addObserver(lines)
        self.addCleanup(globalLogPublisher.removeObserver, lines)
        for _ in range(2):
            try:
                raise ValueError("broken")
            except ValueError:
                Logger(namespace="txsmtpd").failure("it failed")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        ours = [each for each in self.written if "it failed: ValueError: broken" in each]
        self.assertEqual([len(each.splitlines()) > 1 for each in ours], [True, False])

    def test_certificates(self) -> None:
        """An invalid certificate of a peer is a warning without traceback; Twisted logs it as an exception."""
        lines = self.lines()
        globalLogPublisher.addObserver(lines)
        self.addCleanup(globalLogPublisher.removeObserver, lines)
        try:
            raise ValueError("it has no names")
        except ValueError:
            Logger(namespace="twisted.internet._sslverify").failure("while verifying certificate")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        (line,) = self.written
        self.assertIn(" warn  [twisted.internet._sslverify] while verifying certificate: ValueError: it has no", line)
        self.assertEqual(line.count("\n"), 1)

    def test_strange(self) -> None:
        """An exception whose text is not available is still logged."""

        class Strange(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        self.lines().emit(events.FAILED, "s1", {"where": "x", "why": ""}, Strange())
        self.assertIn("Strange: (its text is not available)", self.written[0])


class Collecting:
    """A sink."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: Any, session: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        self.events.append((event.name, fields))


class BudgetTests(SynchronousTestCase):
    """The limit of one session."""

    def setUp(self) -> None:
        self.sink = Collecting()
        self.time = 1000.0
        self.log = SessionLog(self.sink, "s1", 10, lambda: self.time)

    def refuse(self, times: int) -> int:
        """Log this number of refusals, and return how many were written."""
        before = len(self.sink.events)
        for _ in range(times):
            self.log(events.REFUSED, command="RCPT", client="c", transaction="", reply="550 No")
        return len(self.sink.events) - before

    def test_bound(self) -> None:
        """Lines beyond the limit are counted, and their number is logged once, at the end of the session."""
        self.assertEqual(self.refuse(5000), 10)
        self.log.failure(events.FAILED, raised(), where="x", why="")
        self.log.close(("192.0.2.7", 1))
        self.log.close(("192.0.2.7", 1))
        self.assertEqual(self.sink.events[10:], [("left-out", {"count": 4991, "client": "192.0.2.7:1"})])

    def test_refilled(self) -> None:
        """A minute later, the same number may be logged again, and never more."""
        self.refuse(20)
        self.time += 6
        self.assertEqual(self.refuse(20), 1)
        self.time += 6000
        self.assertEqual(self.refuse(20), 10)

    def test_messages(self) -> None:
        """Accepted messages are always logged."""
        self.refuse(20)
        self.log(events.MESSAGE, **FIELDS)
        self.assertEqual(self.sink.events[-1][0], "message")

    def test_quiet(self) -> None:
        """A session within the limit logs nothing about it at its end."""
        self.assertEqual(self.refuse(10), 10)
        self.log.close("c")
        self.assertEqual(len(self.sink.events), 10)

    def test_noLimit(self) -> None:
        """None means no limit."""
        self.log = SessionLog(self.sink, "s1", None)
        self.assertEqual(self.refuse(1000), 1000)


class TwistedSinkTests(SynchronousTestCase):
    """Events of twisted.logger."""

    def test_event(self) -> None:
        """A program's observer gets the name and the fields of an event, and the failure."""
        found: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(found.append)
        self.addCleanup(globalLogPublisher.removeObserver, found.append)
        TWISTED.emit(events.MESSAGE, "s1", FIELDS)
        error = raised()
        TWISTED.emit(events.FAILED, "s1", {"where": "handle_DATA", "why": ""}, error)
        message, failure = found
        self.assertEqual((message["event"], message["session"], message["octets"]), ("message", "s1", 12))
        self.assertEqual(message["recipients"], "<b@example.com>")
        self.assertIs(message["log_level"], LogLevel.info)
        self.assertIs(failure["log_failure"].value, error)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_printable(self) -> None:
        """Values from a client are printable in each field."""
        found: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(found.append)
        self.addCleanup(globalLogPublisher.removeObserver, found.append)
        fields = {**FIELDS, "sender": "\u202ea", "recipients": Recipients.of(["\x1bb"])}
        TWISTED.emit(events.MESSAGE, "s1", fields)
        self.assertEqual((found[0]["sender"], found[0]["recipients"]), ("\\u202ea", "<\\x1bb>"))


class EventTests(SynchronousTestCase):
    """The events themselves."""

    def test_template(self) -> None:
        """Each event has the same text in the lines of the command line and in twisted.logger."""
        for event in EVENTS:
            fields = {name: f"<{name} %s {{}}>" for name in event.fields}
            self.assertEqual(event.template % fields, event.text.format(**fields), event.name)

    def test_percent(self) -> None:
        """A percent sign in a text is kept."""
        event = events.Event("busy", events.INFO, "{share} % busy")
        self.assertEqual(event.template % {"share": 80}, "80 % busy")

    def test_cost(self) -> None:
        """The line of an accepted message takes few calls, because most sessions have one."""
        log = SessionLog(Lines([].append), "s1")
        fields = {**FIELDS, "recipients": Recipients.of(["b@example.com"])}
        log(events.MESSAGE, **fields)  # formats the text of the timestamp's second
        self.assertLess(calls_of(lambda: log(events.MESSAGE, **fields)), 8)


class ValueTests(SynchronousTestCase):
    """The values of fields."""

    def test_recipients(self) -> None:
        """Many recipients are shortened in a text. A field has more of them, and their total number."""
        many = Recipients.of([f"u{number}" for number in range(500)])
        self.assertEqual(len(many), 100)
        self.assertTrue(str(many).endswith("<u9> and 490 more"), str(many))
        self.assertEqual(f"{Recipients.of(['a', 'b'])}", "<a>, <b>")

    def test_clients(self) -> None:
        """Addresses have their usual form."""
        for peer, text in [
            (("192.0.2.7", 25), "192.0.2.7:25"),
            (("2001:db8::1", 25, 0, 0), "[2001:db8::1]:25"),
            ("/run/smtp.sock", "/run/smtp.sock"),
            ("", "this host"),
            (None, "this host"),
        ]:
            self.assertEqual(client_text(peer), text)

    def test_names(self) -> None:
        """Names of events are unique, except that refusals have variants with different fields."""
        names = [event.name for event in EVENTS if event.name != "refused"]
        self.assertEqual(len(set(names)), len(names))

    @given(st.text())
    def test_printable(self, text: str) -> None:
        """No unprintable characters are left. Printable text is unchanged."""
        self.assertTrue(printable(text).isprintable())
        self.assertTrue(one_line(text).isprintable())
        self.assertTrue(not text.isprintable() or printable(text) == text)
        self.assertTrue(all(line.isprintable() for line in continued([text]).splitlines()))


class CostTests(LinesTestCase):
    """The cost of the log for a message."""

    def test_calls(self) -> None:
        """The line of a message takes about twenty calls. With twisted.logger, it would be about two hundred."""

        def calls(log: SessionLog) -> int:
            counted = 0

            def count(frame: Any, event: str, argument: Any) -> None:
                nonlocal counted
                counted += event == "call"

            gc.disable()  # finalizers of other objects must not be counted
            sys.setprofile(count)
            try:
                log(events.MESSAGE, **FIELDS)
            finally:
                sys.setprofile(None)
                gc.enable()
            return counted

        self.assertLess(min(calls(SessionLog(self.lines(), "s1")) for _ in range(3)), 20)
