"""``run``: runs a server as a complete program."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from twisted.application.service import IService
from twisted.logger import globalLogBeginner

from txsmtpd.bridges.reactors import has_asyncio_reactor
from txsmtpd.engine.notices import useless_auth
from txsmtpd.factory import SMTPFactory
from txsmtpd.service.command_log import CommandLog
from txsmtpd.service.endpoints import make_endpoint, provides_tls
from txsmtpd.service.exit_status import name_command, stop_with
from txsmtpd.service.listening import GRACE
from txsmtpd.service.reactor_watch import ReactorWatch, WatchService
from txsmtpd.service.server import Listener
from txsmtpd.service.signals import Signals
from txsmtpd.service.welcome import Welcome
from txsmtpd.typed import FactoryOptions

LOCAL = "tcp:8025:interface=127.0.0.1"


def run(
    handler: object,
    *endpoints: str,
    grace: float = GRACE,
    workers: int = 1,
    **options: Unpack[FactoryOptions],
) -> None:
    """Serve until SIGTERM or Ctrl-C, with a log on standard error.

    ::

        txsmtpd.run(Printer(), "tcp:8025")

    :param handler: the object whose hooks decide; see :mod:`txsmtpd.interfaces`.
    :param endpoints: where to listen: ``"localhost:1025"``, or Twisted's endpoint descriptions such as ``"tcp:25"``.
        Default: port 8025 of this machine only.
    :param grace: maximum time in seconds for open transactions to finish when the program is stopped.
    :param workers: the number of processes. With more than one, *handler* is a string ``"module:callable"``, which each
        process calls to make the handler or the :class:`~txsmtpd.factory.SMTPFactory`, and *options* must be empty: see
        :class:`~txsmtpd.service.WorkerService`. SIGHUP replaces all processes.
    :param options: those of :class:`~txsmtpd.factory.SMTPFactory`.
    :raises TypeError: for an unknown option, one of a wrong type, or an object that is not a handler.
    :raises ValueError: for an option with an invalid value, or an invalid endpoint.
    :raises SystemExit: with status 71, after one line on standard error, if an endpoint cannot be listened on.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    for name in ("port", "host", "interface", "endpoint"):
        if name in options:
            raise TypeError(f'unknown option {name!r}; give an endpoint, as in run(handler, "localhost:8025")')
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            raise TypeError(f'an endpoint is a string such as "tcp:8025", not {endpoint!r}')
    if workers != 1:
        _run_workers(reactor, handler, endpoints or (LOCAL,), workers, grace, options)
        return
    log = CommandLog.open()
    chosen: dict[str, Any] = {"log": log.lines, "log_messages": True, "asyncio": has_asyncio_reactor(), **options}
    listeners = []
    for endpoint in endpoints or (LOCAL,):
        factory = SMTPFactory(handler, **chosen)
        for warning in useless_auth(factory.settings, provides_tls(endpoint)):
            warnings.warn(warning, stacklevel=2)
        listeners.append(Listener(endpoint, make_endpoint(endpoint), factory, grace))

    def hurry() -> None:
        for each in listeners:
            each.factory.abort()

    def late(seconds: float) -> None:
        for each in listeners:
            each.factory.reactor_late(seconds)

    watch = WatchService(ReactorWatch(late, log.lines), reactor)
    services: list[Any] = [*listeners, watch, Signals(reload=(), hurry=hurry, grace=grace, flush=log.close)]
    if log.on_terminal:
        services.append(Welcome(listeners, type(handler).__name__, log.writer.write))
    _serve(reactor, log, services)


def _run_workers(
    reactor: Any, factory: Any, endpoints: Sequence[str], workers: int, grace: float, options: Mapping[str, Any]
) -> None:
    if options:
        raise TypeError(
            f"with workers, each process makes its own factory: give {', '.join(sorted(options))} to the SMTPFactory"
            " that the callable returns"
        )
    from txsmtpd.service.workers.service import WorkerService

    server = WorkerService(factory, *endpoints, workers=workers, grace=grace, logs=False, end_process=stop_with)
    log = CommandLog.open()
    signals = Signals(reload=[server.reload], hurry=server.hurry, grace=grace + 1, flush=log.close)
    _serve(reactor, log, [signals, server])


def _serve(reactor: Any, log: CommandLog, services: Sequence[IService]) -> None:
    """Run the reactor with these services until it stops."""
    name_command("txsmtpd")
    reactor.addSystemEventTrigger("after", "shutdown", log.close)
    try:
        for service in services:
            service.startService()
            reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
        # The log begins here, with the events so far. A service that cannot start writes the reason to standard error.
        globalLogBeginner.beginLoggingTo([log.lines], redirectStandardIO=False)
        log.take_standard_streams()
    except BaseException:
        log.close()
        raise
    reactor.run()
