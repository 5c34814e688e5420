"""The MIME structure of a message as offsets into its bytes (RFC 2045, RFC 2046 5.1). Text is not decoded here.

Only offsets are stored, so that a part can be read from a store without parsing the message again. Whatever the bytes
are, the result is a tree of bounded size, and nothing is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value

MAX_DEPTH = 50  # nesting levels of multiparts
MAX_PARTS = 1000
MAX_HEADER = 2**18  # bytes of one header
MAX_FIELDS = 2000  # fields of one header
MAX_PARAMETERS = 2**12  # bytes of one Content field; parsing parameters is slow
ALL_PARAMETERS = 2**17  # bytes of all Content fields of a message; after that, FEW of each
FEW = 2**8
SCANS = 8  # how often each byte may be searched for a boundary, on average
MAX_MARKS = 10**5  # potential boundaries in one message
LONGEST_TAIL = 100  # bytes after a boundary on its line; should be white space

_NAME = re.compile(rb"[!-9;-~]+")
_NO_PARAMETERS = re.compile(r";[;\s]*;")

Fields = list[tuple[str, bytes]]


@dataclass(slots=True)
class Entity:
    """A message or a part of one: a header, and a body, which may have parts."""

    fields: Fields  #: names as sent, values unfolded
    start: int  #: where its header begins
    body: int  #: where its body begins
    end: int  #: where its body ends
    part_id: str = "0"  #: ``0`` for the message, ``1``, ``1.2``; a multipart within another ends in ``.0``
    parts: list[Entity] = field(default_factory=list)
    parameters: Message = field(default_factory=Message)  #: the Content fields, for their parameters

    @property
    def content_type(self) -> str:
        """The content type, such as ``text/plain``, in lower case."""
        return self.parameters.get_content_type()

    @property
    def is_multipart(self) -> bool:
        return bool(self.parts)

    def first(self, name: str) -> bytes | None:
        """Return the value of the first field with this name (in lower case), or None."""
        return next((value for each, value in self.fields if each.lower() == name), None)

    def walk(self) -> Iterator[Entity]:
        """Yield the entity and all its parts, in order."""
        yield self
        for part in self.parts:
            yield from part.walk()


def structure(content: bytes) -> Entity:
    """Parse the structure of a message."""
    message = _Scan(content).entity(0, len(content), 0, "text/plain")
    for number, part in enumerate(message.parts, 1):
        _name(part, str(number))
    return message


class _Scan:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._parts = 0
        self._budget = SCANS * len(content)
        self._marks = MAX_MARKS
        self._parameters = ALL_PARAMETERS

    def entity(self, start: int, end: int, depth: int, default_type: str) -> Entity:
        fields, body = read_header(self._content, start, end)
        found = Entity(fields, start, body, end)
        for name in ("Content-Type", "Content-Disposition", "Content-ID", "Content-Transfer-Encoding"):
            value = found.first(name.lower())
            if value is not None:
                value = value[: MAX_PARAMETERS if self._parameters > 0 else FEW]
                self._parameters -= len(value)
                found.parameters[name] = _safe(value)
        found.parameters.set_default_type(default_type)
        if found.parameters.get_content_maintype() == "multipart" and depth < MAX_DEPTH:
            self._split(found, depth)
        return found

    def _split(self, entity: Entity, depth: int) -> None:
        boundary = _boundary(entity.parameters)
        if boundary is None or self._budget < 0:
            return
        self._budget -= entity.end - entity.body
        digest = "message/rfc822" if entity.content_type == "multipart/digest" else "text/plain"
        for start, end in self._ranges(entity, boundary):
            if self._parts >= MAX_PARTS:
                break
            self._parts += 1
            entity.parts.append(self.entity(start, end, depth + 1, digest))

    def _ranges(self, entity: Entity, boundary: bytes) -> Iterator[tuple[int, int]]:
        content, mark = self._content, b"--" + boundary
        begun: int | None = None
        position = entity.body
        while self._marks:
            at = content.find(mark, position, entity.end)
            if at < 0:
                break
            self._marks -= 1
            position = at + len(mark)
            if at > entity.body and content[at - 1 : at] != b"\n":
                continue
            line_end = content.find(b"\n", position, entity.end)
            after = entity.end if line_end < 0 else line_end + 1
            if after - position > LONGEST_TAIL:
                continue
            tail = content[position:after].strip()
            if tail not in (b"", b"--"):
                continue  # a longer boundary that begins with this one
            if begun is not None:
                # The line end before a delimiter belongs to it (RFC 2046 5.1.1).
                yield begun, max(begun, at - (2 if content[at - 2 : at] == b"\r\n" else 1))
            begun = None if tail else after
            if tail:
                return
            position = after
        if begun is not None:  # without a closing delimiter, the last part ends where the multipart does
            yield begun, entity.end


def _name(entity: Entity, part_id: str) -> None:
    entity.part_id = f"{part_id}.0" if entity.parts else part_id
    for number, part in enumerate(entity.parts, 1):
        _name(part, f"{part_id}.{number}")


def read_header(content: bytes, start: int, end: int) -> tuple[Fields, int]:
    """Return the fields of the header at *start*, and the start of the body.

    A line that is not a field ends the header, and belongs to the body.
    """
    fields: list[tuple[str, list[bytes]]] = []
    limit = min(end, start + MAX_HEADER)
    position = start
    while position < limit and len(fields) < MAX_FIELDS:
        line_end = content.find(b"\n", position, limit)
        after = limit if line_end < 0 else line_end + 1
        line = content[position:after].rstrip(b"\r\n")
        if not line:
            position = after
            break
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1][1].append(line)
        else:
            name, colon, value = line.partition(b":")
            if not colon or not _NAME.fullmatch(name.rstrip()):
                break
            fields.append((name.rstrip().decode("ascii"), [value]))
        position = after
    return [(name, b"".join(lines).strip()) for name, lines in fields], position


def _safe(value: bytes) -> str:
    """Return a value for a Message, which rejects line breaks, and whose parameter parser raises for some NULs."""
    text = value.decode("utf-8", "replace").replace("\r", " ").replace("\n", " ").replace("\0", "\ufffd")
    return _NO_PARAMETERS.sub(";", text)


def _boundary(parameters: Message) -> bytes | None:
    try:
        boundary = parameters.get_param("boundary")
        if boundary is None:
            return None
        text = collapse_rfc2231_value(boundary).rstrip()
    except Exception:  # malformed parameters raise several types of errors
        return None
    return text.encode("utf-8", "replace") if text else None
