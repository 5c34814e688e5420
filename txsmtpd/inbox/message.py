"""A parsed message: addresses, subject, text, HTML and attachments, from its bytes and its envelope.

:func:`parse` reads a message once, with bounded effort, and never raises, whatever the bytes are. It needs neither a
reactor nor a store; the store calls it in a thread.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Self

from txsmtpd.inbox.scope import HEADERS, filed_under
from txsmtpd.mime import Address, markup
from txsmtpd.mime.message import (
    MAX_TEXT,
    addresses_in,
    charset_of,
    content_id,
    decoded_fields,
    file_name,
    kind_of,
    transfer_encoding,
)
from txsmtpd.mime.structure import Entity, structure
from txsmtpd.mime.text import decoded, in_charset

SEARCHED = 2**16  # characters of a message that are searched
SNIPPET = 250  # characters

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as it was received: its bytes, its envelope, and what is known about the client."""

    content: bytes = field(repr=False)  #: unchanged, but with dot-stuffing removed
    mail_from: str = ""  #: the reverse-path; ``""`` for a bounce
    rcpt_tos: tuple[str, ...] = ()  #: the forward-paths, in order
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    peer: str = ""  #: the client's address, as text
    helo: str = ""  #: the argument of EHLO or HELO
    tls: str = ""  #: protocol and cipher; ``""`` without TLS
    user: str = ""  #: the authenticated user, or ``""``
    session: str = ""  #: the id of the session
    arrived: float = field(default_factory=time.time)  #: seconds since the epoch


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a message that is not a multipart, and where its bytes are."""

    part_id: str
    kind: str  #: ``text``, ``html``, ``inline`` or ``attachment``
    content_type: str  #: such as ``text/plain``, in lower case
    charset: str  #: as given in the message
    name: str  #: the file name; ``""`` without one. It comes from the message: never use it as a path.
    content_id: str  #: without angle brackets
    encoding: str  #: ``base64``, ``quoted-printable``, or another that leaves the bytes as they are
    start: int  #: offset of the encoded bytes in the message
    length: int  #: of the encoded bytes
    size: int = 0  #: of the decoded bytes; for attachments and inline parts
    md5: str = ""
    sha1: str = ""
    sha256: str = ""

    def decode(self, encoded: bytes) -> bytes:
        """Decode the part's bytes from their encoded form in the message."""
        return decoded(encoded, self.encoding)

    def text(self, encoded: bytes) -> str:
        """Decode the part's text from its encoded form in the message. Lines end in LF."""
        octets = decoded(encoded[: 2 * MAX_TEXT], self.encoding)
        return in_charset(octets[:MAX_TEXT], self.charset).replace("\r\n", "\n")


@dataclass(frozen=True, slots=True)
class Envelope:
    """How a message was received."""

    mail_from: str
    rcpt_tos: tuple[str, ...]
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    peer: str = ""
    helo: str = ""
    tls: str = ""
    user: str = ""
    session: str = ""

    @classmethod
    def of(cls, arrival: Arrival) -> Self:
        return cls(**{name: getattr(arrival, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Message:
    """A parsed message: everything except its bytes. Stores keep it, and the pages and the API show it."""

    id: str  #: 22 characters; identifies the message in URLs
    arrived: float  #: seconds since the epoch
    size: int  #: bytes
    envelope: Envelope
    message_id: str  #: without angle brackets; ``""`` without one
    subject: str
    sender: Address  #: from the From field, otherwise the reverse-path
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]  #: from the Bcc field, plus the recipients that no field names
    reply_to: tuple[Address, ...]
    snippet: str  #: the beginning of the text
    parts: tuple[Part, ...]
    filed: tuple[tuple[str, str], ...] = ()  #: what it is filed under; see :mod:`~txsmtpd.inbox.scope`
    number: int = 0  #: in its store; numbers only increase
    seen: bool = False
    tags: tuple[str, ...] = ()

    @property
    def inline(self) -> list[Part]:
        return [part for part in self.parts if part.kind == "inline"]

    @property
    def attachments(self) -> list[Part]:
        return [part for part in self.parts if part.kind == "attachment"]

    @property
    def has_html(self) -> bool:
        return any(part.kind == "html" for part in self.parts)

    def part(self, part_id: str) -> Part | None:
        """Return the part with this name, or None."""
        return next((part for part in self.parts if part.part_id == part_id), None)

    def to_json(self) -> dict[str, Any]:
        """Return the message for JSON, without what may change (number, seen, tags).

        Addresses, parts and the envelope are lists of their fields, in order: this makes long lists fast to read.
        """
        facts = {name: getattr(self, name) for name in _PLAIN}
        facts |= {name: [_fields_of(each) for each in getattr(self, name)] for name in _LISTS}
        return facts | {"sender": _fields_of(self.sender), "envelope": _fields_of(self.envelope), "filed": self.filed}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], number: int, seen: bool, tags: Iterable[str]) -> Self:
        """Return the message that :meth:`to_json` wrote."""
        found: dict[str, Any] = {name: facts[name] for name in _PLAIN}
        for name, kind in _LISTS.items():
            found[name] = tuple(kind(*each) for each in facts[name])
        envelope: list[Any] = [tuple(value) if isinstance(value, list) else value for value in facts["envelope"]]
        return cls(
            **found,
            sender=Address(*facts["sender"]),
            envelope=Envelope(*envelope),
            filed=tuple((name, value) for name, value in facts["filed"]),
            number=number,
            seen=seen,
            tags=tuple(tags),
        )


