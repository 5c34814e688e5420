"""Replies as immutable values (RFC 5321 4.2), and :class:`Refused`, the exception that has one.

A reply has a reply code, an enhanced status code (RFC 2034, RFC 3463) and lines of text. It is encoded once. This
module does not depend on sessions or transports.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from functools import lru_cache

MAX_REPLY_LINE = 512  # RFC 5321 4.5.3.1.5, CRLF included

_STATUS_LINE = re.compile(r"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_STATUS = r"[245]\.[0-9]{1,3}\.[0-9]{1,3}"  # RFC 3463 2
_ENHANCED = re.compile(_STATUS)
_STATUS_FIRST = re.compile(rf"({_STATUS})(?: |\Z)")
_LINE_END = re.compile(r"\r\n|[\r\n]")  # str.splitlines would split at eight other characters too
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Reply:
    """One complete reply, of one line or several.

    :param code: the reply code, 200 to 599.
    :param status: the enhanced status code, such as ``"2.1.5"``, or None where RFC 2034 does not allow one
        (greeting, HELO, EHLO, 3yz).
    :param text: text for people; a string (split into lines at line feeds) or an iterable of lines.
    :raises ValueError: if the code is out of range, or the status does not match it.

    >>> Reply(250, "2.1.5", "OK")
    Reply(250, '2.1.5', 'OK')
    >>> Reply(250, "2.1.5", "OK").octets
    b'250 2.1.5 OK\\r\\n'
    """

    __slots__ = ("_utf8", "code", "lines", "octets", "one_line", "positive", "status")

    code: int
    status: str | None
    lines: tuple[str, ...]
    octets: bytes  #: the reply as sent, in ASCII; other characters are replaced by "?"
    positive: bool  #: whether the command succeeded (2yz)
    one_line: str  #: the reply for a log, with " / " between its lines
    _utf8: bytes | None

    def __init__(self, code: int, status: str | None, text: str | Iterable[str]) -> None:
        # RFC 5321 4.2 defines second digits up to 5. Clients look at the first one only, and servers use 499 or 599 if
        # they need a code that has no other meaning.
        if not 200 <= code <= 599:
            raise ValueError(f"{code!r} is not a reply code from 200 to 599 (RFC 5321 4.2)")
        if status is not None and not (_ENHANCED.fullmatch(status) and status[0] == str(code)[0]):
            raise ValueError(f"the enhanced status code {status!r} does not match the reply code {code}")
        lines = tuple(_LINE_END.split(text) if isinstance(text, str) else text) or ("",)
        set_once = object.__setattr__
        set_once(self, "code", code)
        set_once(self, "status", status)
        set_once(self, "lines", lines)
        set_once(self, "positive", code < 300)
        wire = self._wire()
        set_once(self, "octets", wire.encode("ascii", "replace"))
        set_once(self, "_utf8", None if wire.isascii() else wire.encode("utf-8"))
        set_once(self, "one_line", wire[:-2].replace("\r\n", " / "))

    def _wire(self) -> str:
        # RFC 2034 4: the status code is repeated on each line.
        prefix = f"{self.status} " if self.status else ""
        room = MAX_REPLY_LINE - len("250 \r\n")
        texts = [_cut(prefix + _UNPRINTABLE.sub("?", line), room) for line in self.lines]
        last = len(texts) - 1
        return "".join(f"{self.code}{' ' if n == last else '-'}{text}\r\n" for n, text in enumerate(texts))

    def encode(self, utf8: bool) -> bytes:
        """Return the octets to send. Non-ASCII text is kept if *utf8* is true (RFC 6531 3.7.4.2)."""
        return self._utf8 if utf8 and self._utf8 is not None else self.octets

    @property
    def text(self) -> str:
        """The lines as one string, separated by line feeds."""
        return "\n".join(self.lines)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Reply is immutable; make another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Reply is immutable; make another")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return (self.code, self.status, self.lines) == (other.code, other.status, other.lines)

    def __hash__(self) -> int:
        return hash((self.code, self.status, self.lines))

    def __str__(self) -> str:
        octets = self.octets if self._utf8 is None else self._utf8
        return octets[:-2].decode().replace("\r\n", "\n")

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.status!r}, {self.text!r})"

    def __reduce__(self) -> tuple[type[Reply], tuple[int, str | None, tuple[str, ...]]]:
        return Reply, (self.code, self.status, self.lines)


def _cut(text: str, octets: int) -> str:
    """Truncate the text to this number of octets in UTF-8."""
    return text if len(text) * 4 <= octets else text.encode("utf-8")[:octets].decode("utf-8", "ignore")


@lru_cache(maxsize=512)
def _parse(text: str) -> Reply:
    code = status = None
    lines = []
    for line in _LINE_END.split(text.rstrip("\r\n")):
        found = _STATUS_LINE.fullmatch(line)
        if found is None:
            if code is None:
                raise ValueError(f"{text!r} is not a status: it must begin with a reply code, as in '250 2.0.0 OK'")
            # A line without a code continues the text of the reply.
            lines.append(line)
            continue
        code = code or int(found[1])
        if int(found[1]) != code:
            raise ValueError(f"{text!r} is not a status: its lines have different reply codes")
        words = found[3] or ""
        enhanced = _STATUS_FIRST.match(words)
        if enhanced and enhanced[1][0] == found[1][0]:
            status = status or enhanced[1]
            if enhanced[1] == status:
                words = words[enhanced.end() :]
        lines.append(words)
    assert code is not None
    return Reply(code, status, lines)


def parse_status(status: object) -> Reply:
    """Convert a status to a reply. A status is a :class:`Reply`, or a string (or bytes) such as ``"250 2.0.0 OK"``.

    Several lines make a multiline reply, with or without the code on each line.

    :raises TypeError: if it has another type.
    :raises ValueError: if it does not begin with a reply code.
    """
    if isinstance(status, str):
        return _parse(status)
    if isinstance(status, Reply):
        return status
    if isinstance(status, bytes | bytearray):
        return _parse(status.decode("utf-8", "replace"))
    raise TypeError(f"a status is a string such as '250 2.0.0 OK' or a Reply, not {status!r}")


def hint_for(what: object) -> str:
    """Return the likely reason why a function has returned this value, which is not a status. If none is known, return
    an empty string."""
    if what is None:
        return "missing return?"
    if inspect.iscoroutine(what):
        what.close()  # else Python would warn that it was never awaited, and name this module
        return "missing await?"
    if inspect.isgenerator(what) or inspect.isasyncgen(what):
        return "yield in place of return?"
    return ""


def is_part(status: Reply | str | bytes) -> bool:
    """Return True if more lines follow a pushed status: its last line has a hyphen after the code."""
    if isinstance(status, Reply):
        return False
    text = status if isinstance(status, str) else status.decode("latin-1")
    return text.rstrip("\r\n").rpartition("\n")[2][3:4] == "-"


class Refused(Exception):
    """Raised to refuse a command with a reply.

    :param reply: a :class:`Reply`, or a status string such as ``"550 5.7.1 Not here"``.
    """

    def __init__(self, reply: Reply | str) -> None:
        super().__init__(reply)
        self.reply = parse_status(reply)


# Replies used in several places. A reply that is used once is defined where it is used.

OK = Reply(250, "2.0.0", "OK")
GOODBYE = Reply(221, "2.0.0", "Goodbye")
HEADER_TOO_LONG = Reply(552, "5.3.4", "The header of the message is too long")
FAILED = Reply(451, "4.3.0", "Internal error, try again later")
FAILED_TWICE = Reply(500, "5.3.0", "Internal error")
TAKES_TOO_LONG = Reply(451, "4.3.0", "Processing timed out, try again later")
BAD_SEQUENCE = Reply(503, "5.5.1", "Bad sequence of commands")
