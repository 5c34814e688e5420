"""Compares replies with expected ones, for tests."""

from __future__ import annotations

from collections.abc import Iterable


def reply_fits(expected: str, lines: Iterable[str]) -> bool:
    """Return True if one line of a reply begins as expected. It makes no difference whether the line is the last one
    (``250 ``) or not (``250-``).

    >>> reply_fits("250 SIZE", ["250-mx.test", "250-SIZE 1000", "250 HELP"])
    True
    >>> reply_fits("250 2.1.0", ["250 2.1.5 OK"])
    False
    """
    return any(line.startswith(expected) or (line[:3] + " " + line[4:]).startswith(expected) for line in lines)
