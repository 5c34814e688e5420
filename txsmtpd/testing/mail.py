"""A message that was caught: its envelope, how it came, and what it says to people."""

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
    """A message that was caught, and what is known of how it came.

    What it says is read from its octets when it is asked for. However malformed they are, no attribute raises.
    """

    mail_from: str  #: the reverse-path; ``""`` for a bounce
    rcpt_tos: tuple[str, ...]  #: the forward-paths, in order
    content: bytes = field(repr=False)  #: the message as it came, dots undone
    mail_options: tuple[str, ...] = ()  #: parameters of MAIL
    rcpt_options: tuple[str, ...] = ()  #: parameters of RCPT
    peer: Any = None  #: the client's address
    host_name: str | None = None  #: what the client said in EHLO
    tls: TLSInfo | None = None  #: the terms of TLS, or None
    user: str | None = None  #: who has authenticated, or None
    session_id: str = ""  #: which session it came in
    arrived: float = field(default_factory=time.time)  #: seconds since the epoch

    @classmethod
    def of(cls, session: Session, envelope: Envelope) -> Self:
        """The mail in this envelope."""
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
        """The header fields, decoded: ``mail.headers["Subject"]``, in upper or lower case. One that is missing is a
        KeyError; ``mail.headers.get("X-Test")`` is None then, and ``get_all`` gives the values of all fields of a name.
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
        """The plain text, or what the HTML says if there is none; ``""`` without either. Lines end in LF.

        A charset that is unknown is read as UTF-8.
        """
        return self._parsed.text

    @cached_property
    def html(self) -> str:
        """The HTML; ``""`` without any. Lines end in LF."""
        return self._parsed.html

    @cached_property
    def attachments(self) -> list[Attachment]:
        """All parts that are neither text nor HTML, with ``name``, ``type`` and ``content``. The images that HTML shows
        are among them; they have a ``content_id``."""
        return self._parsed.attachments

    @cached_property
    def links(self) -> list[str]:
        """The addresses that the HTML links to, and those in the text, each once, in their order."""
        return self._parsed.links

    @cached_property
    def message(self) -> EmailMessage:
        """The message as Python's :mod:`email` parses it. Fields that it cannot parse are strings, without more."""
        return email_message(self.content)

    @cached_property
    def bare_newlines(self) -> bool:
        """Whether lines end in LF or CR alone. The catcher takes such messages; servers on the internet reject them."""
        return _BARE_NEWLINE.search(self.content) is not None

    def __str__(self) -> str:
        return f"from {self.mail_from!r} to {list(self.rcpt_tos)!r}, subject {self.subject!r}"

    # On its way to another process

    def to_json(self) -> dict[str, Any]:
        """The mail as JSON has it; what a client's certificate said is lost."""
        facts = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        tls = self.tls and {
            "protocol": self.tls.protocol,
            "cipher": self.tls.cipher,
            "server_name": self.tls.server_name,
        }
        return facts | {"content": base64.b64encode(self.content).decode("ascii"), "tls": tls}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The mail that :meth:`to_json` has written."""
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