_PLAIN = ("id", "arrived", "size", "message_id", "subject", "snippet")
_LISTS: dict[str, Any] = {"to": Address, "cc": Address, "bcc": Address, "reply_to": Address, "parts": Part}


def _fields_of(value: Any) -> list[Any]:
    return [getattr(value, name) for name in value.__dataclass_fields__]


class Parsed:
    """A newly parsed message, with what it is filed and searched by.

    :ivar message: the message.
    :ivar fields: its header fields, decoded.
    """

    def __init__(self, message: Message, fields: list[tuple[str, str]], text: str) -> None:
        self.message = message
        self.fields = fields
        self._text = text

    def values(self, name: str) -> list[str]:
        """Return the values of the header fields with this name (in lower case)."""
        return [value for each, value in self.fields if each.lower() == name]

    @cached_property
    def folded(self) -> dict[str, str]:
        """Return the searchable text, case-folded, by the name of the search term."""
        message = self.message
        header = "\n".join(f"{name}: {value}" for name, value in self.fields)
        names = "\n".join(part.name for part in message.parts if part.name)
        found = {
            "subject": message.subject,
            "from": str(message.sender),
            "to": _joined(message.to),
            "cc": _joined(message.cc),
            "bcc": _joined(message.bcc),
            "reply_to": _joined(message.reply_to),
            "message_id": message.message_id,
            "text": f"{header[:SEARCHED]}\n{names[:SEARCHED]}\n{self._text}",
        }
        return {name: value[:SEARCHED].replace("\0", "").casefold() for name, value in found.items()}


def _joined(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))


def parse(arrival: Arrival, message_id: str, headers: Sequence[str] = HEADERS) -> Parsed:
    """Parse a message.

    :param message_id: its new id.
    :param headers: header fields whose values it is filed under.
    """
    content = arrival.content
    root = structure(content)
    fields = decoded_fields(root.fields)
    first = {name.lower(): value for name, value in reversed(fields)}
    parts = tuple(_parts(root, content))
    addresses = {
        name: tuple(addresses_in(value for each, value in root.fields if each.lower() == name))
        for name in ("from", "to", "cc", "bcc", "reply-to")
    }
    named = {each.address.lower() for name in ("to", "cc", "bcc") for each in addresses[name]}
    hidden = tuple(Address("", path) for path in dict.fromkeys(arrival.rcpt_tos) if path.lower() not in named)
    message = Message(
        id=message_id,
        arrived=arrival.arrived,
        size=len(content),
        envelope=Envelope.of(arrival),
        message_id=first.get("message-id", "").strip().removeprefix("<").removesuffix(">"),
        subject=first.get("subject", ""),
        sender=next(iter(addresses["from"]), Address("", arrival.mail_from)),
        to=addresses["to"],
        cc=addresses["cc"],
        bcc=addresses["bcc"] + hidden,
        reply_to=addresses["reply-to"],
        snippet="",
        parts=parts,
    )
    text = shown_text(*(_texts(message, content, kind) for kind in ("text", "html")))
    parsed = Parsed(message, fields, text[:SEARCHED])
    parsed.message = replace(
        message,
        snippet=_SPACE.sub(" ", text[: 20 * SNIPPET]).strip()[:SNIPPET],
        filed=filed_under(parsed, headers),
    )
    return parsed


def _texts(message: Message, content: bytes, kind: str) -> list[str]:
    return [part.text(content[part.start : part.start + part.length]) for part in message.parts if part.kind == kind]


def shown_text(texts: Sequence[str], documents: Sequence[str]) -> str:
    """Return the text of a message: its text parts, or the text of its HTML if it has none."""
    return "\n--\n".join(texts) if texts else markup.plain_text("\n".join(documents))


# Parts


def _parts(root: Entity, content: bytes) -> Iterable[Part]:
    for entity in root.walk():
        if not entity.is_multipart:
            yield _part(entity, content)


def _part(entity: Entity, content: bytes) -> Part:
    part = Part(
        part_id=entity.part_id,
        kind=kind_of(entity),
        content_type=entity.content_type[:200],
        charset=charset_of(entity),
        name=file_name(entity),
        content_id=content_id(entity),
        encoding=transfer_encoding(entity),
        start=entity.body,
        length=entity.end - entity.body,
    )
    if part.kind in ("text", "html"):
        return part
    octets = part.decode(content[entity.body : entity.end])
    digests = {
        "md5": hashlib.md5(octets, usedforsecurity=False).hexdigest(),
        "sha1": hashlib.sha1(octets, usedforsecurity=False).hexdigest(),
        "sha256": hashlib.sha256(octets).hexdigest(),
    }
    facts = {name: getattr(part, name) for name in Part.__dataclass_fields__}
    return Part(**{**facts, **digests, "size": len(octets)})


def sent_at(fields: Iterable[tuple[str, str]], otherwise: float) -> datetime:
    """Return the time in the Date field, or *otherwise*."""
    for name, value in fields:
        if name.lower() == "date":
            try:
                sent = parsedate_to_datetime(value)
                return sent if sent.tzinfo is not None else sent.replace(tzinfo=UTC)
            except (TypeError, ValueError, OverflowError, IndexError):
                break
    return datetime.fromtimestamp(otherwise, UTC)
