"""Parses replies strictly, for tests: anything that RFC 5321 4.2 does not allow raises AssertionError."""

from __future__ import annotations

import re
from collections.abc import Iterator

from txsmtpd.reply import Reply

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\x00-\x08\x0a-\x1f\x7f]*))?")
_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: |$)")
_LONGEST = 510  # octets of a line without its CRLF (RFC 5321 4.5.3.1.5)


def reply_lines(octets: bytes) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the code and the lines of each reply.

    :raises AssertionError: if the octets are not a sequence of complete replies.
    """
    lines: list[str] = []
    code = 0
    if octets and not octets.endswith(b"\r\n"):
        raise AssertionError(f"an unfinished reply: {octets[-80:]!r}")
    for line in octets.split(b"\r\n")[:-1]:
        parts = _LINE.fullmatch(line)
        if parts is None or len(line) > _LONGEST:
            raise AssertionError(f"not a line of a reply: {line!r}")
        if lines and int(parts[1]) != code:
            raise AssertionError(f"a reply with two codes, at {line!r}")
        code = int(parts[1])
        lines.append((parts[3] or b"").decode("utf-8"))
        if parts[2] != b"-":
            yield code, tuple(lines)
            lines = []
    if lines:
        raise AssertionError(f"a reply without its last line: {lines!r}")


def read_replies(octets: bytes) -> list[Reply]:
    """Parse replies.

    :raises AssertionError: if the octets are not a sequence of complete replies.

    >>> read_replies(b"250 2.1.0 OK\\r\\n354 Go on\\r\\n")
    [Reply(250, '2.1.0', 'OK'), Reply(354, None, 'Go on')]
    """
    return [_reply(code, lines) for code, lines in reply_lines(octets)]


def _reply(code: int, lines: tuple[str, ...]) -> Reply:
    found = _STATUS.match(lines[-1])
    status = found[1] if found is not None and found[1][0] == str(code)[0] else None
    if status is not None:
        lines = tuple(line.removeprefix(status).removeprefix(" ") for line in lines)
    return Reply(code, status, lines)
