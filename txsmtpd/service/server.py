"""Makes the service of the command line from its options."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.monotonic import use_monotonic_clock
from txsmtpd.bridges.reactors import has_asyncio_reactor
from txsmtpd.factory import SMTPFactory
from txsmtpd.interfaces import IFactoryMaker, IStreamingHandler
from txsmtpd.lmtp import LMTP
from txsmtpd.observe.counters import Counters
from txsmtpd.observe.health import Health
from txsmtpd.observe.metrics import Metrics
from txsmtpd.service.command_log import CommandLog
from txsmtpd.service.exit_status import EX_OSERR, cannot_listen
from txsmtpd.service.inbox import InboxService
from txsmtpd.service.listening import SMTPService, address_text
from txsmtpd.service.monitoring import Monitoring, Server
from txsmtpd.service.options import Options
from txsmtpd.service.signals import Signals
from txsmtpd.service.sockets import replace_stale_socket
from txsmtpd.service.welcome import Welcome
from txsmtpd.smtp import SMTP

if TYPE_CHECKING:
    from txsmtpd.service.workers.master import Master

DESCRIPTORS_KEPT = 32  # for the reactor, the log, the handler's files, and clients that are rejected
FEWEST_CONNECTIONS = 8
MOST_FOR_NETWORK = 50  # connections at one time; the default


def makeService(options: Options) -> MultiService:
    """Return the service that the options ask for: a listener for each endpoint, and what they need."""
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    listeners = [
        (*each, protocol, tls)
        for kind, protocol, tls in (
            ("endpoints", SMTP, False),
            ("tls_endpoints", SMTP, True),
            ("lmtp_endpoints", LMTP, False),
        )
        for each in options[kind]
    ]
    if options["workers"] > 1 and options["worker"] is None:
        return _master(options, [(label, endpoint) for label, endpoint, _, _ in listeners])
    # A connection has a descriptor, and so has the file or the relay connection of a message that arrives on it.
    each = getattr(options["handler"], "descriptors", 2 if IStreamingHandler.providedBy(options["handler"]) else 1)
    if options["filters"]:  # a connection to each filter, and a file for the message
        each += len(options["filters"]) + 1
    limit: int | None = options["connection_limit"]
    if limit is False:
        limit = connection_limit(len(listeners) * each)
    per_network: int | None = options["connection_limit_per_network"]
    if per_network is False:
        per_network = MOST_FOR_NETWORK if limit is None else min(MOST_FOR_NETWORK, max(limit // 4, 1))
    counters = Counters() if options["is_counting"] else None
    services = []
    told: set[str] = set()
    for label, endpoint, protocol, tls in listeners:
        settings = {"asyncio": has_asyncio_reactor(), **options["settings"], "implicit_tls": tls}
        make = partial(_with_warnings, told, factory_maker(options["handler"], protocol))
        factory = make(
            connection_limit=limit,
            connection_limit_per_network=per_network,
            connection_limit_per_host=options["connection_limit_per_host"],
            filters=options["filters"],
            faults=options["faults"],
            transcript=options["transcript"],
            limiter=options["limiter"],
            metrics=None if counters is None else Metrics(label.partition("=")[2], counters),
            **settings,
        )
        services.append(Listener(label, endpoint, factory, options["grace"]))
    return _server(options, services, counters)


def _with_warnings(told: set[str], make: Callable[..., SMTPFactory], **options: Any) -> SMTPFactory:
    """Make a factory, and print each of its warnings as one line on standard error.

    :param told: the warnings that were printed before.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=UserWarning, append=True)  # after the user's own filters
        factory = make(**options)
    for text in (str(each.message) for each in caught):
        if text not in told:
            told.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)
    return factory


def _server(options: Options, listeners: list[Listener], counters: Counters | None) -> Server:
    health = Health(*listeners, options["handler"])
    server = Server(
        health,
        grace=options["grace"],
        drain_delay=options["drain_delay"],
        monitoring=_monitoring(options["monitoring"], health, counters),
        before=_before(options, listeners, counters, health),
        late=partial(_reactor_late, listeners, counters),
        log=listeners[0].factory.settings.log,
        connections=lambda: sum(len(each.factory.connections) for each in listeners),
    )
    for listener in listeners:
        listener.setServiceParent(server)
    if options.parent is not None:  # not in a program that embeds the server
        for service in _for_the_process(options, server, listeners):
            service.setServiceParent(server)
    return server


def _master(options: Options, endpoints: list[tuple[str, IStreamServerEndpoint]]) -> Server:
    """Return the service of the master process."""
    from txsmtpd.service.workers.command import make_master

    master = make_master(options, endpoints)
    health = Health(master)
    server = Server(
        health,
        grace=options["grace"],
        drain_delay=options["drain_delay"],
        monitoring=_monitoring(options["monitoring"], health, master),
        connections=master.connections,
        when_ready=master.when_ready,
    )
    master.setServiceParent(server)

    def hurry() -> None:
        server.hurry()
        master.hurry()

    log: CommandLog | None = options["log"]
    flush = log.close if log else sys.stdout.flush
    reload = [server.reload_begins, *options["reopen"], master.reopen, master.reload, server.reload_ends]
    signals = Signals(reload=reload, hurry=hurry, grace=options["grace"] + 1, flush=flush)
    signals.setServiceParent(server)
    return server


