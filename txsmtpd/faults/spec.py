"""Parses the rules of ``--fault`` on the command line.

``STAGE[,STAGE] [MATCH=VALUE]... [SCHEDULE]... EFFECT...``, in any order. A reply must be last, because it contains
spaces: ``rcpt to=*@example.com first=2 reply=451 4.7.1 Try again later``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any

from txsmtpd.faults.rules import Faults, Occasion, Rule
from txsmtpd.tls.authority import WRONG
from txsmtpd.tls.certificates import Certificates

_WORD = re.compile(r"\s*(?P<name>[A-Za-z_-]+)(?:=(?P<value>\S*))?(?=\s|$)")
_REPLY = re.compile(r"(?:^|\s)\s*reply=(?P<reply>.*)$", re.IGNORECASE | re.DOTALL)


def _count(value: str) -> int:
    if not re.fullmatch("[0-9]{1,20}", value):
        raise ValueError(f"a number was expected, not {value!r}")
    return int(value)


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"a number was expected, not {value!r}")
    return number


def _rate(rule: Rule, value: str) -> Rule:
    number, slash, seconds = value.partition("/")
    return rule.rate(_count(number), per=_number(seconds if slash else "1"))


MATCHES: dict[str, Callable[[str], Any]] = {"to": str, "mail-from": str, "helo": str, "peer": str, "size": _count}
WITH_VALUE: dict[str, Callable[[Rule, str], Rule]] = {
    "first": lambda rule, value: rule.first(_count(value)),
    "nth": lambda rule, value: rule.nth(_count(value)),
    "every": lambda rule, value: rule.every(_count(value)),
    "share": lambda rule, value: rule.share(_number(value)),
    "rate": _rate,
    "delay": lambda rule, value: rule.delay(_number(value)),
    "slow": lambda rule, value: rule.slow(_number(value)),
    "certificate": lambda rule, value: rule.certificate(value if value in WRONG else Certificates(value)),
}
ALONE: dict[str, Callable[[Rule], Rule]] = {
    "drop": Rule.drop,
    "reset": Rule.reset,
    "half-close": Rule.half_close,
    "stop-reading": Rule.stop_reading,
    "garbage": Rule.garbage,
}


def add_fault(faults: Faults, spec: str, when: Callable[[Occasion], object] | None = None) -> Rule:
    """Parse a rule and add it.

    :param when: an additional condition.
    :raises ValueError: if *spec* is not a valid rule, or has no effect.
    """
    words, reply = spec, None
    found = _REPLY.search(spec)
    if found is not None:
        words, reply = spec[: found.start()], found["reply"]
    stages, rest = [*words.split(maxsplit=1), "", ""][:2]
    named = [(word["name"].lower().replace("_", "-"), word["value"]) for word in _words(rest)]
    for name in MATCHES:
        if sum(name == other for other, _ in named) > 1:
            raise ValueError(f"{name} is given twice; write two rules")
    matches = {name.replace("-", "_"): _read(name, value, MATCHES[name]) for name, value in named if name in MATCHES}
    rule = faults.on(*filter(None, stages.lower().split(",")), **matches, when=when)
    try:
        _complete(rule, named, reply)
    except BaseException:
        faults.remove(rule)
        raise
    return rule


def _complete(rule: Rule, named: list[tuple[str, str | None]], reply: str | None) -> None:
    for name, value in named:
        if name in WITH_VALUE:
            _read(name, value, lambda given, name=name: WITH_VALUE[name](rule, given))  # type: ignore[misc]
        elif name in ALONE:
            if value is not None:
                raise ValueError(f"{name} takes no value")
            ALONE[name](rule)
        elif name not in MATCHES:
            known = [*MATCHES, *WITH_VALUE, *ALONE, "reply"]
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"{name} is not known; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
            )
    if reply is not None:
        rule.reply(reply.strip())
    if not rule.effect:
        raise ValueError("the rule has no effect; add one, such as drop or reply=451 4.7.1 Try again later")


def _words(text: str) -> list[re.Match[str]]:
    words = []
    start = 0
    while text[start:].strip():
        word = _WORD.match(text, start)
        if word is None:
            raise ValueError(f"{text[start:].split()[0]!r} is not a part of a rule")
        words.append(word)
        start = word.end()
    return words


def _read(name: str, value: str | None, read: Callable[[str], Any]) -> Any:
    if value is None or not (value or name == "mail-from"):  # mail-from= is a bounce
        raise ValueError(f"{name} needs a value")
    return read(value)
