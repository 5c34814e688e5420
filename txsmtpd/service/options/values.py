"""From words of the command line to values. Each function raises ValueError, whose text completes "it ..."."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

# As dd and most servers have them: K, M and G, with or without iB, are powers of 1024; kB, MB and GB of 1000.
_SIZES: dict[str, int] = {"": 1, "b": 1} | {
    letter.lower() + suffix: int(base**power)
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
NO_LIMIT = ("none", "unlimited", "off")


def text(value: str) -> str:
    """Any text."""
    return value


def name(value: str) -> str:
    """A text that must not be empty."""
    if not value:
        raise ValueError("a value is needed")
    return value


def octets(value: str) -> int:
    """A number of octets, such as ``1000000``, ``10MB`` or ``32MiB``."""
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,3})?) ?([a-z]*)", value, re.ASCII | re.IGNORECASE)
    unit = found and _SIZES.get(found[2].lower())
    # RFC 1870 3: up to 20 digits. A fraction needs a unit that makes octets of it.
    if not found or not unit or ("." in found[1] and unit == 1):
        raise ValueError("must be a number of octets, such as 1000000, 10MB or 32MiB")
    return round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def seconds(value: str) -> float:
    """A time that may be zero, such as ``30``, ``1.5``, ``5min`` or ``1h``."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?([a-z]*)", value, re.ASCII | re.IGNORECASE)
    try:
        number = float(found[1]) * _TIMES[found[2].lower()] if found else math.nan
    except (ValueError, KeyError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("must be a number of seconds, or a time such as 5min or 1h")
    return number


def some_seconds(value: str) -> float:
    """A time above zero."""
    number = seconds(value)
    if not number:
        raise ValueError("must be more than 0 seconds")
    return number


def count(value: str) -> int:
    """A number from 0 on."""
    if not re.fullmatch("[0-9]{1,18}", value, re.ASCII):
        raise ValueError("must be a number")
    return int(value)


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same, where ``none`` means that there is no limit."""

    def read_or_none(value: str) -> Any:
        if value.lower() in NO_LIMIT:
            return None
        try:
            return read(value)
        except ValueError as error:
            raise ValueError(f"{error}; none for no limit") from None

    return read_or_none


def yes_or_no(value: str) -> bool:
    """A word for True or False."""
    word = value.lower()
    if word in ("1", "yes", "true", "on"):
        return True
    if word in ("0", "no", "false", "off"):
        return False
    raise ValueError("must be yes or no")
