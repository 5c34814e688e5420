"""A message as people see it, from its octets: header fields, addresses, text, HTML, attachments and links."""

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

MAX_TEXT = 2**22  # octets of one text part that are decoded
MAX_VALUE = 2**16  # octets of one field's value that are decoded
MAX_ADDRESSES = 1000  # of one message's fields of one name
LONGEST_NAME = 1000  # characters of a file name

# Newer Pythons discard all addresses of a field if they find one of them odd, unless they are told not to.
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

    :param name: the file name; ``""`` without one. The sender chose it: never use it as a path.
    :param type: such as ``application/pdf``, in lower case.
    :param content: the octets, decoded.
    :param content_id: by which HTML refers to it (``cid:``), without angle brackets; ``""`` without one.
    """

    name: str
    type: str
    content: bytes = field(repr=False)
    content_id: str = ""


class Headers(Mapping[str, str]):
    """The header fields of a message, by name, in upper or lower case: ``headers["Subject"]`` is the value of the
    first one, decoded, in one line.

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
            raise KeyError(f"there is no field {name}; there are {', '.join(self) or 'none'}") from None

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of this name, in their order."""
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
    """A message that was read by :func:`parse_message`.

    :ivar root: its structure.
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
        """The mailboxes in all fields of this name, such as ``To``."""
        return addresses_in(value for each, value in self.root.fields if each.lower() == name.lower())

    @cached_property
    def _leaves(self) -> list[tuple[str, Entity]]:
        return [(kind_of(entity), entity) for entity in self.root.walk() if not entity.is_multipart]

    @property
    def text(self) -> str:
        """The plain text, or what the HTML says if there is none; ``""`` without either. Lines end in LF."""
        texts = [self._text_of(entity) for kind, entity in self._leaves if kind == "text"]
        return "\n".join(texts) if texts else markup.plain_text(self.html)

    @property
    def html(self) -> str:
        """The HTML; ``""`` without any. Lines end in LF."""
        return "\n".join(self._text_of(entity) for kind, entity in self._leaves if kind == "html")

    @property
    def attachments(self) -> list[Attachment]:
        """All parts that are neither text nor HTML, the images that HTML shows included."""
        return [
            Attachment(file_name(entity), entity.content_type, self._octets_of(entity), content_id(entity))
            for kind, entity in self._leaves
            if kind in ("attachment", "inline")
        ]

    @property
    def links(self) -> list[str]:
        """The addresses that the HTML links to, and those in the text, each once, in their order."""
        return markup.links(self.html, self.text)

    def _octets_of(self, entity: Entity) -> bytes:
        return decoded(self._content[entity.body : entity.end], transfer_encoding(entity))

    def _text_of(self, entity: Entity) -> str:
        end = min(entity.end, entity.body + 2 * MAX_TEXT)
        octets = decoded(self._content[entity.body : end], transfer_encoding(entity))
        return in_charset(octets[:MAX_TEXT], charset_of(entity)).replace("\r\n", "\n")


def parse_message(content: bytes) -> ParsedMessage:
    """Read a message. Whatever the octets are, this raises nothing, and neither do the attributes of the result."""
    return ParsedMessage(content)


# What a header says


def decoded_fields(fields: Fields) -> list[tuple[str, str]]:
    """The fields of a header as text, in one line each, encoded words decoded."""
    return [(name, without_encoded_words(in_charset(value[:MAX_VALUE]))) for name, value in fields]


def addresses_in(values: Iterable[bytes]) -> list[Address]:
    """The mailboxes in the values of fields such as To; of malformed values, as many as can be found."""
    texts = [in_charset(value[:MAX_VALUE]) for value in values]
    try:
        found = getaddresses(texts, **_LENIENT)
    except Exception:  # it has raised errors of several types on malformed values
        found = [("", address) for text in texts for address in _ADDRESS.findall(text)]
    pairs = [(without_encoded_words(name), address) for name, address in found if name or address]
    return [Address(name, address) for name, address in pairs[:MAX_ADDRESSES]]


# What a part says of itself


def kind_of(entity: Entity) -> str:
    """``text``, ``html``, ``inline`` (shown in its place) or ``attachment``."""
    disposition = str(entity.parameters.get("Content-Disposition", "")).partition(";")[0].strip().lower()
    if disposition == "attachment":
        return "attachment"
    name = file_name(entity)
    if entity.content_type in ("text/plain", "text/html") and not name:
        return "html" if entity.content_type == "text/html" else "text"
    return "inline" if content_id(entity) or disposition == "inline" or not name else "attachment"


def transfer_encoding(entity: Entity) -> str:
    """The Content-Transfer-Encoding in lower case, such as ``base64``."""
    return str(entity.parameters.get("Content-Transfer-Encoding", "")).strip().lower()[:40]


def content_id(entity: Entity) -> str:
    """The Content-ID without angle brackets; ``""`` without one."""
    return str(entity.parameters.get("Content-ID", "")).strip().removeprefix("<").removesuffix(">")[:LONGEST_NAME]


def file_name(entity: Entity) -> str:
    """The file name; ``""`` without one."""
    try:
        name = entity.parameters.get_filename("")
    except Exception:  # the parser of parameters raises errors of several types on malformed ones
        return ""
    return without_encoded_words(str(name))[:LONGEST_NAME]


def charset_of(entity: Entity) -> str:
    """The charset, as the message names it; ``""`` without one."""
    try:
        return str(entity.parameters.get_content_charset("") or "")[:100]
    except Exception:  # as above
        return ""
