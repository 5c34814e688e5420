"""Cut the client's octets into command lines (RFC 5321 2.3.8, 4.5.3.1.4).

Octets only: no transport, no replies. What a line means, and what becomes of a bad one, is decided in
:mod:`txsmtpd.engine.dispatcher`.
"""

from __future__ import annotations

from typing import NamedTuple

ENDLESS_LINE = 2**21  # octets after which a line is no mistake any more: a message may be sent where none is expected
BEGINNING = 16  # octets of a bad line that are kept: they tell which command it was
CR = 0x0D
TLS_HANDSHAKE = 0x16  # the first octet that TLS sends
FOREIGN_OCTETS = b"\x16\x80"  # that TLS and SSL 2 begin with: no line will ever end
SSL2_HELLO = b"\x01"  # the third octet that SSL 2 sends: the type of its first message


class BadLine(NamedTuple):
    """What came in place of a proper line."""

    why: str  #: "long", "endless", "bare LF", "foreign"; or "missing", for one that was asked for and will not come
    begins: bytes = b""  #: what it began with


class LineBuffer:
    """Input that was not looked at yet, and the next line of it.

    :param longest: octets that a line may have, its CRLF not counted.
    """

    __slots__ = ("_longest", "data", "offset", "oversize")

    def __init__(self, longest: int) -> None:
        self.data = b""
        self.offset = 0  #: what stands before it in the data is done with
        self._longest = longest
        #: Of a line that is too long: how many of its octets were dropped, and what it began with.
        self.oversize: tuple[int, bytes] | None = None

    def __len__(self) -> int:
        return len(self.data) - self.offset

    @property
    def has_part(self) -> bool:
        """Whether a line has begun whose end has not come."""
        return self.oversize is not None or self.offset < len(self.data)

    def clear(self) -> bytes:
        """Discard the unprocessed input, and return it."""
        left = self.data[self.offset :]
        self.data = b""
        self.offset = 0
        self.oversize = None
        return left

    def next_line(self) -> bytes | BadLine | None:
        """Take the next line, without its CRLF; or what stands in its place. None: its end has not come.

        It searches for LF, not CRLF, so that a line that ends in LF alone gets a reply at once. Such a line is never
        executed. The text after it is a line of its own, so each LF causes a refusal: nobody can inject more than one
        command through a client that only filters CRLF.
        """
        data, start = self.data, self.offset
        end = data.find(b"\n", start)
        if (
            start < end <= start + self._longest + 1  # the CR counted
            and data[end - 1] == CR
            and data[start] not in FOREIGN_OCTETS
            and self.oversize is None
        ):
            self.offset = end + 1
            return data[start : end - 1]
        return self._next_odd_line(data, start, end)

    def _next_odd_line(self, data: bytes, start: int, end: int) -> bytes | BadLine | None:
        dropped, begins = self.oversize or (0, data[start : start + BEGINNING])
        if not dropped and data[start] in FOREIGN_OCTETS:
            if data[start] == TLS_HANDSHAKE or data[start + 2 : start + 3] == SSL2_HELLO:
                self.offset = len(data)
                return BadLine("foreign")
            if start < end <= start + self._longest + 1 and data[end - 1] == CR:
                self.offset = end + 1
                return data[start : end - 1]
        length = dropped + (len(data) if end < 0 else end) - start
        if end < 0:
            return self._drop_if_too_long(length, begins)
        self.offset = end + 1
        self.oversize = None
        if length <= self._longest + 1:
            return BadLine("bare LF", data[start : min(start + BEGINNING, end)])
        return BadLine("long" if length <= ENDLESS_LINE else "endless", begins)

    def _drop_if_too_long(self, length: int, begins: bytes) -> BadLine | None:
        if length <= self._longest + 1:
            return None
        self.offset = len(self.data)
        self.oversize = length, begins
        return BadLine("endless") if length > ENDLESS_LINE else None

    def last_line(self) -> bytes | None:
        """The last of the lines, if all of them are complete."""
        lines = self.data[self.offset :].rsplit(b"\n", 2)
        return lines[-2].strip() if len(lines) > 1 and not lines[-1] else None
