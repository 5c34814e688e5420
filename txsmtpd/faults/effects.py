"""The effects of faults: what happens to a command, a message or a connection that matches a rule.

An interceptor applies them. A session has one only if its factory has faults. It intercepts commands that the
dispatcher has found valid, and connections, greetings and messages before they are processed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from txsmtpd.engine.interceptor import Interceptor
from txsmtpd.engine.masking import in_one_line
from txsmtpd.engine.output import Output
from txsmtpd.engine.results import ANSWERED_LATER, Action, Close
from txsmtpd.recipient_replies import Replies
from txsmtpd.reply import BAD_SEQUENCE, FAILED, Reply

GARBAGE = 64  # bytes
TICK = 0.05  # seconds between two pieces of a slow reply, unless a single byte takes longer


class Effect(Action):
    """Replaces what would have happened. It is the result of a turn."""


@dataclass(frozen=True)
class Replaced(Effect):
    """Send a different reply."""

    reply: Reply

    def __str__(self) -> str:
        return in_one_line(self.reply)


class Drop(Effect, Close):
    """Close the connection."""

    def __str__(self) -> str:
        return "drop"


class Reset(Effect):
    """Reset the connection."""

    closes = True

    def __str__(self) -> str:
        return "reset"

    def act(self, server: Any) -> None:
        server._connection.abort()


class HalfClose(Effect):
    """Close the server's side; discard received data."""

    closes = True

    def __str__(self) -> str:
        return "half-close"

    def act(self, server: Any) -> None:
        connection = server._connection
        close = getattr(server.transport, "loseWriteConnection", None)
        if close is None or server.session.ssl is not None:  # TLS cannot be half-closed
            connection.close()
            return
        _mute(connection)
        connection.reader = _Lost()
        close()


class StopReading(Effect):
    """Stop reading."""

    closes = True

    def __str__(self) -> str:
        return "stop reading"

    def act(self, server: Any) -> None:
        connection = server._connection
        _mute(connection)
        connection.hold()
        connection.pause_reading()


@dataclass(frozen=True)
class Garbage(Effect):
    """Send bytes that are not a reply."""

    random: Random
    octets: bytes | None

    def __str__(self) -> str:
        return "garbage"

    def act(self, server: Any) -> None:
        octets = self.octets
        server._connection.send(self.random.randbytes(GARBAGE) + b"\r\n" if octets is None else octets)


@dataclass(frozen=True)
class Certificate(Effect):
    """Use another certificate. Everything else is unchanged."""

    tls_context: Any
    called: str

    def __str__(self) -> str:
        return self.called


@dataclass(frozen=True)
class Slowly(Effect):
    """A result whose reply is sent slowly."""

    result: Any
    rate: float
    answers = True

    def act(self, server: Any) -> None:
        connection = server._connection
        slow = SlowOutput(connection, self.rate)
        connection.output = slow
        try:
            server._dispatcher.on_result(self.result)
            slow.flush()
        finally:
            slow.end_if_done()


class SlowOutput(Output):
    """Sends one reply at a limited rate. Received data is not processed until that is done.

    :param connection: the connection, which uses this output until then.
    """

    __slots__ = ("_call", "_closes", "_connection", "_left", "_plain", "_rate")

    def __init__(self, connection: Any, rate: float) -> None:
        self._connection = connection
        self._plain: Output = connection.output
        self._rate = rate
        self._left = b""
        self._call: IDelayedCall | None = None
        self._closes = False
        self.pending = b""

    def flush(self) -> None:
        octets, self.pending = self.pending, b""
        if self._left:
            self._left += octets
        elif octets:
            self._left = octets
            self._connection.hold()
            self._drip()

    def _drip(self) -> None:
        self._call = None
        number = max(1, int(self._rate * TICK))
        octets, self._left = self._left[:number], self._left[number:]
        self._plain.pending += octets
        self._plain.flush()
        if self._left:
            self._call = self._connection.call_later(len(octets) / self._rate, self._drip)
            return
        self.end_if_done()
        if self._closes:
            self._connection.close()
        else:
            self._connection.release()

    def end_if_done(self) -> None:
        """Restore the connection's own output, unless there is more to send."""
        if not self._left and self._connection.output is self:
            self._connection.output = self._plain

    def abort(self) -> None:
        self.stop_waiting()
        self._plain.abort()

    def stop_waiting(self) -> None:
        self._left = b""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.end_if_done()

    def may_close(self, close: Callable[[], None]) -> bool:
        self.flush()
        self._closes = bool(self._left)
        return not self._closes

    def transport_changed(self) -> None:
        self._plain.transport_changed()


class MutedOutput(Output):
    """Sends nothing."""

    __slots__ = ()
    muted = True

    def flush(self) -> None:
        self.pending = b""  # must not be sent


def _mute(connection: Any) -> None:
    """Send nothing more."""
    connection.output.flush()
    connection.output = MutedOutput(connection.transport)


class _Lost:
    """Receives and discards data."""

    def feed(self, data: bytes, start: int) -> int:
        return -1


