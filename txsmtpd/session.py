"""What is known about a client and its message: :class:`Session` (the connection) and :class:`Envelope` (one
mail transaction, RFC 5321 3.3). Plain attributes, which handlers may add to; no behaviour, no transport.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from txsmtpd.parameters import NOTHING_SAID, DeliverBy, Recipient, Return
from txsmtpd.wire.forwarded import XClientData, XForwardData
from txsmtpd.wire.proxy import ProxyData

_session_numbers = itertools.count(1)
_process = ""  # tells this process from others, also from those in containers, which have the same process id


def _renew_process() -> None:
    global _process
    _process = secrets.token_hex(4)


_renew_process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_process)


@dataclass(frozen=True, slots=True)
class TLSInfo:
    """What is known of a connection's TLS. It is true: ``if session.ssl`` tells whether there is TLS."""

    protocol: str  #: the version, such as ``"TLSv1.3"``
    cipher: str  #: such as ``"TLS_AES_256_GCM_SHA384"``
    peer_certificate: Any = None  #: the client's, verified: an ``x509.Certificate`` of cryptography, or None
    server_name: str | None = None  #: the name by which the client asked for this server (SNI, RFC 6066 3)
    binds: bool = False  #: whether proofs can be bound to the connection by ``tls-exporter`` (RFC 9266)


class Session:
    """One client's connection. Handlers may hang attributes of their own on it."""

    peer: Any = None  #: ``(host, port)`` of the client, or ``""`` on a Unix socket
    proxy_peer: Any = None  #: the same of the proxy, where a PROXY header has told who the client is; None: none has
    ssl: TLSInfo | None = None  #: what is known of the connection's TLS; None: without TLS
    host_name: str | None = None  #: the argument of HELO or EHLO; None before a greeting
    extended_smtp: bool = False  #: whether the client greeted with EHLO
    proxy_data: ProxyData | None = None  #: what a PROXY header said
    xclient: XClientData | None = None  #: what XCLIENT said of the client, from whom it is believed
    auth_data: Any = None  #: what the authenticator knows of the user
    authenticated: bool | None = None  #: True once it has, False from the first AUTH that is begun until then
    auth_mechanism: str | None = None  #: by which the client has authenticated
    login_data: Any = None  #: the login, or what a method ``auth_MECHANISM`` gave; *auth_data* knows more
    mail_commands: int = 0  #: MAIL commands so far, where LIMITS (RFC 9422) counts them
    rcpt_domains: frozenset[str] = frozenset()  #: domains of recipients so far, where LIMITS counts them

    def __init__(self, loop: object = None) -> None:
        # Programs that were written for asyncio give a loop; nothing is done with it.
        self._id: str | None = None

    @property
    def id(self) -> str:
        """Names the session in the log. Unique, also among several processes and hosts."""
        if self._id is None:  # most sessions are never named
            self._id = f"{int(time.time() * 1000):x}.{_process}.{next(_session_numbers):x}"
        return self._id

    @id.setter
    def id(self, name: str) -> None:
        self._id = name

    @property
    def connection_peer(self) -> Any:
        """Who the connection is from, whatever XCLIENT has said since."""
        return self.peer if self.xclient is None else self.xclient.said_by

    def __repr__(self) -> str:
        return f"<Session {self.id} peer={self.peer!r}>"


class _MadeWhenAsked:
    """An attribute that is an empty list until it is set. Most transactions need no such list."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        made: list[str] = []
        setattr(instance, self._name, made)  # where Python finds it before this
        return made


class Envelope:
    """One mail transaction. It is open while :attr:`mail_from` is not None."""

    mail_from: str | None  #: the reverse-path; ``""`` is the null one (a bounce); None: no transaction
    #: parameters of MAIL: ``KEYWORD`` or ``KEYWORD=value``, keyword in upper case
    mail_options: list[str] = _MadeWhenAsked()  # type: ignore[assignment]
    smtp_utf8: bool  #: whether MAIL said SMTPUTF8 (RFC 6531)
    body: str | None = None  #: what MAIL said of the message: ``7BIT``, ``8BITMIME``, ``BINARYMIME``; None: nothing
    dsn_return: Return | None = None  #: how much goes back with a report of failure (RFC 3461 RET)
    dsn_id: str | None = None  #: the sender's name for the message, for reports about it (RFC 3461 ENVID)
    require_tls: bool = False  #: whether the message may be passed on in TLS only (RFC 8689)
    deliver_by: DeliverBy | None = None  #: when it must have arrived (RFC 2852)
    xforward: XForwardData | None = None  #: where the message has come from, as XFORWARD says
    mt_priority: int | None = None  #: from -9 to 9 (RFC 6710)
    hold_until: datetime | None = None  #: the time in UTC before which it must not be sent on (RFC 4865)
    recipient: Recipient = NOTHING_SAID  #: what the RCPT that is at work has said; see :attr:`recipients`
    filters: Mapping[str, Any] = MappingProxyType({})  #: what filters say of the message, by their names
    dropped: tuple[str, ...] = ()  #: recipients that were accepted, and get nothing; see :meth:`drop`
    rcpt_tos: list[str]  #: the forward-paths of the accepted recipients, in order
    rcpt_options: list[str] = _MadeWhenAsked()  # type: ignore[assignment] #: parameters of RCPT, as for MAIL
    content: bytes | str | None = None  #: the message; str only with ``decode_data``
    original_content: bytes | None = None  #: the message as octets, dots undone, line ends as they came

    #: what *recipients* is made of, by place in *rcpt_tos*
    said_of: dict[int, tuple[str, Recipient]] | None = None

    def __init__(self) -> None:
        self.mail_from = None
        self.smtp_utf8 = False
        self.rcpt_tos = []

    def drop(self, address: str) -> None:
        """Accept a recipient to whom nothing is to be delivered: for a handle_RCPT that answers 250 and does not append
        the address to *rcpt_tos*. A message whose recipients are all dropped is accepted, and discarded."""
        self.dropped = (*self.dropped, address)

    @property
    def recipients(self) -> list[Recipient]:
        """What RCPT said of each of *rcpt_tos*, in their order."""
        said_of = self.said_of or {}
        found = (said_of.get(place, ("", NOTHING_SAID)) for place in range(len(self.rcpt_tos)))
        # A hook may have put somebody else in a recipient's place since.
        return [said if path == of else NOTHING_SAID for path, (of, said) in zip(self.rcpt_tos, found, strict=True)]

    def __repr__(self) -> str:
        return f"<Envelope from={self.mail_from!r} to={self.rcpt_tos!r}>"


def place_of(address: Any) -> tuple[str, int] | None:
    """Host and port of an address, or None if it has none, as that of a Unix socket. An IPv4 client of an IPv6 listener
    has an IPv4 address."""
    host = getattr(address, "host", None)
    return None if host is None else (host.removeprefix("::ffff:"), address.port)
