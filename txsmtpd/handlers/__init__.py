"""Where mail goes: the built-in handlers, one file each.

A handler knows replies, sessions and trace headers, never the protocol. Each is made on the command line by its
``from_cli(parser, *args)``, where ``parser.error(text)`` refuses the arguments and does not return.
"""

from txsmtpd.handlers.debugging import Debugging
from txsmtpd.handlers.mailbox import Mailbox
from txsmtpd.handlers.message import AsyncMessage, Message, MessageBase
from txsmtpd.handlers.proxy import Proxy
from txsmtpd.handlers.sink import Sink

__all__ = ["AsyncMessage", "Debugging", "Mailbox", "Message", "MessageBase", "Proxy", "Sink"]
