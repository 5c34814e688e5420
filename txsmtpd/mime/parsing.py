"""Parse a message with Python's :mod:`email`, in bounded time and memory.

The time of the standard library's parser is proportional to the number of lines times the nesting depth of parts, and
it keeps an object for each line.
"""

from __future__ import annotations

from email.feedparser import BytesFeedParser, FeedParser
from email.message import EmailMessage, Message
from typing import Any

from txsmtpd.mime.policy import COMPATIBLE, TOLERANT

MAX_DEPTH = 50  # nesting levels of parts
MAX_PARTS = 1000
MAX_LINES = 10**6  # 32 MiB in base64 are 440,000
MAX_WORK = 5 * 10**6  # lines times levels


class TooComplex(Exception):
    """A message was not parsed. The text says why."""


def parse_bounded(content: object, message_class: type[Message] = Message) -> Message:
    """Parse a message. Malformed fields do not raise, neither now nor when they are read.

    :param content: bytes, bytearray or str.
    :param message_class: the class of the result. A subclass of :class:`email.message.EmailMessage` gets the policy
        :data:`~txsmtpd.mime.policy.TOLERANT`, others get :data:`~txsmtpd.mime.policy.COMPATIBLE`.
    :raises TooComplex: if it has too many lines or parts, or parts are nested too deeply.
    :raises TypeError: if the content is neither bytes nor str.
    """
    if isinstance(content, bytes | bytearray):
        lines = max(content.count(b"\n"), content.count(b"\r"))
    elif isinstance(content, str):
        lines = max(content.count("\n"), content.count("\r"))
    else:
        raise TypeError(f"the content of a message is bytes or str, not {type(content).__name__}")
    if lines > MAX_LINES:
        raise TooComplex(f"The message has more than {MAX_LINES} lines")
    policy: Any = TOLERANT if issubclass(message_class, EmailMessage) else COMPATIBLE
    parts = 0

    def make(policy: Any) -> Message:
        nonlocal parts
        parts += 1
        depth = len(getattr(parser, "_msgstack", ()))
        if parts > MAX_PARTS + 1:
            raise TooComplex(f"The message has more than {MAX_PARTS} parts")
        if depth > MAX_DEPTH or depth * lines > MAX_WORK:
            raise TooComplex("The parts of the message are nested too deeply")
        try:
            return message_class(policy=policy)
        except TypeError:  # a custom class may not accept a policy
            return message_class()

    parser: Any = None
    parser_class: Any = FeedParser if isinstance(content, str) else BytesFeedParser
    parser = parser_class(make, policy=policy)
    parts = 0  # the constructor has called make() once, to test whether it accepts a policy
    try:
        parser.feed(content)
        message: Message = parser.close()
    except RecursionError:
        raise TooComplex("The parts of the message are nested too deeply") from None
    return message