class FaultInterceptor(Interceptor):
    """Applies the rules in one session.

    :param strike: returns the rule that applies.
    :param server: the protocol of the session.
    """

    def __init__(self, strike: Callable[..., Any], server: Any) -> None:
        self._find = strike
        self._server = server
        self._context: Any = None  # the TLS context to use instead of the server's

    def _strike(self, stage: str, **what: Any) -> Any:
        """Return the rule that applies now, and record it; or None."""
        rule = self._find(stage, self._server, **what)
        observer = self._server._connection.observer
        if rule is not None and observer is not None:
            observer.fault_injected(str(rule), rule.effect)
        return rule

    # Where rules apply

    def connect(self, proceed: Callable[[], Any]) -> Any:
        return self._before_greeting("connect", proceed)

    def greet(self, proceed: Callable[[], Any]) -> Any:
        return self._before_greeting("greeting", proceed)

    def _before_greeting(self, stage: str, proceed: Callable[[], Any]) -> Any:
        rule = self._strike(stage)
        if rule is None:
            return proceed()
        if isinstance(rule._effect, Replaced):
            dispatcher = self._server._dispatcher
            code = rule._effect.reply.code
            dispatcher.closes_after_reply = 400 <= code < 500
            if code >= 500:
                dispatcher.refuse_all = BAD_SEQUENCE  # RFC 5321 3.1: wait for QUIT, answer 503 to all else
        return self._suffer(rule, proceed)

    def command(self, verb: bytes, arg: str | None, proceed: Callable[[], Any]) -> Any:
        rule = self._strike(verb.decode("ascii").lower(), argument=arg)
        return proceed() if rule is None else self._suffer(rule, proceed)

    async def message(self, octets: int, finish: Callable[[], Any]) -> Any:
        server = self._server
        envelope = server.envelope
        rule = self._strike("message", by_recipient=False if server.lmtp else None, size=octets)
        if rule is not None:
            return await self._suffer_whole(rule, finish)
        result = await (self._finish_for_each(octets, finish) if server.lmtp else finish())
        if getattr(result, "positive", False):
            rule = self._strike("accepted", envelope=envelope, size=octets)
            if rule is not None:
                return await self._suffer(rule, lambda: result)
        return result

    def tls_context(self, context: Any) -> Any:
        return context if self._context is None else self._context

    # Applying a rule

    async def _suffer(self, rule: Any, proceed: Callable[[], Any]) -> Any:
        """Apply the rule to a turn that would otherwise continue."""
        server = self._server
        if rule._delay:
            await deferLater(server._connection.clock, rule._delay)
        effect = rule._effect
        if isinstance(effect, Certificate):
            self._context = effect.tls_context
        elif effect is not None and not isinstance(effect, Replaced):
            return effect
        if rule._slow is None:
            return effect.reply if isinstance(effect, Replaced) else await _awaited(proceed())
        try:
            result = effect.reply if isinstance(effect, Replaced) else await _awaited(proceed())
        except Exception as error:
            result = await server._dispatcher.reply_for_error(error)
        return result if result is ANSWERED_LATER or result is None else Slowly(result, rule._slow)

    async def _suffer_whole(self, rule: Any, finish: Callable[[], Any]) -> Any:
        """Apply the rule to a whole message."""
        message = self._server._message
        try:
            return await self._suffer(rule, finish)
        finally:
            message.refuse(FAILED)  # unless the handler has taken it

    async def _finish_for_each(self, octets: int, finish: Callable[[], Any]) -> Any:
        """Finish the message in LMTP for the recipients without a matching rule, and return the replies to all."""
        owed: Sequence[Sequence[str]] = self._server._dispatcher.owed
        struck: dict[int, Reply] = {}
        for number, path in ((number, path) for number, paths in enumerate(owed) for path in paths):
            rule = self._strike("message", by_recipient=True, address=path, size=octets)
            if rule is not None:
                if not isinstance(rule._effect, Replaced):
                    return await self._suffer_whole(rule, finish)
                struck[number] = rule._effect.reply
        if not struck:
            return await finish()
        others = await self._finish_for([paths for number, paths in enumerate(owed) if number not in struck], finish)
        replies = iter(others.replies if isinstance(others, Replies) else [others] * len(owed))
        names = [", ".join(paths) for paths in owed]
        return Replies(names, [struck.get(number) or next(replies) for number in range(len(owed))])

    async def _finish_for(self, owed: Sequence[Sequence[str]], finish: Callable[[], Any]) -> Any:
        """Finish the message in LMTP for these recipients only. Return its reply, or one for each."""
        server, dispatcher = self._server, self._server._dispatcher
        if not owed:
            server._message.refuse(FAILED)
            return FAILED
        left = Counter(path for paths in owed for path in paths)
        before = Counter(path for paths in dispatcher.owed for path in paths)
        for path in (before - left).elements():
            if path in server.envelope.rcpt_tos:
                server.envelope.rcpt_tos.remove(path)
        all_owed, dispatcher.owed = dispatcher.owed, owed
        try:
            return await finish()
        except Exception as error:
            return await dispatcher.reply_for_error(error)
        finally:
            dispatcher.owed = all_owed


async def _awaited(result: Any) -> Any:
    return await result if isinstance(result, Awaitable) else result
