"""The factory: creates the protocol of each connection, tracks open connections, and closes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Unpack
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory

from txsmtpd.engine.admission import TOO_MANY_CONNECTIONS
from txsmtpd.engine.batches import Batches
from txsmtpd.engine.interceptor import Interceptor
from txsmtpd.engine.meter import Meter
from txsmtpd.engine.observer import Observer
from txsmtpd.engine.proxy_header import expects_header
from txsmtpd.interfaces import check_handler
from txsmtpd.limits.buckets import Buckets
from txsmtpd.limits.places import Places
from txsmtpd.limits.rate import Rate
from txsmtpd.limits.stress import Stress
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.log.warning import warn_program
from txsmtpd.reply import Reply
from txsmtpd.session import place_of
from txsmtpd.settings import Settings, check_names, lacks_proxy_check, want_number
from txsmtpd.smtp import SMTP
from txsmtpd.typed import Options

LINES_FOR_NETWORK = Rate(6, 60.0, 3)  # log lines about refused connections of a network: a flood must not fill the log
ACCEPTED_AT_ONCE = 100  # the most connections that a Twisted port accepts in one iteration of the reactor


class Observing(TypingProtocol):
    """Observes sessions."""

    def observe(self, server: SMTP) -> Observer:
        """Create the observer of a new session."""


class Measuring(TypingProtocol):
    """Counts and measures sessions."""

    def meter(self, server: SMTP) -> Meter:
        """Create the meter of a new session."""

    def timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a hook in a function that measures it."""

    def watch(self, factory: Any) -> None:
        """Include this factory in the metrics, with values such as the number of open connections."""


class Intercepting(TypingProtocol):
    """Changes what sessions do."""

    def intercept(self, server: SMTP) -> Interceptor:
        """Create the interceptor of a new session."""


