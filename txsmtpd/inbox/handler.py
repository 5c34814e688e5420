"""The inbox handler: stores each message before replying 250."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Self

from txsmtpd.inbox.message import Arrival
from txsmtpd.inbox.sqlite import SQLiteStore
from txsmtpd.inbox.store import Store, StoreError
from txsmtpd.observe.transcript import peer_text
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session

FULL = Reply(452, "4.3.1", "Insufficient storage, try again later")
NOT_STORED = Reply(451, "4.3.0", "The message could not be stored, try again later")

EXTRA = ("jinja2", "wsproto")  # the modules of the extra "inbox"


class InboxHandler:
    """Store each message, for the pages and the API of the inbox.

    :param store: where to store it. Call its :meth:`~txsmtpd.inbox.store.Store.open` before mail arrives.
    """

    has_inbox = True  #: tells the command line that there are pages to serve

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make it on the command line, from the file; without one, mail is kept until the server stops."""
        if len(args) > 1:
            parser.error(f"inbox takes one file, not {len(args)} arguments; write a colon in its name as \\:")
        for module in EXTRA:
            if find_spec(module) is None:
                parser.error(f"{module} is missing; install it by: pip install 'txsmtpd[inbox]'")
        if args and not args[0]:
            parser.error("a file is needed after the colon, as in inbox:mail.sqlite")
        try:
            return cls(SQLiteStore(args[0] if args else None))
        except OSError as error:
            parser.error(f"{error.filename or args[0]}: {error.strerror or error}")
        except ValueError as error:
            parser.error(f"{args[0]}: {error}")
        raise AssertionError("parser.error does not return")

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Reply:
        try:
            message = await self.store.add(arrival_of(session, envelope))
        except StoreError as error:
            self.store.totals.rejected += 1
            raise Refused(FULL if error.full else NOT_STORED) from error
        return Reply(250, "2.0.0", f"OK, stored as {message.id}")


def arrival_of(session: Session, envelope: Envelope) -> Arrival:
    """Return the message in an envelope, with what is known about the client."""
    tls = session.ssl
    return Arrival(
        content=envelope.original_content or b"",
        mail_from=envelope.mail_from or "",
        rcpt_tos=tuple(envelope.rcpt_tos),
        mail_options=tuple(envelope.mail_options),
        rcpt_options=tuple(envelope.rcpt_options),
        peer=peer_text(session.peer),
        helo=session.host_name or "",
        tls=f"{tls.protocol} {tls.cipher}" if tls else "",
        user=user_of(session),
        session=session.id,
    )


def user_of(session: Session) -> str:
    """Return the authenticated user, or ``""`` without authentication."""
    if not session.authenticated:
        return ""
    login = session.auth_data if session.auth_data is not None else session.login_data
    login = getattr(login, "login", login)
    return login.decode("utf-8", "replace") if isinstance(login, bytes) else str(login)


def accept_anyone(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
    """Authenticate any user with any password, for programs that log in before they send mail."""
    return True
