"""Proxy: forwards mail to another server while the client waits, and passes on that server's replies.

Large messages are forwarded while they arrive (:mod:`txsmtpd.handlers.proxy_stream`). There is no queue: a client gets
250 only if the next server has accepted the message. :mod:`txsmtpd.handlers.upstream` is the SMTP client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import alsoProvides

from txsmtpd.handlers import trace_header
from txsmtpd.handlers.proxy_stream import StreamedMessage
from txsmtpd.handlers.relay_message import parted
from txsmtpd.handlers.transaction import Transaction, one_if_equal
from txsmtpd.handlers.upstream import TLS_MODES, Upstream
from txsmtpd.interfaces import IStreamingHandler
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.wire.outgoing import with_crlf

log = Logger(namespace="txsmtpd.relay")

HOPS = 100  # a message with this many Received fields is in a mail loop (RFC 5321 6.3)
ITSELF = Reply(451, "4.4.6", "Mail loops back to this server, try again later")
LOOP = Reply(554, "5.4.6", "Too many hops, the message is in a loop")
OK = Reply(250, "2.0.0", "OK")
RECIPIENT_OK = Reply(250, "2.1.5", "OK")

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_X_PEER = re.compile(rb"(?im)^x-peer[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
_RECEIVED = re.compile(rb"(?im)^received[ \t]*:")


class Proxy:
    """Forward each message to another server.

    :param remote_hostname: the name or address of the server, or the path of its Unix socket.
    :param remote_port: the port of the server.
    :param received: whether to add a Received field to each message (RFC 5321 4.4), and to reject messages that have
        100 of them.
    :param options: see :class:`~txsmtpd.handlers.upstream.Upstream`.
    """

    _streams = True
    descriptors = 2  #: file descriptors for each client: its own connection, and one to the next server

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._streams = cls.handle_DATA is Proxy.handle_DATA and cls.prepare_content is Proxy.prepare_content

    def __init__(self, remote_hostname: str, remote_port: int = 25, *, received: bool = True, **options: Any) -> None:
        self.upstream = Upstream(remote_hostname, remote_port, **options)
        self.received = received
        self._open: dict[str, Transaction] = {}  # by session id
        self._warned = False
        if self._streams:
            # Not for subclasses that override handle_DATA or prepare_content: these methods get whole messages.
            alsoProvides(self, IStreamingHandler)

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Create the handler for the command line. The arguments are ``HOST:PORT`` or the path of a Unix socket, and
        options."""
        host, *rest = _host_and_rest(args)
        port = 25
        if not host:
            parser.error(f"{cls.__name__} needs the server to pass mail on to, as in proxy:mx.example.com:25")
        if not host.startswith("/"):
            if not rest:
                parser.error(f"{cls.__name__} needs a port, as in proxy:{host}:25")
            number, *rest = rest
            if not (number.isascii() and number.isdecimal() and 0 < int(number) < 65536):
                parser.error(f"{number!r} is not a port from 1 to 65535")
            port = int(number)
        try:
            return cls(host, port, **_options(parser, rest))
        except ValueError as error:
            parser.error(str(error))
            raise

    # The hooks

    async def handle_MAIL(
        self, server: Any, session: Session, envelope: Envelope, address: str, mail_options: list[str]
    ) -> Any:
        await self._end(session)
        self.warn_if_open(server)
        if self.upstream.is_itself(server.transport):
            log.error("{upstream} is this server itself", upstream=repr(self.upstream))
            raise Refused(ITSELF)
        transaction = await self.upstream.begin(address, mail_options, getattr(server, "hostname", None))
        self._open[session.id] = transaction
        envelope.mail_from = address
        envelope.mail_options.extend(mail_options)
        return transaction.reply

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> Any:
        transaction = self._open.get(session.id)
        # A subclass with its own handle_MAIL may not have started a transaction. Then handle_DATA starts it.
        reply = RECIPIENT_OK if transaction is None else await transaction.rcpt(address, rcpt_options)
        if reply.positive:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(rcpt_options)
        return reply

    def open_message(self, server: Any, session: Session, envelope: Envelope) -> StreamedMessage:
        """Start forwarding a message; see :class:`~txsmtpd.interfaces.IStreamingHandler`."""
        return StreamedMessage(self, server, session, envelope)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        try:
            content = self.prepare_content(server, session, envelope)
            transaction, refusals = await self.transaction_for(server, session, envelope, content)
        finally:
            # If prepare_content has raised, the transaction is still open. Otherwise transaction_for has taken it.
            self._end(session)
        return one_if_equal(await transaction.deliver(content, refusals))

    async def transaction_for(
        self, server: Any, session: Session, envelope: Envelope, start: bytes
    ) -> tuple[Transaction, Sequence[Reply | None]]:
        """Return the transaction for a message.

        :param start: the message, or its beginning.
        :return: the transaction, and for each recipient None or the refusal.
        :raises Refused: if the next server rejects the transaction.
        """
        transaction = self._open.pop(session.id, None)
        if transaction is not None and self._is_of(transaction, envelope):
            return transaction, [None] * len(envelope.rcpt_tos)
        # A hook has changed the envelope, or the next server has closed the connection. Start a new transaction.
        options = {} if transaction is None else transaction.options
        if transaction is not None:
            await transaction.end()
        return await self.upstream.begin_all(
            envelope.mail_from or "",
            envelope.rcpt_tos,
            start,
            envelope.mail_options,
            [options.get(path, ()) for path in envelope.rcpt_tos],
            getattr(server, "hostname", None),
        )

    async def handle_RSET(self, server: Any, session: Session, envelope: Envelope) -> Any:
        # Wait, so that the connection can be used for the next MAIL. Otherwise each MAIL would open another one.
        await self._end(session)
        return OK

    def handle_DISCONNECT(self, server: Any, session: Session, envelope: Envelope, cause: BaseException) -> None:
        self._end(session)

    def _is_of(self, transaction: Transaction, envelope: Envelope) -> bool:
        return (
            not transaction.lost
            and transaction.mail_from == envelope.mail_from
            and transaction.accepted == envelope.rcpt_tos
        )

    def _end(self, session: Session) -> Deferred[None]:
        transaction = self._open.pop(session.id, None)
        return succeed(None) if transaction is None else transaction.end()

    # The message

    def prepare_content(self, server: Any, session: Session, envelope: Envelope) -> bytes:
        """Return the message to forward. It has a Received field at the top of its header, and the client's address in
        an X-Peer field at the end. X-Peer fields from the client are removed.

        :raises Refused: if the message is in a mail loop.
        """
        content = envelope.content or b""
        content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else bytes(content)
        if envelope.body != "BINARYMIME":
            content = with_crlf(content)
        return b"".join(self.with_fields(server, session, envelope, *parted(content)))

    def with_fields(
        self, server: Any, session: Session, envelope: Envelope, header: bytes, body: bytes
    ) -> tuple[bytes, ...]:
        """Add the fields to a message, and return it in pieces.

        :param header: the header, without the empty line after it.
        :param body: the rest of the message.
        :raises Refused: if the message is in a mail loop.
        """
        if self.received and len(_RECEIVED.findall(header)) >= HOPS:
            raise Refused(LOOP)
        if b"x-peer" in header.lower():
            header = _X_PEER.sub(b"", header)
        return self._received(server, session, envelope), header, _x_peer(session), body

    def _received(self, server: Any, session: Session, envelope: Envelope) -> bytes:
        if not self.received:
            return b""
        hostname = getattr(server, "hostname", None) or "localhost"
        lmtp = bool(getattr(server, "lmtp", False))
        return with_crlf(trace_header.received(hostname, session, envelope, session.id, lmtp=lmtp))

    def warn_if_open(self, server: Any) -> None:
        """Log a warning, once, if the server is an open relay, which forwards mail from anyone to anyone."""
        if self._warned or type(self).handle_RCPT is not Proxy.handle_RCPT:
            return
        self._warned = True
        host = getattr(server.transport.getHost(), "host", None)
        if host is not None and not ip_address(host).is_loopback and not server.settings.auth_required:
            log.warn(
                "anyone who can connect to {host} can send mail to any recipient through {upstream}: require AUTH, or"
                " reject recipients in handle_RCPT, unless a firewall admits only trusted clients",
                upstream=repr(self.upstream),
                host=host,
            )


