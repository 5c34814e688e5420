"""Monitoring pages, systemd notifications, and the order in which the command line's services start and stop.

:class:`Monitoring` serves ``/metrics``, ``/livez`` and ``/readyz``; their contents are in :mod:`txsmtpd.observe`.
:class:`Server` tells a load balancer and systemd when the server is ready and when it stops.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.log.session import Sink
from txsmtpd.observe.health import Health
from txsmtpd.service.exit_status import cannot_listen
from txsmtpd.service.listening import GRACE, address_text
from txsmtpd.service.notify import Notifier
from txsmtpd.service.reactor_watch import ReactorWatch
from txsmtpd.service.sockets import replace_stale_socket

log = Logger(namespace="txsmtpd")

STATUS_PERIOD = 10.0  # seconds between lines for `systemctl status`
MARGIN = 10.0  # seconds that stopping may take besides the drain delay and the grace period


def local_endpoint(description: str) -> str:
    """Return the description of an endpoint, which is on loopback if the text names no interface.

    >>> local_endpoint("9125"), local_endpoint("tcp:9125:interface=192.0.2.1"), local_endpoint("unix:/run/metrics")
    ('tcp:9125:interface=127.0.0.1', 'tcp:9125:interface=192.0.2.1', 'unix:/run/metrics')
    """
    if description.isdecimal():
        description = f"tcp:{description}"
    if re.match("tcp6?:", description) and ":interface=" not in description:
        host = r"\:\:1" if description.startswith("tcp6:") else "127.0.0.1"
        return f"{description}:interface={host}"
    return description


class Server(MultiService):
    """The listeners, started and stopped in an order that load balancers and supervisors can follow.

    It is ready once all of them listen. When it stops, it reports not ready at once, stops listening after
    *drain_delay*, and stops the health checks last.

    :param grace: maximum time in seconds for open transactions to finish.
    :param drain_delay: seconds between reporting not ready and closing the listeners.
    :param monitoring: serves the monitoring pages, or None.
    :param before: the service that the listeners need. It is started before them, and stopped after them.
    :param late: called regularly with the reactor's lag in seconds, or None.
    :param log: where warnings about hooks that block are logged (:class:`~txsmtpd.log.session.Sink`). None: nowhere.
    :param connections: returns the number of open connections.
    :param when_ready: returns a Deferred that fires once clients are served, if that is after the start.
    """

    def __init__(
        self,
        health: Health | None = None,
        *,
        grace: float = GRACE,
        drain_delay: float = 0.0,
        monitoring: IService | None = None,
        before: IService | None = None,
        late: Callable[[float], object] | None = None,
        log: Sink | None = None,
        connections: Callable[[], int] = lambda: 0,
        when_ready: Callable[[], Deferred[None]] = lambda: succeed(None),
        reactor: Any = None,
        environ: MutableMapping[str, str] = os.environ,
    ) -> None:
        super().__init__()
        self.health = health or Health()
        self.grace = grace
        self.drain_delay = drain_delay
        self.monitoring = monitoring
        self.before = before
        self.notifier: Notifier | None = None
        self._watch = None if late is None else ReactorWatch(late, log)
        self._connections = connections
        self._when_ready = when_ready
        self._reloads = 0  # the number of reloads in progress
        self._reactor = reactor
        self._environ = environ
        self._calls: list[LoopingCall] = []
        self._delay: Deferred[None] | None = None

    def privilegedStartService(self) -> None:
        if self.before is not None:
            self.before.privilegedStartService()
        super().privilegedStartService()
        if self.monitoring is not None:
            self.monitoring.privilegedStartService()

    def startService(self) -> None:
        self.notifier = Notifier.of(self._environ, os.getpid())
        if self.before is not None:
            self.before.startService()
        super().startService()
        if self.monitoring is not None:
            self.monitoring.startService()
        self.health.starting = False
        if self.notifier is not None:
            self._clock().callWhenRunning(self._tell_ready)
            self._repeat(STATUS_PERIOD, self._tell_status)
            if self.notifier.watchdog_period is not None:
                self._repeat(self.notifier.watchdog_period / 3, self.notifier.watchdog)
        if self._watch is not None:
            self._watch.start(self._clock())

    def _tell_ready(self) -> None:
        def tell(_: None) -> None:
            if self.notifier is not None and not self.health.draining:
                self.notifier.ready(self._status())

        self._when_ready().addCallback(tell)

    def stopService(self) -> Deferred[None]:
        self.health.draining = True
        if self.notifier is not None:
            self.notifier.stopping(self.drain_delay + self.grace + MARGIN, self._status())
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self.drain_delay:
            log.info("no longer ready; listening stops in {seconds} seconds", seconds=self.drain_delay)
            self._delay = deferLater(self._clock(), self.drain_delay)
            with suppress(CancelledError):
                await self._delay
        await MultiService.stopService(self)
        if self.before is not None:
            await maybeDeferred(self.before.stopService)
        if self.monitoring is not None:
            await maybeDeferred(self.monitoring.stopService)
        for call in self._calls:
            call.stop()
        if self._watch is not None:
            self._watch.stop()

    def hurry(self) -> None:
        """End the drain delay now, if the server is stopping."""
        if self._delay is not None:
            self._delay.cancel()

    def reload_begins(self) -> None:
        """Notify systemd that a reload begins."""
        self._reloads += 1
        if self.notifier is not None:
            self.notifier.reloading()

    def reload_ends(self) -> None:
        """Notify systemd that a reload has ended, but not before clients are served."""
        self._reloads -= 1
        if self.notifier is not None and not self._reloads:
            self._tell_ready()

    def _repeat(self, period: float, function: Callable[..., object]) -> None:
        call = LoopingCall(function)
        call.clock = self._clock()
        self._calls.append(call)
        call.start(period, now=False)

    def _tell_status(self) -> None:
        assert self.notifier is not None
        self.notifier.status(self._status())

    def _status(self) -> str:
        count = self._connections()
        connections = f"{count} connection{'' if count == 1 else 's'}"
        return "; ".join([*self.health.problems(), connections])

    def _clock(self) -> Any:
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        return self._reactor


@implementer(IService)
class SiteService(Service):
    """Serves a web site. If it cannot listen, the process ends.

    :param label: the name of the endpoint in messages, such as ``--web=tcp:8080``.
    :param endpoint: where to listen.
    :param site: the factory of the HTTP protocol.
    """

    def __init__(self, label: str, endpoint: IStreamServerEndpoint, site: Any) -> None:
        self.label = label
        self.endpoint = endpoint
        self.site = site
        self.port: IListeningPort | None = None
        self._asked = False

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        super().startService()
        self._listen()

    def _listen(self) -> None:
        if not self._asked:
            self._asked = True
            try:
                replace_stale_socket(self._bind)
            except Exception as error:
                raise cannot_listen(self.label, error) from None

    def _bind(self) -> None:
        problems: list[Failure] = []
        self.endpoint.listen(self.site).addCallbacks(self._bound, problems.append)
        if problems:
            problems[0].raiseException()

    def _bound(self, port: IListeningPort) -> None:
        self.port = port
        self.bound(port)

    def bound(self, port: IListeningPort) -> None:
        """Called when the service listens. Override it."""

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        port, self.port = self.port, None
        return maybeDeferred(port.stopListening if port is not None else lambda: None)


class Monitoring(SiteService):
    """Serves the monitoring pages."""

    def bound(self, port: IListeningPort) -> None:
        log.info("metrics and health on {address}", address=address_text(port.getHost()))
