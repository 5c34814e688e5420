"""Measure the header of a message while it arrives (RFC 5322 2.2): its octets and its fields. Octets only."""

from __future__ import annotations

import re
from collections.abc import Callable

# A header as parsers see one, up to the first line that is neither a field nor folded.
_FIELDS = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n|\Z)|[ \t][^\n]*(?:\n|\Z))*")
_FIELD = re.compile(rb"^[^ \t]", re.MULTILINE)
_BEGINNING_OF_FIELD = re.compile(rb"[!-9;-~]{0,1000}")


class HeaderMeter:
    """Passes a message on, unless its header is too large.

    :param write: called with each run of octets.
    :param size_limit: octets of the header; None: no limit.
    :param field_limit: fields of the header; None: no limit.
    """

    __slots__ = ("_field_limit", "_fields", "_last", "_pieces", "_size", "_size_limit", "_write", "excess")

    def __init__(self, write: Callable[[bytes], object], size_limit: int | None, field_limit: int | None) -> None:
        self._write = write
        self._size_limit = size_limit
        self._field_limit = field_limit
        self._pieces: list[bytes] | None = []  # of the header so far; None: it has ended
        self._last = b"\n"  # with which the last piece has ended
        self._size = 0
        self._fields = 0
        self.excess: str | None = None  #: ``"octets"`` or ``"fields"``, of which the header has too many

    def write(self, octets: bytes) -> None:
        """More of the message has come."""
        if self._pieces is not None:
            self._measure(self._pieces, octets)
        if self.excess is None:
            self._write(octets)

    def _measure(self, pieces: list[bytes], octets: bytes) -> None:
        text = self._last + octets
        ends = [end for mark in (b"\n\r\n", b"\n\n") if (end := text.find(mark)) >= 0]
        if ends:
            text = text[: min(ends) + 1]
        header = text[len(self._last) :]
        pieces.append(header)
        self._size += len(header)
        self._fields += header.count(b"\n") - text.count(b"\n ") - text.count(b"\n\t")
        if self._excess() is not None and self._is_header(b"".join(pieces)):
            self.excess = self._excess()
        if ends or self.excess is not None:
            self._pieces = None
        self._last = text[-2:]

    def _excess(self) -> str | None:
        if self._size_limit is not None and self._size > self._size_limit:
            return "octets"
        if self._field_limit is not None and self._fields > self._field_limit:
            return "fields"
        return None

    def _is_header(self, text: bytes) -> bool:
        """Whether what has come is all header: a message may have no empty line, or be one long line."""
        fields = _FIELDS.match(text)
        assert fields is not None
        end = fields.end()
        if end == len(text):
            return True
        may_go_on = _BEGINNING_OF_FIELD.fullmatch(text, end) is not None
        size, fields_before = self._size, self._fields
        self._size = end
        self._fields = len(_FIELD.findall(text, 0, end))
        if self._excess() is not None:
            return True
        if may_go_on:
            self._size, self._fields = size, fields_before
        else:
            self._pieces = None  # it ended before
        return False
