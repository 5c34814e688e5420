"""Options for more than one process."""

from __future__ import annotations

import os
import re
import sys

from twisted.python.usage import UsageError

from txsmtpd.log.printable import one_line
from txsmtpd.service.options.table import Chosen, Group, Option, refusing
from txsmtpd.service.options.values import seconds
from txsmtpd.service.workers.inheritance import Inherited

MOST = 256


def number_of_workers(text: str) -> int:
    """Parse the number of workers.

    >>> number_of_workers("4")
    4
    """
    if text == "auto":
        return os.cpu_count() or 1
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MOST:
        raise ValueError(f"must be a number from 1 to {MOST}, or auto for one per processor")
    return int(text)


OPTIONS = (
    Option(
        name="workers",
        metavar="N",
        help="Number of worker processes; auto starts one for each processor.",
        default="1",
        read=number_of_workers,
    ),
    Option(
        name="worker-timeout",
        metavar="TIME",
        help="Time without a heartbeat after which a worker is killed and replaced; 0 for never.",
        default="60s",
        read=seconds,
    ),
)


def read(chosen: Chosen) -> None:
    """Check the number, and reject options that processes cannot share."""
    chosen["workers"] = chosen.value("workers", 1)
    chosen["worker_timeout"] = chosen.value("worker-timeout", 60.0)
    chosen["shared_certificate"] = None
    if chosen["workers"] == 1:
        given = chosen.one("worker-timeout")
        if given is not None:
            raise UsageError(f"{given}: requires --workers")
        return
    given = chosen.one("workers")
    assert given is not None
    with refusing(given):
        if not hasattr(os, "memfd_create"):
            raise ValueError("this system has no memfd_create, which workers need; start several servers instead")
        handler = chosen.one("handler")
        name = "debugging" if handler is None else handler.text.partition(":")[0]
        if name == "inbox":
            raise ValueError("several processes cannot share an inbox")
        if name == "debugging" and sys.stdout is not None and sys.stdout.isatty():
            raise ValueError("the output of several processes would be mixed; choose another handler")
    for option in ("listen", "listen-tls", "listen-lmtp"):
        for each in chosen.all(option):
            wrapped = re.match(r"(haproxy|ssl|tls):", each.text)
            if wrapped is not None:
                raise UsageError(
                    f"{each}: an endpoint {wrapped[1]}: cannot be shared by --workers;"
                    " use --listen-tls for TLS, and --proxy-from for PROXY headers"
                )


def tell_master(worker: Inherited, reason: str) -> None:
    """Send the reason why this worker cannot start to the master, which logs it: nobody may read standard error."""
    os.write(worker.report, one_line(reason).encode())


GROUP = Group(title="Processes", options=OPTIONS, read=read)
