"""Decodes bytes of a message: charsets, Content-Transfer-Encoding (RFC 2045 6) and encoded words (RFC 2047).

Malformed input is decoded as far as possible. Nothing here raises.
"""

from __future__ import annotations

import binascii
import codecs
import re

# Python codecs that are not charsets, or take quadratic time.
_NO_CHARSETS = {"punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,80})\?([bBqQ])\?([^?\r\n]*)\?=")


def in_charset(octets: bytes, charset: str = "") -> str:
    """Decode bytes to text.

    An unknown charset is treated as UTF-8. Without a charset, text is decoded as UTF-8, or as Latin-1 if that fails.
    """
    if charset:
        try:
            codec = codecs.lookup(charset)
            if codec.name not in _NO_CHARSETS:
                return octets.decode(codec.name, "replace")
        except (LookupError, ValueError):  # ValueError: a NUL in the name; UnicodeError is a ValueError too
            pass
        return octets.decode("utf-8", "replace")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def decoded(octets: bytes, encoding: str) -> bytes:
    """Decode a Content-Transfer-Encoding.

    :param encoding: its name in lower case. For an unknown one, the bytes are returned unchanged.
    """
    if encoding == "base64":
        return _from_base64(octets)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(octets)
    return octets


def _from_base64(octets: bytes) -> bytes:
    try:
        return binascii.a2b_base64(octets)
    except binascii.Error:
        digits = _NOT_BASE64.sub(b"", octets)
        digits = digits[: len(digits) - (len(digits) % 4 == 1)]
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def without_encoded_words(text: str) -> str:
    """Return the value of a header field with encoded words decoded (RFC 2047), in one line."""
    if "=?" not in text:
        return text
    pieces: list[str] = []
    octets: list[bytes] = []  # of adjacent words; a character may be split between two
    charset = ""
    position = 0
    for word in _ENCODED_WORD.finditer(text):
        between = text[position : word.start()]
        words_charset = word[1].partition("*")[0].lower()  # RFC 2231 5: a language may follow
        if octets and (words_charset != charset or (between and not between.isspace())):
            pieces.append(in_charset(b"".join(octets), charset))
            octets.clear()
        if not position or (between and not between.isspace()):  # RFC 2047 6.2: ignore blanks between encoded words
            pieces.append(between)
        octets.append(_word_octets(word[2], word[3]))
        charset = words_charset
        position = word.end()
    if octets:
        pieces.append(in_charset(b"".join(octets), charset))
    pieces.append(text[position:])
    return "".join(pieces).replace("\r", " ").replace("\n", " ")


def _word_octets(encoding: str, text: str) -> bytes:
    octets = text.encode("utf-8", "replace")
    return _from_base64(octets) if encoding in "bB" else binascii.a2b_qp(octets, header=True)
