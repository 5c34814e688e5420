"""The factory: makes the protocol of each connection, tracks open connections, and closes them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Unpack
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory

from txsmtpd.engine.admission import TOO_MANY_CONNECTIONS
from txsmtpd.engine.batches import Batches
from txsmtpd.engine.observer import Interceptor, Meter, Observer
from txsmtpd.engine.proxy_header import expects_header
from txsmtpd.interfaces import check_handler
from txsmtpd.limits.buckets import Buckets
from txsmtpd.limits.places import Places
from txsmtpd.limits.rate import Rate
from txsmtpd.limits.stress import Stress
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.reply import Reply
from txsmtpd.session import place_of
from txsmtpd.settings import Settings, trusts_nobody, want_number
from txsmtpd.smtp import SMTP
from txsmtpd.typed import Options

LINES_FOR_NETWORK = Rate(6, 60.0, 3)  # log lines about refused connections, so that a flood does not fill the log


ACCEPTED_AT_ONCE = 100  # connections that a port of Twisted accepts in one iteration, at most


class Observing(TypingProtocol):
    """Observes sessions."""

    def observe(self, server: SMTP) -> Observer:
        """Make the observer of a new session."""


class Measuring(TypingProtocol):
    """Counts and measures sessions."""

    def meter(self, server: SMTP) -> Meter:
        """Make the meter of a new session."""

    def timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a hook in a function that measures it."""

    def watch(self, factory: Any) -> None:
        """Read from this factory the values that are not passed to meters."""


class Intercepting(TypingProtocol):
    """Changes what sessions do."""

    def intercept(self, server: SMTP) -> Interceptor:
        """Make the interceptor of a new session."""


