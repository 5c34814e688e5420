"""A caught message: its envelope, how it arrived, and its parsed contents."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from functools import cached_property
from typing import Any, Self

from txsmtpd.mime import Attachment, Headers, ParsedMessage, email_message, parse_message
from txsmtpd.session import Envelope, Session, TLSInfo

_BARE_NEWLINE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


@dataclass(frozen=True, eq=False)
class Mail:
    """A caught message, with its envelope and session data.

    The contents are parsed when they are needed. No attribute raises, however malformed the message is.
    """

    mail_from: str  #: the reverse-path; ``""`` for a bounce
    rcpt_tos: tuple[str, ...]  #: the forward-paths, in order
    content: bytes = field(repr=False)  #: the message as received, without dot-stuffing
    mail_options: tuple[str, ...] = ()  #: parameters of MAIL
    rcpt_options: tuple[str, ...] = ()  #: parameters of RCPT
    peer: Any = None  #: the client's address
    host_name: str | None = None  #: the client's name in EHLO
    tls: TLSInfo | None = None  #: the TLS state of the connection, or None
    user: str | None = None  #: the authenticated user, or None
    session_id: str = ""  #: the id of its session
    arrived: float = field(default_factory=time.time)  #: seconds since the epoch

    @classmethod
    def of(cls, session: Session, envelope: Envelope) -> Self:
        """Make the mail from this envelope."""
        content = envelope.original_content or b""
        return cls(
            mail_from=envelope.mail_from or "",
            rcpt_tos=tuple(envelope.rcpt_tos),
            content=content,
            mail_options=tuple(envelope.mail_options),
            rcpt_options=tuple(envelope.rcpt_options),
            peer=session.peer,
            host_name=session.host_name,
            tls=session.ssl,
            user=_user(session),
            session_id=session.id,
        )

    # What it says

    @cached_property
    def _parsed(self) -> ParsedMessage:
        return parse_message(self.content)

    @property
    def headers(self) -> Headers:
        """The decoded header fields: ``mail.headers["Subject"]``; names are case-insensitive. A missing field raises
        KeyError; ``mail.headers.get("X-Test")`` returns None then, and ``get_all`` returns the values of all fields of
        a name.
        """
        return self._parsed.headers

    @property
    def subject(self) -> str:
        """The field Subject, decoded; ``""`` without one."""
        return self._parsed.subject

    @property
    def to(self) -> tuple[str, ...]:
        """The addresses in the field To, without names. The envelope may have others: see *rcpt_tos*."""
        return tuple(each.address for each in self._parsed.addresses("To"))

    @property
    def cc(self) -> tuple[str, ...]:
        """The addresses in the field Cc, without names."""
        return tuple(each.address for each in self._parsed.addresses("Cc"))

    @cached_property
    def text(self) -> str:
        """The plain text, or the text of the HTML if there is none; ``""`` without either. Lines end in LF.

        Unknown charsets are decoded as UTF-8.
        """
        return self._parsed.text

    @cached_property
    def html(self) -> str:
        """The HTML; ``""`` if there is none. Lines end in LF."""
        return self._parsed.html

    @cached_property
    def attachments(self) -> list[Attachment]:
        """All parts that are neither text nor HTML, with ``name``, ``type`` and ``content``. They include the images in
        HTML, which have a ``content_id``."""
        return self._parsed.attachments

    @cached_property
    def links(self) -> list[str]:
        """The URLs in the links of the HTML and in the text, each once, in order."""
        return self._parsed.links

    @cached_property
    def message(self) -> EmailMessage:
        """The message as parsed by Python's :mod:`email`. Fields that it cannot parse are plain strings."""
        return email_message(self.content)

    @cached_property
    def bare_newlines(self) -> bool:
        """True if lines end in LF or CR alone. The catcher accepts such messages; internet servers reject them."""
        return _BARE_NEWLINE.search(self.content) is not None

    def __str__(self) -> str:
        return f"from {self.mail_from!r} to {list(self.rcpt_tos)!r}, subject {self.subject!r}"

    # On its way to another process

    def to_json(self) -> dict[str, Any]:
        """Return the mail as JSON data, without the client's certificate."""
        facts = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        tls = self.tls and {
            "protocol": self.tls.protocol,
            "cipher": self.tls.cipher,
            "server_name": self.tls.server_name,
        }
        return facts | {"content": base64.b64encode(self.content).decode("ascii"), "tls": tls}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Make the mail from the result of :meth:`to_json`."""
        tuples = {name: tuple(facts[name]) for name in ("rcpt_tos", "mail_options", "rcpt_options")}
        peer = tuple(facts["peer"]) if isinstance(facts["peer"], list) else facts["peer"]
        tls = TLSInfo(**facts["tls"]) if facts["tls"] else None
        return cls(**{**facts, **tuples, "peer": peer, "tls": tls, "content": base64.b64decode(facts["content"])})


def _user(session: Session) -> str | None:
    if not session.authenticated:
        return None
    login = session.auth_data if session.auth_data is not None else session.login_data
    login = getattr(login, "login", login)
    return login.decode("utf-8", "replace") if isinstance(login, bytes) else str(login)
