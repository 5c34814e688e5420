"""txsmtpd: an SMTP server framework on Twisted, and a ready server for the command line."""

from txsmtpd._version import __version__
from txsmtpd.command import Rule, syntax
from txsmtpd.extensions import Extension
from txsmtpd.factory import SMTPFactory
from txsmtpd.interfaces import verifyHandler
from txsmtpd.lmtp import LMTP
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.smtp import SMTP

__all__ = [
    "LMTP",
    "SMTP",
    "Envelope",
    "Extension",
    "Refused",
    "Reply",
    "Rule",
    "SMTPFactory",
    "Session",
    "__version__",
    "syntax",
    "verifyHandler",
]