class SMTPFactory(ServerFactory):
    """Makes a protocol for each connection. Use it with any server endpoint.

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
    :param strict_handler: whether a mistake in the handler raises TypeError: a misspelt hook, wrong parameters of a
        hook, or no hooks. False: it issues a warning.
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
        if not (isinstance(protocol, type) and issubclass(protocol, SMTP)):
            raise TypeError(f"protocol must be SMTP or a subclass, not {protocol!r}")
        # Called with each connected protocol, to make its observers and its interceptor.
        self.observers: tuple[Callable[[SMTP], Observer], ...] = ()
        self.interceptor: Callable[[SMTP], Interceptor] | None = None
        if transcript is not None:
            self.observers += (_method_of("transcript", transcript, "observe", "Transcripts"),)
        if faults is not None:
            self.interceptor = _method_of("faults", faults, "intercept", "Faults")
        self.handler = handler
        self.protocol: Any = protocol
        self.faults: Any = faults
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
        if trusts_nobody(self.settings):
            raise ValueError(
                "proxy_protocol_timeout alone lets everybody say who they are:"
                " give proxy_from too, or a handler with handle_PROXY"
            )
        self._check_handler(protocol, strict_handler)
        if metrics is not None:
            self.settings.wrap_hooks(metrics.timed)
            metrics.watch(self)
        self.connections: set[SMTP] = set()
        # For servers with several processes: called after each change; returns the number of connections of the others.
        self.connections_changed: Callable[[], object] | None = None
        self.connections_elsewhere: Callable[[], int] | None = None
        self.batches = Batches()  #: connections with more input to process, which wait for their next turn
        self.stress = Stress()
        self.refused: Counter[str] = Counter()  #: connections that were rejected, by "full" or "network"
        self.places: list[Places] = []  #: the places of each network and host
        if connection_limit_per_network is not None:
            self.places.append(Places(connection_limit_per_network, self.settings.admission.network))
        if connection_limit_per_host is not None:
            self.places.append(Places(connection_limit_per_host, _host_of))
        self._told = Buckets(LINES_FOR_NETWORK, size=1000)
        self._drained: list[Deferred[None]] = []

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
            warnings.warn(str(error), stacklevel=3)

    @property
    def is_nearly_full(self) -> bool:
        """Return True if one iteration of the reactor could accept more connections than the limit allows."""
        limit = self.connection_limit
        return limit is not None and len(self.connections) + ACCEPTED_AT_ONCE > limit

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        protocol: Protocol
        peer = place_of(addr)
        elsewhere = 0 if self.connections_elsewhere is None else self.connections_elsewhere()
        if self.connection_limit is not None and len(self.connections) + elsewhere >= self.connection_limit:
            protocol = self._turn_away(peer, "full")
        elif any(places.is_full(peer) for places in self.places):
            protocol = self._turn_away(peer, "network")
        else:
            protocol = self.protocol(self.handler, settings=self.settings)
        protocol.factory = self
        return protocol

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
                "reason": "all places are taken" if why == "full" else "its network has no place left",
            }
            self.settings.log.emit(events.CONNECTION_REFUSED, None, fields)

    def connected(self, protocol: SMTP) -> None:
        """A protocol is connected."""
        self.connections.add(protocol)
        if self.connections_changed is not None:
            self.connections_changed()
        # The client of a proxy's connection is not known yet.
        if self.places and not expects_header(protocol):
            for places in self.places:
                places.take(protocol, protocol.session.peer)
        if self.stress.update(len(self.connections), self.connection_limit):
            self._stress_changed()
        elif self.stress.active:
            self._hurry(protocol)

    def proxied(self, protocol: SMTP) -> Reply | None:
        """A PROXY header has named the client of the connection.

        :return: the refusal if the client has too many connections, or None to accept it.
        """
        session = protocol.session
        # A proxy's own connections, such as health checks, are not limited.
        if session.proxy_peer is not None:
            if not all(places.take(protocol, session.peer) for places in self.places):
                self._note_refused(session.peer, "network")
                return TOO_MANY_CONNECTIONS
            if self.stress.active:
                self._hurry(protocol)
        return None

    def disconnected(self, protocol: SMTP) -> None:
        """A protocol has lost its connection."""
        self.connections.discard(protocol)
        if self.connections_changed is not None:
            self.connections_changed()
        for places in self.places:
            places.leave(protocol)
        if self.stress.update(len(self.connections), self.connection_limit):
            self._stress_changed()
        if self._drained and not self.connections:
            waiting, self._drained = self._drained, []
            for drained in waiting:
                drained.callback(None)

    # Stress mode

    def reactor_late(self, seconds: float) -> None:
        """Report a measurement of how late the reactor is, in seconds. Called from time to time."""
        self.stress.lag = seconds
        if self.stress.update(len(self.connections), self.connection_limit):
            self._stress_changed()

    def _stress_changed(self) -> None:
        change = "begins" if self.stress.active else "ends"
        self.settings.log.emit(events.STRESS, None, {"change": change, "reason": self.stress.cause})
        for protocol in list(self.connections):
            self._hurry(protocol)

    def _hurry(self, protocol: SMTP) -> None:
        """Set the client's timeouts according to whether the server is in stress mode."""
        connection = protocol._connection
        if self.settings.admission.network(protocol.session.peer) is not None and not connection.closing:
            connection.patience.hurry(self.stress.active)

    def drain(self) -> Deferred[None]:
        """Close all connections with 421: idle ones now, the others when their transaction is over.

        :return: a Deferred that fires when the last one is closed.
        """
        if not self.connections:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        for protocol in list(self.connections):
            protocol._connection.drain()
        return drained

    def abort(self) -> None:
        """Close all connections now, whatever they are doing. Those that wait for their client get a reply first."""
        for protocol in list(self.connections):
            protocol._connection.end_now()


class TurnedAway(Protocol):
    """Rejects a connection above the limit: sends 421 and closes it (RFC 5321 3.8)."""

    def connection_made(self, transport: Any) -> None:
        """asyncio has accepted the connection."""
        transport.write(TOO_MANY_CONNECTIONS.octets)
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """asyncio has closed it."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(TOO_MANY_CONNECTIONS.octets)
        self.transport.loseConnection()


def _host_of(peer: Any) -> str | None:
    return peer[0] if isinstance(peer, tuple) else None


def _method_of(option: str, value: object, name: str, example: str) -> Any:
    method = getattr(value, name, None)
    if isinstance(value, type) or not callable(method):
        raise TypeError(f"{option} must be a txsmtpd.testing.{example}(), not {value!r}")
    return method
