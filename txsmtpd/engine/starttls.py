"""TLS: begun by STARTTLS (RFC 3207), or with the first octet (RFC 8314). Both are one path.

What was said before TLS is forgotten, the handshake has a deadline of its own, and what is known of it afterwards lies
in ``session.ssl``. Certificates are no matter of this file: it is given what Twisted's TLS takes.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.interfaces import IHandshakeListener
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.command import Rule, syntax
from txsmtpd.engine.conversation import PREMATURE_CLOSE_GRACE
from txsmtpd.engine.dispatcher import Dispatcher, log
from txsmtpd.engine.output import way_to
from txsmtpd.reply import Reply
from txsmtpd.session import Session, TLSInfo

READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")
TLS_NOT_GOOD_ENOUGH = Reply(554, "5.7.0", "Command refused due to lack of security")  # RFC 3207 4.1
in_clear = Rule(lambda smtp, arg: smtp.session.ssl is None, Reply(503, "5.5.1", "This is TLS already"))
tls_available = Rule(lambda smtp, arg: smtp.can_start_tls, Reply(454, "4.7.0", "TLS is not available"))


class TLSSetupException(Exception):
    """The TLS handshake failed; the connection is gone. Its cause is what Twisted or OpenSSL says of it."""


@implementer(IHandshakeListener)
class TLS(Dispatcher):
    """A dispatcher with the command STARTTLS."""

    # What subclasses supply

    def greet_at_once(self) -> Any:
        """The greeting of a client that is in TLS, if it has to be."""
        raise NotImplementedError

    def _create_session(self) -> Session:
        raise NotImplementedError

    def reset_transaction(self) -> None:
        """Begin anew with an empty envelope."""
        raise NotImplementedError

    # What is said

    @property
    def tls_context(self) -> Any:
        """What TLS is begun with, or None."""
        return self.settings.tls_context

    @property
    def can_start_tls(self) -> bool:
        """Whether STARTTLS is offered now."""
        return self.tls_context is not None and self.session.ssl is None and hasattr(self.transport, "startTLS")

    @syntax("STARTTLS", when="can_start_tls", needs=[in_clear, tls_available], argument=False)
    async def smtp_STARTTLS(self, arg: None) -> None:
        await self.push(READY_FOR_TLS)
        self.forget()
        await self._secure()

    async def greet_in_tls(self) -> Reply:
        # Behind a PROXY header, the beginning of the handshake may have come already.
        await self._secure(self.clearLineBuffer())
        if self._turned_away is not None:
            return self._turned_away
        greeting = self.greet_at_once()
        return greeting if isinstance(greeting, Reply) else await greeting

    def forget(self) -> None:
        """Forget all that the client has said (RFC 3207 4.2). Who it is, the connection tells: that stays."""
        before, self.session = self.session, self._create_session()
        self.session.id = before.id
        self.session.peer = before.connection_peer
        self.session.proxy_peer = before.proxy_peer
        self.session.proxy_data = before.proxy_data
        self.reset_transaction()

    async def _secure(self, begun: bytes = b"") -> None:
        await self.start_tls(self.tls_context, begun)
        self.session.ssl = tls = _tls_of(self.transport)
        if self.settings.log_dialogue:
            log.debug(
                "{session} {protocol} with {cipher}", session=self.session.id, protocol=tls.protocol, cipher=tls.cipher
            )
        if "STARTTLS" in self.settings.hooks:
            self._last_turn = True  # unless the hook answers: STARTTLS has had its reply, and cannot have another
            if not await self.ask_hook("STARTTLS"):
                self._turned_away = TLS_NOT_GOOD_ENOUGH
            self._last_turn = False

    # The handshake

    @property
    def wrapped_in_tls(self) -> bool:
        """Whether the connection was accepted in TLS, by an endpoint that speaks it."""
        return isinstance(self.transport, TLSMemoryBIOProtocol)

    def start_tls(self, context: Any, begun: bytes = b"") -> Deferred[None]:
        """Begin TLS as soon as what was sent has left in clear. To be awaited by a turn.

        Input that was not looked at until now never will be: it came in clear, from whomever (RFC 3207 4.2).

        :param context: what Twisted's TLS takes.
        :param begun: octets of the handshake that have come already, where nothing could come in clear.
        :return: fires when the handshake is complete. If it fails or takes too long, the turn is cancelled, and the
            connection is lost because of a :class:`TLSSetupException`.
        """
        self.flush()
        self.clearLineBuffer()
        self.stop_reading_with()
        handshake = self._handshake = Deferred()
        self.paused = True
        self._cancel_deadline()
        period = PREMATURE_CLOSE_GRACE if self._no_more_input else self.settings.tls_handshake_timeout
        self._deadline = self.callLater(period, self._handshake_took_too_long)
        if not self.wrapped_in_tls:
            self._wrap_in_tls(context)
            if begun:
                self.transport.protocol.dataReceived(begun)
        return handshake

    def _wrap_in_tls(self, context: Any) -> None:
        try:
            self.transport.startTLS(context)
        except Exception:
            # Left half way, the transport would tell nobody that the connection is lost.
            self.transport.protocol = self
            self.transport.TLS = False
            self._handshake = None
            self._cancel_deadline()
            self.close()
            raise
        # TLS is another consumer, and knows nothing of the pauses before it.
        if self._output_full or self._reading_paused:
            self._output_full = self._reading_paused = False
            self.transport.resumeProducing()

    def handshakeCompleted(self) -> None:
        handshake, self._handshake = self._handshake, None
        if handshake is None or self.closing:
            return
        self._cancel_deadline()
        self._write = way_to(self.transport)
        if self._turn is not None:
            self._work(self._turn)
        handshake.callback(None)

    def _handshake_took_too_long(self) -> None:
        self.cause = TimeoutError("the TLS handshake took too long")
        self.transport.abortConnection()

    def leave(self) -> None:
        super().leave()
        if self._handshake is not None:
            self.close()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        if self._handshake is not None and not self.closing:
            self.cause = _handshake_failed(self.cause or reason.value or ConnectionDone())
        super().connectionLost(reason)


def _handshake_failed(cause: BaseException) -> TLSSetupException:
    # An OpenSSL error carries tuples of library, function and reason; the reasons are constants, fit for a log.
    details = cause.args[0] if cause.args and isinstance(cause.args[0], list) else []
    reasons = ", ".join(str(each[-1]) for each in details) or type(cause).__name__
    error = TLSSetupException(f"the TLS handshake failed: {reasons}")
    error.__cause__ = cause
    return error


def _tls_of(transport: Any) -> TLSInfo:
    connection = transport.getHandle()
    name = connection.get_servername()
    version = connection.get_protocol_version_name()
    return TLSInfo(
        protocol=version,
        cipher=connection.get_cipher_name(),
        peer_certificate=connection.get_peer_certificate(as_cryptography=True),
        server_name=None if name is None else name.decode("ascii", "backslashreplace"),
        # In TLS 1.2 the exporter is safe only with the extended master secret (RFC 9266 4), which we cannot see.
        binds=version == "TLSv1.3" and hasattr(connection, "export_keying_material"),
    )
