"""ESMTP service extensions (RFC 5321 2.2), one small class for each.

An extension has the fields of RFC 5321 2.2.2. EHLO asks each extension whether it is offered, and with what parameter.
MAIL and RCPT pass the parameters of an extension to it. Its commands become commands of the server. A new extension
needs no change in other files.

Extensions that require something of the application (DSN, REQUIRETLS, DELIVERBY, MT-PRIORITY, FUTURERELEASE, RRVS,
LIMITS, XCLIENT, XFORWARD) are offered only if the application enables them.
"""

from txsmtpd.extensions.auth import Auth
from txsmtpd.extensions.base import Extension, Keyword
from txsmtpd.extensions.binarymime import BinaryMIME
from txsmtpd.extensions.chunking import Chunking
from txsmtpd.extensions.deliverby import DeliverBy
from txsmtpd.extensions.dsn import DSN
from txsmtpd.extensions.eightbitmime import EightBitMIME
from txsmtpd.extensions.forwarded import XClient, XForward
from txsmtpd.extensions.futurerelease import FutureRelease
from txsmtpd.extensions.limits import Limits
from txsmtpd.extensions.mtpriority import MTPriority
from txsmtpd.extensions.requiretls import RequireTLS
from txsmtpd.extensions.rrvs import RRVS
from txsmtpd.extensions.size import Size
from txsmtpd.extensions.smtputf8 import SMTPUTF8
from txsmtpd.extensions.starttls import StartTLS

PIPELINING = Keyword("PIPELINING")  # RFC 2920
ENHANCEDSTATUSCODES = Keyword("ENHANCEDSTATUSCODES")  # RFC 2034
HELP = Keyword("HELP")  # RFC 5321 4.1.1.8

__all__ = [
    "DSN",
    "ENHANCEDSTATUSCODES",
    "HELP",
    "PIPELINING",
    "RRVS",
    "SMTPUTF8",
    "Auth",
    "BinaryMIME",
    "Chunking",
    "DeliverBy",
    "EightBitMIME",
    "Extension",
    "FutureRelease",
    "Keyword",
    "Limits",
    "MTPriority",
    "RequireTLS",
    "Size",
    "StartTLS",
    "XClient",
    "XForward",
]
