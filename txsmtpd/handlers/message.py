"""Message and AsyncMessage: handlers that are given a parsed message. To be subclassed."""

from __future__ import annotations

import email
import email.message
import email.policy
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Any, Self

from txsmtpd.handlers.trace_header import x_fields
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session

TOO_DEEP = Reply(554, "5.6.0", "The parts of the message are nested too deeply")


class _Parsing:
    """What both have in common: from an envelope to a message."""

    def __init__(self, message_class: type[email.message.Message] | None = None) -> None:
        self.message_class = message_class

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make it on the command line, from no arguments."""
        if args:
            parser.error(f"{cls.__name__} takes no arguments")
        return cls()

    def prepare_message(self, session: Session, envelope: Envelope) -> email.message.Message:
        """The message, parsed, with the fields X-Peer, X-MailFrom and X-RcptTo. What the client wrote into fields of
        these names is gone, so that a program can trust them. X-RcptTo names all recipients, blind copies too.

        :raises TypeError: if the content is neither octets nor text.
        :raises Refused: if the message is nested too deeply to be parsed.
        """
        message = _parse(envelope.content, self.message_class or email.message.Message)
        for name, value in x_fields(session, envelope):
            del message[name]
            message[name] = value
        return message


class Message(_Parsing, ABC):
    """Give each message, parsed, to :meth:`handle_message`.

    :param message_class: what to make of it: :class:`email.message.EmailMessage` is the modern interface, with the
        policy :data:`email.policy.default`. Default: :class:`email.message.Message`.
    """

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        return _status(self.handle_message(self.prepare_message(session, envelope)))

    @abstractmethod
    def handle_message(self, message: Any) -> Any:
        """Do what shall be done with the message. The server does nothing else meanwhile.

        :return: a status, the reply to the message; None is 250.
        """


class AsyncMessage(_Parsing, ABC):
    """Give each message, parsed, to :meth:`handle_message`, and wait for it.

    :param message_class: as for :class:`Message`.
    :param loop: of no effect; programs that were written for asyncio may give one.
    """

    def __init__(self, message_class: type[email.message.Message] | None = None, *, loop: object = None) -> None:
        super().__init__(message_class)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        result = self.handle_message(self.prepare_message(session, envelope))
        return _status(await result if isinstance(result, Awaitable) else result)

    @abstractmethod
    def handle_message(self, message: Any) -> Any:
        """Do what shall be done with the message: a coroutine function, or one that returns a Deferred or a status.

        :return: a status, the reply to the message; None is 250.
        """


def _parse(content: object, message_class: type[email.message.Message]) -> email.message.Message:
    # The methods of EmailMessage fail under the parser's default policy, which is made for Message.
    modern = issubclass(message_class, email.message.EmailMessage)
    policy: Any = email.policy.default if modern else email.policy.compat32
    try:
        if isinstance(content, bytes | bytearray):
            return email.message_from_bytes(content, message_class, policy=policy)
        if isinstance(content, str):
            return email.message_from_string(content, message_class, policy=policy)
    except RecursionError:
        raise Refused(TOO_DEEP) from None
    raise TypeError(f"the content of a message is bytes or str, not {type(content).__name__}")


def _status(result: Any) -> Any:
    return "250 2.0.0 OK" if result is None else result
