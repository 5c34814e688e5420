"""Write mail data, and read replies, as a client does (RFC 5321 4.1.1.4, 4.2, 4.5.2). Octets only: no transport."""

from __future__ import annotations

import re

from txsmtpd.reply import Reply, parse_status

LONGEST_LINE = 4096  # octets; RFC 5321 4.5.3.1.5 allows 512, but some servers quote long commands
LONGEST_REPLY = 16384  # octets
END = b".\r\n"

_BARE = re.compile(rb"\r\n|\r|\n")
_REPLY_LINE = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*))?", re.DOTALL)


def with_crlf(message: bytes) -> bytes:
    """Convert all line ends to CRLF. A bare CR or LF is converted too, since only some programs treat it as a line end.
    A message that needs no change is returned as it is."""
    pairs = message.count(b"\r\n")
    if message.count(b"\r") == pairs and message.count(b"\n") == pairs:
        return message
    return _BARE.sub(b"\r\n", message)


def stuffed(message: bytes) -> tuple[bytes, ...]:
    """Return the parts to send: the message with dot-stuffing, and the final dot. The message must have CRLF line ends.
    If no dot is doubled, one of the parts is the message itself, to avoid a copy."""
    message = message.replace(b"\r\n.", b"\r\n..")
    first = b"." if message.startswith(b".") else b""
    last = b"" if message.endswith(b"\r\n") or not message else b"\r\n"
    return tuple(filter(None, (first, message, last + END)))


class LineEnds:
    """:func:`with_crlf` for a message in pieces."""

    def __init__(self) -> None:
        self._held = b""  # a CR that an LF may follow

    def feed(self, piece: bytes) -> bytes:
        """Return the converted octets that are known with this piece."""
        piece = self._held + piece
        self._held = b""
        if piece.endswith(b"\r"):
            self._held = b"\r"
            piece = piece[:-1]
        return with_crlf(piece)

    def end(self) -> bytes:
        """Return the octets that were held back."""
        return with_crlf(self._held)


class Stuffer:
    """:func:`stuffed` for a message in pieces."""

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last octets fed; at first, as if a line had ended

    def feed(self, piece: bytes) -> bytes:
        """Return the piece in the form to send."""
        text = self._tail + piece
        kept = len(self._tail)
        self._tail = text[-2:]
        return text.replace(b"\r\n.", b"\r\n..")[kept:]

    def end(self) -> bytes:
        """Return the octets to send after the last piece."""
        return END if self._tail == b"\r\n" else b"\r\n" + END


class NoReply(ValueError):
    """A server has sent something that is not a reply."""


class ReplyReader:
    """Parses the lines that a server sends into replies."""

    def __init__(self) -> None:
        self._code = b""
        self._lines: list[str] = []
        self._octets = 0

    @property
    def begun(self) -> bool:
        """True if a reply has begun and has not ended."""
        return bool(self._lines)

    def feed(self, line: bytes) -> Reply | None:
        """Process a line, without its CRLF.

        :return: the reply, if this is its last line, else None.
        :raises NoReply: if the line is not part of a reply.
        """
        found = _REPLY_LINE.fullmatch(line)
        self._octets += len(line) + 2
        if found is None or (self._lines and found[1] != self._code) or self._octets > LONGEST_REPLY:
            raise NoReply("a line that is not a reply" if self._octets <= LONGEST_REPLY else "a reply that is too long")
        self._code = found[1]
        self._lines.append(line.decode("utf-8", "replace"))
        if found[2] == b"-":
            return None
        text = "\n".join(_LINE_END.sub("?", each) for each in self._lines)
        self._lines.clear()
        self._octets = 0
        return parse_status(text)


_LINE_END = re.compile(r"[\r\n]")  # a bare CR or LF within a line
