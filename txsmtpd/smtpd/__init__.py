"""The servers of the standard library's ``smtpd``, which Python 3.12 removed, with the same names and replies.

``from txsmtpd import smtpd`` replaces ``import smtpd``, and ``smtpd.loop()`` replaces ``asyncore.loop()``. The
conversation itself is txsmtpd's own: see :mod:`txsmtpd.smtpd.connection`.
"""

import sys
from typing import Any

program = sys.argv[0] if sys.argv else ""
__version__ = (
    "Python SMTP proxy version 0.3"  #: the text after the server's name in the greeting; a program may change it
)


class Devnull:
    """A stream that discards everything."""

    def write(self, msg: Any) -> None:
        """Discard a text."""

    def flush(self) -> None:
        """Do nothing."""


DEBUGSTREAM: Any = Devnull()  #: the stream to which channels print debugging output
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