class SMTPFactory(ServerFactory):
    """Creates a protocol for each connection. Use it with any server endpoint.

    :param handler: the object with the hooks; see :mod:`txsmtpd.interfaces`.
    :param protocol: :class:`~txsmtpd.smtp.SMTP` or a subclass.
    :param connection_limit: maximum number of open connections; further ones get 421. None: no limit.
    :param connection_limit_per_network: the same for one network (``network_prefixes``) that is not in
        ``unlimited_networks``. A connection from a proxy counts for the client that the PROXY header names.
    :param connection_limit_per_host: the same for one address.
    :param filters: filters that process mail before the handler, in order; see :mod:`txsmtpd.filters`.
    :param faults: fault injection: :class:`~txsmtpd.faults.rules.Faults`.
    :param transcript: recorder of sessions: :class:`~txsmtpd.observe.transcript.Transcripts`.
    :param metrics: counters and measurements: :class:`~txsmtpd.observe.metrics.Metrics`.
    :param strict_handler: whether a mistake in the handler raises TypeError. False: it issues a warning. Mistakes are a
        misspelt hook, wrong parameters of a hook, and no hooks.
    :param options: see :class:`~txsmtpd.settings.Settings`.
    :raises TypeError: if an option is unknown or has a wrong type, or if there is a mistake in the handler.
    :raises ValueError: if an option has an invalid value.
    """

    noisy = False

    def __init__(
        self,
        handler: object = None,
        *,
        protocol: type[SMTP] = SMTP,
        connection_limit: int | None = None,
        connection_limit_per_network: int | None = None,
        connection_limit_per_host: int | None = None,
        filters: Iterable[Any] = (),
        faults: Intercepting | None = None,
        transcript: Observing | None = None,
        metrics: Measuring | None = None,
        strict_handler: bool = True,
        **options: Unpack[Options],
    ) -> None:
        for name, limit in (
            ("connection_limit", connection_limit),
            ("connection_limit_per_network", connection_limit_per_network),
            ("connection_limit_per_host", connection_limit_per_host),
        ):
            if limit is not None:
                want_number(name, limit, int)
        check_names(options, SMTPFactory)
        if not (isinstance(protocol, type) and issubclass(protocol, SMTP)):
            raise TypeError(f"protocol must be SMTP or a subclass, not {protocol!r}")
        # Called with each connected protocol, to create its observers and its interceptor.
        self.observers: tuple[Callable[[SMTP], Observer], ...] = ()
        self.interceptor: Callable[[SMTP], Interceptor] | None = None
        if transcript is not None:
            self.observers += (_method_of("transcript", transcript, "observe", "Transcripts"),)
        if metrics is not None:
            _method_of("metrics", metrics, "watch", "Metrics", "observe.metrics")
        self.handler = handler
        self.protocol: Any = protocol
        self.faults: Any = None
        if faults is not None:
            self.inject(faults)
        self.transcript: Any = transcript
        self.metrics = metrics
        self.connection_limit = connection_limit
        self.connection_limit_per_network = connection_limit_per_network
        self.connection_limit_per_host = connection_limit_per_host
        chosen: dict[str, Any] = {**options}
        if filters:
            from txsmtpd.filters.chain import Chain  # imported only if there are filters

            chosen["filters"] = Chain(filters)
        self.settings = Settings.make(handler, chosen, protocol)
        if lacks_proxy_check(self.settings):
            raise ValueError(
                "proxy_protocol_timeout alone lets any client claim any address:"
                " give proxy_from too, or a handler with handle_PROXY"
            )
        self._check_handler(protocol, strict_handler)
        if metrics is not None:
            self.settings.wrap_hooks(metrics.timed)
            metrics.watch(self)
        self.connections: set[SMTP] = set()
        # For servers with several processes. The first is called when a connection opens or closes; the second returns
        # the number of connections of the other processes.
        self.connections_changed: Callable[[], object] | None = None
        self.connections_elsewhere: Callable[[], int] | None = None
        self.batches = Batches()  #: connections whose input waits for other connections
        self.stress = Stress()
        self.refused: Counter[str] = Counter()  #: the number of rejected connections by reason, "full" or "network"
        self.places: list[Places] = []  #: limit the connections of each network, and of each host
        if connection_limit_per_network is not None:
            self.places.append(Places(connection_limit_per_network, self.settings.admission.network))
        if connection_limit_per_host is not None:
            self.places.append(Places(connection_limit_per_host, _host_of))
        self._told = Buckets(LINES_FOR_NETWORK, size=1000)
        self._drained: list[Deferred[None]] = []

    def inject(self, faults: Intercepting) -> None:
        """Inject faults in the connections that clients make from now on."""
        self.interceptor = _method_of("faults", faults, "intercept", "Faults")
        self.faults = faults

    def _check_handler(self, protocol: type[SMTP], strict: bool) -> None:
        verbs = [verb.decode("ascii") for verb in self.settings.commands_of(protocol)]
        own_hooks = any(
            not each.__module__.startswith("txsmtpd.") for each in protocol.__mro__ if issubclass(each, SMTP)
        )
        try:
            check_handler(self.handler, verbs, own_hooks=own_hooks)
        except TypeError as error:
            if strict:
                raise
            warn_program(str(error))

    @property
    def is_nearly_full(self) -> bool:
        """Return True if one iteration of the reactor could accept more connections than the limit allows."""
        limit = self.connection_limit
        return limit is not None and len(self.connections) + ACCEPTED_AT_ONCE > limit

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        protocol: Protocol
        if self.connection_limit is not None and self._connections_of_all() >= self.connection_limit:
            protocol = self._turn_away(place_of(addr), "full")
        elif self.places and any(places.is_full(place_of(addr)) for places in self.places):
            protocol = self._turn_away(place_of(addr), "network")
        else:
            protocol = self.protocol(self.handler, settings=self.settings)
        protocol.factory = self
        return protocol

    def _connections_of_all(self) -> int:
        """The number of connections of all processes."""
        return len(self.connections) + (0 if self.connections_elsewhere is None else self.connections_elsewhere())

    def _turn_away(self, peer: Any, why: str) -> Protocol:
        self._note_refused(peer, why)
        return TurnedAway()

    def _note_refused(self, peer: Any, why: str) -> None:
        self.refused[why] += 1
        network = self.settings.admission.network(peer) or ""
        if self._told.admit(network, self.settings.clock().seconds()) is None:
            fields = {
                "client": client_text(peer),
                "reply": TOO_MANY_CONNECTIONS.octets.decode("ascii").strip(),
                "reason": "the server is full" if why == "full" else "its network has too many connections",
            }
            self.settings.log.emit(events.CONNECTION_REFUSED, None, fields)

    def connected(self, protocol: SMTP) -> None:
        """Track a protocol that was connected."""
        self.connections.add(protocol)
        if self.connections_changed is not None:
            self.connections_changed()
        # If a PROXY header follows, the client is not known yet.
        if self.places and not expects_header(protocol):
            for places in self.places:
                places.take(protocol, protocol.session.peer)
        if self.connection_limit is not None and self.stress.update(self._connections_of_all(), self.connection_limit):
            self._stress_changed()
        elif self.stress.active:
            self._apply_stress(protocol)

    def proxied(self, protocol: SMTP) -> Reply | None:
        """Count a connection whose client was named by a PROXY header.

        :return: None, or the refusal if the client has too many connections.
        """
        session = protocol.session
        # Connections of the proxy itself, such as health checks, are not limited.
        if session.proxy_peer is not None:
            if not all(places.take(protocol, session.peer) for places in self.places):
                self._note_refused(session.peer, "network")
                return TOO_MANY_CONNECTIONS
            if self.stress.active:
                self._apply_stress(protocol)
        return None

    def disconnected(self, protocol: SMTP) -> None:
        """Stop tracking a protocol that has lost its connection."""
        self.connections.discard(protocol)
        if self.connections_changed is not None:
            self.connections_changed()
        for places in self.places:
            places.leave(protocol)
        if self.connection_limit is not None and self.stress.update(self._connections_of_all(), self.connection_limit):
            self._stress_changed()
        if self._drained and not self.connections:
            waiting, self._drained = self._drained, []
            for drained in waiting:
                drained.callback(None)

    # Stress mode

    def reactor_late(self, seconds: float) -> None:
        """Report how late the reactor is, for stress mode. The command-line server calls this four times a second.

        :param seconds: how late the reactor ran a timed call.
        """
        self.stress.lag = seconds
        if self.stress.update(self._connections_of_all(), self.connection_limit):
            self._stress_changed()

    def _stress_changed(self) -> None:
        change = "begins" if self.stress.active else "ends"
        self.settings.log.emit(events.STRESS, None, {"change": change, "reason": self.stress.cause})
        for protocol in list(self.connections):
            self._apply_stress(protocol)

    def _apply_stress(self, protocol: SMTP) -> None:
        """Shorten the client's timeouts in stress mode, or restore them."""
        connection = protocol._connection
        if self.settings.admission.network(protocol.session.peer) is not None and not connection.closing:
            connection.timeouts.set_stressed(self.stress.active)

    def drain(self) -> Deferred[None]:
        """Close idle connections with 421 now, and the others when their transaction is over.

        :return: a Deferred that fires when the last connection is closed.
        """
        if not self.connections:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        for protocol in list(self.connections):
            protocol._connection.drain()
        return drained

    def abort(self) -> None:
        """Close all connections now, even during a transaction. Clients that do not wait for a reply get 421."""
        for protocol in list(self.connections):
            protocol._connection.end_now()


class TurnedAway(Protocol):
    """Rejects a connection above the limit: sends 421 and closes it (RFC 5321 3.8)."""

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        transport.write(TOO_MANY_CONNECTIONS.octets)
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by asyncio. Does nothing."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(TOO_MANY_CONNECTIONS.octets)
        self.transport.loseConnection()


def _host_of(peer: Any) -> str | None:
    return peer[0] if isinstance(peer, tuple) else None


def _method_of(option: str, value: object, name: str, example: str, module: str = "testing") -> Any:
    method = getattr(value, name, None)
    if isinstance(value, type) or not callable(method):
        raise TypeError(f"{option} must be a txsmtpd.{module}.{example}(), not {value!r}")
    return method
