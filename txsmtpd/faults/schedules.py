"""Schedules decide when a rule applies: the first times it matches, every third time, at random with a seed, or
beyond a rate. A schedule is called once for each match, in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import Protocol


class Schedule(Protocol):
    """Decides for each match whether the rule applies."""

    def strikes(self, now: float, random: Random) -> bool:
        """Return True if the rule applies now.

        :param now: the time, in seconds.
        :param random: the random generator.
        """


def _want_count(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} takes a number, not {number!r}")
    if number < 1:
        raise ValueError(f"{name} takes a number of at least 1, not {number!r}")


@dataclass(slots=True)
class First:
    """The first *number* times."""

    number: int
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _want_count("first", self.number)

    def strikes(self, now: float, random: Random) -> bool:
        self._seen += 1
        return self._seen <= self.number

    @property
    def left(self) -> int:
        """How many times are left."""
        return max(0, self.number - self._seen)

    def __str__(self) -> str:
        return f"first {self.number}"


@dataclass(slots=True)
class Nth:
    """Once, counted from 1."""

    number: int
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _want_count("nth", self.number)

    def strikes(self, now: float, random: Random) -> bool:
        self._seen += 1
        return self._seen == self.number

    @property
    def left(self) -> int:
        """1 until it has happened, then 0."""
        return int(self._seen < self.number)

    def __str__(self) -> str:
        return f"number {self.number}"


@dataclass(slots=True)
class Every:
    """Every *number*-th time: with 3, the third, the sixth, and so on."""

    number: int
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _want_count("every", self.number)

    def strikes(self, now: float, random: Random) -> bool:
        self._seen += 1
        return self._seen % self.number == 0

    def __str__(self) -> str:
        return f"every {self.number}"


@dataclass(slots=True)
class Share:
    """A random share of all times, such as 0.3."""

    share: float

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, int | float):
            raise TypeError(f"share takes a number from 0 to 1, not {self.share!r}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share takes a number from 0 to 1, not {self.share!r}")

    def strikes(self, now: float, random: Random) -> bool:
        return random.random() < self.share

    def __str__(self) -> str:
        return f"share {self.share:g}"


@dataclass(slots=True)
class Rate:
    """Applies when a token bucket is empty. Each match takes a token, and tokens are refilled over time.

    :param number: the size of the bucket, and the number of tokens refilled in *per* seconds.
    :param per: seconds.
    """

    number: int
    per: float
    _tokens: float = field(default=0.0, init=False)
    _then: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _want_count("rate", self.number)
        if isinstance(self.per, bool) or not isinstance(self.per, int | float):
            raise TypeError(f"rate takes a number of seconds, not {self.per!r}")
        if not 0 < self.per < math.inf:
            raise ValueError(f"rate takes more than 0 seconds, not {self.per!r}")

    def strikes(self, now: float, random: Random) -> bool:
        if self._then is None:
            self._tokens = self.number
        else:
            self._tokens = min(self.number, self._tokens + (now - self._then) * self.number / self.per)
        self._then = now
        # Tolerate rounding errors.
        if self._tokens < 1 - 1e-9:
            return True
        self._tokens -= 1
        return False

    def __str__(self) -> str:
        return f"beyond {self.number} in {self.per:g} s"
