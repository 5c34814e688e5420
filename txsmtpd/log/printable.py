"""Escapes untrusted text for log lines and terminals. Standard library only."""

from __future__ import annotations

import re

_NOT_ASCII = re.compile(r"[^ -~]+")
_NOT_ASCII_IN_LINES = re.compile(r"[^\n\t -~]+")


def printable(text: str) -> str:
    """Escape unprintable characters, in Python's notation.

    These are the ones that :meth:`str.isprintable` rejects: control characters, marks that change the direction of
    text, line and paragraph separators, surrogates, and unassigned characters.

    >>> printable("a\\x1b[2J\\u202eb")
    'a\\\\x1b[2J\\\\u202eb'
    """
    return text if text.isprintable() else _NOT_ASCII.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """Like :func:`printable`, but keep line feeds and tabs."""
    if text.replace("\n", " ").replace("\t", " ").isprintable():
        return text
    return _NOT_ASCII_IN_LINES.sub(_escaped, text)


def one_line(text: str) -> str:
    """Replace each line break or run of blanks with one space, and escape unprintable characters."""
    return printable(" ".join(text.split()))


def _escaped(found: re.Match[str]) -> str:
    run = found[0]
    if run.isprintable():
        return run
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in run)
