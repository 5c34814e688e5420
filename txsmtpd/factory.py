"""Connections: who makes their protocols, knows those that are open, and tells them to end."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory

from txsmtpd.engine.observer import Interceptor, Observer
from txsmtpd.engine.proxy_header import expects_header
from txsmtpd.interfaces import check_handler
from txsmtpd.reply import Reply
from txsmtpd.settings import Settings, want_number
from txsmtpd.smtp import SMTP

TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections, try again later")


class Observing(TypingProtocol):
    """What observes sessions."""

    def observe(self, server: SMTP) -> Observer:
        """Make the observer of a session that begins."""


class Intercepting(TypingProtocol):
    """What acts in place of sessions."""

    def intercept(self, server: SMTP) -> Interceptor:
        """Make the interceptor of a session that begins."""


class SMTPFactory(ServerFactory):
    """Makes a protocol for each connection. Listen with it on any endpoint.

    :param handler: the object whose hooks decide; see :mod:`txsmtpd.interfaces`.
    :param protocol: :class:`~txsmtpd.smtp.SMTP` or a subclass.
    :param connection_limit: connections at one time; above it, new ones are answered 421. None: no limit.
    :param connection_limit_per_host: the same, for one address of a client; of a proxy's connections, for the client
        that the PROXY header names.
    :param filters: what looks at mail before the handler gets it, in order: see :mod:`txsmtpd.filters`.
    :param faults: what goes wrong on purpose: :class:`~txsmtpd.faults.rules.Faults`.
    :param transcript: what keeps the conversations: :class:`~txsmtpd.observe.transcript.Transcripts`.
    :param strict_handler: whether a mistake in the handler is a TypeError: a hook that is misspelt or has wrong
        parameters, or no hook at all. False: a warning.
    :param options: see :class:`~txsmtpd.settings.Settings`.
    :raises TypeError: for an unknown option, or one of a wrong type; for a mistake in the handler.
    :raises ValueError: for an option whose value will not do.
    """

    noisy = False

    def __init__(
        self,
        handler: object = None,
        *,
        protocol: type[SMTP] = SMTP,
        connection_limit: int | None = None,
        connection_limit_per_host: int | None = None,
        filters: Iterable[Any] = (),
        faults: Intercepting | None = None,
        transcript: Observing | None = None,
        strict_handler: bool = True,
        **options: Any,
    ) -> None:
        for name, limit in (
            ("connection_limit", connection_limit),
            ("connection_limit_per_host", connection_limit_per_host),
        ):
            if limit is not None:
                want_number(name, limit, int)
        if not (isinstance(protocol, type) and issubclass(protocol, SMTP)):
            raise TypeError(f"protocol must be SMTP or a subclass, not {protocol!r}")
        # Called with each protocol that has got its connection, to make its observers and its interceptor.
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
        self.connection_limit = connection_limit
        self.connection_limit_per_host = connection_limit_per_host
        if filters:
            from txsmtpd.filters.chain import Chain  # costs nothing where nobody filters

            options["filters"] = Chain(filters)
        self.settings = Settings.make(handler, options, protocol)
        self._check_handler(protocol, strict_handler)
        self.connections: set[SMTP] = set()
        self._hosts: Counter[Any] = Counter()
        self._counted: dict[SMTP, Any] = {}
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

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        protocol: Protocol
        protocol = TurnedAway() if self._is_full(addr) else self.protocol(self.handler, settings=self.settings)
        protocol.factory = self
        return protocol

    def _is_full(self, addr: IAddress | None) -> bool:
        if self.connection_limit is not None and len(self.connections) >= self.connection_limit:
            return True
        return self._has_too_many(getattr(addr, "host", None))

    def _has_too_many(self, host: Any) -> bool:
        limit = self.connection_limit_per_host
        return limit is not None and host is not None and self._hosts[host] >= limit

    def connected(self, protocol: SMTP) -> None:
        """A protocol has got its connection."""
        self.connections.add(protocol)
        # Whose connection a proxy forwards is not known yet.
        if self.connection_limit_per_host is not None and not expects_header(protocol):
            self._count(protocol, getattr(protocol.transport.getPeer(), "host", None))

    def proxied(self, protocol: SMTP) -> Reply | None:
        """A PROXY header has told whose connection it is.

        :return: what the client is turned away with, if it has too many; None: it is let in.
        """
        if self.connection_limit_per_host is None:
            return None
        session = protocol.session
        # What a proxy does for itself is not limited.
        host = session.peer[0] if session.proxy_peer is not None and isinstance(session.peer, tuple) else None
        if self._has_too_many(host):
            return TOO_MANY_CONNECTIONS
        self._count(protocol, host)
        return None

    def _count(self, protocol: SMTP, host: Any) -> None:
        self._counted[protocol] = host
        self._hosts[host] += 1

    def disconnected(self, protocol: SMTP) -> None:
        """A protocol has lost its connection."""
        self.connections.discard(protocol)
        if protocol in self._counted:
            host = self._counted.pop(protocol)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
        if self._drained and not self.connections:
            waiting, self._drained = self._drained, []
            for drained in waiting:
                drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Let all connections end: 421 to those that are idle, and to the others once their transaction is over.

        :return: fires when the last one is gone.
        """
        if not self.connections:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        for protocol in list(self.connections):
            protocol._connection.drain()
        return drained

    def abort(self) -> None:
        """End all connections now, whatever they do; those that wait for their client are told why."""
        for protocol in list(self.connections):
            protocol._connection.end_now()


class TurnedAway(Protocol):
    """A connection too many: 421, and closed (RFC 5321 3.8)."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(TOO_MANY_CONNECTIONS.octets)
        self.transport.loseConnection()


def _method_of(option: str, value: object, name: str, example: str) -> Any:
    method = getattr(value, name, None)
    if isinstance(value, type) or not callable(method):
        raise TypeError(f"{option} must be a txsmtpd.testing.{example}(), not {value!r}")
    return method
