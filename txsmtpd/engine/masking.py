"""Keep credentials out of logs and transcripts: which lines may hold them, and how such a line is shown."""

from __future__ import annotations

import re

SECRET = "********"
# AUTH with a mechanism, if that is what follows: a word of small and great letters is rather a password in base64.
_AUTH = re.compile(rb"\s*(?i:AUTH)(?:\s+(?:[A-Z0-9_-]{1,20}|[a-z0-9_-]{1,20})(?!\S))?")
# AUTH behind what does not belong there: a NUL, the mark that some editors put before a text, another letter.
_MENTIONS_AUTH = re.compile(rb"(?i:AUTH)(?!\S)")


def sanitize(line: bytes) -> bytes:
    """The line of a command as a log may show it: without the credentials of AUTH.

    >>> sanitize(b"AUTH PLAIN AHVzZXIAcGFzcw==")
    b'AUTH PLAIN ********'
    """
    found = _AUTH.match(line)
    if found is None or not line[found.end() :].strip():
        return line
    return found[0] + b" " + SECRET.encode("ascii")


def begins_auth(line: bytes) -> bool:
    """Whether a line is AUTH, or was meant to be."""
    return line.lstrip()[:4].upper() == b"AUTH"


def mentions_auth(line: bytes) -> bool:
    """Whether a line that is no command, or what it begins with, has to do with AUTH."""
    return begins_auth(line) or _MENTIONS_AUTH.search(line) is not None


def printable(octets: bytes) -> str:
    """What the client sent, fit for a log."""
    return ascii(octets[:1000])[2:-1]


_PATH = re.compile(rb"<([^<>]*)")


def path_in(line: bytes) -> str:
    """What stands for the path in the line of MAIL or RCPT, for a log; the line may be malformed."""
    found = _PATH.search(line)
    octets = found[1] if found else line.partition(b":")[2].strip()
    return octets[:320].decode("utf-8", "backslashreplace")


def in_one_line(reply: object) -> str:
    """A reply, or several, fit for a log."""
    return str(reply).replace("\n", " / ")


def described(what: object) -> str:
    """Any object, fit for a log."""
    try:
        return ascii(what)[:200]
    except Exception:
        return f"a {type(what).__name__} that cannot be shown"
