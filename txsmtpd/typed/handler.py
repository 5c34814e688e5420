"""A base class that lets type checkers verify a handler's hooks, and editors complete them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from txsmtpd.proxy_protocol import ProxyData
from txsmtpd.reply import Reply
from txsmtpd.session import Envelope, Session

Status = str | Reply
"""What a hook returns: a string such as ``"250 2.0.0 OK"``, or a :class:`~txsmtpd.reply.Reply`."""

HookResult = Status | Awaitable[Status]
"""The same from a plain function or a coroutine function, or as a Deferred."""

MessageResult = Status | Sequence[Status] | Mapping[str, Status]
"""What ``handle_DATA`` returns: one status, or one for each recipient."""


class Handler:
    """A base class for handlers, without any effect at run time. Type checkers verify the parameters and results of a
    subclass's hooks, and editors complete them. See :mod:`txsmtpd.interfaces` for the meaning of each hook.

    >>> class Printer(Handler):
    ...     async def handle_DATA(self, server, session, envelope):
    ...         print(envelope.content)
    ...         return "250 2.0.0 OK"
    """

    if TYPE_CHECKING:

        def handle_CONNECT(
            self, server: Any, session: Session, envelope: Envelope
        ) -> Status | Awaitable[Status | None] | None:
            """A client has connected."""

        def handle_DISCONNECT(self, server: Any, session: Session, envelope: Envelope, cause: BaseException) -> Any:
            """The connection is closed."""

        def handle_HELO(self, server: Any, session: Session, envelope: Envelope, hostname: str) -> HookResult:
            """HELO."""
            raise NotImplementedError

        def handle_EHLO(
            self, server: Any, session: Session, envelope: Envelope, hostname: str, responses: list[str]
        ) -> Sequence[str] | Awaitable[Sequence[str]]:
            """EHLO."""
            raise NotImplementedError

        def handle_NOOP(self, server: Any, session: Session, envelope: Envelope, arg: str | None) -> HookResult:
            """NOOP."""
            raise NotImplementedError

        def handle_QUIT(self, server: Any, session: Session, envelope: Envelope) -> HookResult:
            """QUIT."""
            raise NotImplementedError

        def handle_RSET(self, server: Any, session: Session, envelope: Envelope) -> HookResult:
            """RSET."""
            raise NotImplementedError

        def handle_VRFY(self, server: Any, session: Session, envelope: Envelope, address: str) -> HookResult:
            """VRFY."""
            raise NotImplementedError

        def handle_MAIL(
            self, server: Any, session: Session, envelope: Envelope, address: str, mail_options: list[str]
        ) -> HookResult:
            """MAIL."""
            raise NotImplementedError

        def handle_RCPT(
            self, server: Any, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
        ) -> HookResult:
            """RCPT."""
            raise NotImplementedError

        def handle_DATA(
            self, server: Any, session: Session, envelope: Envelope
        ) -> MessageResult | Awaitable[MessageResult]:
            """The message has arrived."""
            raise NotImplementedError

        def handle_exception(self, error: BaseException) -> HookResult:
            """A command or a hook has raised an exception."""
            raise NotImplementedError

        def handle_AUTH(self, server: Any, session: Session, envelope: Envelope, args: list[str]) -> Any:
            """AUTH, instead of the mechanisms."""

        def handle_STARTTLS(self, server: Any, session: Session, envelope: Envelope) -> bool | Awaitable[bool]:
            """TLS was started."""
            raise NotImplementedError

        def handle_PROXY(
            self, server: Any, session: Session, envelope: Envelope, proxy_data: ProxyData
        ) -> bool | Awaitable[bool]:
            """A PROXY header was received."""
            raise NotImplementedError

        def handle_QUARANTINE(self, server: Any, session: Session, envelope: Envelope, reason: str) -> Any:
            """A filter quarantines the message."""
