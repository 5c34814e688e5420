"""Fault rules: make a server misbehave as real servers do, at moments that a test chooses.

::

    faults = Faults()
    faults.on("rcpt", to="*@example.com").first(2).reply("451 4.7.1 Try again later")
    factory = SMTPFactory(handler, faults=faults)

A rule has a stage, matches, schedules and effects. It applies only to valid commands: a command that the server would
reject anyway is rejected as usual, and does not count. Effects are implemented in :mod:`txsmtpd.faults.effects`,
schedules in :mod:`txsmtpd.faults.schedules`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from txsmtpd.faults.effects import (
    Certificate,
    Drop,
    Effect,
    FaultInterceptor,
    Garbage,
    HalfClose,
    Replaced,
    Reset,
    StopReading,
)
from txsmtpd.faults.schedules import Every, First, Nth, Rate, Schedule, Share
from txsmtpd.lmtp import LMTP
from txsmtpd.reply import Refused, Reply, parse_status
from txsmtpd.session import Envelope, Session
from txsmtpd.smtp import SMTP
from txsmtpd.tls.authority import authority
from txsmtpd.wire import grammar

ANY = "any"
MOMENTS = ("connect", "greeting", "message", "accepted")  # stages that are not commands
COMMANDS = tuple(sorted(verb.decode("ascii").lower() for verb in {*SMTP.commands, *LMTP.commands}))
STAGES = (ANY, *MOMENTS, *COMMANDS)
KEPT = 1000  # events to keep
DIGITS = 20  # maximum digits of SIZE (RFC 1870 3)


@dataclass(frozen=True, slots=True)
class Occasion:
    """A moment at which a rule may apply."""

    stage: str
    server: SMTP  #: the protocol of the connection
    envelope: Envelope
    argument: str | None = None  #: of the command
    address: str | None = None  #: of MAIL or RCPT; in LMTP, the current recipient
    size: int | None = None  #: bytes of the message, or as declared by MAIL

    @property
    def session(self) -> Session:
        return self.server.session


@dataclass(frozen=True, slots=True)
class Struck:
    """A record of a rule that was applied."""

    at: float  #: when, in the time of the factory's clock
    session: str  #: the session's id
    stage: str
    rule: str  #: the rule
    effect: str  #: its effect


class Rule:
    """What should happen, and when. Made by :meth:`Faults.on`. Each method adds to the rule and returns it."""

    def __init__(self, stages: tuple[str, ...], matches: dict[str, Any], random: Random, number: int = 0) -> None:
        self.number = number  #: the number of the rule, starting at 1
        self.hits = 0  #: how often it was applied
        self.when: Callable[[Occasion], object] | None = matches.get("when")  #: the custom condition
        self._stages = stages
        self._tests = [_test(name, value) for name, value in matches.items() if value is not None]
        self._by_recipient = matches.get("to") is not None
        self._described = [
            f"{name}={value}" if isinstance(value, str | int) else name
            for name, value in matches.items()
            if value is not None
        ]
        self._random = random
        self._schedules: list[Schedule] = []
        self._delay = 0.0
        self._slow: float | None = None
        self._effect: Effect | None = None

    def __str__(self) -> str:
        return ", ".join([" ".join([*self._stages, *self._described]), *map(str, self._schedules)])

    def __repr__(self) -> str:
        return f"<Rule {self}: {self.effect}>"

    @property
    def effect(self) -> str:
        """A description of the effect."""
        parts = [
            f"after {self._delay:g} s" * bool(self._delay),
            str(self._effect or ""),
            f"at {self._slow:g} octets a second" if self._slow else "",
        ]
        return ", ".join(filter(None, parts))

    @property
    def left(self) -> int | None:
        """How often it can still apply, or None if unlimited."""
        found = [left for each in self._schedules if (left := getattr(each, "left", None)) is not None]
        return min(found, default=None)

    # When

    def first(self, number: int) -> Rule:
        """Apply the first *number* times."""
        return self._when(First(number))

    def nth(self, number: int) -> Rule:
        """Apply once, at the *number*-th time, starting at 1."""
        return self._when(Nth(number))

    def every(self, number: int) -> Rule:
        """Apply every *number*-th time: with 3, the third time, the sixth, and so on."""
        return self._when(Every(number))

    def share(self, share: float) -> Rule:
        """Apply randomly in a share of all times, from 0 to 1. The same seed selects the same times."""
        return self._when(Share(share))

    def rate(self, number: int, *, per: float) -> Rule:
        """Apply to each match beyond *number* matches in *per* seconds (a token bucket), measured with the factory's
        clock."""
        return self._when(Rate(number, per))

    def _when(self, schedule: Schedule) -> Rule:
        self._schedules.append(schedule)
        return self

    # What

    def reply(self, status: str | Reply) -> Rule:
        """Send this reply instead of executing the command. 421 closes the connection.

        :raises ValueError: if it is not a final reply.
        """
        reply = parse_status(status)
        if reply.code // 100 == 3:
            raise ValueError(f"{reply} is an intermediate reply; a fault needs a final reply")
        return self._do(Replaced(reply))

    def drop(self) -> Rule:
        """Close the connection without a reply."""
        return self._do(Drop())

    def reset(self) -> Rule:
        """Reset the connection, so that the client sees an error instead of a normal close."""
        return self._do(Reset())

    def half_close(self) -> Rule:
        """Close this side of the connection: the client reads EOF, and whatever it still sends is discarded.

        In TLS, which cannot be half-closed, it is the same as :meth:`drop`.
        """
        return self._do(HalfClose())

    def stop_reading(self) -> Rule:
        """Stop sending and reading until the client disconnects, or ``hook_timeout`` is over."""
        return self._do(StopReading())

    def garbage(self, octets: bytes | None = None) -> Rule:
        """Send bytes that are not a reply, instead of one.

        :param octets: the bytes. None: a random line.
        """
        return self._do(Garbage(self._random, octets))

    def certificate(self, tls_context: Any) -> Rule:
        """Use another certificate when TLS starts. Only for the stages ``starttls`` and ``connect``.

        :param tls_context: as for the option of that name; or the certificate's defect, such as ``"expired"``: see
            :meth:`Authority.wrong() <txsmtpd.tls.authority.Authority.wrong>`.
        """
        if not set(self._stages) <= {"starttls", "connect"}:
            raise ValueError("certificate requires the stage starttls or connect")
        if isinstance(tls_context, str):
            return self._do(Certificate(authority().wrong(tls_context), f"{tls_context} certificate"))
        return self._do(Certificate(tls_context, "another certificate"))

    def delay(self, seconds: float) -> Rule:
        """Wait before anything else. Without another effect, the server then continues as usual.

        It counts as processing time: beyond ``hook_timeout``, the reply is 451.
        """
        self._delay += _positive("delay", seconds)
        return self

    def slow(self, rate: float) -> Rule:
        """Send the reply, whether the server's or the rule's, at *rate* bytes per second."""
        self._slow = _positive("slow", rate)
        return self

    def _do(self, effect: Effect) -> Rule:
        if self._effect is not None:
            raise ValueError(f"a rule has one effect, and this one has {self._effect}; make another rule for {effect}")
        self._effect = effect
        return self

    # Used by the protocols

    def _strikes(self, occasion: Occasion) -> bool:
        stage = occasion.stage
        if stage not in self._stages and not (ANY in self._stages and stage not in MOMENTS):
            return False
        if self._effect is None and not self._delay and not self._slow:
            return False
        if not all(test(occasion) for test in self._tests):
            return False
        now = occasion.server._connection.clock.seconds()
        return all(schedule.strikes(now, self._random) for schedule in self._schedules)


class Faults:
    """The faults of one or more factories.

    :param seed: the seed for random faults. The same seed, rules and clients give the same run.
    """

    def __init__(self, seed: int | str = 0) -> None:
        self.seed = seed
        self._rules: tuple[Rule, ...] = ()
        self._struck: deque[Struck] = deque(maxlen=KEPT)
        self._made = 0

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __repr__(self) -> str:
        return f"<Faults {list(self._rules)!r}>"

    @property
    def fired(self) -> list[Struck]:
        """The last thousand faults that were injected."""
        return list(self._struck)

    def on(
        self,
        *stages: str,
        to: str | None = None,
        mail_from: str | None = None,
        helo: str | None = None,
        peer: str | None = None,
        size: int | None = None,
        when: Callable[[Occasion], object] | None = None,
    ) -> Rule:
        """Make a new rule. Rules are tried in the order in which they were made, and only the first match is applied.

        :param stages: where it applies: a command (``"rcpt"``), ``"connect"``, ``"greeting"``, ``"message"`` (the
            message is complete, and the handler has not seen it), ``"accepted"`` (the handler has accepted it, and the
            client does not know yet), or ``"any"`` (each command).
        :param to: a pattern for the forward-path, in which ``*`` is a wildcard. At RCPT, the path of the command must
            match. At later stages, the path of one of the recipients must match.
        :param mail_from: the reverse-path.
        :param helo: the argument of HELO or EHLO.
        :param peer: the client's address or network.
        :param size: the minimum size of the message, or as declared by MAIL, in bytes.
        :param when: a custom condition, called with an :class:`Occasion`.
        :raises ValueError: for an unknown stage. The message suggests the closest one.
        """
        if not stages:
            raise ValueError(f"a rule needs a stage: {', '.join(STAGES)}")
        for stage in stages:
            if stage not in STAGES:
                near = difflib.get_close_matches(str(stage), STAGES, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(STAGES)}"
                raise ValueError(f"there is no stage {stage!r}; {hint}")
        matches = {"to": to, "mail_from": mail_from, "helo": helo, "peer": peer, "size": size, "when": when}
        # Each rule has its own random generator, so that rules do not influence each other.
        self._made += 1
        rule = Rule(stages, matches, Random(f"{self.seed} {self._made}"), self._made)
        self._rules += (rule,)
        return rule

    def remove(self, rule: Rule) -> None:
        """Remove a rule. It no longer applies to open connections either.

        :raises ValueError: if it is not a rule of these faults.
        """
        if rule not in self._rules:
            raise ValueError(f"{rule!r} is not active")
        self._rules = tuple(each for each in self._rules if each is not rule)

    def clear(self) -> None:
        """Remove all rules and records. New rules are numbered from 1 again."""
        self._rules = ()
        self._struck.clear()
        self._made = 0

    # Called by the protocols

    def intercept(self, server: SMTP) -> FaultInterceptor:
        """Return the interceptor of a new session. Called by the factory."""
        return FaultInterceptor(self.strike, server)

    def strike(self, stage: str, server: SMTP, by_recipient: bool | None = None, **what: Any) -> Rule | None:
        """Return the rule that applies now, or None.

        :param by_recipient: True: only try rules with ``to``. False: only those without. None: all.
        """
        occasion = _occasion(stage, server, **what) if self._rules else None
        if occasion is None:
            return None
        for rule in self._rules:
            if by_recipient in (None, rule._by_recipient) and rule._strikes(occasion):
                rule.hits += 1
                now = server._connection.clock.seconds()
                self._struck.append(Struck(now, server.session.id, stage, str(rule), rule.effect))
                return rule
        return None


def _occasion(
    stage: str,
    server: SMTP,
    argument: str | None = None,
    envelope: Envelope | None = None,
    address: str | None = None,
    size: int | None = None,
) -> Occasion | None:
    """Make the occasion that rules are tried with. None: a malformed command, which will be rejected."""
    if stage in ("mail", "rcpt"):
        try:
            address, parameters = (grammar.parse_mail if stage == "mail" else grammar.parse_rcpt)(argument)
        except Refused:
            return None
        announced = parameters.get("SIZE") or ""
        size = int(announced) if announced.isdecimal() and len(announced) <= DIGITS else None
    return Occasion(stage, server, envelope or server.envelope, argument, address, size)


# Matches


def _test(name: str, value: Any) -> Callable[[Occasion], object]:
    if name == "when":
        if not callable(value):
            raise TypeError(f"when must be callable, not {value!r}")
        test: Callable[[Occasion], object] = value
        return test
    if name == "size":
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"size must be a number of octets, not {value!r}")
        return lambda occasion: occasion.size is not None and occasion.size >= value
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if name == "peer" and "/" in value:
        network = ipaddress.ip_network(value)
        return lambda occasion: _is_in(network, occasion)
    pattern = re.compile(".*".join(map(re.escape, value.split("*"))), re.IGNORECASE | re.DOTALL)
    told = _TOLD[name]
    return lambda occasion: any(pattern.fullmatch(each) for each in told(occasion) if each is not None)


def _recipients(occasion: Occasion) -> list[str | None]:
    if occasion.address is not None and occasion.stage != "mail":
        return [occasion.address]
    return [*occasion.envelope.rcpt_tos]


def _sender(occasion: Occasion) -> list[str | None]:
    return [occasion.address if occasion.stage == "mail" else occasion.envelope.mail_from]


def _greeting(occasion: Occasion) -> list[str | None]:
    return [occasion.argument if occasion.stage in ("helo", "ehlo", "lhlo") else occasion.session.host_name]


def _host(occasion: Occasion) -> list[str | None]:
    peer = occasion.session.peer
    return [peer[0] if isinstance(peer, tuple) else None]


_TOLD: dict[str, Callable[[Occasion], list[str | None]]] = {
    "to": _recipients,
    "mail_from": _sender,
    "helo": _greeting,
    "peer": _host,
}


def _is_in(network: Any, occasion: Occasion) -> bool:
    (host,) = _host(occasion)
    try:
        return host is not None and ipaddress.ip_address(host) in network
    except ValueError:
        return False


def _positive(name: str, number: float) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} takes a number, not {number!r}")
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} takes a number above 0, not {number!r}")
    return number
