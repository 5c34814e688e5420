"""The program that the workers of a :class:`~txsmtpd.service.workers.service.WorkerService` run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.logger import Logger, globalLogBeginner

from txsmtpd.bridges.monotonic import use_monotonic_clock
from txsmtpd.bridges.reactors import has_asyncio_reactor
from txsmtpd.factory import SMTPFactory
from txsmtpd.observe.health import Health
from txsmtpd.service.command_log import CommandLog
from txsmtpd.service.exit_status import EX_USAGE, complain, described
from txsmtpd.service.listening import SMTPService
from txsmtpd.service.monitoring import Server
from txsmtpd.service.signals import Signals
from txsmtpd.service.workers.callables import make_factory
from txsmtpd.service.workers.inheritance import FIRST, Inherited, inherited
from txsmtpd.service.workers.service import counters_of, total_of
from txsmtpd.service.workers.sockets import InheritedSocket
from txsmtpd.service.workers.worker import Link

log = Logger(namespace="txsmtpd")


def main(words: Sequence[str]) -> None:
    """Serve until the master stops this process.

    :param words: the reactor's module, the reference of the callable, the grace period in seconds, and the seconds
        without a heartbeat after which the master aborts this process.
    """
    module, reference, grace, silence = words
    install = getattr(import_module(module), "install", None)
    if install is not None:
        install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    use_monotonic_clock(reactor)
    found = inherited()
    if found is None:
        complain("this program must be started by a WorkerService")
        sys.exit(EX_USAGE)
    lines = CommandLog.open()
    globalLogBeginner.beginLoggingTo([lines.lines], redirectStandardIO=False)
    options = {"log": lines.lines, "log_messages": True, "asyncio": has_asyncio_reactor()}
    try:
        factories = [make_factory(reference, **options) for _ in range(found.sockets)]
        if len({*map(id, factories)}) < len(factories):
            raise ValueError("it returned the same factory for two endpoints; make one each time")
    except (Exception, SystemExit) as error:
        log.failure("{callable} failed", callable=reference)
        lines.close()
        complain(f"{reference}: {described(error)}")
        sys.exit(EX_USAGE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the master tells the workers
    service = _service(found, factories, lines, float(grace), float(silence))
    reactor.addSystemEventTrigger("after", "shutdown", lines.close)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    lines.take_standard_streams()
    reactor.run()


def _service(
    found: Inherited, factories: Sequence[SMTPFactory], lines: CommandLog, grace: float, silence: float
) -> Server:
    from twisted.internet import reactor

    listeners = [
        SMTPService(InheritedSocket(reactor, FIRST + index), factory, grace) for index, factory in enumerate(factories)
    ]
    all_counters = counters_of(factories)

    def hurry() -> None:
        for each in factories:
            each.abort()

    def late(seconds: float) -> None:
        for each in all_counters:
            each.observe("reactor_lag_seconds", seconds)
        for factory in factories:
            factory.reactor_late(seconds)

    health = Health(*listeners)
    before = MultiService()
    before.addService(
        Link(
            found,
            listeners,
            snapshot=partial(total_of, all_counters) if all_counters else None,
            problems=health.problems,
            hurry=hurry,
            grace=grace,
            silence=silence,
        )
    )
    for handler in {id(each.handler): each.handler for each in factories}.values():
        if IService.providedBy(handler):
            before.addService(handler)
    server = Server(health, grace=grace, before=before, late=late, log=lines.lines)
    for each in listeners:
        each.setServiceParent(server)
    Signals(reload=(), hurry=hurry, grace=grace, flush=lines.close, ends=("SIGTERM",)).setServiceParent(server)
    return server


if __name__ == "__main__":
    main(sys.argv[1:])
