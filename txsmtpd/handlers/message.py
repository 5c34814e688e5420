"""Message and AsyncMessage: handlers that are given a parsed message. To be subclassed.

Messages of more than a few KiB are parsed in a thread, within bounds; nobody else waits meanwhile.
"""

from __future__ import annotations

import email.message
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Any, Self

from txsmtpd.handlers.off_thread import OffThread
from txsmtpd.handlers.trace_header import x_fields
from txsmtpd.mime import TooComplex, Verbatim, parse_bounded
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session


class MessageBase:
    """What both have in common: from an envelope to a message."""

    def __init__(self, message_class: type[email.message.Message] | None = None) -> None:
        self.message_class = message_class
        self._off_thread = OffThread()

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make it on the command line, from no arguments."""
        if args:
            parser.error(f"{cls.__name__} takes no arguments")
        return cls()

    def prepare_message(self, session: Session, envelope: Envelope) -> email.message.Message:
        """The message, parsed, with the fields X-Peer, X-MailFrom and X-RcptTo. What the client wrote into fields of
        these names is gone, so that a program can trust them: encoded words (RFC 2047) in their values are not decoded.
        X-RcptTo names all recipients, blind copies too.

        For a message of more than 8 KiB it is called in a thread, so an override must not use what is the reactor's.

        :raises TypeError: if the content is neither octets nor text.
        :raises Refused: if the message has too many lines or parts, or parts are nested too deeply; 554.
        """
        try:
            message = parse_bounded(envelope.content, self.message_class or email.message.Message)
        except TooComplex as error:
            raise Refused(Reply(554, "5.6.0", str(error))) from None
        for name, value in x_fields(session, envelope):
            del message[name]
            message.set_raw(name, Verbatim(name, value))  # not parsed as the client's fields are
        return message

    async def _prepared(self, server: Any, session: Session, envelope: Envelope) -> email.message.Message:
        """The message, prepared in a thread if that may take long."""
        return await self._off_thread.run(server, envelope, self.prepare_message, session, envelope)


class Message(MessageBase, ABC):
    """Give each message, parsed, to :meth:`handle_message`.

    :param message_class: what to make of it: :class:`email.message.EmailMessage` is the modern interface, with the
        policy :data:`email.policy.default`. Default: :class:`email.message.Message`.
    """

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        return _status(self.handle_message(await self._prepared(server, session, envelope)))

    @abstractmethod
    def handle_message(self, message: Any) -> Any:
        """Do what shall be done with the message. The server does nothing else meanwhile.

        :return: a status, the reply to the message; None is 250.
        """


class AsyncMessage(MessageBase, ABC):
    """Give each message, parsed, to :meth:`handle_message`, and wait for it.

    :param message_class: as for :class:`Message`.
    :param loop: of no effect; programs that were written for asyncio may give one.
    """

    def __init__(self, message_class: type[email.message.Message] | None = None, *, loop: object = None) -> None:
        super().__init__(message_class)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        message = await self._prepared(server, session, envelope)
        settings = getattr(server, "settings", None)
        handle_message = self.handle_message if settings is None else settings.in_asyncio(self.handle_message)
        result = handle_message(message)
        return _status(await result if isinstance(result, Awaitable) else result)

    @abstractmethod
    def handle_message(self, message: Any) -> Any:
        """Do what shall be done with the message: a coroutine function, or one that returns a Deferred or a status.

        :return: a status, the reply to the message; None is 250.
        """


def _status(result: Any) -> Any:
    return "250 2.0.0 OK" if result is None else result
