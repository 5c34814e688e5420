"""AMQP 0-9-1: publishes messages to a queue or an exchange of RabbitMQ, with pika on Twisted.

This module opens, checks, monitors and reopens the one connection. Publishing on it is in
:mod:`txsmtpd.handoff.amqp_channel`.
"""

from __future__ import annotations

import logging
import random
import re
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.handlers.delivery import when_done
from txsmtpd.handoff import bindings
from txsmtpd.handoff.amqp_channel import ConfirmedChannel
from txsmtpd.handoff.amqp_url import Address
from txsmtpd.handoff.interfaces import IHandoff
from txsmtpd.handoff.message import HandoffMessage
from txsmtpd.handoff.outcome import UNAVAILABLE, NotTaken, Unroutable
from txsmtpd.interfaces import IReadiness
from txsmtpd.log.reasons import reason_of
from txsmtpd.log.trouble import Trouble

MAX_SIZE = 2**24  # bytes; RabbitMQ 4's default. AMQP does not announce the limit.
CONNECT_TIMEOUT = 10.0  # seconds for connection, TLS and login
RETRY = 0.5  # seconds until the next attempt to connect, plus or minus 20 %
LONGEST_RETRY = 30.0  # seconds; after a rejected login or a missing queue
HEARTBEAT = 10  # seconds; the connection to a silent broker is closed after two intervals
PROBE = 1.0  # seconds between checks whether messages can be routed again
# Seconds for which the server is not ready after an exchange has not routed a message. Only new mail can then show
# whether the exchange routes messages again.
UNROUTABLE_FOR = 60.0

ACCESS_REFUSED = 403  # AMQP 0-9-1's reply code

_TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")

log = Logger(namespace="txsmtpd.handoff")


class Misconfigured(Exception):
    """The broker is running, but rejects the login, or the queue does not exist."""


