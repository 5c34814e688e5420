"""The TLS handshake, after STARTTLS (RFC 3207) or at the beginning of a connection (RFC 8314).

The handshake has its own timeout, and ``session.ssl`` describes the result. The command is in
:mod:`txsmtpd.extensions.starttls`. This module does not handle certificates: it uses a context for Twisted's TLS.
"""

from __future__ import annotations

import ssl
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import TimeoutError
from twisted.protocols.tls import TLSMemoryBIOProtocol

from txsmtpd.engine.tls_input import TLSInput
from txsmtpd.engine.turn import PREMATURE_CLOSE_GRACE
from txsmtpd.log import events
from txsmtpd.reply import Reply
from txsmtpd.session import TLSInfo

TLS_NOT_GOOD_ENOUGH = Reply(554, "5.7.0", "Command refused due to lack of security")  # RFC 3207 4.1


class TLSSetupException(Exception):
    """The TLS handshake has failed, and the connection is closed. ``__cause__`` is the exception of Twisted, OpenSSL or
    :mod:`ssl`."""


def is_wrapped(transport: Any) -> bool:
    """Whether the transport is a TLS layer. If it is one at the beginning, the endpoint starts TLS, not the server."""
    return isinstance(transport, TLSMemoryBIOProtocol)


async def start_tls(server: Any, begun: bytes = b"") -> None:
    """Send pending output, start TLS, and call the hook STARTTLS.

    Unprocessed input is discarded, because an attacker may have sent it (RFC 3207 4.2). If the
    handshake fails or takes too long, the turn is cancelled, and the connection is lost because of a
    :class:`TLSSetupException`.

    :param begun: octets of the handshake that were received before, if TLS is implicit.
    """
    connection, dispatcher, settings = server._connection, server._dispatcher, server.settings
    await Handshake(connection).start(server.tls_context, begun)
    server.session.ssl = tls = _tls_of(server.transport)
    if settings.log_dialogue:
        dispatcher.log(events.TLS_STARTED, protocol=tls.protocol, cipher=tls.cipher)
    try:
        if "STARTTLS" in settings.hooks and not await dispatcher.result_of_hook("STARTTLS"):
            dispatcher.refuse_all = TLS_NOT_GOOD_ENOUGH
    except BaseException:
        # Close after the reply to the exception: it is the second reply to STARTTLS, and the client would take it for
        # the reply to its next command.
        dispatcher.closes_after_reply = True
        raise
    finally:
        if dispatcher.meter is not None:
            dispatcher.meter.tls_started(tls)
        if connection.observer is not None:
            connection.observer.tls_started(tls)


class Handshake:
    """A stage of a connection: its TLS handshake.

    :param connection: the connection.
    """

    __slots__ = ("_call", "_completed", "_connection")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._completed: Deferred[None] = Deferred(lambda _: self._stop())
        self._call: Any = None

    def start(self, context: Any, begun: bytes) -> Deferred[None]:
        """Start the handshake. A turn awaits the result.

        :param context: the context, as for ``startTLS`` of a Twisted transport.
        :return: a Deferred that fires when the handshake is complete.
        """
        connection = self._connection
        transport = connection.transport
        connection.output.flush()
        connection.lines.clear()
        connection.stop_reader()
        connection.stage = self
        connection.paused = True
        if connection.turn is not None:
            connection.turn.stop_deadline()
        period = PREMATURE_CLOSE_GRACE if connection.input_ended else connection.server.settings.tls_handshake_timeout
        self._call = connection.call_later(period, self._took_too_long)
        if not is_wrapped(transport):
            try:
                transport.startTLS(context)
            except Exception:
                # A transport on which startTLS failed would not call connectionLost. Undo what it has changed.
                transport.protocol = connection.server
                transport.TLS = False
                self._stop()
                connection.close()
                raise
            connection.end_pauses()
        tls = transport if is_wrapped(transport) else transport.protocol
        if is_wrapped(tls):  # the transport of a test may not start TLS really
            connection.tls_input = TLSInput(connection, tls)
        if begun:
            tls.dataReceived(begun)
        return self._completed

    def completed(self) -> None:
        """The handshake is complete."""
        connection = self._connection
        self._stop()
        if connection.tls_input is not None:
            connection.tls_input.handshake_completed()
        if connection.closing:
            return
        connection.output.transport_changed()
        if connection.turn is not None:
            connection.turn.start_deadline()
        self._completed.callback(None)

    def _took_too_long(self) -> None:
        self._connection.cause = TimeoutError("the TLS handshake took too long")
        self._connection.transport.abortConnection()

    def _stop(self) -> None:
        if self._connection.stage is self:
            self._connection.stage = None
        if self._call is not None and self._call.active():
            self._call.cancel()

    # As a stage

    def input_ended(self) -> None:
        """The client has closed its side. The connection is closed without further action."""

    def connection_lost(self, reason: BaseException) -> None:
        """The connection was lost during the handshake. Unless the server has closed it, this is a TLS error."""
        connection = self._connection
        self._stop()
        if not connection.closing:
            connection.cause = _handshake_failed(connection.cause or reason)

    def timed_out(self) -> None:
        """Do nothing: a handshake has its own timeout. The client's timeouts do not run while a turn waits."""

    def cancel(self) -> None:
        """Stop the timeout, because the server is going to close the connection."""
        self._stop()


def _handshake_failed(cause: BaseException) -> TLSSetupException:
    # An OpenSSL error has a list of tuples: library, function and reason. A reason is a constant, which may be logged.
    details = cause.args[0] if cause.args and isinstance(cause.args[0], list) else []
    reasons = ", ".join(str(each[-1]) for each in details) or type(cause).__name__
    error = TLSSetupException(f"the TLS handshake failed: {reasons}")
    # With an ssl.SSLContext, the exception of the ssl module is more precise.
    error.__cause__ = cause.__cause__ if isinstance(cause.__cause__, ssl.SSLError) else cause
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
