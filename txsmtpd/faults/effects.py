"""How faults are done: what becomes of a command, a message or a connection that a rule strikes at.

The class that does it is made only for factories that are given faults. Commands are intercepted where the dispatcher
has found them in order; connections, greetings and messages where their turn is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from txsmtpd.command import Command
from txsmtpd.engine.dispatcher import ANSWERED_LATER, in_one_line
from txsmtpd.observe.instruments import Instrument, instrumented
from txsmtpd.observe.transcript import Faulted, note
from txsmtpd.recipient_replies import Replies
from txsmtpd.reply import BAD_SEQUENCE, FAILED, Reply
from txsmtpd.smtp import SMTP

GARBAGE = 64  # octets
TICK = 0.05  # seconds between two pieces of a slow reply, unless a single octet takes longer


class Effect:
    """What takes the place of what would have happened. It is the result of a turn."""

    closes = False  #: whether nothing is answered any more

    def act(self, server: Any) -> None:
        """Do it to the server, between two turns."""


@dataclass(frozen=True)
class Replaced(Effect):
    """Another reply."""

    reply: Reply

    def __str__(self) -> str:
        return in_one_line(self.reply)


class Drop(Effect):
    """The connection is closed."""

    closes = True

    def __str__(self) -> str:
        return "drop"

    def act(self, server: Any) -> None:
        server.close()


class Reset(Effect):
    """The connection is reset."""

    closes = True

    def __str__(self) -> str:
        return "reset"

    def act(self, server: Any) -> None:
        server.abort()


class HalfClose(Effect):
    """The server's side is closed; what comes is lost."""

    closes = True

    def __str__(self) -> str:
        return "half-close"

    def act(self, server: Any) -> None:
        server.close_own_side()


class StopReading(Effect):
    """Nothing more is read."""

    closes = True

    def __str__(self) -> str:
        return "stop reading"

    def act(self, server: Any) -> None:
        server.stop_reading()


@dataclass(frozen=True)
class Garbage(Effect):
    """Octets that are no reply."""

    random: Random
    octets: bytes | None

    def __str__(self) -> str:
        return "garbage"

    def act(self, server: Any) -> None:
        octets = self.octets
        server.send(self.random.randbytes(GARBAGE) + b"\r\n" if octets is None else octets)


@dataclass(frozen=True)
class Certificate(Effect):
    """Another certificate. It takes the place of nothing else."""

    tls_context: Any
    called: str

    def __str__(self) -> str:
        return self.called


@dataclass(frozen=True)
class Slowly(Effect):
    """A result whose reply is sent bit by bit."""

    result: Any
    rate: float

    def act(self, server: Any) -> None:
        server.answer_slowly(self.result, self.rate)


