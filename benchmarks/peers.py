"""The servers that are compared, and the commands that start them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prepare import HERE, Tools
from scenarios import Scenario

Command = list[str | Path]


@dataclass(frozen=True)
class Peer:
    """A server: its name in the table, and a function that returns its command for a port, a scenario and a Maildir.
    The function returns None if the server does not support the scenario."""

    name: str
    title: str
    command: Callable[[Tools, int, Scenario, Path], Command | None]


def _options(tools: Tools, port: int, scenario: Scenario, maildir: Path) -> Command:
    options: Command = [f"--port={port}"]
    if scenario.tls:
        options += [f"--certificate={tools.certificate}", f"--key={tools.key}"]
    if scenario.lmtp:
        options += ["--lmtp"]
    if scenario.maildir:
        options += [f"--maildir={maildir}"]
    if not scenario.fsync:
        options += ["--no-fsync"]
    return options


def _python(script: str, *more: str) -> Callable[[Tools, int, Scenario, Path], Command | None]:
    def command(tools: Tools, port: int, scenario: Scenario, maildir: Path) -> Command:
        return [tools.python, HERE / "servers" / script, *_options(tools, port, scenario, maildir), *more]

    return command


def _node(tools: Tools, port: int, scenario: Scenario, maildir: Path) -> Command | None:
    if tools.node_modules is None or scenario.maildir:
        return None
    return ["node", HERE / "servers" / "node_server.js", *_options(tools, port, scenario, maildir)]


def _gosmtp(tools: Tools, port: int, scenario: Scenario, maildir: Path) -> Command | None:
    if tools.go_server is None or scenario.maildir:
        return None
    return [tools.go_server, *_options(tools, port, scenario, maildir)]


def _smtp_sink(tools: Tools, port: int, scenario: Scenario, maildir: Path) -> Command | None:
    if tools.smtp_sink is None or scenario.tls or scenario.maildir:
        return None
    options: Command = ["-L"] if scenario.lmtp else []
    if os.geteuid() == 0:  # the program refuses to run as root
        options += ["-u", "nobody"]
    return [tools.smtp_sink, "-4", *options, "-m", "20000", f"127.0.0.1:{port}", "1024"]


PEERS = [
    # First as users start it. Then without its log, to measure what that costs. Then in a program.
    Peer("txsmtpd", "txsmtpd, the command with its log", _python("txsmtpd_command.py")),
    Peer("quiet", "txsmtpd, the command without its log", _python("txsmtpd_command.py", "--", "--log-level=critical")),
    Peer("factory", "txsmtpd, SMTPFactory in a program", _python("txsmtpd_server.py")),
    Peer("aiosmtpd", "aiosmtpd", _python("aiosmtpd_server.py")),
    Peer("twisted.mail", "twisted.mail ESMTP", _python("twistedmail_server.py")),
    Peer("node", "Node smtp-server", _node),
    Peer("go-smtp", "go-smtp", _gosmtp),
    Peer("smtp-sink", "Postfix smtp-sink (C)", _smtp_sink),
    Peer("floor", "floor: a bare Twisted protocol", _python("floor_server.py")),
    Peer("floor-direct", "floor, replies sent at once", _python("floor_server.py", "--direct")),
]
