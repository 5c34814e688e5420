"""A parsed message: header fields, addresses, text, HTML, attachments and links."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import getaddresses
from functools import cached_property

from txsmtpd.mime import markup
from txsmtpd.mime.structure import Entity, Fields, structure
from txsmtpd.mime.text import decoded, in_charset, without_encoded_words

MAX_TEXT = 2**22  # bytes of one text part to decode
MAX_VALUE = 2**16  # bytes of one field's value to decode
MAX_ADDRESSES = 1000  # in all fields with the same name
LONGEST_NAME = 1000  # characters of a file name

# By default, newer Pythons discard all addresses of a field if one of them is malformed.
_LENIENT = {"strict": False} if "strict" in inspect.signature(getaddresses).parameters else {}
_ADDRESS = re.compile(r'[^\s<>,;:"()@]{1,320}@[^\s<>,;:"()@]{1,255}')


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox in a header field."""

    name: str  #: the display name, decoded; ``""`` without one
    address: str

    def __str__(self) -> str:
        return f"{self.name} <{self.address}>" if self.name else self.address


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part of a message that is neither its text nor its HTML.

    :param name: the file name; ``""`` without one. It is chosen by the sender: never use it as a path.
    :param type: the content type, such as ``application/pdf``, in lower case.
    :param content: the decoded bytes.
    :param content_id: the id that HTML refers to (``cid:``), without angle brackets; ``""`` without one.
    """

    name: str
    type: str
    content: bytes = field(repr=False)
    content_id: str = ""


class Headers(Mapping[str, str]):
    """The header fields of a message by case-insensitive name: ``headers["Subject"]`` is the value of the first one,
    decoded, in one line.

    :raises KeyError: if there is no such field; ``headers.get("X-Test")`` is None then.
    """

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}
        for name, value in fields:
            self._values.setdefault(name.lower(), []).append(value)
            self._names.setdefault(name.lower(), name)

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name.lower()][0]
        except KeyError:
            raise KeyError(f"there is no field {name}; the fields are {', '.join(self) or 'none'}") from None

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields with this name, in order."""
        return list(self._values.get(name.lower(), ()))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.values())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({dict(self)!r})"


class ParsedMessage:
    """A message parsed by :func:`parse_message`.

    :ivar root: its MIME structure.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.root = structure(content)

    @cached_property
    def headers(self) -> Headers:
        """The header fields, decoded."""
        return Headers(decoded_fields(self.root.fields))

    @property
    def subject(self) -> str:
        """The subject, decoded; ``""`` without one."""
        return self.headers.get("subject", "")

    def addresses(self, name: str) -> list[Address]:
        """Return the mailboxes in all fields with this name, such as ``To``."""
        return addresses_in(value for each, value in self.root.fields if each.lower() == name.lower())

    @cached_property
    def _leaves(self) -> list[tuple[str, Entity]]:
        return [(kind_of(entity), entity) for entity in self.root.walk() if not entity.is_multipart]

    @property
    def text(self) -> str:
        """The plain text, or the text of the HTML if there is none; ``""`` without either. Lines end in LF."""
        texts = [self._text_of(entity) for kind, entity in self._leaves if kind == "text"]
        return "\n".join(texts) if texts else markup.plain_text(self.html)

    @property
    def html(self) -> str:
        """The HTML; ``""`` without any. Lines end in LF."""
        return "\n".join(self._text_of(entity) for kind, entity in self._leaves if kind == "html")

    @property
    def attachments(self) -> list[Attachment]:
        """All parts that are neither text nor HTML, including images embedded in the HTML."""
        return [
            Attachment(file_name(entity), entity.content_type, self._octets_of(entity), content_id(entity))
            for kind, entity in self._leaves
            if kind in ("attachment", "inline")
        ]

    @property
    def links(self) -> list[str]:
        """The URLs that the HTML links to, and those in the text, without duplicates, in order."""
        return markup.links(self.html, self.text)

    def _octets_of(self, entity: Entity) -> bytes:
        return decoded(self._content[entity.body : entity.end], transfer_encoding(entity))

    def _text_of(self, entity: Entity) -> str:
        end = min(entity.end, entity.body + 2 * MAX_TEXT)
        octets = decoded(self._content[entity.body : end], transfer_encoding(entity))
        return in_charset(octets[:MAX_TEXT], charset_of(entity)).replace("\r\n", "\n")


def parse_message(content: bytes) -> ParsedMessage:
    """Parse a message. Never raises, whatever the bytes are; neither do the attributes of the result."""
    return ParsedMessage(content)


# Headers


def decoded_fields(fields: Fields) -> list[tuple[str, str]]:
    """Return the fields of a header as text, one line each, with encoded words decoded."""
    return [(name, without_encoded_words(in_charset(value[:MAX_VALUE]))) for name, value in fields]


def addresses_in(values: Iterable[bytes]) -> list[Address]:
    """Return the mailboxes in fields such as To; in malformed values, as many as can be found."""
    texts = [in_charset(value[:MAX_VALUE]) for value in values]
    try:
        found = getaddresses(texts, **_LENIENT)
    except Exception:  # malformed values raise several types of errors
        found = [("", address) for text in texts for address in _ADDRESS.findall(text)]
    pairs = [(without_encoded_words(name), address) for name, address in found if name or address]
    return [Address(name, address) for name, address in pairs[:MAX_ADDRESSES]]


# Properties of a part


def kind_of(entity: Entity) -> str:
    """Return ``text``, ``html``, ``inline`` (displayed in place) or ``attachment``."""
    disposition = str(entity.parameters.get("Content-Disposition", "")).partition(";")[0].strip().lower()
    if disposition == "attachment":
        return "attachment"
    name = file_name(entity)
    if entity.content_type in ("text/plain", "text/html") and not name:
        return "html" if entity.content_type == "text/html" else "text"
    return "inline" if content_id(entity) or disposition == "inline" or not name else "attachment"


def transfer_encoding(entity: Entity) -> str:
    """Return the Content-Transfer-Encoding in lower case, such as ``base64``."""
    return str(entity.parameters.get("Content-Transfer-Encoding", "")).strip().lower()[:40]


def content_id(entity: Entity) -> str:
    """Return the Content-ID without angle brackets; ``""`` without one."""
    return str(entity.parameters.get("Content-ID", "")).strip().removeprefix("<").removesuffix(">")[:LONGEST_NAME]


def file_name(entity: Entity) -> str:
    """Return the file name; ``""`` without one."""
    try:
        name = entity.parameters.get_filename("")
    except Exception:  # the parser of parameters raises errors of several types on malformed ones
        return ""
    return without_encoded_words(str(name))[:LONGEST_NAME]


def charset_of(entity: Entity) -> str:
    """Return the charset as given in the message; ``""`` without one."""
    try:
        return str(entity.parameters.get_content_charset("") or "")[:100]
    except Exception:  # as above
        return ""
