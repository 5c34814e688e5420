"""Formats values for the templates: times, sizes, addresses, links, and the transcript of a session.

Nothing here depends on requests or stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import islice
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from txsmtpd.log.events import CAUSES
from txsmtpd.mime import Address
from txsmtpd.mime.markup import MAX_LINKS, urls

HUES = 8  # number of colours for the circles beside messages, defined in the stylesheet
RECIPIENTS = 3  # recipients named in a row of the list
SAFE_SCHEMES = ("http", "https", "mailto")

_TEMPLATES = files("txsmtpd.inbox.web") / "templates"


def environment() -> Environment:
    """Return the template environment, with autoescaping."""
    made = Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        age=age,
        date=date,
        hue=hue,
        initial=initial,
        iso=iso,
        linked=linked,
        moment=moment,
        number=number,
        recipients=recipients,
        safe_link=safe_link,
        size=size,
    )
    return made


def age(moment: float, now: Callable[[], float] = time.time) -> str:
    """Return how long ago a time was; after a day, its date.

    >>> age(1000.0, lambda: 1000.0 + 2 * 3600)
    '2 h'
    """
    seconds = now() - moment
    if seconds < 45:
        return "now"
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min"
    if seconds < 86400:
        return f"{round(seconds / 3600)} h"
    then = datetime.fromtimestamp(moment, UTC).astimezone()
    return f"{then.day} {then:%b}" if seconds < 300 * 86400 else f"{then.day} {then:%b %Y}"


def iso(moment: float) -> str:
    """Return a time in the format of HTML's ``datetime`` attribute."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def date(moment: float) -> str:
    """Return a full date and time, in the server's time zone."""
    return datetime.fromtimestamp(moment, UTC).astimezone().strftime("%d %B %Y, %H:%M:%S %z").lstrip("0")


def moment(then: float) -> str:
    """Return a short date and time, in the server's time zone, such as ``29 Nov 2026, 14:05:33``."""
    return datetime.fromtimestamp(then, UTC).astimezone().strftime("%d %b %Y, %H:%M:%S").lstrip("0")


def size(octets: int) -> str:
    """Return a human-readable size.

    >>> size(532), size(14_200), size(3_500_000)
    ('532 B', '14 KB', '3.5 MB')
    """
    if octets < 1000:
        return f"{octets} B"
    for unit in ("KB", "MB", "GB"):
        octets_of_unit = octets / 1000
        if octets_of_unit < 999.5 or unit == "GB":
            return f"{octets_of_unit:.1f} {unit}" if octets_of_unit < 10 else f"{octets_of_unit:.0f} {unit}"
        octets //= 1000
    raise AssertionError("unreachable")


def number(count: int) -> str:
    """Return a count with thousands separators."""
    return f"{count:,}"


def hue(text: str) -> int:
    """Return the number of the colour for an address, which is always the same."""
    return crc32(text.lower().encode("utf-8", "replace")) % HUES


def initial(sender: Address) -> str:
    """Return the initial of a sender."""
    return next((letter.upper() for letter in sender.name or sender.address if letter.isalnum()), "?")


def recipients(paths: Sequence[str]) -> str:
    """Return the first recipients of the envelope, and the number of the others."""
    shown = ", ".join(paths[:RECIPIENTS]) or "nobody"
    return f"{shown} and {len(paths) - RECIPIENTS} more" if len(paths) > RECIPIENTS else shown


def safe_link(url: str) -> str:
    """Return the URL if a page may link to it, otherwise ``#``: a message can contain ``javascript:`` URLs."""
    try:
        return url if urlsplit(url.strip()).scheme.lower() in SAFE_SCHEMES else "#"
    except ValueError:
        return "#"


def linked(text: str) -> Markup:
    """Return a text as HTML, in which the URLs of the schemes ``http`` and ``https`` are links: the first thousand,
    because hundreds of thousands would delay all clients.

    >>> linked("<b> https://example.com/?a&b.")
    Markup('&lt;b&gt; <a href="https://example.com/?a&amp;b" target="_blank"
    rel="noopener noreferrer nofollow">https://example.com/?a&amp;b</a>.')
    """
    link = Markup('<a href="{0}" target="_blank" rel="noopener noreferrer nofollow">{0}</a>')
    pieces: list[Markup] = []
    position = 0
    for start, end in islice(urls(text), MAX_LINKS):
        pieces += escape(text[position:start]), link.format(text[start:end])
        position = end
    return Markup("").join([*pieces, escape(text[position:])])


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transcript, as shown on the page."""

    at: str  #: seconds since the session began
    side: str  #: ``client``, ``server``, ``data``, ``fault`` or ``event``; used in the stylesheet
    who: str  #: ``C``, ``S``, ``D``, ``F`` or ``*``
    text: str
    refused: bool  #: whether it is a negative reply


SIDES = {"client": "client", "server": "server", "data": "data", "fault": "fault"}  # everything else is an event


def dialog(records: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield the lines of a transcript.

    :param records: as :func:`txsmtpd.inbox.sessions.records_of` returns them.
    """
    for record in records:
        side = SIDES.get(record["kind"], "event")
        text = record["text"]
        if record["kind"] == "closed":
            cause = text.removeprefix("closed: ")
            text = CAUSES.get(cause, f"connection closed: {cause}")
        refused = side == "server" and text[:1] in ("4", "5")
        yield Line(f"{record['at']:.3f}", side, record["mark"].rstrip(":"), text, refused)
