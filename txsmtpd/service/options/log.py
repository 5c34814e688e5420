"""Options of the log: destination, format and level."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from twisted.logger import LogLevel
from twisted.python.usage import UsageError

from txsmtpd.log.events import INFO, LEVELS
from txsmtpd.service.command_log import CommandLog
from txsmtpd.service.options.table import Chosen, Group, Option, refusing
from txsmtpd.service.options.values import count, name, or_none

FORMATS = ("text", "json")


def level_of(value: str) -> str:
    """Parse the name of a level."""
    level = {"warning": "warn"}.get(value.lower(), value.lower())
    if level not in LEVELS:
        raise ValueError(f"must be one of {', '.join(LEVELS)}")
    return level


def format_of(value: str) -> str:
    """Parse the name of a format."""
    if value.lower() not in FORMATS:
        raise ValueError("must be text, for people, or json, for programs")
    return value.lower()


OPTIONS = (
    Option(
        name="log-file",
        metavar="FILE",
        help="Append the log to this file; - is standard output.",
        default="standard error",
        read=name,
    ),
    Option(
        name="log-format",
        metavar="FORMAT",
        help="text, or json (one object per line).",
        default="text",
        read=format_of,
    ),
    Option(
        name="log-limit",
        metavar="N",
        help="Log lines of one connection, at once and in each further minute.",
        setting="log_limit",
        read=or_none(count),
    ),
    Option(
        name="log-level",
        metavar="LEVEL",
        help=f"The lowest level that is logged: {', '.join(LEVELS)}; debug shows the dialogue.",
        default="info",
        read=level_of,
    ),
)


def read(chosen: Chosen) -> None:
    """Check the options, and reject those that conflict with options of the launcher."""
    launcher: Any = chosen.parent or {}
    level = chosen.value("log-level") or launcher.get("logLevel", LogLevel.info).name
    # The server does not compose lines that would not be logged.
    chosen.settings["log_dialogue"] = level == "debug"
    chosen.settings["log_messages"] = LEVELS[level] <= INFO
    if chosen.parent is not None and "fileLogObserverFactory" not in launcher:  # twistd
        for option in (each for each in OPTIONS if each.setting is None):
            given = chosen.one(option.name)
            if given is not None:
                raise UsageError(f"{given}: twistd has a log of its own; see twistd --help, or start it by txsmtpd")
        chosen["log_plan"] = None
        return
    chosen["log_plan"] = (
        chosen.value("log-file") or _file_of_twist(launcher),
        (chosen.value("log-format") or _format_of_twist(launcher)) == "json",
        level,
    )


def finish(chosen: Chosen) -> None:
    """Open the log, and make twist use it instead of a log of its own."""
    chosen["log"] = None
    launcher: Any = chosen.parent
    if chosen["log_plan"] is None or launcher is None:
        return
    path, as_json, level = chosen["log_plan"]
    given = chosen.one("log-file")
    try:
        log = CommandLog.open(path, as_json=as_json, level=LEVELS[level])
    except OSError as error:
        if given is None:
            raise
        with refusing(given):
            raise ValueError(error.strerror) from error
    chosen["log"] = log
    chosen.settings["log"] = log.lines
    launcher["fileLogObserverFactory"] = lambda stream: log.lines
    launcher["logLevel"] = LogLevel.levelWithName(level)
    from twisted.internet import reactor

    chosen["reopen"].append(log.reopen)
    reactor.addSystemEventTrigger("after", "shutdown", log.close)
    reactor.callWhenRunning(log.take_standard_streams)


def _file_of_twist(launcher: Any) -> str:
    stream = launcher.get("logFile")
    if stream in (None, sys.stdout, sys.__stdout__) and not _twist_was_told("--log-file", sys.argv):
        return "+"
    if stream in (sys.stdout, sys.__stdout__):
        return "-"
    return "+" if stream in (sys.stderr, sys.__stderr__) else str(stream.name)


def _format_of_twist(launcher: Any) -> str:
    # Ignore twist's own default, which is JSON if the log is not a terminal.
    return str(launcher.get("logFormat")) if _twist_was_told("--log-format", sys.argv) else "text"


def _twist_was_told(option: str, words: Sequence[str]) -> bool:
    """Return True if *words* has this option before the subcommand. Twist itself does not record that."""
    before = words[: words.index("smtpd")] if "smtpd" in words else ()
    return any(word.partition("=")[0] == option for word in before)


GROUP = Group(title="Log", options=OPTIONS, read=read, finish=finish)
