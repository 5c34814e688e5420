"""Splits a message that is relayed into its header and the rest, so that fields can be added."""

from __future__ import annotations

import re

from txsmtpd.reply import HEADER_TOO_LONG, Refused

_FIELDS = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*\n|[ \t][^\n]*\n)*")
_MAY_BE_FIELD = re.compile(rb"[!-9;-~]{0,1000}[ \t]*(?::[^\n]*+\Z|\Z)|[ \t][^\n]*+\Z")  # an incomplete line


def parted(content: bytes) -> tuple[bytes, bytes]:
    """Split a message into the header, including its last line end, and the rest."""
    if content.startswith((b" ", b"\t")):  # not a header but the body; it would continue our field
        content = b"\r\n" + content
    if content.startswith(b"\r\n"):
        return b"", content
    end = content.find(b"\r\n\r\n") + 2
    if end > 1:
        return content[:end], content[end:]
    return (content if content.endswith(b"\r\n") or not content else content + b"\r\n"), b""


def parted_early(start: bytes) -> tuple[bytes, bytes]:
    """Split the beginning of a large message, whose header may be incomplete.

    :raises Refused: if its header is too long to be scanned.
    """
    if start.startswith((b" ", b"\t", b"\r\n")) or b"\r\n\r\n" in start:
        return parted(start)
    fields = _FIELDS.match(start)
    assert fields is not None
    if _MAY_BE_FIELD.match(start, fields.end()):
        raise Refused(HEADER_TOO_LONG)
    # Programs that read mail end the header at a line that is not a field.
    return start[: fields.end()], b"\r\n" + start[fields.end() :]