def _before(options: Options, listeners: list[Listener], counters: Counters | None, health: Health) -> IService | None:
    """Return the service that the listeners need, which starts before them and stops after them."""
    needed: IService | None = _inbox(options, listeners) or _service(options["handler"])
    if options["worker"] is None:
        return needed
    from txsmtpd.service.workers.worker import Link

    def hurry() -> None:
        for each in listeners:
            each.factory.abort()

    link = Link(
        options["worker"],
        listeners,
        snapshot=None if counters is None else counters.snapshot,
        problems=health.problems,
        hurry=hurry,
        grace=options["grace"],
        silence=options["worker_timeout"],
        reopen=options["reopen"],
    )
    both = MultiService()
    for each in filter(None, (link, needed)):
        both.addService(each)
    return both


def _inbox(options: Options, listeners: list[Listener]) -> InboxService | None:
    if options["inbox"] is None:
        return None

    def addresses() -> list[str]:
        return [address_text(each.port.getHost()) for each in listeners if each.port is not None]

    label, endpoint, settings = options["inbox"]
    return InboxService(label, endpoint, options["handler"].store, settings, addresses)


def _service(handler: Any) -> IService | None:
    """Return the handler if it is a service, else None."""
    return handler if IService.providedBy(handler) else None


def _for_the_process(options: Options, server: Server, listeners: list[Listener]) -> Iterator[Service]:
    def hurry() -> None:
        server.hurry()
        for each in listeners:
            each.factory.abort()

    log: CommandLog | None = options["log"]
    reload = [server.reload_begins, *options["reopen"], *options["reload"], server.reload_ends]
    yield Signals(
        reload=reload,
        hurry=hurry,
        grace=options["grace"],
        flush=log.close if log else sys.stdout.flush,
        ends=("SIGTERM", "SIGINT") if options["worker"] is None else ("SIGTERM",),
    )
    if options["worker"] is not None:  # Ctrl-C reaches all processes, but the master stops the workers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    if log is not None and log.on_terminal and options["inbox"] is None:  # the inbox prints its own lines
        yield Welcome(listeners, options["handler_name"], log.writer.write)


def _reactor_late(listeners: list[Listener], counters: Counters | None, seconds: float) -> None:
    if counters is not None:
        counters.observe("reactor_lag_seconds", seconds)
    for listener in listeners:
        listener.factory.reactor_late(seconds)


def _monitoring(
    given: tuple[str, IStreamServerEndpoint] | None, health: Health, counted: Counters | Master | None
) -> Monitoring | None:
    if given is None or counted is None:
        return None
    from txsmtpd.observe.prometheus import registry_of, rendered
    from txsmtpd.observe.web import monitoring_site

    registry = registry_of(counted.snapshot)
    return Monitoring(*given, monitoring_site(health, partial(rendered, registry)))


def factory_maker(handler: Any, protocol: type[SMTP]) -> Callable[..., SMTPFactory]:
    """Return the callable that takes options and makes the factory for a handler."""
    if IFactoryMaker.providedBy(handler):
        maker: Callable[..., SMTPFactory] = handler.make_factory
        return maker
    return partial(SMTPFactory, handler, protocol=protocol, strict_handler=False)


def connection_limit(shares: int) -> int | None:
    """Return the highest number of connections of each listener, or None without a limit.

    A process without a free descriptor can neither accept a connection, nor reject it with a reply, nor store a
    message. Therefore clients get 421 before that, and each listener has its own share of the descriptors.

    :param shares: the number of descriptors in use when each listener has one connection.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return None
    return max((descriptors - DESCRIPTORS_KEPT) // shares, FEWEST_CONNECTIONS)


@implementer(IService)
class Listener(SMTPService):
    """A listener of the command line. If it cannot listen, the process ends with status 71.

    :param label: the name of the endpoint in messages, such as ``--listen=tcp:25``.
    """

    def __init__(self, label: str, endpoint: IStreamServerEndpoint, factory: SMTPFactory, grace: float) -> None:
        super().__init__(endpoint, factory, grace)
        self.label = label

    def _listen(self) -> None:
        try:
            replace_stale_socket(super()._listen)
        except Exception as error:
            raise cannot_listen(self.label, error) from None

    def not_ready(self) -> str | None:
        """Return why the listener cannot serve clients, or None; see :class:`~txsmtpd.interfaces.IReadiness`."""
        return f"not listening on {self.label.partition('=')[2]}" if self.running and self.port is None else None

    def cannot_listen(self, failure: Failure) -> None:
        cannot_listen(self.label, failure.value)
        reactor = self._reactor()
        # After the reactor's run(), the launcher would end the process with status 0.
        reactor.addSystemEventTrigger("after", "shutdown", _end_process, EX_OSERR)
        reactor.callWhenRunning(_stop, reactor)


def _stop(reactor: Any) -> None:
    with suppress(ReactorNotRunning):  # it is stopping already
        reactor.stop()


def _end_process(status: int) -> None:
    sys.stdout.flush()
    os._exit(status)
