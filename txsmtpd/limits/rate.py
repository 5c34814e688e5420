"""Rates, their text form, and the result when one is exceeded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

FORM = "write N/PERIOD[,burst=N], such as 100/min,burst=20; a period is s, min, h or day, or several, such as 10min"
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_RATE = re.compile(r"([0-9]{1,9})/([0-9]{1,6})?([a-z]+)(?:,burst=([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Retry:
    """The result of a decision: rejected for now.

    :param seconds: the time after which the same request may be admitted.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen: *number* times in *period* seconds, and *burst* times at once.

    In any interval of *t* seconds, it happens at most ``number / period * t + burst`` times.

    :raises ValueError: if one of them is not positive.

    >>> Rate.parse("100/min,burst=20")
    Rate(number=100, period=60.0, burst=20)
    """

    number: int
    period: float
    burst: int

    def __post_init__(self) -> None:
        if self.number < 1 or self.period <= 0 or self.burst < 1:
            raise ValueError(f"a rate must be more than 0: {self.number}/{self.period:g}s,burst={self.burst}")

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Parse a rate. The default burst is *number*.

        :raises ValueError: if the text is not a rate.
        """
        found = _RATE.fullmatch(text.strip().lower())
        unit = found and _UNITS.get(found[3])
        if found is None or unit is None:
            raise ValueError(f"{text!r} is not a rate; {FORM}")
        number = int(found[1])
        return cls(number, float(unit * int(found[2] or 1)), int(found[4] or number))

    def __str__(self) -> str:
        return f"{self.number}/{self.period:g}s,burst={self.burst}"


def parse_rate_of(text: str, kinds: Iterable[str]) -> tuple[str, Rate]:
    """Parse ``KIND:N/PERIOD[,burst=N]``.

    :param kinds: the valid kinds.
    :raises ValueError: for an unknown kind, or an invalid rate.
    """
    kind, colon, rate = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} has no kind; write KIND:N/PERIOD, such as messages:100/min")
    check_kind(kind, kinds)
    return kind, Rate.parse(rate)


def check_kind(kind: str, kinds: Iterable[str]) -> None:
    """Check that a kind is one of *kinds*.

    :raises ValueError: if not. The message suggests the closest one.
    """
    known = list(kinds)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"there is no rate of {kind!r}; {hint}")