@implementer(IHandoff, IReadiness)
class AMQPTarget(Service):
    """Publishes messages to RabbitMQ. See :class:`~txsmtpd.handoff.AMQPHandoff` for the parameters."""

    def __init__(
        self,
        url: str,
        *,
        queue: str | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        declare: bool = False,
        max_size: int = MAX_SIZE,
        tls_context: Any = None,
        heartbeat: int = HEARTBEAT,
        reactor: Any = None,
    ) -> None:
        if (queue is None) == (exchange is None):
            raise ValueError("give either a queue or an exchange")
        if queue is not None and routing_key is not None:
            raise ValueError("a routing key requires an exchange")
        if exchange is not None and declare:
            raise ValueError("only a queue can be declared, not an exchange")
        if queue == "" or exchange == "":
            raise ValueError("the name of a queue or an exchange must not be empty")
        self.address = Address.parse(url)
        if tls_context is not None and not self.address.tls:
            raise ValueError("certificates require an amqps:// URL")
        self.queue = queue
        self.exchange = exchange
        self.routing_key = routing_key
        self.declare = declare
        self.max_size = max_size
        self.tls_context = tls_context
        self.heartbeat = heartbeat
        self.reactor = reactor
        self._channel: ConfirmedChannel | None = None
        self._connection: Any = None
        self._gone: Deferred[str] = Deferred()  # fires with the reason when the connection is lost
        self._loop: Deferred[None] | None = None
        self._first_attempt: Deferred[None] = Deferred()
        self._problem: str | None = "not connected yet"
        self._trouble = Trouble()  # why there is no connection; new after each connection
        self._unroutable: str | None = None
        self._probe: Any = None

    def __str__(self) -> str:
        return f"AMQP broker {self.address}"

    # Service

    def startService(self) -> None:
        if self.running:
            return
        Service.startService(self)
        if self.reactor is None:
            self.reactor = current_reactor()
        _quiet_pika()
        self._first_attempt = Deferred()
        self._loop = Deferred.fromCoroutine(self._keep_connected())

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._probe is not None and self._probe.active():
            self._probe.cancel()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await when_done(loop)

    # IReadiness, IHandoff

    def not_ready(self) -> str | None:
        if self._channel is None:
            return self._problem
        return self._channel.blocked or self._unroutable

    async def check(self) -> None:
        """Reject messages before they are read while the broker is unavailable or accepts none."""
        if not self.running:
            self.startService()
        if not self._first_attempt.called:
            await when_done(self._first_attempt)
        self._usable()

    def _usable(self) -> ConfirmedChannel:
        channel = self._channel
        if channel is None:
            raise NotTaken(self._problem or "not connected", UNAVAILABLE)
        if channel.blocked is not None:
            raise NotTaken(channel.blocked, UNAVAILABLE)
        return channel

    async def hand_off(self, message: HandoffMessage) -> None:
        from pika import BasicProperties

        channel = self._usable()
        exchange = self.exchange or ""
        key = self.queue or self.routing_key or bindings.routing_key(message)
        properties = BasicProperties(**bindings.amqp_properties(message))
        try:
            await channel.publish(message.id, exchange, key, message.content, properties)
        except Unroutable as error:
            self._cannot_route(str(error))
            raise
        self._unroutable = None

    # The connection

    async def _keep_connected(self) -> None:
        delay = 0.0
        try:
            while self.running:  # on cancellation, other errors are possible too
                try:
                    await self._connect()
                except Misconfigured as error:
                    delay = min(max(RETRY, 2 * delay), LONGEST_RETRY)
                    self._is_away(str(error))
                except Exception as error:
                    delay = RETRY
                    self._is_away(f"cannot connect: {reason_of(error)}")
                else:
                    self._is_back()
                    delay = RETRY if await self._until_gone() else 0.0
                if self.running:
                    await _sleep(self.reactor, delay * random.uniform(0.8, 1.2))
        except CancelledError:
            pass
        finally:
            self._disconnect("the server stops")

    async def _until_gone(self) -> bool:
        """Wait until the connection is lost. Return True if it was lost so soon that the next attempt must wait."""
        since = self.reactor.seconds()
        why = await self._gone
        self._disconnect(why)
        self._is_away(why)
        learned = _TOO_LARGE.search(why)
        if learned and int(learned[1]) < self.max_size:
            self.max_size = int(learned[1])
            log.error(
                "{target} accepts messages of at most {size} octets; set max-size", target=str(self), size=self.max_size
            )
        return bool(self.reactor.seconds() - since < RETRY)

    async def _connect(self) -> None:
        """Connect, log in, and check the queue or exchange."""
        attempt = Deferred.fromCoroutine(self._open())
        attempt.addTimeout(CONNECT_TIMEOUT, self.reactor)
        try:
            await attempt
        except BaseException as error:
            if self._connection is not None:
                self._connection.transport.abortConnection()
                self._connection = None
            if isinstance(error, DeferredTimeout):
                raise ConnectionError(f"no answer within {CONNECT_TIMEOUT:g} seconds") from error
            raise

    async def _open(self) -> None:
        from pika.exceptions import ChannelClosedByBroker

        protocol = _make_protocol(self.address, self.heartbeat, self.reactor)
        factory = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        await self._endpoint().connect(factory)
        self._connection = protocol
        try:
            await protocol.ready
        except CancelledError:
            raise
        except Exception:
            if getattr(protocol.said, "reply_code", None) == ACCESS_REFUSED:
                raise Misconfigured(f"the login of {self.address.user!r} was refused") from None
            raise ConnectionError(reason_of(protocol.said)) from None
        gone: Deferred[str] = Deferred()
        channel = await protocol.channel()
        try:
            await self._check_topology(channel)
        except ChannelClosedByBroker as error:
            raise Misconfigured(error.reply_text) from None
        await channel.confirm_delivery()
        confirmed = ConfirmedChannel(channel, protocol.transport, self.reactor)

        def is_gone(reason: Any) -> None:
            why = f"the connection was lost: {reason_of(protocol.said or reason)}"
            confirmed.lose(why)
            if not gone.called:
                gone.callback(why)

        channel.on_closed.addBoth(is_gone)
        protocol.closed.addBoth(is_gone)
        self._channel, self._gone = confirmed, gone

    async def _check_topology(self, channel: Any) -> None:
        if self.queue is None:
            await channel.exchange_declare(self.exchange, passive=True)
        elif not self.declare:
            await channel.queue_declare(self.queue, passive=True)
        else:
            dead = f"{self.queue}.dead-letters"
            await channel.exchange_declare(dead, "fanout", durable=True)
            await channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
            await channel.queue_bind(dead, dead)
            await channel.queue_declare(self.queue, durable=True, arguments=queue_arguments(dead))

    def _endpoint(self) -> Any:
        from twisted.internet.ssl import optionsForClientTLS

        from txsmtpd.bridges.host_endpoint import HostEndpoint, TLSEndpoint

        reactor, host = self.reactor, self.address.host
        endpoint = HostEndpoint(reactor, host, self.address.port, CONNECT_TIMEOUT)
        if not self.address.tls:
            return endpoint
        return TLSEndpoint(reactor, self.tls_context or optionsForClientTLS(host), endpoint)

    def _disconnect(self, why: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.lose(why)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.abortConnection()

    # State changes

    def _is_back(self) -> None:
        self._problem = None
        self._trouble = Trouble()
        if self.queue is not None:  # the queue was checked to exist
            self._unroutable = None
        log.info("{target}: connected", target=str(self))
        if not self._first_attempt.called:
            self._first_attempt.callback(None)

    def _is_away(self, why: str) -> None:
        if self.running:
            self._problem = why
        if self.running and self._trouble.seen(why, self.reactor.seconds()):
            log.error("{target}: {why}", target=str(self), why=why)
        if not self._first_attempt.called:
            self._first_attempt.callback(None)

    def _cannot_route(self, why: str) -> None:
        """Report not ready until a message is routed, or the queue exists again."""
        self._unroutable = why
        if self._probe is None or not self._probe.active():
            wait = PROBE if self.queue is not None else UNROUTABLE_FOR
            self._probe = self.reactor.callLater(wait, lambda: Deferred.fromCoroutine(self._probe_route()))

    async def _probe_route(self) -> None:
        if self._unroutable is None or self._connection is None:
            return
        from pika.exceptions import AMQPError

        try:
            # On a separate channel, because a missing queue closes it.
            channel = await self._connection.channel()
            await self._check_topology(channel)
            channel.close()
        except (AMQPError, ConnectionClosed) as error:
            self._cannot_route(self._unroutable or reason_of(error))
        else:
            self._unroutable = None


def queue_arguments(dead_letters: str) -> dict[str, Any]:
    """Return the arguments of a queue that loses no messages: replicated, rejecting new messages when full, and with a
    dead-letter exchange for messages that consumers reject."""
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": dead_letters,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 20,
    }


