"""Split the client's octets into command lines (RFC 5321 2.3.8, 4.5.3.1.4).

This module does not depend on transports or replies. :mod:`txsmtpd.engine.dispatcher` executes the lines, and replies
to invalid ones.
"""

from __future__ import annotations

from typing import NamedTuple

# The server closes the connection after a line with more octets than this. If a line exceeds only the limit for
# commands, the server refuses it and continues, because the line may belong to a message: some clients send the message
# although DATA was rejected.
ENDLESS_LINE = 2**21
BEGINNING = 16  # octets of an invalid line that are kept, to find out which command it was
CR = 0x0D
TLS_HANDSHAKE = 0x16  # the first octet that TLS sends
FOREIGN_OCTETS = b"\x16\x80"  # the first octets of TLS and of SSL 2, which do not send lines
SSL2_HELLO = b"\x01"  # the third octet that SSL 2 sends: the type of its first message


class BadLine(NamedTuple):
    """Input that is not a valid line."""

    why: str  #: "long", "endless", "bare LF", "TLS"; or "missing": the client closed instead of sending a response
    begins: bytes = b""  #: the first octets of the line


class LineBuffer:
    """Unprocessed input, from which lines are taken.

    :param longest: the maximum length of a line in octets, without its CRLF.
    """

    __slots__ = ("_longest", "data", "offset", "oversize")

    def __init__(self, longest: int) -> None:
        self.data = b""
        self.offset = 0  #: the position in *data* of the first unprocessed octet
        self._longest = longest
        #: For a line that is too long: the number of octets that were dropped, and its first octets.
        self.oversize: tuple[int, bytes] | None = None

    def __len__(self) -> int:
        return len(self.data) - self.offset

    @property
    def has_part(self) -> bool:
        """Whether there is an incomplete line."""
        return self.oversize is not None or self.offset < len(self.data)

    def clear(self) -> bytes:
        """Remove the unprocessed input, and return it."""
        left = self.data[self.offset :]
        self.data = b""
        self.offset = 0
        self.oversize = None
        return left

    def next_line(self) -> bytes | BadLine | None:
        """Take the next line from the input.

        A line that ends with LF alone is refused immediately. The text after the LF is the next line.

        This limits the injection of commands. Some clients insert untrusted text into a command, and remove CRLF from
        the text, but not LF. If that text contains LF, the server refuses each line that ends with such an LF. It
        executes at most one line of the text: the last one, which ends with the client's own CRLF.

        :return: the line without its CRLF, or a :class:`BadLine`; None if the line is not complete.
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
                return BadLine("TLS")
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
        """Return the last line of the input, or None if the last line is not complete."""
        lines = self.data[self.offset :].rsplit(b"\n", 2)
        return lines[-2].strip() if len(lines) > 1 and not lines[-1] else None
