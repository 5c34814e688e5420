"""Converters of option values. Each raises ValueError with a text that completes the sentence "it ..."."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

# As in dd and most servers: K, M and G, with or without iB, are powers of 1024; kB, MB and GB are powers of 1000.
_SIZES: dict[str, int] = {"": 1, "b": 1} | {
    letter.lower() + suffix: int(base**power)
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
N = TypeVar("N", int, float)
NO_LIMIT = ("none", "unlimited", "off")


def text(value: str) -> str:
    """Accept any text."""
    return value


def name(value: str) -> str:
    """Accept a text that is not empty."""
    if not value:
        raise ValueError("a value is needed")
    return value


def octets(value: str) -> int:
    """Parse a number of octets, such as ``1000000``, ``10MB`` or ``32MiB``."""
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,3})?) ?([a-z]*)", value, re.ASCII | re.IGNORECASE)
    unit = found and _SIZES.get(found[2].lower())
    # RFC 1870 3: up to 20 digits. A fraction needs a unit.
    if not found or not unit or ("." in found[1] and unit == 1):
        raise ValueError("must be a number of octets, such as 1000000, 10MB or 32MiB")
    return round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def seconds(value: str) -> float:
    """Parse a time in seconds or with a unit, such as ``30``, ``1.5``, ``5min`` or ``1h``. It may be zero."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?([a-z]*)", value, re.ASCII | re.IGNORECASE)
    try:
        number = float(found[1]) * _TIMES[found[2].lower()] if found else math.nan
    except (ValueError, KeyError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("must be a number of seconds, or a time such as 5min or 1h")
    return number


def count(value: str) -> int:
    """Parse an integer of at least 0."""
    if not re.fullmatch("[0-9]{1,18}", value, re.ASCII):
        raise ValueError("must be a number")
    return int(value)


def above_zero(read: Callable[[str], N], complaint: str) -> Callable[[str], N]:
    """Return a function that reads the same, but rejects zero."""

    def read_above_zero(value: str) -> N:
        number = read(value)
        if not number:
            raise ValueError(complaint)
        return number

    return read_above_zero


some = above_zero(count, "must be at least 1")
some_octets = above_zero(octets, "must be at least 1 octet")
some_seconds = above_zero(seconds, "must be more than 0 seconds")


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a converter that also accepts ``none``, for no limit."""

    def read_or_none(value: str) -> Any:
        if value.lower() in NO_LIMIT:
            return None
        try:
            return read(value)
        except ValueError as error:
            raise ValueError(f"{error}; none for no limit") from None

    return read_or_none


def yes_or_no(value: str) -> bool:
    """Parse a word for True or False."""
    word = value.lower()
    if word in ("1", "yes", "true", "on"):
        return True
    if word in ("0", "no", "false", "off"):
        return False
    raise ValueError("must be yes or no")