def _x_peer(session: Session) -> bytes:
    address = session.peer[0] if isinstance(session.peer, tuple | list) and session.peer else ""
    return f"X-Peer: {_UNPRINTABLE.sub('?', str(address))}\r\n".encode() if address else b""


def _host_and_rest(args: Sequence[str]) -> Sequence[str]:
    """Return the arguments. If an IPv6 address in brackets was split at its colons, join it again."""
    if args and args[0].startswith("["):
        for end, word in enumerate(args, 1):
            if word.endswith("]"):
                return [":".join(args[:end]), *args[end:]]
    return args or ("",)


def _options(parser: Any, words: list[str]) -> dict[str, Any]:
    """Parse the options after the address on the command line."""
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word == "lmtp":
            options["lmtp"] = True
        elif name in ("tls", "user", "hello") and equals:
            options["username" if name == "user" else name] = value
        elif name == "password-file" and equals:
            try:
                options["password"] = Path(value).read_text("utf-8").rstrip("\r\n")
            except (OSError, ValueError) as error:
                parser.error(f"the password cannot be read from {value}: {getattr(error, 'strerror', None) or error}")
        else:
            modes = "|".join(TLS_MODES)
            parser.error(f"{word!r} is not an option; use lmtp, tls={modes}, user=NAME, password-file=PATH, hello=NAME")
    return options
