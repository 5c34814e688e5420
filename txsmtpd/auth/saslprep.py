"""SASLprep (RFC 4013): normalizes names and passwords."""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(text: str) -> str:
    """Return the normalized text.

    :raises ValueError: if it has characters that are not allowed in names and passwords.
    """
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(letter) else letter
        for letter in text
        if not stringprep.in_table_b1(letter) or stringprep.in_table_c12(letter)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if any(table(letter) for letter in prepared for table in _PROHIBITED):
        raise ValueError("a character that SASLprep does not allow")
    if any(stringprep.in_table_a1(letter) for letter in prepared):
        raise ValueError("a character that SASLprep does not know")
    if any(stringprep.in_table_d1(letter) for letter in prepared) and (  # RFC 3454 6
        any(stringprep.in_table_d2(letter) for letter in prepared)
        or not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1]))
    ):
        raise ValueError("characters of both directions")
    return prepared
