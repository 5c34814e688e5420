"""Compares replies with expected ones, for tests."""

from __future__ import annotations

from collections.abc import Iterable


def reply_fits(expected: str, lines: Iterable[str]) -> bool:
    """Whether one line of a reply begins as expected, whether it is the last line (``250 ``) or another (``250-``).

    >>> reply_fits("250 SIZE", ["250-mx.test", "250-SIZE 1000", "250 HELP"])
    True
    >>> reply_fits("250 2.1.0", ["250 2.1.5 OK"])
    False
    """
    return any(line.startswith(expected) or (line[:3] + " " + line[4:]).startswith(expected) for line in lines)
