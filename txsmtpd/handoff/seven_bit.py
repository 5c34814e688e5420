"""Converts a message to ASCII: parts with other bytes become base64 (RFC 2045 6.8). For targets that decode it as text.

Header fields that are not ASCII are unchanged: UTF-8 (RFC 6532) survives if text is UTF-8. No I/O. Parsing a large
message takes some time.
"""

from __future__ import annotations

import base64
from email.generator import BytesGenerator
from email.message import Message
from io import BytesIO

from txsmtpd.mime.parsing import parse_bounded
from txsmtpd.mime.policy import COMPATIBLE

_AS_IT_IS = COMPATIBLE.clone(linesep="\r\n", max_line_length=0)


def in_seven_bits(message: bytes) -> bytes:
    """Return the message itself if it is ASCII, otherwise an equivalent MIME message in ASCII.

    :raises TooComplex: if it cannot be parsed.
    """
    if message.isascii():
        return message
    parsed = parse_bounded(message)
    for part in parsed.walk():
        if not part.is_multipart():
            _encode(part)
    out = BytesIO()
    BytesGenerator(out, mangle_from_=False, policy=_AS_IT_IS).flatten(parsed)
    return out.getvalue()


def _encode(part: Message) -> None:
    payload = part.get_payload()
    if not isinstance(payload, str) or payload.isascii():
        return
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = "base64"
    part.set_payload(base64.encodebytes(octets).decode("ascii"))