def _make_protocol(address: Address, heartbeat: int, reactor: Any) -> Any:
    """Make pika's protocol. Pika is imported here because it imports the reactor."""
    import pika
    from pika.adapters.twisted_connection import TwistedProtocolConnection

    class Protocol(TwistedProtocolConnection):  # type: ignore[misc]
        said: Any = None  # why the connection was lost: the broker's reason, or the error

        def dataReceived(self, data: bytes) -> None:
            try:
                super().dataReceived(data)
            except Exception as error:  # pika raises several for data that it cannot parse
                self.said = ConnectionError(f"invalid data from the broker: {type(error).__name__}")
                self.transport.abortConnection()

        def connectionLost(self, reason: Any = None) -> None:
            # Pika replaces it with "closed cleanly".
            self.said = self.said or getattr(self._impl, "_error", None) or reason
            super().connectionLost(reason)

    parameters = pika.ConnectionParameters(
        address.host,
        address.port,
        address.virtual_host,
        pika.PlainCredentials(address.user, address.password),
        heartbeat=heartbeat,
        client_properties={"connection_name": "txsmtpd"},
    )
    return Protocol(parameters, custom_reactor=reactor)


def _sleep(reactor: Any, seconds: float) -> Deferred[None]:
    if seconds <= 0:
        return succeed(None)
    slept: Deferred[None] = Deferred(lambda _: call.cancel())
    call = reactor.callLater(seconds, slept.callback, None)
    return slept


class _NoMail(logging.Filter):
    """Drops pika's log lines about returned messages, which contain their first bytes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Published message was returned")


def _quiet_pika() -> None:
    logger = logging.getLogger("pika")
    if not logger.handlers:
        # Without a handler, Python would print to stderr what is already logged here.
        logger.addHandler(logging.NullHandler())
    returns = logging.getLogger("pika.adapters.twisted_connection")
    if not any(isinstance(each, _NoMail) for each in returns.filters):
        returns.addFilter(_NoMail())
