"""Keep credentials out of logs and transcripts: find lines that may contain them, and mask them."""

from __future__ import annotations

import re

from txsmtpd.reply import Reply

SECRET = "********"
# AUTH, and a mechanism if there is one. A word in mixed case is not a mechanism, but may be a password in base64.
_AUTH = re.compile(rb"\s*(?i:AUTH)(?:\s+(?:[A-Z0-9_-]{1,20}|[a-z0-9_-]{1,20})(?!\S))?")
# AUTH after unexpected octets, such as NUL or a byte order mark.
_MENTIONS_AUTH = re.compile(rb"(?i:AUTH)(?!\S)")


def sanitize(line: bytes) -> bytes:
    """Return a command line for a log: the credentials of AUTH are masked.

    >>> sanitize(b"AUTH PLAIN AHVzZXIAcGFzcw==")
    b'AUTH PLAIN ********'
    """
    found = _AUTH.match(line)
    if found is None or not line[found.end() :].strip():
        return line
    return found[0] + b" " + SECRET.encode("ascii")


def begins_auth(line: bytes) -> bool:
    """Whether a line is an AUTH command, or a misspelt one."""
    return line.lstrip()[:4].upper() == b"AUTH"


def mentions_auth(line: bytes) -> bool:
    """Whether a line that is not a command may contain credentials. The line may be incomplete."""
    return begins_auth(line) or _MENTIONS_AUTH.search(line) is not None


def printable(octets: bytes) -> str:
    """Return octets from the client as text for a log."""
    return ascii(octets[:1000])[2:-1]


_PATH = re.compile(rb"<([^<>]*)")


def path_in(line: bytes) -> str:
    """Return the path in a line of MAIL or RCPT, for a log. The line may be malformed."""
    found = _PATH.search(line)
    octets = found[1] if found else line.partition(b":")[2].strip()
    return octets[:320].decode("utf-8", "backslashreplace")


def in_one_line(reply: object) -> str:
    """Return one reply or several as text for a log."""
    return reply.one_line if type(reply) is Reply else str(reply).replace("\n", " / ")


def described(what: object) -> str:
    """Return any object as text for a log."""
    try:
        return ascii(what)[:200]
    except Exception:
        return f"a {type(what).__name__} that cannot be shown"
