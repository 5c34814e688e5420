"""How the command line ends when it cannot do what it was told: one line on stderr, and a status of sysexits.h."""

from __future__ import annotations

import errno
import sys
from typing import Any, TextIO

from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from txsmtpd.log.printable import one_line

log = Logger(namespace="txsmtpd")

EX_USAGE = 64
EX_OSERR = 71


class Exit(SystemExit, Exception):
    """Ends the process with a status.

    An Exception too: only when it catches one does twistd remove its PID file, and tell the shell that waits for its
    daemon.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def complain(reason: str, file: TextIO | None = None) -> None:
    """Write one line to *file*, which is stderr by default."""
    # twistd has turned sys.stderr into a part of the log by the time that addresses are bound.
    print(f"smtpd: {one_line(reason)}", file=file or sys.__stderr__ or sys.stderr, flush=True)


def described(error: BaseException) -> str:
    """An exception's type and text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def cannot_listen(label: str, error: BaseException | None) -> Exit:
    """Say that an endpoint cannot be listened on, on stderr and in the log.

    :param label: the option that asks for it.
    :return: what to raise.
    """
    cause: Any = error.socketError if isinstance(error, CannotListenError) else error
    reason = f"{label}: cannot listen: {getattr(cause, 'strerror', None) or str(cause) or type(cause).__name__}"
    reason += _advice(cause, error.port if isinstance(error, CannotListenError) else None)
    log.error("{reason}", reason=reason)  # a daemon has no stderr
    complain(reason)
    return Exit(EX_OSERR, reason)


def _advice(cause: BaseException | None, port: object) -> str:
    """What helps."""
    if not isinstance(cause, OSError):
        return ""
    if cause.errno == errno.EADDRINUSE and isinstance(port, int):
        return f"; `ss -ltnp 'sport = :{port}'` tells by whom"
    if cause.errno in (errno.EACCES, errno.EPERM):
        if isinstance(port, int) and port < 1024:
            return (
                "; ports below 1024 need root, CAP_NET_BIND_SERVICE or a socket unit of systemd:"
                f" another, such as {8000 + port}, does not"
            )
        return "; who starts the server must be allowed to write to the folder" if isinstance(port, bytes) else ""
    if cause.errno == errno.EADDRNOTAVAIL:
        return "; this machine has no such address"
    return ""
