"""The search syntax: parses ``from:ann -is:read "two words"`` into terms that must all match.

::

    word  "some words"            in the header, the text, or the name of an attachment
    from: to: cc: bcc: reply-to: addressed: subject: message-id:    in this field; addressed: any of the first five
    tag:NAME                      exactly this tag
    is:read is:unread is:tagged has:attachment has:inline
    after:2026-01-31  before:2026-02-01T12:00    when the message arrived
    larger:10k  smaller:2m        size in bytes
    -term  !term                  not this

Searches are case-insensitive. Quotes only group words; they cannot be escaped. Each store evaluates the terms in its
own way; :func:`holds` does it for one message in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from txsmtpd.inbox.message import Message

LONGEST = 2000  # characters of a query
MAX_TERMS = 50

FIELDS: Mapping[str, tuple[str, ...]] = {
    "from": ("from",),
    "to": ("to",),
    "cc": ("cc",),
    "bcc": ("bcc",),
    "reply-to": ("reply_to",),
    "addressed": ("from", "to", "cc", "bcc", "reply_to"),
    "subject": ("subject",),
    "message-id": ("message_id",),
}
IS = ("read", "unread", "tagged")
HAS = ("inline", "attachment", "attachments")

_TERM = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([km]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2}


@dataclass(frozen=True, slots=True)
class Term:
    """A condition that a message must match.

    :ivar kind: ``words`` (a substring of one of *columns*), ``tag``, ``is``, ``has``, ``after``, ``before``,
        ``larger`` or ``smaller``.
    :ivar text: the text to look for, case-folded.
    :ivar number: seconds since the epoch, or bytes.
    """

    kind: str
    text: str = ""
    number: float = 0
    columns: tuple[str, ...] = ("text",)
    negated: bool = False


Terms = tuple[Term, ...]


def parse_query(query: str, tz: str = "") -> Terms:
    """Parse a query into terms. An empty query has none.

    :param tz: the time zone of dates without one, such as ``Europe/Berlin``. Default: UTC.
    :raises ValueError: if the value of a term is invalid. The message says which, and what is valid.
    """
    if len(query) > LONGEST:
        raise ValueError(f"the query is longer than {LONGEST} characters")
    zone = _zone(tz)
    found = [term for word in _TERM.findall(query) if (term := _term(word, zone)) is not None]
    if len(found) > MAX_TERMS:
        raise ValueError(f"the query has more than {MAX_TERMS} terms")
    return tuple(found)


def _zone(name: str) -> tzinfo:
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except Exception as error:  # it may raise almost anything, depending on the name
        raise ValueError(f"tz={name[:50]}: not a time zone such as Europe/Berlin") from error


def _term(word: str, zone: tzinfo) -> Term | None:
    negated = word[0] in "-!" and len(word) > 1
    if negated:
        word = word[1:]
    # A word that starts with a quote has no keyword: "to: do" is searched for literally.
    keyword, colon, value = ("", "", "") if word.startswith('"') else word.partition(":")
    value = value.replace('"', "").strip()
    keyword = keyword.lower()
    folded = value.casefold()
    if colon and value:
        if keyword in FIELDS:
            return Term("words", folded, columns=FIELDS[keyword], negated=negated)
        if keyword == "tag":
            return Term("tag", folded, negated=negated)
        if keyword == "is" and folded in IS:
            return Term("is", folded, negated=negated)
        if keyword == "has" and folded in HAS:
            return Term("has", folded.removesuffix("s"), negated=negated)
        if keyword in ("after", "before"):
            return Term(keyword, number=_time(keyword, value, zone), negated=negated)
        if keyword in ("larger", "smaller"):
            return Term(keyword, number=_octets(keyword, value), negated=negated)
    text = word.replace('"', "").strip().casefold()
    return Term("words", text, negated=negated) if text else None


def _octets(keyword: str, value: str) -> float:
    size = _SIZE.fullmatch(value)
    if size is None:
        raise ValueError(f"{keyword}:{value[:50]}: not a size such as 500, 10k or 2m")
    return float(size[1]) * _UNITS[size[2].lower()]


def _time(keyword: str, value: str, zone: tzinfo) -> float:
    text = value.replace("/", "-")
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = read(text if read is datetime.fromisoformat else value)
            return (when if when.tzinfo is not None else when.replace(tzinfo=zone)).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    raise ValueError(f"{keyword}:{value[:50]}: not a date such as 2026-01-31 or 2026-01-31T12:00")


def holds(term: Term, message: Message, folded: Mapping[str, str]) -> bool:
    """Return True if a message matches a term.

    :param folded: its searchable text, by column.
    """
    return _holds(term, message, folded) != term.negated


def _holds(term: Term, message: Message, folded: Mapping[str, str]) -> bool:
    if term.kind == "words":
        return any(term.text in folded[column] for column in term.columns)
    if term.kind == "tag":
        return term.text in [tag.casefold() for tag in message.tags]
    if term.kind == "is":
        return bool(message.tags) if term.text == "tagged" else message.seen == (term.text == "read")
    if term.kind == "has":
        return bool(message.inline if term.text == "inline" else message.attachments)
    if term.kind in ("after", "before"):
        return message.arrived >= term.number if term.kind == "after" else message.arrived < term.number
    return message.size > term.number if term.kind == "larger" else message.size < term.number
