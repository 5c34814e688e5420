"""Message and AsyncMessage: base classes of handlers that receive parsed messages.

Messages larger than a few KiB are parsed in a thread, with limits, so that they do not block other clients.
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
    """The common base class: makes a message from an envelope."""

    def __init__(self, message_class: type[email.message.Message] | None = None) -> None:
        self.message_class = message_class
        self._off_thread = OffThread()

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make the handler for the command line, without arguments."""
        if args:
            parser.error(f"{cls.__name__} takes no arguments")
        return cls()

    def prepare_message(self, session: Session, envelope: Envelope) -> email.message.Message:
        """Parse the message and add the fields X-Peer, X-MailFrom and X-RcptTo. X-RcptTo lists all recipients,
        including blind copies.

        Programs can trust these fields: fields of the same names from the client are removed, and encoded words
        (RFC 2047) in the addresses are not decoded.

        For messages larger than 8 KiB it is called in a thread, so overrides must not use the reactor.

        :raises TypeError: if the content is neither bytes nor str.
        :raises Refused: with 554 if the message has too many lines or parts, or parts are nested too deeply.
        """
        try:
            message = parse_bounded(envelope.content, self.message_class or email.message.Message)
        except TooComplex as error:
            raise Refused(Reply(554, "5.6.0", str(error))) from None
        for name, value in x_fields(session, envelope):
            del message[name]
            message.set_raw(name, Verbatim(name, value))  # not parsed, unlike the client's fields
        return message

    async def _prepared(self, server: Any, session: Session, envelope: Envelope) -> email.message.Message:
        """Prepare the message, in a thread if it may take long."""
        return await self._off_thread.run(server, envelope, self.prepare_message, session, envelope)


class Message(MessageBase, ABC):
    """Parse each message and pass it to :meth:`handle_message`.

    :param message_class: the class of messages. :class:`email.message.EmailMessage` has the modern interface, with the
        policy :data:`email.policy.default`. Default: :class:`email.message.Message`.
    """

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        return _status(self.handle_message(await self._prepared(server, session, envelope)))

    @abstractmethod
    def handle_message(self, message: Any) -> Any:
        """Process the message. It must not take long: it blocks the server.

        :return: the status of the message; None means 250.
        """


class AsyncMessage(MessageBase, ABC):
    """Parse each message and pass it to :meth:`handle_message`, which may be asynchronous.

    :param message_class: as for :class:`Message`.
    :param loop: ignored; accepted for programs written for aiosmtpd.
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
        """Process the message. A coroutine function, or a function that returns a Deferred or a status.

        :return: the status of the message; None means 250.
        """


def _status(result: Any) -> Any:
    return "250 2.0.0 OK" if result is None else result
