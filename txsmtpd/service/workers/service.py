"""``WorkerService``: the master and its workers as a service for other programs.

The workers run :mod:`.program`. The program that uses the service handles signals.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed

from txsmtpd.observe.counters import Counters, Snapshot
from txsmtpd.service.endpoints import make_endpoint
from txsmtpd.service.listening import GRACE, SMTPService
from txsmtpd.service.workers.callables import find_callable, make_factory
from txsmtpd.service.workers.inheritance import Inheritance
from txsmtpd.service.workers.master import SILENCE, Master
from txsmtpd.service.workers.sockets import KeptSocket
from txsmtpd.settings import want_number

MOST = 256  # workers


class WorkerService(MultiService):
    """A server of several processes.

    ::

        service = WorkerService("mail.server:make_factory", "tcp:25", workers=4)
        service.setServiceParent(application)

    :param factory: ``"module:callable"``. Each worker imports the module, and calls the callable without arguments
        once for each endpoint. It returns an :class:`~txsmtpd.factory.SMTPFactory` or a handler. This process also
        imports the module, to check the name.
    :param endpoints: where to listen, such as ``"tcp:25"`` or ``"unix:/run/lmtp:mode=660"``.
    :param workers: the number of processes, from 1 to 256. With 1, this process serves, and no other is started.
    :param grace: maximum time in seconds for open transactions to finish when the service stops.
    :param worker_timeout: seconds without a heartbeat after which a worker is aborted and replaced; 0: never.
    :raises TypeError: if *factory* is not a string or does not name a callable; for an argument of a wrong type.
    :raises ValueError: if *factory* names nothing, for an argument out of range, or an endpoint that cannot be shared.

    Starting the service binds the addresses, and raises SystemExit with status 71 if one cannot be bound. Stopping it
    stops all workers. The log and the output of workers go into the log of this program.
    """

    def __init__(
        self,
        factory: str,
        *endpoints: str,
        workers: int,
        grace: float = GRACE,
        worker_timeout: float = SILENCE,
        logs: bool = True,
        end_process: Callable[[Any, int], object] | None = None,
    ) -> None:
        super().__init__()
        want_number("workers", workers, int)
        want_number("grace", grace, float)
        want_number("worker_timeout", worker_timeout, float)
        if not 1 <= workers <= MOST:
            raise ValueError(f"workers must be from 1 to {MOST}, not {workers}")
        if not endpoints:
            raise TypeError('give an endpoint, such as "tcp:25"')
        find_callable(factory)
        self.workers = workers
        self.master: Master | None = None
        if workers == 1:
            for each in endpoints:
                self.addService(SMTPService(make_endpoint(each), make_factory(factory), grace))
            return
        if not hasattr(os, "memfd_create"):
            raise ValueError("workers need Linux: this system has no memfd_create")
        self.master = Master(
            workers,
            [KeptSocket(each, _shared(each)) for each in endpoints],
            _command(factory, grace, worker_timeout),
            Inheritance(),
            grace=grace,
            silence=worker_timeout,
            logs=logs,
            end_process=end_process,
        )
        self.addService(self.master)

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that fires when the first worker serves clients."""
        return succeed(None) if self.master is None else self.master.when_ready()

    def reload(self) -> Deferred[bool]:
        """Replace all workers, one at a time. Each new worker imports the current code; when it is ready, the old one
        stops listening, and ends when its clients have left.

        :return: a Deferred that fires with True if all were replaced. If a new worker does not become ready, it fires
            with False, the old ones stay, and the log has the reason. False if there is only this process.
        """
        if self.master is None:
            return succeed(False)
        return self.master.reload()

    def hurry(self) -> None:
        """Close all connections now, while the service stops."""
        if self.master is not None:
            self.master.hurry()
        for each in self:
            if isinstance(each, SMTPService):
                each.factory.abort()

    def snapshot(self) -> Snapshot:
        """Return the sum of the counters of all processes, including those that have ended, for factories with
        ``metrics``."""
        if self.master is not None:
            return self.master.snapshot()
        return total_of(counters_of(each.factory for each in self if isinstance(each, SMTPService)))


def counters_of(factories: Iterable[Any]) -> list[Counters]:
    """Return the counters of these factories, without duplicates."""
    found = [each.metrics.counters for each in factories if hasattr(each.metrics, "counters")]
    return list({id(each): each for each in found}.values())


def total_of(parts: Iterable[Counters]) -> Snapshot:
    """Return the sum of several counters."""
    total = Counters()
    for each in parts:
        total.add(each.snapshot())
    return total.snapshot()


def _shared(endpoint: str) -> Any:
    wrapped = re.match(r"(haproxy|ssl|tls):", endpoint) if isinstance(endpoint, str) else None
    if wrapped is not None:
        raise ValueError(
            f"{endpoint}: an endpoint {wrapped[1]}: cannot be shared by workers; use the options implicit_tls and"
            " proxy_protocol of the factory"
        )
    return make_endpoint(endpoint)


def _command(factory: str, grace: float, silence: float) -> list[str]:
    from twisted.internet import reactor

    module = type(reactor).__module__
    return [sys.executable, "-m", "txsmtpd.service.workers.program", module, factory, str(grace), str(silence)]
