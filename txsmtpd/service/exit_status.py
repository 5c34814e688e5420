"""Errors of the command line: one line on standard error, and an exit status from sysexits.h."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger

from txsmtpd.log.printable import one_line

log = Logger(namespace="txsmtpd")

EX_USAGE = 64
EX_OSERR = 71

COMMAND = "smtpd"  # the subcommand of twist and twistd
_command = COMMAND


class Exit(SystemExit, Exception):
    """Ends the process with an exit status.

    It is also an Exception, because twistd removes its PID file and reports the failure of its daemon to the shell only
    if it catches an Exception.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def name_command(name: str) -> None:
    """Set the name at the beginning of each line: that of the command that the user has typed."""
    global _command
    _command = name


def command_name() -> str:
    """Return the name at the beginning of each line."""
    return _command


def complain(reason: str, file: TextIO | None = None) -> None:
    """Write one line to *file*. Default: standard error."""
    # When addresses are bound, twistd has already redirected sys.stderr to the log.
    print(f"{_command}: {one_line(reason)}", file=file or sys.__stderr__ or sys.stderr, flush=True)


def stop_with(reactor: Any, status: int) -> None:
    """Stop the reactor, then end the process with this exit status, without the work that Python does at its exit."""
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, status)
    with suppress(ReactorNotRunning):
        reactor.stop()


def described(error: BaseException) -> str:
    """Return the type and the text of an exception."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def cannot_listen(label: str, error: BaseException | None) -> Exit:
    """Report on standard error and in the log that the server cannot listen on an endpoint.

    :param label: the name of the endpoint, such as ``--listen=tcp:25``.
    :return: the exception to raise.
    """
    cause: Any = error.socketError if isinstance(error, CannotListenError) else error
    reason = f"{label}: cannot listen: {getattr(cause, 'strerror', None) or str(cause) or type(cause).__name__}"
    reason += _advice(cause, error.port if isinstance(error, CannotListenError) else None)
    log.error("{reason}", reason=reason)  # a daemon has no standard error
    complain(reason)
    return Exit(EX_OSERR, reason)


def _advice(cause: BaseException | None, port: object) -> str:
    """Return what to do about the error, as the end of the line."""
    if not isinstance(cause, OSError):
        return ""
    if cause.errno == errno.EADDRINUSE and isinstance(port, int):
        return f"; `ss -ltnp 'sport = :{port}'` shows the process"
    if cause.errno in (errno.EACCES, errno.EPERM):
        if isinstance(port, int) and port < 1024:
            return (
                "; ports below 1024 require root, CAP_NET_BIND_SERVICE or a systemd socket unit:"
                f" another, such as {8000 + port}, does not"
            )
        return "; the user of the server needs write permission for the folder" if isinstance(port, bytes) else ""
    if cause.errno == errno.EADDRNOTAVAIL:
        return "; this machine has no such address"
    return ""
