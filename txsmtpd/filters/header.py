"""The header of a message as a list of fields (RFC 5322 2.2), to search and change.

Unchanged fields keep their exact bytes. Values are not decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Only CR LF ends a line. Where bare CR or LF are allowed, they are part of the text.
_LINE = rb"[^\r]*+(?:\r(?!\n)[^\r]*+)*+\r\n"
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:(" + _LINE + rb"(?:[ \t]" + _LINE + rb")*+)")
_NAME = re.compile(r"[!-9;-~]+")
_LINE_END = re.compile(rb"\r\n|[\r\n]")
END = b"\r\n"


@dataclass(frozen=True, slots=True)
class Field:
    """One header field."""

    name: bytes
    octets: bytes  #: the whole field, with its line ends

    @property
    def value(self) -> bytes:
        """The bytes after the colon, without the last line end. Folded lines are separated by CR LF."""
        return self.octets[self.octets.index(b":") + 1 : -2]

    @property
    def text(self) -> str:
        """The value as text, in one line."""
        return " ".join(self.value.decode("utf-8", "replace").split())


# Stands for the trace field that a handler adds above the message. Milters include it in indexes, as with Postfix.
TRACE_FIELD = Field(b"", b"")


class Header:
    """The fields of a message, in order.

    :param fields: the fields.
    """

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self.fields = [TRACE_FIELD, *fields]
        self.changed = False

    @classmethod
    def parse(cls, octets: bytes) -> tuple[Header, bytes]:
        """Parse the header of a message.

        :return: the header, and what follows its fields: the empty line and the rest, or a line that is not a field.
        """
        fields = []
        end = 0
        while found := _FIELD.match(octets, end):
            fields.append(Field(found[1], found[0]))
            end = found.end()
        return cls(fields), octets[end:]

    @property
    def octets(self) -> bytes:
        """Return the header, without the empty line that ends it."""
        return b"".join(field.octets for field in self.fields)

    def __iter__(self) -> Iterator[Field]:
        return (field for field in self.fields if field is not TRACE_FIELD)

    def get(self, name: str) -> str | None:
        """Return the value of the first field with this name, in one line, or None."""
        return next((field.text for field in self.get_all(name)), None)

    def get_all(self, name: str) -> list[Field]:
        """Return the fields with this name."""
        wanted = name.encode("ascii", "replace").lower()
        return [field for field in self.fields if field.name.lower() == wanted]

    def insert(self, index: int, name: str, value: str | bytes, space: bytes = b" ") -> Field:
        """Add a field.

        :param index: its position. 0 is above all other fields. The trace field that the handler adds is counted: it is
            the first field, unless a field was inserted above it. An index beyond the last field means the end.
        :param space: the bytes between the colon and the value.
        :raises ValueError: if the name is invalid (RFC 5322 2.2).
        """
        added = make_field(name, value, space)
        self.fields.insert(index, added)
        self.changed = True
        return added

    def replace(self, name: str, value: str | bytes | None, occurrence: int = 1, space: bytes = b" ") -> bool:
        """Change a field, or remove it.

        :param value: the new value; None removes the field.
        :param occurrence: which of the fields with this name, starting at 1. Negative numbers count from the last.
        :return: whether the field exists.
        """
        wanted = name.encode("ascii", "replace").lower()
        places = [place for place, field in enumerate(self.fields) if field.name.lower() == wanted]
        try:
            place = places[occurrence - 1 if occurrence > 0 else occurrence]
        except IndexError:
            return False
        if value is None:
            del self.fields[place]
        else:
            self.fields[place] = make_field(self.fields[place].name.decode("ascii"), value, space)
        self.changed = True
        return True

    def remove(self, name: str) -> int:
        """Remove all fields with this name. Return how many there were."""
        wanted = name.encode("ascii", "replace").lower()
        kept = [field for field in self.fields if field.name.lower() != wanted]
        removed = len(self.fields) - len(kept)
        self.fields = kept
        self.changed = self.changed or bool(removed)
        return removed


def make_field(name: str, value: str | bytes, space: bytes = b" ") -> Field:
    """Make a field. A value of several lines is folded, so that it cannot add further fields.

    :raises ValueError: if the name is invalid (RFC 5322 2.2).
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of a header field")
    octets = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    first, *more = _LINE_END.split(octets.replace(b"\0", b""))
    lines = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in more if line.strip()]
    encoded = name.encode("ascii")
    return Field(encoded, b"".join((encoded, b":", space, END.join([first, *lines]), END)))
