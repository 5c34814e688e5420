"""The next server: sends messages to it and returns its replies.

:class:`Upstream` opens connections and keeps them for the next message; a :class:`Transaction` is one message on one of
them; :meth:`Upstream.send` does everything for one message. Whatever the next server does, the result is a reply: its
own, or 4yz.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IStreamClientEndpoint,
)
from twisted.logger import Logger

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.handlers.client import (
    DROPPED,
    GARBLED,
    NOT_SECURE,
    TOO_SLOW,
    UNREACHABLE,
    Connection,
    Connections,
    endpoint_to,
    reply_of,
)
from txsmtpd.handlers.relay_parameters import with_parameters
from txsmtpd.handlers.transaction import Transaction, check_path
from txsmtpd.log.reasons import reason_of
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import place_of
from txsmtpd.wire import grammar

log = Logger(namespace="txsmtpd.relay")

MESSAGES = 100  # on one connection, unless the server wants fewer (RFC 9422)

TOO_MANY = Reply(451, "4.3.2", "Too many connections to the next server, try again later")

TLS_MODES = ("opportunistic", "required", "implicit", "never")


class Upstream:
    """A server to forward mail to, and the connections to it.

    :param host: its name or address. If this begins with a slash, it is the path of a Unix socket, and TLS is not used.
    :param tls: ``"opportunistic"``: STARTTLS if the server offers it, without verifying the certificate.
        ``"required"``: STARTTLS with a certificate that is valid for *host*. ``"implicit"``: the same with implicit
        TLS. ``"never"``: no TLS. Default: ``"required"`` with a password, else ``"opportunistic"``.
    :param tls_context: a client context for Twisted's TLS, instead of one that trusts the system's authorities. It must
        verify the server itself.
    :param username: login (RFC 4954), with *password*. Without TLS they are used only if *tls* is ``"never"``.
    :param lmtp: whether the server speaks LMTP (RFC 2033).
    :param hello: our name in EHLO. Default: the name of the server that received the mail, or this host's name.
    :param connect_timeout: seconds to wait for the connection.
    :param timeout: seconds to wait for a reply, or for the server to read a piece of a message.
    :param final_timeout: seconds to wait for the reply to a message.
    :param connection_limit: maximum number of connections; further messages get 451. It stops loops of servers that
        forward to each other. None: no limit.
    :param keep: number of idle connections to keep open for the next message.
    :param keep_for: seconds to keep them open.
    :param reactor: the reactor to use. Default: the one that is running when a message is sent.
    :param endpoint: the IStreamClientEndpoint to connect with, instead of *host* and *port*.
    :raises ValueError: if a value is invalid.
    :raises TypeError: if a value has a wrong type, or Twisted's TLS does not accept *tls_context*.
    """

    def __init__(
        self,
        host: str,
        port: int = 25,
        *,
        tls: str | None = None,
        tls_context: Any = None,
        username: str | None = None,
        password: str | None = None,
        lmtp: bool = False,
        hello: str | None = None,
        connect_timeout: float = 30.0,
        timeout: float = 120.0,
        final_timeout: float = 280.0,
        connection_limit: int | None = 1000,
        keep: int = 10,
        keep_for: float = 30.0,
        reactor: Any = None,
        endpoint: IStreamClientEndpoint | None = None,
    ) -> None:
        unix = host.startswith("/")
        if not unix:
            host = _host(host)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError(f"port must be a number from 1 to 65535, not {port!r}")
        if (username is None) != (password is None):
            raise ValueError("username and password must be given together")
        if "" in (username, password):
            raise ValueError("username and password must not be empty")
        if tls is None:
            tls = "never" if unix else "opportunistic" if username is None else "required"
        if tls not in TLS_MODES:
            raise ValueError(f"tls must be one of {', '.join(TLS_MODES)}, not {tls!r}")
        if unix and tls in ("required", "implicit"):
            raise ValueError(f"there is no TLS over a Unix socket: tls must be never, not {tls!r}")
        if hello is not None and not (hello.isascii() and grammar.is_host(hello)):
            raise ValueError(f"hello must be a domain or an address literal, not {hello!r}")
        _check_tls_context(tls_context)
        for name, seconds in (
            ("connect_timeout", connect_timeout),
            ("timeout", timeout),
            ("final_timeout", final_timeout),
            ("keep_for", keep_for),
        ):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be a number of seconds, more than 0, not {seconds!r}")
        for name, count in (("keep", keep), ("connection_limit", connection_limit or 0)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} must be a whole number, not {count!r}")
            if count < 0:
                raise ValueError(f"{name} must not be negative")
        self.host = host
        self.port = port
        self.tls = tls
        self.tls_context = tls_context
        self.credentials = None if username is None else (username.encode("utf-8"), (password or "").encode("utf-8"))
        self.lmtp = lmtp
        self.hello = hello
        self.connect_timeout = connect_timeout
        self.timeout = timeout
        self.final_timeout = final_timeout
        self.connection_limit = connection_limit
        self.keep = keep
        self.keep_for = keep_for
        self._reactor = reactor
        self._endpoint = endpoint
        self._idle: dict[Connection, Any] = {}  # with the delayed call that closes each
        self._connections: dict[Connection, Any] = {}  # with the addresses of both ends
        self._connecting = 0
        self._closed = False
        self._closing: list[Deferred[None]] = []

    def __repr__(self) -> str:
        if self.host.startswith("/"):
            return f"<Upstream {self.host}>"
        return f"<Upstream [{self.host}]:{self.port}>" if ":" in self.host else f"<Upstream {self.host}:{self.port}>"

    # One message

    async def send(
        self,
        mail_from: str,
        rcpt_tos: Sequence[str],
        content: bytes,
        mail_options: Iterable[str] = (),
        rcpt_options: Sequence[Iterable[str]] = (),
        hello: str | None = None,
    ) -> list[Reply]:
        """Send a message.

        :param mail_from: the reverse-path; ``""`` is the null reverse-path.
        :param content: the message with any line ends; they are sent as CRLF, except for BINARYMIME.
        :param mail_options: parameters of MAIL: ``KEYWORD`` or ``KEYWORD=value``.
        :param rcpt_options: parameters of RCPT, a list for each recipient; or an empty sequence.
        :param hello: as for :meth:`begin`.
        :return: the reply for each of *rcpt_tos*, in their order: 2yz if the server has accepted the message for that
            recipient, 4yz or 5yz if not. Nothing is raised, whatever the server does.
        """
        try:
            transaction, refusals = await self.begin_all(
                mail_from, rcpt_tos, content, mail_options, rcpt_options, hello
            )
        except Refused as refused:
            return [refused.reply] * len(rcpt_tos)
        return await transaction.deliver(content, refusals)

    async def begin_all(
        self,
        mail_from: str,
        rcpt_tos: Sequence[str],
        content: bytes,
        mail_options: Iterable[str] = (),
        rcpt_options: Sequence[Iterable[str]] = (),
        hello: str | None = None,
    ) -> tuple[Transaction, list[Reply | None]]:
        """Start a transaction and send RCPT for all recipients.

        :param content: the message, or its beginning.
        :return: the transaction, and for each recipient the refusal, or None if it was accepted.
        :raises Refused: as for :meth:`begin`.
        """
        options = list(mail_options)
        if not content.isascii() and not any(each.upper().startswith("BODY=") for each in options):
            options.append("BODY=8BITMIME")
        transaction = await self.begin(mail_from, options, hello)
        replies: list[Reply | None] = []
        try:
            for place, forward_path in enumerate(rcpt_tos):
                reply = await reply_of(transaction.rcpt(forward_path, rcpt_options[place] if rcpt_options else ()))
                replies.append(None if reply.positive else reply)
        except BaseException:
            transaction.end()
            raise
        return transaction, replies

    async def begin(self, mail_from: str, options: Iterable[str] = (), hello: str | None = None) -> Transaction:
        """Start a transaction: send MAIL, on an idle connection or a new one.

        :param hello: our name in EHLO, unless it was passed to the constructor.
        :raises Refused: with the reply to MAIL if it is 4yz or 5yz, or if there is none.
        """
        check_path(mail_from, grammar.parse_mail, "FROM", "5.1.7")
        options = list(options)
        connection = self._kept()
        if connection is not None:
            try:
                return await self._mail(connection, mail_from, options)
            except Refused as refused:
                # The idle connection may have been dead for a while. Try a new one.
                if refused.reply != connection.gone or connection.gone in (TOO_SLOW, GARBLED):
                    raise
        return await self._mail(await self._connect(hello), mail_from, options)

    async def _mail(self, connection: Connection, mail_from: str, options: list[str]) -> Transaction:
        said = {each.upper() for each in options}
        utf8 = "SMTPUTF8" in said
        try:
            line = with_parameters(f"MAIL FROM:<{mail_from}>", options, connection, utf8)
        except BaseException:
            self.give_back(connection)
            raise
        reply = await connection.ask(line)
        connection.messages += 1
        if not reply.positive:
            self.give_back(connection)
            raise Refused(reply)
        return Transaction(self, connection, reply, mail_from, utf8, "BODY=BINARYMIME" in said)

    # Connections

    def _kept(self) -> Connection | None:
        call_later = self.reactor.callLater
        for connection in reversed(list(self._idle)):
            if connection.call_later != call_later:
                continue  # it belongs to another reactor, in another thread
            self._idle.pop(connection).cancel()
            if connection.gone is None:
                return connection
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose transaction is over for the next one, for a while."""
        if connection.gone is not None:
            return
        most = _number(connection.extensions.get("LIMITS", ""), "MAILMAX")
        if self._closed or len(self._idle) >= self.keep or connection.messages >= min(MESSAGES, most or MESSAGES):
            connection.quit()
            return

        def end() -> None:
            del self._idle[connection]
            connection.quit()

        self._idle[connection] = self.reactor.callLater(self.keep_for, end)

    def _lost(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        ends = self._idle.pop(connection, None)
        if ends is not None:
            ends.cancel()
        if not self._connections:
            waiting, self._closing = self._closing, []
            for closed in waiting:
                closed.callback(None)

    def close(self) -> Deferred[None]:
        """Close idle connections, and keep none from now on.

        :return: a Deferred that fires when all are closed, including those that still have a message.
        """
        self._closed = True
        while (connection := self._kept()) is not None:
            connection.quit()
        if not self._connections:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closing.append(closed)
        return closed

    @property
    def reactor(self) -> Any:
        """The reactor for timeouts and connections."""
        return current_reactor() if self._reactor is None else self._reactor

    async def _connect(self, hello: str | None) -> Connection:
        """Return a new connection, after EHLO, TLS and login."""
        connection = await self._open()
        try:
            await self._prepare(connection, self.hello or hello or grammar.own_host_name())
        except BaseException:
            connection.fail(DROPPED)  # if it has not failed already
            raise
        return connection

    async def _prepare(self, connection: Connection, hello: str) -> None:
        if self.tls == "implicit":
            await connection.start_tls(self._context(), True, greeted=False)
        await connection.begin(hello, self.lmtp)
        if self.tls in ("opportunistic", "required"):
            await self._start_tls(connection, hello)
        if self.credentials is not None:
            if not connection.secure and self.tls != "never":
                raise Refused(NOT_SECURE)
            await connection.authenticate(*self.credentials)

    def is_itself(self, transport: Any) -> bool:
        """Return True if a client's connection is the other end of one of these, so that mail would loop."""
        ends = place_of(transport.getPeer()), place_of(transport.getHost())
        return None not in ends and ends in self._connections.values()

    async def _open(self) -> Connection:
        limit = self.connection_limit
        if limit is not None and len(self._connections) + self._connecting >= limit:
            log.warn("{upstream} has {limit} connections, which is the maximum", upstream=repr(self), limit=limit)
            raise Refused(TOO_MANY)
        connecting = self._the_endpoint().connect(Connections(self.reactor.callLater, self.timeout, self._lost))
        connecting.addTimeout(self.connect_timeout, self.reactor)
        self._connecting += 1
        try:
            connection: Connection = await connecting
        except CancelledError:
            raise
        except Exception as error:
            log.warn("{upstream} cannot be reached: {error}", upstream=repr(self), error=reason_of(error))
            raise Refused(UNREACHABLE) from error
        finally:
            self._connecting -= 1
        self._connections[connection] = (
            place_of(connection.transport.getHost()),
            place_of(connection.transport.getPeer()),
        )
        return connection

    async def _start_tls(self, connection: Connection, hello: str) -> None:
        # Twisted has no TLS over Unix sockets.
        if "STARTTLS" in connection.extensions and hasattr(connection.transport, "startTLS"):
            reply = await connection.command("STARTTLS")
            if reply.code == 220:
                await connection.start_tls(self._context(), self.tls == "required")
                await connection.greet(hello, self.lmtp)
                return
        if self.tls == "required":
            log.warn("{upstream} offers no TLS", upstream=repr(self))
            raise Refused(NOT_SECURE)

    def _context(self) -> Any:
        from twisted.internet.ssl import CertificateOptions, optionsForClientTLS

        if self.tls_context is not None:
            return self.tls_context
        return CertificateOptions() if self.tls == "opportunistic" else optionsForClientTLS(self.host)

    def _the_endpoint(self) -> Any:
        return self._endpoint or endpoint_to(self.reactor, self.host, self.port, self.connect_timeout)


def _host(host: str) -> str:
    """Return the name or address of a host, without the brackets of an address."""
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not (isIPv6Address(bare) or (isIPAddress(bare) if bracketed else grammar.is_host(bare))):
        raise ValueError(f"host must be a name, an address, or the path of a Unix socket, not {host!r}")
    return bare


def _check_tls_context(context: Any) -> None:
    takes = (IOpenSSLContextFactory, IOpenSSLClientConnectionCreator)
    if context is not None and not any(each.providedBy(context) for each in takes):
        raise TypeError(
            "tls_context must be TLS options for a client, such as optionsForClientTLS(name, trustRoot=...) of"
            f" twisted.internet.ssl, not {context!r}"
        )


def _number(limits: str, name: str) -> int | None:
    """Return one of the limits that a server advertises (RFC 9422 3), or None."""
    for limit in limits.upper().split():
        key, _, value = limit.partition("=")
        if key == name and value.isdecimal() and len(value) < 7:
            return int(value)
    return None
