"""Publishing on one AMQP channel, with confirms, returns and back-pressure.

A publisher confirm means that the broker has handled a message; a return means that no queue took it. Both are needed:
when a message is confirmed, it is checked whether it was returned. Each connection has one channel. When either is
closed, this object is finished, and :mod:`txsmtpd.handoff.amqp` makes another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.handoff.outcome import UNAVAILABLE, NotTaken, OutcomeUnknown, Unroutable

BLOCKED_GRACE = 1.0  # seconds to wait for confirms after the broker has blocked the connection


@dataclass(eq=False)
class Publication:
    """One message, from the waiting queue to its confirm."""

    id: str
    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    properties: Any
    done: Deferred[None] = field(repr=False)

    def succeed(self) -> None:
        if not self.done.called:
            self.done.callback(None)

    def fail(self, error: Exception) -> None:
        if not self.done.called:
            self.done.errback(error)


@implementer(IPushProducer)
class ConfirmedChannel:
    """A channel in confirm mode.

    :param channel: pika's ``TwistedChannel``, after ``confirm_delivery``.
    :param transport: the transport of its connection.
    :param reactor: provides the time (IReactorTime).
    """

    def __init__(self, channel: Any, transport: Any, reactor: Any) -> None:
        self._channel = channel
        self._transport = transport
        self._reactor = reactor
        self._waiting: deque[Publication] = deque()
        self._unconfirmed: set[Publication] = set()
        self._returned: dict[str, str] = {}  # the reason, by message id
        self._paused = False
        self._lost: str | None = None
        self.blocked: str | None = None  #: why the broker currently accepts nothing
        channel.add_on_return_callback(self._was_returned)
        channel.connection.add_on_connection_blocked_callback(self._was_blocked)
        channel.connection.add_on_connection_unblocked_callback(self._was_unblocked)
        transport.registerProducer(self, True)

    def publish(self, identifier: str, exchange: str, routing_key: str, body: bytes, properties: Any) -> Deferred[None]:
        """Publish a persistent message with a confirm. The Deferred fires once a queue has it.

        It fails with :class:`NotTaken` or :class:`OutcomeUnknown`. Cancelling it removes the message if it was not yet
        written.
        """
        done: Deferred[None] = Deferred(lambda _: self._cancelled(publication))
        publication = Publication(identifier, exchange, routing_key, body, properties, done)
        if self._lost is not None:
            publication.fail(NotTaken(self._lost, UNAVAILABLE))
        elif self.blocked is not None:
            publication.fail(NotTaken(self.blocked, UNAVAILABLE))
        else:
            self._waiting.append(publication)
            self._write()
        return done

    def lose(self, why: str) -> None:
        """Handle the loss of the channel or its connection."""
        if self._lost is not None:
            return
        self._lost = why
        waiting, unconfirmed = list(self._waiting), list(self._unconfirmed)
        self._waiting.clear()
        self._unconfirmed.clear()
        for publication in waiting:
            publication.fail(NotTaken(why, UNAVAILABLE))
        for publication in unconfirmed:
            returned = self._returned.pop(publication.id, None)
            publication.fail(Unroutable(returned) if returned else OutcomeUnknown(why))

    # Writing

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._write()

    def stopProducing(self) -> None:
        self._paused = True

    def _write(self) -> None:
        # All frames of a message are written at once, and the next message once these were sent. So the transport
        # buffers only one message.
        while self._waiting and not self._paused and self._lost is None:
            publication = self._waiting.popleft()
            self._unconfirmed.add(publication)
            confirmed = self._channel.basic_publish(
                publication.exchange, publication.routing_key, publication.body, publication.properties, mandatory=True
            )
            publication.body = b""
            confirmed.addBoth(self._was_confirmed, publication)

    def _cancelled(self, publication: Publication) -> None:
        if publication in self._waiting:
            self._waiting.remove(publication)
            publication.fail(NotTaken("the broker does not read", UNAVAILABLE))
        elif publication in self._unconfirmed:
            # No confirm came in time. A quorum queue that was not ready for one message may never confirm later ones on
            # this channel either.
            self._transport.abortConnection()

    # Events from the broker

    def _was_confirmed(self, result: Any, publication: Publication) -> None:
        from pika import exceptions

        self._unconfirmed.discard(publication)
        returned = self._returned.pop(publication.id, None)
        if returned is not None:
            publication.fail(Unroutable(returned))
        # Pika keeps only one returned message, not necessarily this one; `_returned` has them all.
        elif not isinstance(result, Failure) or result.check(exceptions.UnroutableError):
            publication.succeed()
        elif result.check(exceptions.NackError):
            publication.fail(NotTaken("the broker has rejected the message (nack)"))
        else:
            publication.fail(OutcomeUnknown(f"the connection was lost: {result.getErrorMessage()}"))

    def _was_returned(self, message: Any) -> None:
        method = message.method
        where = f"exchange {method.exchange!r}, " if method.exchange else ""
        self._returned[message.properties.message_id] = (
            f"the messages were not routed to a queue: {where}routing key {method.routing_key!r}: {method.reply_text}"
        )

    def _was_blocked(self, connection: Any, frame: Any) -> None:
        why = self.blocked = f"the broker has blocked publishers: {frame.method.reason}"
        waiting = list(self._waiting)
        self._waiting.clear()
        for publication in waiting:
            publication.fail(NotTaken(why, UNAVAILABLE))
        self._reactor.callLater(BLOCKED_GRACE, self._blocked_for_too_long, list(self._unconfirmed), why)

    def _was_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = None

    def _blocked_for_too_long(self, publications: list[Publication], why: str) -> None:
        for publication in publications:
            if publication in self._unconfirmed:
                publication.fail(OutcomeUnknown(why))
