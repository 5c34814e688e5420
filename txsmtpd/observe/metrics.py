"""Metrics of a server: what its sessions did, what rejected commands, and how long hooks took.

This module counts in plain numbers (:mod:`txsmtpd.observe.counters`); :mod:`txsmtpd.observe.prometheus` exports them.
All label values come from fixed sets: those in this file, the server's commands and mechanisms, hook names, and TLS
versions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable
from functools import lru_cache
from time import monotonic, perf_counter
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionAborted, ConnectionDone
from zope.interface import implementer

from txsmtpd.engine.handshake import TLSSetupException
from txsmtpd.engine.message_sink import RECEIVER_METHODS
from txsmtpd.engine.meter import Meter, report_decider
from txsmtpd.engine.proxy_header import ProxyHeaderError
from txsmtpd.engine.timeouts import CommandTooSlow, DataTooSlow, Idle, SessionTooLong
from txsmtpd.interfaces import IMessageReceiver
from txsmtpd.observe.counters import BUCKETS, SUM, Counters
from txsmtpd.recipient_replies import FOR_EACH
from txsmtpd.reply import FAILED, FAILED_TWICE, TAKES_TOO_LONG, Refused, Reply
from txsmtpd.session import TLSInfo

UNKNOWN = "unknown"
HOOK = "hook"
GREETING = "greeting"  # the command label for the greeting
MORE_TO_COUNT = frozenset([b"AUTH", b"BDAT", b"QUIT"])  # commands whose positive replies need more than one counter
SHORTEST = BUCKETS[0]  # seconds
NO_HOOKS = ("exception", "process_message")  # hooks without a server argument, or not part of a command
OPEN, FINISH = "open_message", "finish"  # the counterparts of DATA in streaming handlers; timed like hooks

# The `decided_by` label for rejections not made by a hook, by code and enhanced status code; then by code alone.
_BY_STATUS = {
    (421, "4.3.2"): "shutdown",
    (421, "4.7.0"): "junk",
    (421, "4.3.4"): "size",
    (421, "4.4.2"): "time",
    (421, "4.5.4"): "syntax",
    (450, "4.7.1"): "rate",
    (452, "4.3.1"): "memory",
    (452, "4.5.3"): "recipients",
    (454, "4.7.0"): "rate",
    (500, "5.6.0"): "content",
    (500, "5.6.1"): "content",
    (552, "5.3.4"): "size",
    (550, "5.6.7"): "address",
    (550, "5.7.0"): "policy",
    (554, "5.5.1"): "protocol",
    (554, "5.6.0"): "content",
    (554, "5.7.0"): "tls",
}
_BY_CODE = {
    500: "syntax",
    501: "syntax",
    502: "sequence",
    503: "sequence",
    504: "syntax",
    530: "policy",
    534: "auth",
    535: "auth",
    538: "tls",
    550: "content",
    552: "size",
    553: "address",
    555: "syntax",
}
# Some codes have several reasons. These are the beginnings of the replies.
_BY_TEXT = (
    ("Too many errors", "errors"),
    ("Too many commands", "junk"),
    ("Too many failed auth", "auth"),
    ("Too many auth", "auth"),
    ("Temporary authentication failure", "failure"),
    ("Too many messages in one session", "rate"),
    ("Line too long", "syntax"),
    ("The message was not processed, try again later", "hook"),
    ("Too many connections", "rate"),
    ("TLS is not available", "tls"),
    ("Must issue a STARTTLS", "tls"),
    ("Authentication required", "auth"),
)
_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (Idle, "idle"),
    (CommandTooSlow, "deadline"),
    (DataTooSlow, "slow_data"),
    (SessionTooLong, "session_time"),
    (TLSSetupException, "tls_failed"),
    (ProxyHeaderError, "proxy_bad"),
    (ConnectionAborted, "aborted"),
)


@lru_cache(maxsize=1024)
def decided_by(reply: Reply) -> str:
    """Return the label for a rejection by the server itself."""
    if reply in (FAILED, FAILED_TWICE):
        return "failure"
    if reply == TAKES_TOO_LONG or (reply.code, reply.status) == (421, "4.3.0"):
        return "hook_timeout"
    text = reply.lines[0]
    for begins, by in _BY_TEXT:
        if text.startswith(begins):
            return by
    return _BY_STATUS.get((reply.code, reply.status or "")) or _BY_CODE.get(reply.code, "other")


class Metrics:
    """Counts and measures the sessions of a factory::

        metrics = Metrics()
        factory = SMTPFactory(handler, metrics=metrics)
        metrics.register(prometheus_client.REGISTRY)

    :param listener: the value of the label ``listener``.
    :param counters: where to count. Several factories may share it.
    """

    def __init__(self, listener: str = "", counters: Counters | None = None) -> None:
        self.listener = listener
        self.counters = Counters() if counters is None else counters
        self.counters.before_reading.append(self._update)
        self.commands: dict[bytes, list[int]] = {}  #: counts by verb, for each first digit of a reply code
        self.unknown = [0] * 6
        self.opened = self.closed = 0  #: the number of connections
        self.accepted = 0  #: the number of accepted messages
        self.accepted_octets = 0  #: their total size
        self.data_seconds = self.counters["data_seconds"][()]
        self._factories: list[Any] = []

    def register(self, registry: Any) -> None:
        """Register with the program's ``prometheus_client.CollectorRegistry``."""
        from txsmtpd.observe.prometheus import SnapshotCollector

        registry.register(SnapshotCollector(self.counters.snapshot, self.counters.families))

    # Called by the factory

    def meter(self, server: Any) -> Meter:
        """Return the meter of a new session."""
        return SessionMeter(self, server)

    def timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a hook to measure how long it takes, and to see its decision."""
        if name in NO_HOOKS:
            return hook
        return self._opened(self._timed(name, hook)) if name == OPEN else self._timed(name, hook)

    def _opened(self, open_message: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``open_message`` so that its receivers are measured too."""
        finish = self._timed(FINISH, lambda server, function: function())

        async def call(server: Any, *arguments: Any) -> Any:
            receiver = await open_message(server, *arguments)
            if all(callable(getattr(receiver, name, None)) for name in RECEIVER_METHODS):
                return MeasuredReceiver(receiver, server, finish)
            return receiver  # the engine reports what is wrong with it

        return call

    def _timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        seconds = self.counters["hook_seconds"][name,]
        failures = self.counters["hook_failures_total"]

        async def call(*arguments: Any) -> Any:  # the first one is the server
            began = perf_counter()
            refused = True
            try:
                result = hook(*arguments)
                if type(result) is CoroutineType or (type(result) is not str and isinstance(result, Awaitable)):
                    result = await result
                refused = "4" <= result < "6" if type(result) is str else _refuses(result)
                return result
            except Refused:
                raise
            except CancelledError:
                refused = False
                raise
            except Exception:
                failures[name,] += 1
                raise
            finally:
                took = perf_counter() - began
                seconds[0 if took < SHORTEST else bisect_left(BUCKETS, took)] += 1  # most hooks are quick
                seconds[SUM] += took
                if refused:
                    report_decider(arguments[0], HOOK)

        return call

    def watch(self, factory: Any) -> None:
        """Read values from this factory that meters do not get: limit decisions and rejected connections."""
        self._factories.append(factory)
        count_into = getattr(factory.handler, "count_into", None)
        if callable(count_into):  # the handler has its own counters
            count_into(self.counters)

    def _update(self) -> None:
        """Update the counters that are kept elsewhere."""
        counters = self.counters
        verbs = [*((verb.decode("ascii"), counts) for verb, counts in self.commands.items()), (UNKNOWN, self.unknown)]
        for verb, counts in verbs:
            for digit, count in enumerate(counts):
                if count:
                    counters["commands_total"][verb, str(digit)] += count
                    if verb == "RCPT":
                        counters["recipients_total"][_outcome(digit),] += count
                    counts[digit] = 0
        counters["connections_total"][self.listener, "accepted"] += self.opened
        counters["connections_open"][self.listener,] += self.opened - self.closed
        self.opened = self.closed = 0
        counters["messages_total"][self.listener, "accepted"] += self.accepted
        counters["message_octets_total"][self.listener,] += self.accepted_octets
        self.accepted = self.accepted_octets = 0
        for factory in self._factories:
            for why, count in factory.refused.items():
                counters["connections_total"][self.listener, f"refused_{why}"] = count
            admission = factory.settings.admission
            for outcome, decisions in (("admitted", admission.admitted), ("refused", admission.refused)):
                for kind, count in decisions.items():
                    if count:
                        counters["limiter_total"][kind, outcome] += count
                        decisions[kind] = 0
            limiter = factory.settings.limiter or admission.limiter
            counters["limiter_forgotten_total"][()] = getattr(limiter, "forgotten", 0)
            counters["limiter_store_errors_total"][()] = getattr(limiter, "errors", 0)
        for memory in {each.settings.memory for each in self._factories}:
            counters["message_memory_octets"][()] = memory.used
            counters["message_memory_refused_total"][()] = memory.refused
        if self._factories:
            counters["stress"][()] = max(int(each.stress.active) for each in self._factories)


