"""A service that listens, and drains its connections when it stops."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from txsmtpd.factory import SMTPFactory
from txsmtpd.settings import want_number

ACCEPTED_AT_ONCE = 8
GRACE = 30.0  # seconds; supervisors rarely kill a process sooner


class SMTPService(Service):
    """Listens while it runs, and drains when it stops.

    :param endpoint: where to listen.
    :param factory: makes the protocols. Each service needs its own factory.
    :param grace: maximum time in seconds for open transactions to finish when the service stops; then they are aborted.
    :param reactor: provides the time (IReactorTime). Default: the global reactor.
    :raises TypeError: if one of them is something else, such as a handler in the place of its factory.

    Starting the service binds the address, in ``privilegedStartService`` if that is called. If the endpoint fails, the
    service raises its exception. Stopping the service closes the port, sends 421 to idle clients (RFC 5321 3.8), and
    waits for the others::

        service = SMTPService(serverFromString(reactor, "tcp:8025"), SMTPFactory(handler))
        service.setServiceParent(application)
    """

    log = Logger(namespace="txsmtpd")

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        factory: SMTPFactory,
        grace: float = GRACE,
        *,
        reactor: Any = None,
    ) -> None:
        if not callable(getattr(endpoint, "listen", None)):
            raise TypeError(f'endpoint must be made by serverFromString(reactor, "tcp:8025"), or similar: {endpoint!r}')
        if not callable(getattr(factory, "drain", None)):
            raise TypeError(f"factory must be an SMTPFactory, as in SMTPFactory(handler), not {factory!r}")
        want_number("grace", grace, float)
        self.endpoint = endpoint
        self.factory = factory
        self.grace = grace
        self.reactor = reactor
        self.port: IListeningPort | None = None
        self._binding: Deferred[Any] | None = None  # until the endpoint has answered

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        super().startService()
        try:
            self._listen()
        except BaseException:
            self.running = False
            raise

    def stopService(self) -> Deferred[None]:
        """Stop listening, and drain all connections.

        :return: a Deferred that fires when the last connection is closed.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    # Listening

    def _listen(self) -> None:
        if self.port is not None or self._binding is not None:
            return
        problems: list[Failure] = []
        answer = self._binding = self.endpoint.listen(self.factory)
        answer.addCallbacks(self._bound, problems.append)
        if problems:
            self._binding = None
            problems[0].raiseException()
        # Nearly all endpoints have answered by now. Errors of the others are reported when they occur.
        answer.addCallback(lambda _: self._not_bound(problems[0]) if problems else None)

    def _bound(self, port: IListeningPort) -> None:
        self._binding = None
        self.port = port
        _accept_carefully(port, self.factory)
        self.log.info("listening on {address}", address=address_text(port.getHost()))

    def _not_bound(self, failure: Failure) -> None:
        if self._binding is not None:
            self._binding = None
            self.cannot_listen(failure)

    def cannot_listen(self, failure: Failure) -> None:
        """Log that the endpoint failed after the start of the service. Subclasses may do more."""
        self.log.failure("cannot listen", failure)

    # Stopping

    async def _stop(self) -> None:
        await self.stop_listening()
        drained = self.factory.drain()
        if busy := len(self.factory.connections):
            self.log.info(
                "waiting for connections to end: {connections}, {grace:g} seconds at most; a second Ctrl-C or SIGTERM"
                " ends them now",
                connections=busy,
                grace=self.grace,
            )
        deadline = self._reactor().callLater(self.grace, self._abort)
        await drained
        if deadline.active():
            deadline.cancel()

    async def stop_listening(self) -> None:
        """Close the port, but no connections."""
        if self._binding is not None:
            binding, self._binding = self._binding, None
            binding.cancel()
        port, self.port = self.port, None
        if port is None:
            return
        address = address_text(port.getHost())
        try:
            await maybeDeferred(port.stopListening)
        except Exception:
            self.log.failure("cannot stop listening on {address}", address=address)
        else:
            self.log.info("stopped listening on {address}", address=address)

    def _abort(self) -> None:
        self.log.warn(
            "{connections} connections did not end within {grace} seconds and are aborted",
            connections=len(self.factory.connections),
            grace=self.grace,
        )
        self.factory.abort()

    def _reactor(self) -> Any:
        if self.reactor is None:
            from twisted.internet import reactor

            return reactor
        return self.reactor


def _accept_carefully(port: Any, factory: SMTPFactory) -> None:
    """Make a port accept only a few connections in each iteration of the reactor, and only one while the factory is
    nearly full.

    Twisted accepts up to a hundred. That takes as long as hundreds of commands, for which other clients would wait.
    A rejected connection keeps its descriptor until its 421 is sent, in a later iteration. A hundred rejected
    connections at once could take the descriptors that messages need, and some would be closed without a reply.
    """
    accept = getattr(port, "doRead", None)
    if accept is None or not hasattr(port, "numberAccepts"):
        return

    def read() -> Any:
        port.numberAccepts = min(port.numberAccepts, 1 if factory.is_nearly_full else ACCEPTED_AT_ONCE)
        return accept()

    port.doRead = read


def address_text(address: IAddress) -> str:
    """Return an address as text: ``127.0.0.1:25``, ``[::1]:25`` or ``/run/smtp.sock``."""
    host = getattr(address, "host", None)
    if host is not None:
        return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"  # type: ignore[attr-defined]
    name = getattr(address, "name", None)
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or address)
