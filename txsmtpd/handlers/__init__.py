"""The built-in handlers, one file each.

Handlers use replies, sessions and trace headers, not the protocol. The command line makes them with
``from_cli(parser, *args)``, where ``parser.error(text)`` rejects the arguments and does not return.
"""

from txsmtpd.handlers.debugging import Debugging
from txsmtpd.handlers.mailbox import Mailbox
from txsmtpd.handlers.message import AsyncMessage, Message, MessageBase
from txsmtpd.handlers.proxy import Proxy
from txsmtpd.handlers.sink import Sink

__all__ = ["AsyncMessage", "Debugging", "Mailbox", "Message", "MessageBase", "Proxy", "Sink"]
