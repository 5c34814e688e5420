"""The built-in handlers, one file each.

Handlers use replies, sessions and trace headers, not the protocol. The command line makes them with
``from_cli(parser, *args)``, where ``parser.error(text)`` rejects the arguments and does not return.

A handler is imported when it is used: a sink needs no parser of messages, and no SMTP client.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING

# Names that programs import from aiosmtpd.handlers.
EMPTYBYTES = b""
COMMASPACE = ", "
CRLF = b"\r\n"
NLCRE = re.compile(rb"\r\n|\r|\n")

if TYPE_CHECKING:
    from txsmtpd.handlers.debugging import Debugging
    from txsmtpd.handlers.mailbox import Mailbox
    from txsmtpd.handlers.message import AsyncMessage, Message, MessageBase
    from txsmtpd.handlers.proxy import Proxy
    from txsmtpd.handlers.sink import Sink
else:
    _MODULES = {
        "AsyncMessage": "message",
        "Debugging": "debugging",
        "Mailbox": "mailbox",
        "Message": "message",
        "MessageBase": "message",
        "Proxy": "proxy",
        "Sink": "sink",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = ["AsyncMessage", "Debugging", "Mailbox", "Message", "MessageBase", "Proxy", "Sink"]
