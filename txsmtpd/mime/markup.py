"""Converts HTML to plain text, and finds links. Simple scans in linear time, not meant for security.

Browsers are protected by the content security policy that mail is served with, not by this module.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

LONGEST = 2**18  # characters of HTML to read
MAX_LINKS = 1000

_HIDDEN = ("script", "style", "title", "head", "template")
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)[^<>]*>|<[!?/][^<>]*>")
_BREAKS = frozenset(
    re.findall(
        "[a-z0-9]+",
        "address article aside blockquote br center dd div dl dt fieldset figure footer form h1 h2 h3 h4 h5 h6 header"
        " hr li main nav ol p pre section table td th tr ul",
    )
)
_SPACES = re.compile(r"[ \t\f\v\u00a0\u200c\u034f\u00ad]+")
_LINES = re.compile(r" ?\n ?(?:\n ?)+")
_HREF = re.compile(
    r"""<(?:a|area)\b[^<>]*?\shref\s*=\s*(?:"([^"<>]{0,4000})"|'([^'<>]{0,4000})'|([^\s"'<>]{1,4000}))""", re.I
)
_URL = re.compile(r"""\bhttps?://[^\s<>"'`{}|\\^]{1,4000}""", re.I)
_CODE = re.compile(r"(?<![\w.,:/@#&=?%+-])(\d{3}[ -]\d{3}|\d{4}[ -]\d{4}|[A-Z0-9]{4,12})(?![\w@%=/-]|[.,:]\w)")


def plain_text(markup: str) -> str:
    """Return the text of HTML, with line breaks where blocks begin and end."""
    markup = _without_comments(markup[:LONGEST])
    pieces: list[str] = []
    position = 0
    hidden: str | None = None
    for tag in _TAG.finditer(markup):
        name = (tag[2] or "").lower()
        if hidden is None:
            pieces.append(markup[position : tag.start()].replace("\n", " ").replace("\r", " "))
            if name in _BREAKS:
                pieces.append("\n")
            if name in _HIDDEN and not tag[1]:
                hidden = name
        elif (name == hidden and tag[1]) or (hidden == "head" and name == "body"):
            hidden = None
        position = tag.end()
    if hidden is None:
        pieces.append(markup[position:].replace("\n", " ").replace("\r", " "))
    text = _SPACES.sub(" ", html.unescape("".join(pieces)))
    return "\n".join(line.strip() for line in _LINES.sub("\n\n", text).split("\n")).strip()


def _without_comments(markup: str) -> str:
    pieces: list[str] = []
    position = 0
    while True:
        start = markup.find("<!--", position)
        if start < 0:
            return "".join([*pieces, markup[position:]])
        pieces.append(markup[position:start])
        end = markup.find("-->", start + 4)
        if end < 0:
            return "".join(pieces)
        position = end + 3


def links(markup: str, text: str) -> list[str]:
    """Return the URLs that HTML links to, and those in a text, without duplicates, in order."""
    found: dict[str, None] = {}
    for match in _HREF.finditer(markup[: 8 * LONGEST]):
        url = html.unescape(match[1] or match[2] or match[3] or "").strip()
        if url and not url.startswith("#"):
            found[url] = None
    for start, end in urls(text[: 8 * LONGEST]):
        found[text[start:end]] = None
    return list(found)[:MAX_LINKS]


def urls(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each ``http`` or ``https`` URL in a text begins and ends, without the punctuation after it."""
    for match in _URL.finditer(text):
        yield match.start(), match.start() + len(match[0].rstrip(".,;:!?)]"))


def codes(text: str, shortest: int = 4, longest: int = 10) -> list[str]:
    """Return what looks like one-time codes: digits, or capitals with a digit, without duplicates, in order.

    :param shortest: the minimum length of a code. Blanks and hyphens between digits do not count.
    """
    found: dict[str, None] = {}
    for match in _CODE.finditer(text[:LONGEST]):
        code = re.sub("[ -]", "", match[1])
        if shortest <= len(code) <= longest and any(c.isdigit() for c in code):
            found[code] = None
    return list(found)[:MAX_LINKS]
