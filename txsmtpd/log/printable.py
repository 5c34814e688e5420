"""Text that somebody else has chosen, made fit for a line of a log or a terminal. Standard library only."""

from __future__ import annotations

import re

_NOT_ASCII = re.compile(r"[^ -~]+")
_NOT_ASCII_IN_LINES = re.compile(r"[^\n\t -~]+")


def printable(text: str) -> str:
    """The text with what is not printable escaped, as Python writes it.

    That is what :meth:`str.isprintable` refuses: control characters, marks that change the direction of text,
    separators of lines and paragraphs, surrogates, and characters without a meaning.

    >>> printable("a\\x1b[2J\\u202eb")
    'a\\\\x1b[2J\\\\u202eb'
    """
    return text if text.isprintable() else _NOT_ASCII.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same, with line feeds and tabs kept."""
    if text.replace("\n", " ").replace("\t", " ").isprintable():
        return text
    return _NOT_ASCII_IN_LINES.sub(_escaped, text)


def one_line(text: str) -> str:
    """The text with each line break or run of blanks made one space, and what is not printable escaped."""
    return printable(" ".join(text.split()))


def _escaped(found: re.Match[str]) -> str:
    run = found[0]
    if run.isprintable():
        return run
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in run)