class SessionMeter(Meter):
    """Counts one session."""

    __slots__ = (
        "_began",
        "_commands",
        "_data_began",
        "_decided_by",
        "_last",
        "_message",
        "_metrics",
        "_octets",
        "_server",
        "_taken",
        "_timeouts",
    )

    def __init__(self, metrics: Metrics, server: Any) -> None:
        self._metrics = metrics
        self._commands = metrics.commands
        self._server = server
        self._decided_by: str | None = None  # what rejected the current command, if not the server
        self._timeouts = server._connection.timeouts
        self._began = monotonic()
        self._data_began: float | None = None  # the time of the reply 354, by the clock of the connection
        self._message = False  # a message has begun and not been replied to
        self._octets = 0
        self._taken = 0
        self._last: Reply | None = None
        metrics.opened += 1

    def replied(self, verb: bytes, reply: Reply) -> None:
        code = reply.code
        try:
            self._commands[verb][code // 100] += 1
        except KeyError:
            self._counts_of(verb)[code // 100] += 1
        # The most common replies come first: this is called four times per message.
        if code == 250 and not self._message:
            if verb in MORE_TO_COUNT:
                self._count_more(verb, reply)
        elif code == 250 and self._server._message is None:
            self._decided_by = None
            self._message_answered(verb, reply)
        elif code == 354:
            self._message = True
            self._data_began = self._timeouts.last_heard  # no clock is read: this is close enough
        elif code >= 300 or self._message or verb in MORE_TO_COUNT:
            self._count_more(verb, reply)

    def _count_more(self, verb: bytes, reply: Reply) -> None:
        code, message = reply.code, self._server._message
        if code >= 400:
            self._last = reply
            self._refused(verb, reply)
        elif verb == b"QUIT":
            self._last = reply
        elif verb == b"BDAT" and not self._message and message is not None:
            self._message = True  # the first of several chunks
        self._decided_by = None
        if self._message and (message is None or message.is_refused):
            self._message_answered(verb, reply)
        if verb == b"AUTH":
            self._auth_answered(reply)

    def _counts_of(self, verb: bytes) -> list[int]:
        if verb in self._server.commands:
            return self._metrics.commands.setdefault(verb, [0] * 6)
        if not verb:
            return self._metrics.commands.setdefault(GREETING.encode("ascii"), [0] * 6)
        return self._metrics.unknown

    def _refused(self, verb: bytes, reply: Reply) -> None:
        stage = verb.decode("ascii") if verb in self._server.commands else UNKNOWN if verb else GREETING
        # Exceptions in hooks are replied to by the server.
        by = None if reply in (FAILED, FAILED_TWICE) else self._decided_by
        by = by or decided_by(reply)
        self._metrics.counters["refusals_total"][stage, by] += 1
        if by == "hook_timeout":
            self._metrics.counters["hook_timeouts_total"][stage,] += 1

    def decided(self, by: str) -> None:
        self._decided_by = self._decided_by or by

    def message_complete(self, octets: int) -> None:
        self._message = True
        self._octets = octets
        began, self._data_began = self._data_began, None
        if began is not None:  # not after BDAT
            took = self._timeouts.last_heard - began
            seconds = self._metrics.data_seconds
            seconds[0 if took < SHORTEST else bisect_left(BUCKETS, took)] += 1
            seconds[SUM] += took

    def _message_answered(self, verb: bytes, reply: Reply) -> None:
        self._message = False
        metrics, taken = self._metrics, self._server._dispatcher.messages
        if taken != self._taken:
            self._taken = taken
            metrics.accepted += 1
            metrics.accepted_octets += self._octets
        else:
            outcome = _outcome(reply.code // 100) if verb in (b"DATA", b"BDAT") else "aborted"  # by RSET, for example
            metrics.counters["messages_total"][metrics.listener, outcome] += 1

    def _auth_answered(self, reply: Reply) -> None:
        attempts = self._server._attempts
        mechanism = attempts.mechanism if attempts is not None and attempts.mechanism else UNKNOWN
        outcome = {235: "succeeded", 535: "refused", 454: "limited"}.get(reply.code, "failed")
        self._metrics.counters["auth_total"][mechanism, outcome] += 1

    def tls_started(self, tls: TLSInfo) -> None:
        self._metrics.counters["tls_total"][tls.protocol,] += 1

    def closed(self, cause: BaseException) -> None:
        metrics = self._metrics
        counters = metrics.counters
        metrics.closed += 1
        counters["disconnects_total"][metrics.listener, self._cause(cause)] += 1
        counters.observe("session_seconds", monotonic() - self._began)
        if self._message:
            counters["messages_total"][metrics.listener, "aborted"] += 1
        self._server = self._timeouts = None

    def _cause(self, cause: BaseException) -> str:
        for kind, name in _CAUSES:
            if isinstance(cause, kind):
                return name
        last, dispatcher = self._last, self._server._dispatcher
        if not isinstance(cause, ConnectionDone):
            return "lost"
        if last is not None and last.code == 221:
            return "quit"
        if dispatcher.draining is not None:
            return "shutdown"
        if last is not None and (last.code == 421 or dispatcher.closes_after_reply):
            return decided_by(last)
        return "lost"


@implementer(IMessageReceiver)
class MeasuredReceiver:
    """Wraps the receiver of a streaming handler. Its ``finish`` is timed like a hook, and counted as the handler's.

    :param timed: wraps a function, like :meth:`Metrics.timed`.
    """

    __slots__ = ("_finish", "_server", "_timed", "_write", "abort", "registerProducer", "unregisterProducer")

    def __init__(self, receiver: Any, server: Any, timed: Callable[..., Any]) -> None:
        self._server = server
        self._timed = timed
        self._finish = server.settings.in_asyncio(receiver.finish)
        self._write = receiver.write
        self.abort = receiver.abort
        self.registerProducer = receiver.registerProducer
        self.unregisterProducer = receiver.unregisterProducer

    def write(self, octets: bytes) -> None:
        try:
            self._write(octets)
        except Refused:
            report_decider(self._server, HOOK)
            raise

    def finish(self) -> Any:
        return self._timed(self._server, self._finish)


def _outcome(digit: int) -> str:
    return "accepted" if digit == 2 else f"refused_{digit}"


def _refuses(status: Any) -> bool:
    """Return True if a hook's status that is not a string is negative."""
    if type(status) is Reply:
        return status.code >= 400
    return isinstance(status, FOR_EACH)
