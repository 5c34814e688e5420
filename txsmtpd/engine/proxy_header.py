"""The PROXY header at the start of connections from a proxy.

:mod:`txsmtpd.wire.proxy` parses the header. This module checks whether the peer is trusted, applies the timeout, and
closes connections without a valid header silently, since their peers are not SMTP clients.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import TimeoutError
from twisted.internet.interfaces import IDelayedCall

from txsmtpd.engine.handshake import is_wrapped
from txsmtpd.engine.results import ANSWERED_LATER, CLOSE, Close
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.reply import Reply
from txsmtpd.settings import PROXY_TIMEOUT, lacks_proxy_check
from txsmtpd.wire.proxy import ProxyData, ProxyReader


class ProxyHeaderError(Exception):
    """The connection was closed, because it has no valid PROXY header, or because ``handle_PROXY`` has rejected it."""


def expects_header(server: Any) -> bool:
    """Whether a connection must start with a PROXY header."""
    proxies = server.settings.proxies
    return proxies is not None and server.session.peer in proxies


class ProxyHeader:
    """A stage of a connection: it waits for the PROXY header.

    :param server: the protocol that users see.
    :param begin_session: called when the client is known; returns the greeting.
    """

    __slots__ = ("_begin_session", "_call", "_reader", "_server")

    def __init__(self, server: Any, begin_session: Callable[[Any], Any]) -> None:
        self._server = server
        self._begin_session = begin_session
        self._reader = ProxyReader()
        self._call: IDelayedCall | None = None

    def start(self) -> Any:
        """The first turn of the connection."""
        server, connection = self._server, self._server._connection
        if is_wrapped(server.transport):
            return self._refuse("the endpoint starts TLS, but the header precedes TLS; use implicit_tls instead")
        connection.stage = self
        seconds = server.settings.proxy_protocol_timeout or PROXY_TIMEOUT
        self._call = connection.call_later(seconds, self._took_too_long)
        connection.read_with(self._reader, self._received)
        return ANSWERED_LATER

    async def _received(self, reader: ProxyReader) -> Any:
        server = self._server
        session = server.session
        data = reader.end()
        self.cancel()
        session.proxy_data = data
        observer = server._connection.observer
        if observer is not None:
            observer.proxy_header(data)
        if not data:
            return self._refuse(data.error)
        own, client = session.peer, data.client
        if client is not None:
            session.proxy_peer = own
        if lacks_proxy_check(server.settings):
            return self._refuse("the handler has no handle_PROXY, which must accept it")
        if "PROXY" in server.settings.hooks and not await self._is_accepted(data):
            return self._refuse("handle_PROXY has not accepted it")
        # handle_PROXY of a program written for aiosmtpd may have set session.peer. Keep its value.
        if client is not None and session.peer == own:
            session.peer = client
        refusal = self._refusal_of_factory()
        if refusal is not None:
            return refusal
        greeting = self._begin_session(server)
        return await greeting if isinstance(greeting, Awaitable) else greeting

    async def _is_accepted(self, data: ProxyData) -> bool:
        """Whether ``handle_PROXY`` accepts the connection. It does not if it raises an exception or times out."""
        dispatcher = self._server._dispatcher
        try:
            return bool(await dispatcher.result_of_hook("PROXY", data))
        except (CancelledError, GeneratorExit):
            return False
        except BaseException as error:
            dispatcher.log_failure("handle_PROXY", error)
            return False

    def _refusal_of_factory(self) -> Reply | None:
        """Ask the factory whether the client may connect. Return the refusal, or None."""
        proxied = getattr(self._server.factory, "proxied", None)
        refusal: Reply | None = None if proxied is None else proxied(self._server)
        return refusal

    # Closing without a reply

    def _refuse(self, why: str, cause: BaseException | None = None) -> Close:
        """Log why the connection is rejected. Return the result that closes it."""
        server, connection = self._server, self._server._connection
        if connection.closing:
            return CLOSE
        connection.cause = cause or ProxyHeaderError(why)
        session = server.session
        peer = session.peer if session.proxy_peer is None else session.proxy_peer
        server._dispatcher.log(events.PROXY_REFUSED, proxy=client_text(peer), reason=why)
        return CLOSE

    def _took_too_long(self) -> None:
        self.cancel()
        why = "it did not arrive in time"
        self._refuse(why, TimeoutError(f"the PROXY header: {why}"))
        self._server._connection.close()

    # As a stage

    def input_ended(self) -> None:
        """The client has closed its side before the header was complete."""
        self._server.session.proxy_data = data = self._reader.end()
        self.cancel()
        self._refuse(data.error)

    def connection_lost(self, reason: BaseException) -> None:
        """The connection was lost before the header was complete."""
        self.input_ended()

    def timed_out(self) -> None:
        """Close the connection, because the header did not arrive in time."""
        self._took_too_long()

    def cancel(self) -> None:
        """Stop waiting for the header."""
        connection = self._server._connection
        if connection.stage is self:
            connection.stage = None
        if self._call is not None and self._call.active():
            self._call.cancel()
