"""Text that somebody else has chosen, made fit for a line of a log or a terminal. Standard library only."""

from __future__ import annotations

import re

# Control characters, and what str.isprintable refuses besides: marks that change the direction of text, separators of
# lines and paragraphs, surrogates, characters without a glyph. Spaces other than U+0020 cannot be told from it.
_INVISIBLE = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """The text with what is not printable escaped, as Python writes it.

    >>> printable("a\\x1b[2J\\u202eb")
    'a\\\\x1b[2J\\\\u202eb'
    """
    return text if text.isprintable() else _INVISIBLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """The text with each line break or run of blanks made one space, and what is not printable escaped."""
    return printable(" ".join(text.split()))
