"""txsmtpd: an SMTP server framework on Twisted, and a ready server for the command line."""

from typing import TYPE_CHECKING, Any

from txsmtpd._version import __version__
from txsmtpd.command import Rule, syntax
from txsmtpd.extensions import Extension
from txsmtpd.factory import SMTPFactory
from txsmtpd.interfaces import verifyHandler
from txsmtpd.lmtp import LMTP
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.smtp import SMTP
from txsmtpd.typed import Handler

if TYPE_CHECKING:
    from txsmtpd.service.program import run

__all__ = [
    "LMTP",
    "SMTP",
    "Envelope",
    "Extension",
    "Handler",
    "Refused",
    "Reply",
    "Rule",
    "SMTPFactory",
    "Session",
    "__version__",
    "run",
    "syntax",
    "verifyHandler",
]


def __getattr__(name: str) -> Any:
    """Import ``run`` only when it is used: it imports the whole command line."""
    if name == "run":
        from txsmtpd.service.program import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
