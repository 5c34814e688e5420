"""Makes the master and the command of its workers from the options of the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from txsmtpd.service.exit_status import stop_with
from txsmtpd.service.workers.inheritance import Inheritance
from txsmtpd.service.workers.master import Master
from txsmtpd.service.workers.sockets import KeptSocket

log = Logger(namespace="txsmtpd")


def make_master(options: Any, endpoints: Sequence[tuple[str, Any]]) -> Master:
    """Return the master.

    :param options: those of the command line.
    :param endpoints: where to listen, each with its label.
    """
    if options["faults"] is not None:
        log.info("each worker counts faults separately: first=2 means two for each worker")
    return Master(
        options["workers"],
        [KeptSocket(label, endpoint) for label, endpoint in endpoints],
        command_words(options),
        Inheritance(options["shared_certificate"]),
        grace=options["grace"],
        silence=options["worker_timeout"],
        logs=options["log_plan"] is None,
        end_process=stop_with,
    )


def command_words(options: Any) -> list[str]:
    """Return the command that starts a worker: the program of this process, with the same options."""
    launcher: Any = options.parent or {}
    words = [sys.executable, "-m", "twisted"]
    reactor = launcher.get("reactorName") or launcher.get("reactor")
    if isinstance(reactor, str) and reactor != "default":
        words.append(f"--reactor={reactor}")
    words += ["smtpd", *options["words"]]
    if options["log_plan"] is None:  # under twistd, whose log receives the output of workers
        return [*words, "--log-file=+"]
    path, as_json, level = options["log_plan"]
    return [*words, f"--log-file={path}", f"--log-format={'json' if as_json else 'text'}", f"--log-level={level}"]
