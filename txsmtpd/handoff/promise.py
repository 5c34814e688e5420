"""The handler of all hand-offs. It replies 250 once the other system has taken responsibility for the message.

Otherwise it replies 451, and the client sends the message again; or 552 if the message is too large. Delivery is at
least once. Memory is limited: clients wait for it, and get 451 after a timeout. The interface of a target is in
:mod:`txsmtpd.handoff.interfaces`; :mod:`txsmtpd.handoff.receiver` receives one message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.handlers import trace_header
from txsmtpd.handlers.delivery import when_done
from txsmtpd.handoff.budget import Budget, Share
from txsmtpd.handoff.message import HandoffMessage, declared_size, envelope_of, new_id
from txsmtpd.handoff.outcome import BUSY, TOO_LARGE, UNKNOWN, NotTaken, OutcomeUnknown, Unroutable
from txsmtpd.handoff.receiver import STEP, Receiver
from txsmtpd.interfaces import IReadiness, IStreamingHandler
from txsmtpd.log.trouble import Trouble
from txsmtpd.reply import Refused, Reply, parse_status
from txsmtpd.session import Envelope, Session

LARGEST = 2**25  # bytes of a message, for targets without a limit; the default of servers
IN_FLIGHT = 1000  # messages
MEMORY = 2**26  # bytes of all messages in flight together
CONFIRM_TIMEOUT = 60.0  # seconds; less than the hook timeout (300), and much less than clients wait (600)
WAIT = 30.0  # seconds to wait for memory
INLINE = 2**20  # bytes; with a store, smaller messages are still passed to the target directly
UNDECLARED = 2**14  # bytes initially reserved for a message if MAIL does not declare its size

HandOff = Callable[[HandoffMessage], Any]


@implementer(IStreamingHandler, IReadiness)
class Handoff(MultiService):
    """A handler that hands each message to another system.

    It is a service: give it a parent, or start and stop it, so that the target is connected before the first message
    and disconnected cleanly. Stop the services of listeners before it. If it was not started, it starts with the first
    message.

    :param target: an :class:`~txsmtpd.handoff.IHandoff`.
    :param store: an :class:`~txsmtpd.handoff.IMessageStore`. Messages of more than *inline* bytes are stored there
        while they arrive, and the target gets a reference. None: the target gets all messages directly.
    :param inline: bytes. 0: all messages go to the store.
    :param max_size: the maximum size of a message for the target in bytes, including the Received field. Default: the
        target's ``max_size``, or 32 MiB.
    :param in_flight: the maximum number of messages that are being read or not yet confirmed.
    :param memory: the maximum memory for the messages that *in_flight* counts, in bytes. Further clients wait. Default:
        64 MiB, or the size of two largest messages.
    :param wait: seconds that a client waits for memory before it gets 451.
    :param confirm_timeout: seconds in which the target must confirm a message.
    :param received: add a Received field to each message (RFC 5321 4.4).
    :param reactor: provides the time. Default: the global reactor.
    :raises ValueError: if *memory* is less than the size of two largest messages.
    """

    log = Logger(namespace="txsmtpd.handoff")

    def __init__(
        self,
        target: Any,
        *,
        store: Any = None,
        inline: int = INLINE,
        max_size: int | None = None,
        in_flight: int = IN_FLIGHT,
        memory: int | None = None,
        wait: float = WAIT,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        received: bool = True,
        reactor: Any = None,
    ) -> None:
        super().__init__()
        self.target = target
        self.store = store
        self.inline = inline
        self.max_size = max_size
        self.confirm_timeout = confirm_timeout
        self.wait = wait
        self.received = received
        self.reactor = reactor
        self.descriptors = 1 if store is None else 2  #: file descriptors per client
        most = getattr(target, "max_size", None)
        if store is not None and most is not None and inline + STEP > most:
            raise ValueError(f"inline must be less than the maximum size of the target, {most} octets")
        largest = (inline + 2 * store.part if store is not None else self._limit() or LARGEST) + 2 * STEP
        self.budget = Budget(in_flight, max(MEMORY, 2 * largest) if memory is None else memory, largest)
        self._handing: set[Deferred[Any]] = set()
        self._counters: Any = None
        name = type(target).__name__
        self._label = (name.removesuffix("Target") or name).lower()
        self._trouble = Trouble()  # why messages were not taken
        self._unroutable: str | None = None
        for each in (target, store):
            if IService.providedBy(each):
                each.setServiceParent(self)

    # The service

    def stopService(self) -> Deferred[None]:
        """Wait for messages that are being handed over, then stop the target."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._handing:
            await when_done(next(iter(self._handing)))
        await MultiService.stopService(self)

    def not_ready(self) -> str | None:
        """Return why no mail can be accepted now, or None. See :class:`~txsmtpd.interfaces.IReadiness`."""
        if IReadiness.providedBy(self.target):
            problem: str | None = self.target.not_ready()
            return problem
        return self._unroutable

    # The handler

    async def open_message(self, server: Any, session: Session, envelope: Envelope) -> Receiver:
        """Start to receive a message; see :class:`~txsmtpd.interfaces.IStreamingHandler`."""
        if not self.running:
            self.startService()
        in_asyncio = server.settings.in_asyncio  # a target of the application's own may need it
        await self._check(in_asyncio)
        limit, declared = self._limit(), declared_size(envelope)
        if limit is not None and declared is not None and declared > limit:
            raise Refused(TOO_LARGE)
        described = envelope_of(server, session, envelope, new_id())
        header = self._header(server, session, envelope, described["id"])
        share = await self._share(len(header) + (UNDECLARED if declared is None else self._in_memory(declared)))
        return Receiver(
            described,
            header,
            share,
            partial(self._settle, in_asyncio(self.target.hand_off)),
            complain=self._note,
            limit=limit,
            store=self.store,
            inline=self.inline,
            wait=self.wait,
            reactor=self._clock(),
        )

    async def _check(self, in_asyncio: Callable[[Any], Any]) -> None:
        check = getattr(self.target, "check", None)
        if check is None:
            return
        try:
            answer = in_asyncio(check)()
            if isinstance(answer, Awaitable):
                await answer
        except NotTaken as problem:
            if not IReadiness.providedBy(self.target):  # a target with IReadiness has logged the start of the trouble
                self._note(problem)
            raise

    def _limit(self) -> int | None:
        """Return the maximum size of a message in bytes. None: unlimited, because large messages go to the store."""
        if self.store is not None:
            return None
        most = getattr(self.target, "max_size", None) or LARGEST
        return most if self.max_size is None else min(most, self.max_size)

    def _in_memory(self, size: int) -> int:
        return size if self.store is None else min(size, self.inline)

    async def _share(self, octets: int) -> Share:
        waiting = self.budget.take(octets)
        try:
            return await waiting.addTimeout(self.wait, self._clock())
        except DeferredTimeout:
            problem = NotTaken("too many messages are in memory", BUSY)
            self._note(problem)
            raise problem from None

    def _header(self, server: Any, session: Session, envelope: Envelope, identifier: str) -> bytes:
        if not self.received:
            return b""
        hostname = getattr(server, "hostname", None) or "localhost"
        lmtp = bool(getattr(server, "lmtp", False))
        field = trace_header.received(hostname, session, envelope, identifier, lmtp=lmtp)
        return field.replace(b"\n", b"\r\n")

    # Metrics

    def count_into(self, counters: Any) -> None:
        """Count the outcomes of messages.

        :param counters: a :class:`~txsmtpd.observe.counters.Counters`, which several listeners may share.
        """
        if counters is not self._counters:
            self._counters = counters
            counters.before_reading.append(self._tell_state)

    def _tell_state(self) -> None:
        self._counters["handoff_in_flight"][self._label,] = self.budget.messages
        self._counters["handoff_ready"][self._label,] = int(self.not_ready() is None)

    def _count(self, outcome: str, began: float) -> None:
        if self._counters is not None:
            self._counters["handoff_total"][self._label, outcome] += 1
            self._counters.observe("handoff_seconds", self._clock().seconds() - began, self._label)

    # The promise

    async def _settle(self, hand_off: HandOff, message: HandoffMessage, upload: Any, share: Share) -> Any:
        """Return the status of a complete message."""
        # Continue even if the client disconnects: the other system may already have the message.
        handing = Deferred.fromCoroutine(self._hand_over(hand_off, message, upload, share))
        self._handing.add(handing)
        answer: Deferred[Any] = Deferred()

        def over(result: Any) -> None:
            self._handing.discard(handing)
            if not answer.called:
                answer.callback(result)
            elif isinstance(result, Failure):
                result.trap(Refused)  # the client has disconnected

        handing.addBoth(over)
        return await answer

    async def _hand_over(self, hand_off: HandOff, message: HandoffMessage, upload: Any, share: Share) -> Any:
        began = self._clock().seconds()
        try:
            status = await self._call_target(hand_off, message)
        except Refused as refused:
            self._count(refused.outcome if isinstance(refused, NotTaken) else "refused", began)
            if upload is not None:
                await upload.abort()
            if isinstance(refused, NotTaken):  # other refusals are decisions about this message
                self._note(refused)
            raise
        except Exception as error:
            # Keep what is stored: the other system may have the reference.
            self._count("timeout" if isinstance(error, DeferredTimeout) else "unknown", began)
            self._note(error)
            raise Refused(error.reply if isinstance(error, OutcomeUnknown) else UNKNOWN) from error
        finally:
            share.release()
        taken = _anybody_has_it(status)
        self._count("confirmed" if taken else "refused", began)
        if upload is not None and not taken:
            await upload.abort()
        self._note(None)
        return f"250 2.0.0 OK, handed off as {message.id}" if status is None else status

    async def _call_target(self, hand_off: HandOff, message: HandoffMessage) -> Any:
        answer = hand_off(message)
        if not isinstance(answer, Awaitable):
            return answer
        waiting = Deferred.fromCoroutine(_awaited(answer))
        return await waiting.addTimeout(self.confirm_timeout, self._clock(), _timed_out)

    def _note(self, error: Exception | None) -> None:
        """Log changes, not each message."""
        self._unroutable = str(error) if isinstance(error, Unroutable) else None
        now = self._clock().seconds()
        if error is None:
            if self._trouble.worked(now):
                self.log.info("{target} accepts mail", target=str(self.target))
            return
        trouble = str(error) or type(error).__name__
        if self._trouble.seen(trouble, now):
            level = LogLevel.critical if isinstance(error, Unroutable) else LogLevel.error
            self.log.emit(level, "{target} does not accept mail: {trouble}", target=str(self.target), trouble=trouble)

    def _clock(self) -> Any:
        if self.reactor is None:
            self.reactor = current_reactor()
        return self.reactor


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


def _timed_out(result: Any, seconds: float) -> Any:
    if isinstance(result, Failure) and result.check(CancelledError):
        raise DeferredTimeout(f"no confirmation within {seconds:g} seconds")
    return result


def _anybody_has_it(status: Any) -> bool:
    if status is None:
        return True
    if isinstance(status, list | tuple | Mapping):
        return any(map(_positive, status.values() if isinstance(status, Mapping) else status))
    return _positive(status)


def _positive(status: Any) -> bool:
    try:
        reply: Reply = parse_status(status)
    except (TypeError, ValueError):
        return True  # unknown
    return reply.positive
