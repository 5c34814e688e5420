"""Measure the header of a message while it arrives (RFC 5322 2.2): its octets and its fields. Octets only."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

# A header ends before the first line that is neither a field nor the continuation of one.
_FIELDS = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n|\Z)|[ \t][^\n]*(?:\n|\Z))*")
_FIELD = re.compile(rb"^[^ \t]", re.MULTILINE)
_BEGINNING_OF_FIELD = re.compile(rb"[!-9;-~]{0,1000}\Z")
SHORTEST_FIELD = 3  # octets, including the colon and the line end
_END = re.compile(rb"\A\r?\n|(?<=\n)\r?\n")


class HeaderMeter:
    """Passes a message on, unless its header is too large.

    The message is not examined while its whole size is within the limits.

    :param write: called with each piece.
    :param size_limit: maximum size of the header in octets; None: no limit.
    :param field_limit: maximum number of fields; None: no limit.
    """

    __slots__ = ("_check_at", "_excess", "_field_limit", "_lines", "_pieces", "_size", "_size_limit", "_write")

    def __init__(self, write: Callable[[bytes], object], size_limit: int | None, field_limit: int | None) -> None:
        self._write = write
        self._size_limit = sys.maxsize if size_limit is None else size_limit
        self._field_limit = sys.maxsize if field_limit is None else field_limit
        self._pieces: list[bytes] | None = []  # of the message, until the end of the header is found
        self._size = 0  # octets of the pieces
        self._lines = 0
        self._check_at = 0  # total size of the pieces at which the header is measured next
        self._excess: str | None = None

    @property
    def excess(self) -> str | None:
        """The limit that the header exceeds: ``"octets"``, ``"fields"``, or None."""
        if self._pieces is not None and self._is_beyond():
            self._look(self._pieces)
        return self._excess

    def write(self, octets: bytes) -> None:
        """Process more of the message."""
        pieces = self._pieces
        if pieces is not None and not self._size and _is_short(octets, self._size_limit, self._field_limit):
            self._pieces = None
        elif pieces is not None:
            pieces.append(octets)
            self._size += len(octets)
            self._lines += octets.count(b"\n")
            if self._is_beyond() and self._size >= self._check_at:
                self._look(pieces)
        if self._excess is None:
            self._write(octets)

    def _is_beyond(self) -> bool:
        return self._size > self._size_limit or self._lines > self._field_limit

    def _look(self, pieces: list[bytes]) -> None:
        """Find the end of the header, and measure it."""
        text = b"".join(pieces)
        end = _END.search(text)
        fields = _FIELDS.match(text, 0, len(text) if end is None else end.start())
        assert fields is not None
        size = fields.end()
        goes_on = end is None and (size == len(text) or _BEGINNING_OF_FIELD.match(text, size) is not None)
        if size > self._size_limit:
            self._excess = "octets"
        elif len(_FIELD.findall(text, 0, size)) > self._field_limit:
            self._excess = "fields"
        if self._excess is not None or not goes_on:
            self._pieces = None
        else:
            self._pieces = [text]
            self._check_at = 2 * self._size


def _is_short(octets: bytes, size_limit: int, field_limit: int) -> bool:
    """Return True if the header ends so early that it must be within the limits, as nearly all do."""
    return octets.find(b"\r\n\r\n", 0, min(size_limit, SHORTEST_FIELD * field_limit)) >= 0


def harmless_size(size_limit: int | None, field_limit: int | None) -> int:
    """Return the largest size in octets of a message whose header is within the limits, whatever it contains."""
    size = sys.maxsize if size_limit is None else size_limit
    return size if field_limit is None else min(size, SHORTEST_FIELD * field_limit)


def header_excess(message: bytes, size_limit: int | None, field_limit: int | None) -> str | None:
    """Return which limit the header of a whole message exceeds; see :attr:`HeaderMeter.excess`."""
    size = sys.maxsize if size_limit is None else size_limit
    fields = sys.maxsize if field_limit is None else field_limit
    if len(message) <= harmless_size(size_limit, field_limit) or _is_short(message, size, fields):
        return None
    meter = HeaderMeter(len, size_limit, field_limit)
    meter.write(message)
    return meter.excess
