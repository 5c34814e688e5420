"""ESMTP service extensions (RFC 5321 2.2), one small class for each.

An extension is one unit with the fields of RFC 5321 2.2.2. EHLO asks each in turn whether and how it is offered;
MAIL and RCPT hand it the parameters it claims. Adding one touches no other file.
"""

from txsmtpd.extensions.auth import Auth
from txsmtpd.extensions.base import Extension, Keyword
from txsmtpd.extensions.binarymime import BinaryMIME
from txsmtpd.extensions.eightbitmime import EightBitMIME
from txsmtpd.extensions.size import Size
from txsmtpd.extensions.smtputf8 import SMTPUTF8
from txsmtpd.extensions.starttls import StartTLS

CHUNKING = Keyword("CHUNKING")  # RFC 3030 2
PIPELINING = Keyword("PIPELINING")  # RFC 2920
ENHANCEDSTATUSCODES = Keyword("ENHANCEDSTATUSCODES")  # RFC 2034
HELP = Keyword("HELP")  # RFC 5321 4.1.1.8

__all__ = [
    "CHUNKING",
    "ENHANCEDSTATUSCODES",
    "HELP",
    "PIPELINING",
    "SMTPUTF8",
    "Auth",
    "BinaryMIME",
    "EightBitMIME",
    "Extension",
    "Keyword",
    "Size",
    "StartTLS",
]
