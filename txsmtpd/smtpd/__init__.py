"""The servers of the standard library's ``smtpd``, which Python 3.12 removed, with the same names and replies.

``from txsmtpd import smtpd`` replaces ``import smtpd``, and ``smtpd.loop()`` replaces ``asyncore.loop()``. The
conversation itself is txsmtpd's own: see :mod:`txsmtpd.smtpd.connection`.
"""

import sys
from typing import Any

program = sys.argv[0] if sys.argv else ""
__version__ = (
    "Python SMTP proxy version 0.3"  #: what greets clients behind the server's name; a program may set its own
)


class Devnull:
    """A stream that discards everything."""

    def write(self, msg: Any) -> None:
        """Take a text."""

    def flush(self) -> None:
        """Nothing is held back."""


DEBUGSTREAM: Any = Devnull()  #: where channels print what is said, once it is set to another stream
EMPTYSTRING = ""
NEWLINE = "\n"
COMMASPACE = ", "

from txsmtpd.smtpd.channel import DATA_SIZE_DEFAULT, SMTPChannel  # noqa: E402  # they look at what is above
from txsmtpd.smtpd.looping import close_all, loop, socket_map  # noqa: E402
from txsmtpd.smtpd.proxies import MailmanProxy, PureProxy  # noqa: E402
from txsmtpd.smtpd.server import DebuggingServer, SMTPServer  # noqa: E402

__all__ = [
    "COMMASPACE",
    "DATA_SIZE_DEFAULT",
    "DEBUGSTREAM",
    "EMPTYSTRING",
    "NEWLINE",
    "DebuggingServer",
    "Devnull",
    "MailmanProxy",
    "PureProxy",
    "SMTPChannel",
    "SMTPServer",
    "close_all",
    "loop",
    "socket_map",
]
