"""Read a message as people see it: fields, text, HTML, attachments, links (RFC 2045, 2047, 2231, 5322).

Whatever the octets are, reading them raises nothing, and takes time and memory in proportion to their number. Python's
:mod:`email` gives up on some malformed messages; here, what is malformed is read as far as it goes. Pure: the standard
library only.
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
