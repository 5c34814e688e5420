"""Behind a proxy: the PROXY header, which comes before all else, and what follows from it.

How a header reads is in :mod:`txsmtpd.wire.proxy`. Here is whose header is believed, how long it may take, and that a
connection without a good one ends without a word: whoever sent it is no SMTP client.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from txsmtpd.engine.dispatcher import ANSWERED_LATER, Dispatcher, log
from txsmtpd.reply import Reply
from txsmtpd.settings import PROXY_TIMEOUT
from txsmtpd.wire.proxy import ProxyData, ProxyReader


class ProxyHeaderError(Exception):
    """A connection did not begin with a good PROXY header, or ``handle_PROXY`` refused it; it is gone."""


class Proxied(Dispatcher):
    """A dispatcher whose clients may come through a proxy."""

    _header: ProxyReader | None = None  # while the header is awaited
    _header_call: IDelayedCall | None = None

    # What subclasses supply

    def greet_client(self) -> Any:
        """The first turn, now that it is known who the client is."""
        raise NotImplementedError

    def check_client(self) -> Reply | None:
        """What the client, who is known now, is turned away with; None: it is let in."""
        raise NotImplementedError

    # The header

    def expects_header(self) -> bool:
        """Whether this connection has to begin with a PROXY header."""
        proxies = self.settings.proxies
        return proxies is not None and self.session.peer in proxies

    def await_header(self) -> Any:
        """The first turn of such a connection."""
        if isinstance(self.transport, TLSMemoryBIOProtocol):
            return self._refuse("the endpoint speaks TLS by itself, but the header stands before TLS; use implicit_tls")
        self._header = ProxyReader()
        self._header_call = self.callLater(
            self.settings.proxy_protocol_timeout or PROXY_TIMEOUT, self._header_took_too_long
        )
        self.read_with(self._header, self._header_has_come)
        return ANSWERED_LATER

    async def _header_has_come(self) -> Any:
        assert self._header is not None
        data = self._header.end()
        self._await_header_no_more()
        self.session.proxy_data = data
        if not data:
            return self._refuse(data.error)
        own, client = self.session.peer, data.client
        if client is not None:
            self.session.proxy_peer = own
        if "PROXY" in self.settings.hooks and not await self._lets_in(data):
            return self._refuse("handle_PROXY does not let it in")
        # Programs of old put the client's address there themselves, or another of their choice.
        if client is not None and self.session.peer == own:
            self.session.peer = client
        refusal = self.check_client()
        if refusal is not None:
            return refusal
        greeting = self.greet_client()
        return await greeting if isinstance(greeting, Awaitable) else greeting

    async def _lets_in(self, data: ProxyData) -> bool:
        """The word of ``handle_PROXY``. One that fails, or takes too long, lets nobody in."""
        try:
            return bool(await self.ask_hook("PROXY", data))
        except CancelledError:
            return False
        except Exception as error:
            self._log_failure("handle_PROXY", error)
            return False

    # Ends without a word

    def _refuse(self, why: str, cause: BaseException | None = None) -> None:
        """Tell the log why the connection ends. If this is in a turn, the turn's end closes it."""
        if self.closing:
            return
        self.cause = cause or ProxyHeaderError(why)
        peer = self.session.peer if self.session.proxy_peer is None else self.session.proxy_peer
        log.warn("{session} from {peer}: PROXY header refused: {why}", session=self.session.id, peer=str(peer), why=why)
        self._pushed = self._last_turn = True  # as if all had been said

    def _await_header_no_more(self) -> None:
        self._header = None
        if self._header_call is not None and self._header_call.active():
            self._header_call.cancel()

    def _header_took_too_long(self) -> None:
        self._await_header_no_more()
        why = "it did not come in time"
        self._refuse(why, TimeoutError(f"the PROXY header: {why}"))
        self.close()

    def _header_ended_early(self) -> None:
        if self._header is not None:
            self.session.proxy_data = self._header.end()
            self._await_header_no_more()
            self._refuse(self.session.proxy_data.error)

    def _end_of_input(self) -> None:
        self._header_ended_early()
        super()._end_of_input()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._header_ended_early()
        super().connectionLost(reason)

    def timeoutConnection(self) -> None:
        if self._header is not None:
            self._header_took_too_long()
        else:
            super().timeoutConnection()

    def leave(self) -> None:
        if self._header is not None:
            self._await_header_no_more()
            self.close()
        else:
            super().leave()

    def expel(self) -> None:
        if self._header is not None:
            self._await_header_no_more()
            self.abort()
        else:
            super().expel()
