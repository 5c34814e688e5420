"""Parses messages into header fields, text, HTML, attachments and links (RFC 2045, 2047, 2231, 5322).

Parsing never raises, whatever the bytes are, and takes time and memory proportional to the size. Python's :mod:`email`
fails for some malformed messages; here, malformed parts are parsed as far as possible. Only needs the standard library.
"""

from txsmtpd.mime.message import Address, Attachment, Headers, ParsedMessage, parse_message
from txsmtpd.mime.parsing import TooComplex, parse_bounded
from txsmtpd.mime.policy import TOLERANT, Verbatim, email_message

__all__ = [
    "TOLERANT",
    "Address",
    "Attachment",
    "Headers",
    "ParsedMessage",
    "TooComplex",
    "Verbatim",
    "email_message",
    "parse_bounded",
    "parse_message",
]