class _Faulty(Instrument):
    """A protocol with faults."""

    _owed: Sequence[Sequence[str]]  # LMTP's: who is owed a reply to the message
    _context: Any = None  # of TLS, in place of the server's
    _rate: float | None = None  # at which a reply is to be sent that is being given
    _pace = 0.0  # the same, while it is being sent
    _left = b""  # of it
    _drip_call: IDelayedCall | None = None
    _close_then = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.commands = _intercepted(cls.commands)

    @classmethod
    def with_commands(cls, brought: Mapping[bytes, Command]) -> Mapping[bytes, Command]:
        return super().with_commands(_intercepted(brought))

    # Where rules strike

    def _strike(self, stage: str, **what: Any) -> Any:
        """The rule that strikes now, written down; or None."""
        rule = self.factory.faults.strike(stage, self, **what)
        if rule is not None:
            note(self, Faulted, str(rule), rule.effect)
        return rule

    def greet_client(self) -> Any:
        return self._with_faults("connect", super().greet_client)

    def greet_at_once(self) -> Any:
        return self._with_faults("greeting", super().greet_at_once)

    def _with_faults(self, stage: str, greet: Callable[[], Any]) -> Any:
        rule = self._strike(stage)
        if rule is None:
            return greet()
        if isinstance(rule._effect, Replaced):
            code = rule._effect.reply.code
            self._last_turn = 400 <= code < 500
            if code >= 500:
                self._turned_away = BAD_SEQUENCE  # RFC 5321 3.1: wait for QUIT, answer 503 to all else
        return self._suffer(rule, greet)

    async def _suffer(self, rule: Any, go_on: Callable[[], Any]) -> Any:
        """What the rule makes of a turn that would otherwise go on."""
        if rule._delay:
            await deferLater(self, rule._delay)  # type: ignore[arg-type]  # callLater is all that is used of it
        effect = rule._effect
        if isinstance(effect, Certificate):
            self._context = effect.tls_context
        elif effect is not None and not isinstance(effect, Replaced):
            return effect
        if rule._slow is None:
            return effect.reply if isinstance(effect, Replaced) else await _awaited(go_on())
        try:
            result = effect.reply if isinstance(effect, Replaced) else await _awaited(go_on())
        except Exception as error:
            result = await self.explain(error)
        return result if result is ANSWERED_LATER or result is None else Slowly(result, rule._slow)

    @property
    def tls_context(self) -> Any:
        """What TLS is begun with."""
        return super().tls_context if self._context is None else self._context

    # Messages

    async def _end_of_message(self, octets: int) -> Any:
        envelope = self.envelope
        rule = self._strike("message", by_recipient=False if self.lmtp else None, size=octets)
        if rule is not None:
            return await self._suffer_whole(rule, octets)
        result = await (self._end_for_each(octets) if self.lmtp else super()._end_of_message(octets))
        if getattr(result, "positive", False):
            rule = self._strike("accepted", envelope=envelope, size=octets)
            if rule is not None:
                return await self._suffer(rule, lambda: result)
        return result

    async def _suffer_whole(self, rule: Any, octets: int) -> Any:
        """What the rule makes of a message as a whole."""
        try:
            return await self._suffer(rule, partial(super()._end_of_message, octets))
        finally:
            self._refuse_message(FAILED)  # unless the handler has it

    async def _end_for_each(self, octets: int) -> Any:
        """In LMTP: the message's end for those recipients at whom no rule strikes, and the replies to all."""
        owed = self._owed
        struck: dict[int, Reply] = {}
        for number, path in ((number, path) for number, paths in enumerate(owed) for path in paths):
            rule = self._strike("message", by_recipient=True, address=path, size=octets)
            if rule is not None:
                if not isinstance(rule._effect, Replaced):
                    return await self._suffer_whole(rule, octets)
                struck[number] = rule._effect.reply
        if not struck:
            return await super()._end_of_message(octets)
        others = await self._end_for([paths for number, paths in enumerate(owed) if number not in struck], octets)
        replies = iter(others.replies if isinstance(others, Replies) else [others] * len(owed))
        names = [", ".join(paths) for paths in owed]
        return Replies(names, [struck.get(number) or next(replies) for number in range(len(owed))])

    async def _end_for(self, owed: Sequence[Sequence[str]], octets: int) -> Any:
        """In LMTP: the message's end, for these recipients alone; its reply, or one for each."""
        if not owed:
            self._refuse_message(FAILED)
            return FAILED
        left = Counter(path for paths in owed for path in paths)
        before = Counter(path for paths in self._owed for path in paths)
        for path in (before - left).elements():
            if path in self.envelope.rcpt_tos:
                self.envelope.rcpt_tos.remove(path)
        all_owed, self._owed = self._owed, owed
        try:
            return await super()._end_of_message(octets)
        except Exception as error:
            return await self.explain(error)
        finally:
            self._owed = all_owed

    # How effects are done

    def answer(self, result: Any) -> None:
        if not isinstance(result, Effect):
            super().answer(result)
        elif self._payload_due and not result.closes:
            self._drop_payload(FAILED, result)
        elif isinstance(result, Slowly):
            result.act(self)
        else:
            vars(self).pop("_owed", None)  # LMTP: this is the answer to all recipients
            result.act(self)
            if not result.closes:
                self._end_turn(self._last_turn)

    def close_own_side(self) -> None:
        """Say nothing more, take what comes, and lose it."""
        close = getattr(self.transport, "loseWriteConnection", None)
        if close is None or self.session.ssl is not None:  # TLS has no sides to close
            self.close()
            return
        self.flush()
        self._deaf = True
        self._reader, self._after_reader = _Lost(), None
        close()

    def stop_reading(self) -> None:
        """Say nothing more, and read nothing more."""
        self.flush()
        self._deaf = True
        self.hold()
        self._reading_paused = True
        self.transport.pauseProducing()

    def send(self, octets: bytes) -> None:
        if self._deaf:
            return
        if self._rate is None and not self._left:
            super().send(octets)
        elif self._left:
            self._left += octets
        else:
            self._left = octets
            self.hold()
            self._drip()

    def answer_slowly(self, result: Any, rate: float) -> None:
        """Answer at so many octets a second; look at nothing that comes until that is done."""
        self._rate = self._pace = rate
        try:
            self.answer(result)
        finally:
            self._rate = None

    def _drip(self) -> None:
        self._drip_call = None
        number = max(1, int(self._pace * TICK))
        octets, self._left = self._left[:number], self._left[number:]
        super().send(octets)
        if self._left:
            self._drip_call = self.callLater(len(octets) / self._pace, self._drip)
        elif self._close_then:
            super().close()
        else:
            self.release()

    def close(self) -> None:
        if self._left and not self.lost:
            self._close_then = True
        else:
            super().close()

    def expel(self) -> None:
        self._stop_dripping()
        super().expel()

    def ended(self, cause: BaseException) -> None:
        self._stop_dripping()
        super().ended(cause)

    def _stop_dripping(self) -> None:
        self._left = b""
        if self._drip_call is not None:
            self._drip_call.cancel()
            self._drip_call = None


class _Lost:
    """Takes octets without end."""

    def feed(self, data: bytes, start: int) -> int:
        return -1


def faulty(protocol: type[SMTP]) -> type[SMTP]:
    """The protocol's class, with faults."""
    return instrumented(_Faulty, protocol)  # type: ignore[arg-type]  # classes have hashes


def _intercepted(commands: Mapping[bytes, Command]) -> dict[bytes, Command]:
    """The commands, with rules being asked before each."""
    return {
        verb: replace(command, method=_asking(verb.decode("ascii").lower(), command.method))
        for verb, command in commands.items()
    }


def _asking(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def intercepted(server: Any, arg: str | None) -> Any:
        rule = server._strike(stage, argument=arg)
        return method(server, arg) if rule is None else server._suffer(rule, partial(method, server, arg))

    return intercepted


async def _awaited(result: Any) -> Any:
    return await result if isinstance(result, Awaitable) else result
