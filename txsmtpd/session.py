"""The data of a client and its message: :class:`Session` (the connection) and :class:`Envelope` (one mail transaction,
RFC 5321 3.3). They have plain attributes, to which handlers may add their own; no behaviour, no transport.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from txsmtpd.parameters import NO_PARAMETERS, DeliverBy, Recipient, Return
from txsmtpd.wire.forwarded import XClientData, XForwardData
from txsmtpd.wire.proxy import ProxyData

_session_numbers = itertools.count(1)
_process = ""  # identifies this process, also among containers, where process ids repeat


def _renew_process() -> None:
    global _process
    _process = secrets.token_hex(4)


_renew_process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_process)


@dataclass(frozen=True, slots=True)
class TLSInfo:
    """The TLS state of a connection. It is always true, so ``if session.ssl`` tests whether TLS is used."""

    protocol: str  #: the version, such as ``"TLSv1.3"``
    cipher: str  #: such as ``"TLS_AES_256_GCM_SHA384"``
    peer_certificate: Any = None  #: the client's verified ``cryptography.x509.Certificate``, or None
    server_name: str | None = None  #: the server name that the client sent (SNI, RFC 6066 3)
    binds: bool = False  #: whether channel binding with ``tls-exporter`` is possible (RFC 9266)


class Session:
    """One client's connection. Handlers may set their own attributes on it."""

    peer: Any = None  #: ``(host, port)`` of the client, or ``""`` on a Unix socket
    proxy_peer: Any = None  #: the same for the proxy, if a PROXY header named the client; else None
    ssl: TLSInfo | None = None  #: the connection's TLS state, or None without TLS
    host_name: str | None = None  #: the argument of HELO or EHLO; None before a greeting
    extended_smtp: bool = False  #: whether the client greeted with EHLO
    proxy_data: ProxyData | None = None  #: the contents of the PROXY header, if there was one
    xclient: XClientData | None = None  #: the client as described by XCLIENT, from a trusted host
    auth_data: Any = None  #: the authenticator's data about the user
    authenticated: bool | None = None  #: None before the first AUTH; then whether the client has logged in
    auth_mechanism: str | None = None  #: the mechanism with which the client logged in
    login_data: Any = None  #: the login, or the result of an ``auth_MECHANISM`` method; see also *auth_data*
    _loop: asyncio.AbstractEventLoop | None = None
    mail_commands: int = 0  #: MAIL commands so far, if LIMITS (RFC 9422) counts them
    rcpt_domains: frozenset[str] = frozenset()  #: domains of recipients so far, if LIMITS counts them

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        if loop is not None:
            self._loop = loop
        self._id: str | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop that was passed to the session. If none was passed: the running loop.

        :raises RuntimeError: if no loop was passed, and none is running.
        """
        return self._loop or asyncio.get_running_loop()

    @property
    def id(self) -> str:
        """The session's name in the log, unique among all processes and hosts."""
        if self._id is None:  # most sessions never need one
            self._id = f"{int(time.time() * 1000):x}.{_process}.{next(_session_numbers):x}"
        return self._id

    @id.setter
    def id(self, name: str) -> None:
        self._id = name

    @property
    def connection_peer(self) -> Any:
        """The peer of the connection, regardless of XCLIENT."""
        return self.peer if self.xclient is None else self.xclient.said_by

    def __repr__(self) -> str:
        return f"<Session {self.id} peer={self.peer!r}>"


class _LazyList:
    """An attribute whose empty list is created on first access, since most transactions do not need it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        made: list[str] = []
        setattr(instance, self._name, made)  # found before this descriptor from now on
        return made


def _lazy_list() -> Any:  # Any, so that the attribute can be declared as the list that it gives
    return _LazyList()


class Envelope:
    """One mail transaction. It is open while :attr:`mail_from` is not None."""

    mail_from: str | None  #: the reverse-path; ``""`` is the null reverse-path (a bounce), None no transaction
    #: the parameters of MAIL: ``KEYWORD`` or ``KEYWORD=value``, with the keyword in upper case
    mail_options: list[str] = _lazy_list()
    smtp_utf8: bool  #: whether MAIL had the parameter SMTPUTF8 (RFC 6531)
    body: str | None = None  #: the parameter BODY of MAIL: ``7BIT``, ``8BITMIME`` or ``BINARYMIME``, or None
    dsn_return: Return | None = None  #: how much to return with a failure report (RFC 3461 RET)
    dsn_id: str | None = None  #: the sender's identifier of the message for reports (RFC 3461 ENVID)
    require_tls: bool = False  #: whether the message may be relayed only with TLS (RFC 8689)
    deliver_by: DeliverBy | None = None  #: the time by which it must be delivered (RFC 2852)
    xforward: XForwardData | None = None  #: the origin of the message, as given by XFORWARD
    mt_priority: int | None = None  #: from -9 to 9 (RFC 6710)
    hold_until: datetime | None = None  #: the time in UTC before which it must not be relayed (RFC 4865)
    recipient: Recipient = NO_PARAMETERS  #: the parameters of the current RCPT; see :attr:`recipients`
    filters: Mapping[str, Any] = MappingProxyType({})  #: the results of filters, by filter name
    dropped: tuple[str, ...] = ()  #: accepted recipients that get no message; see :meth:`drop`
    rcpt_tos: list[str]  #: the forward-paths of the accepted recipients, in order
    rcpt_options: list[str] = _lazy_list()  #: parameters of RCPT, as for MAIL
    content: bytes | str | None = None  #: the message; str only with ``decode_data``
    original_content: bytes | None = None  #: the message as received, without dot-stuffing

    #: the data for *recipients*: the forward-path and its parameters, by index in *rcpt_tos*
    recipient_parameters: dict[int, tuple[str, Recipient]] | None = None

    def __init__(self) -> None:
        self.mail_from = None
        self.smtp_utf8 = False
        self.rcpt_tos = []

    def drop(self, address: str) -> None:
        """Accept a recipient without delivering to it: for a handle_RCPT that returns 250 without appending the address
        to *rcpt_tos*. If all recipients of a message are dropped, it is accepted and discarded."""
        self.dropped = (*self.dropped, address)

    @property
    def recipients(self) -> list[Recipient]:
        """The parameters of RCPT for each of *rcpt_tos*, in the same order."""
        recipient_parameters = self.recipient_parameters or {}
        found = (recipient_parameters.get(place, ("", NO_PARAMETERS)) for place in range(len(self.rcpt_tos)))
        # A hook may have replaced a recipient by another since then.
        return [given if path == of else NO_PARAMETERS for path, (of, given) in zip(self.rcpt_tos, found, strict=True)]

    def __repr__(self) -> str:
        return f"<Envelope from={self.mail_from!r} to={self.rcpt_tos!r}>"


def place_of(address: Any) -> tuple[str, int] | None:
    """Return host and port of an address, or None for one without a host, such as a Unix socket. An IPv4-mapped IPv6
    address becomes an IPv4 address."""
    host = getattr(address, "host", None)
    return None if host is None else (host.removeprefix("::ffff:"), address.port)
