"""The log of the command line: a line for each event, as text or JSON.

It takes the events of sessions, and :mod:`twisted.logger` events from everything else. Unprintable characters are
always escaped. Tracebacks are rate-limited for each place that raises.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from twisted.logger import ILogObserver, formatEvent
from zope.interface import implementer

from txsmtpd.log.events import DEBUG, INFO, LEVEL_NAMES, LEVELS, Event
from txsmtpd.log.printable import printable

LONGEST = 4000  # characters of a text
INTERVAL = 60.0  # seconds in which each place's traceback is logged once
PLACES = 200  # places to remember
FRAMES = 100  # of a traceback
CONTINUED = "    | "

_MILLISECONDS = [f".{number:03d}" for number in range(1000)]
_encoded = json.JSONEncoder(default=str).encode

# Twisted's events about ports, the reactor and idle HTTP clients, by logger namespace. The server itself logs where it
# listens and when it stops, and each browser is idle at some time, so these are logged with level debug.
_SAID_BETTER = {
    "log_legacy": re.compile(r"\S+ starting on (\d+|[bu]?'.*')|\(\w+ Port \S+ Closed\)"),
    "twisted.application.runner._runner.Runner": re.compile(r"Starting reactor\.\.\."),
    "twisted.internet.base": re.compile(r"Main loop terminated\."),
    "txsmtpd.observe.http.PromptChannel": re.compile(r"(Forcibly t|T)iming out client: .*"),
}

# Loggers of Twisted for exceptions that the other side's certificate has caused. Their tracebacks are not useful.
_OF_PEERS = {"twisted.internet._sslverify"}


@implementer(ILogObserver)
class Lines:
    """Formats events as lines.

    :param write: called with each line.
    :param as_json: whether lines are JSON objects.
    :param level: the lowest level to log.
    :param now: returns the time in seconds since 1970.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        as_json: bool = False,
        level: int = INFO,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.level = level
        self._write = write
        self._line = _line_of_json if as_json else _line_of_text
        self._now = now
        self._second = -1  # the second whose time is formatted in the next two attributes
        self._before = self._after = ""  # the text before the milliseconds, and the text after them
        self._tracebacks = Tracebacks()

    def emit(
        self,
        event: Event,
        session: str | None,
        fields: dict[str, Any],
        error: BaseException | None = None,
        secret: bool = False,
    ) -> None:
        """Log an event; see :class:`~txsmtpd.log.session.Sink`."""
        if event.level < self.level:
            return
        level = LEVEL_NAMES[event.level]
        if error is None:
            self._write(self._line(self._time(), level, event.name, event.template, session, fields, None))
        else:
            template = f"{event.template}: %(error)s"
            shown = self._tracebacks.of(error, partial(_without_text, error) if secret else None)
            named_error = f"{type(error).__qualname__}, whose text may hold a secret" if secret else named(error)
            fields = {**fields, "error": named_error}
            self._write(self._line(self._time(), level, event.name, template, session, fields, shown))

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Log a :mod:`twisted.logger` event."""
        level = getattr(event.get("log_level"), "name", "info")
        if LEVELS.get(level, INFO) < self.level:
            return
        source = str(event.get("log_namespace") or "-")
        text = formatEvent(event)  # type: ignore[arg-type]  # Twisted's LogEvent is a dict of any values
        if (said := _SAID_BETTER.get(source)) and level == "info" and said.fullmatch(text):
            if self.level > DEBUG:
                return
            level = "debug"
        fields = {"source": source, "text": text}
        template = "%(text)s" if source.partition(".")[0] == "txsmtpd" else "[%(source)s] %(text)s"
        failure: Any = event.get("log_failure")
        error = getattr(failure, "value", None)
        shown = None
        if isinstance(error, BaseException):
            if source in _OF_PEERS:
                level = "warn"
            else:
                shown = self._tracebacks.of(error, failure.getTraceback)
            fields["error"] = named(error)
            template += ": %(error)s" if fields["text"] else "%(error)s"
        self._write(self._line(self._time(), level, "log", template, None, fields, shown))

    def lost(self, count: int, reason: str) -> str:
        """Return the line that reports lines that could not be written."""
        fields = {"count": count, "reason": reason}
        template = "%(count)s lines of the log were lost: %(reason)s"
        return self._line(self._time(), "error", "lost", template, None, fields, None)

    def _time(self) -> str:
        now = self._now()
        second = int(now)
        if second != self._second:
            text = datetime.fromtimestamp(second).astimezone().isoformat(timespec="seconds")
            self._before, self._after = text[:19], text[19:]
            self._second = second
        return f"{self._before}{_MILLISECONDS[int((now - second) * 1000)]}{self._after}"


def _line_of_text(
    time: str, level: str, name: str, template: str, session: str | None, fields: dict[str, Any], trace: str | None
) -> str:
    text = template % fields
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    line = f"{time} {level:<5} {text}" if session is None else f"{time} {level:<5} {session} {text}"
    if trace is None and line.isprintable():
        return line + "\n"
    first, *others = line.splitlines()
    return f"{printable(first)}\n{continued(others)}{'' if trace is None else continued(trace.splitlines())}"


def _line_of_json(
    time: str, level: str, name: str, template: str, session: str | None, fields: dict[str, Any], trace: str | None
) -> str:
    line: dict[str, Any] = {"time": time, "level": level, "event": name}
    if session is not None:
        line["session"] = session
    line.update(fields)
    if trace is not None:
        line["traceback"] = trace
    return _encoded(line) + "\n"


class Tracebacks:
    """Selects the tracebacks to log: the first of each place, and then one per interval."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._places: dict[tuple[Any, ...], tuple[float, int]] = {}  # when last shown, and how often omitted since

    def of(self, error: BaseException, full: Callable[[], str] | None = None) -> str | None:
        """Return the traceback of an exception, or None if the same was logged recently.

        :param full: returns the text.
        """
        place = _place_of(error)
        now = self._now()
        shown, missed = self._places.pop(place, (now - INTERVAL, 0))
        if now - shown < INTERVAL:
            self._places[place] = shown, missed + 1
            return None
        while len(self._places) >= PLACES:
            del self._places[next(iter(self._places))]
        self._places[place] = now, 0
        text = full() if full is not None else "".join(traceback.format_exception(error, limit=-FRAMES))
        return f"{text.rstrip()}\n({missed} more like this were not shown)" if missed else text.rstrip()


def _place_of(error: BaseException) -> tuple[Any, ...]:
    """Return what identifies where it was raised: the type, and the innermost line of code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def named(error: BaseException) -> str:
    """Format an exception in one line: its type and text."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its text is not available)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _without_text(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__))


def continued(lines: Iterable[str]) -> str:
    """Mark lines as continuation lines."""
    return "".join(f"{CONTINUED}{printable(line)}\n" for line in lines)
