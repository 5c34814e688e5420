"""Client endpoints for host names and for TLS that use only the reactor that is passed to them.

Twisted's endpoints make the same connections, but import the global reactor, and fail with TLS if that does not run.
This module does not depend on SMTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IAddress, IResolutionReceiver, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.loop_reactor import OwnTimeTLS

ATTEMPT_DELAY = 0.25  # seconds (RFC 8305 5)
AT_ONCE = 8  # attempts; a name with hundreds of addresses that do not answer must not use up the file descriptors


@implementer(IStreamClientEndpoint)
class HostEndpoint:
    """Connects to the first address of a host that answers ("Happy Eyeballs", RFC 8305).

    The next address is tried when an attempt has failed, or has taken 250 ms, but only a few at the same time.

    :param timeout: seconds for each attempt.
    """

    def __init__(self, reactor: Any, host: str, port: int, timeout: float) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._timeout = timeout

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect.

        :return: a Deferred of the protocol. It fails with DNSLookupError if the name is invalid or has no address, or
            with the error of the last attempt.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        try:
            self._host.encode("idna")
        except UnicodeError as error:  # Twisted's resolver would never answer
            raise DNSLookupError(f"{self._host} is not a valid name: {error}") from None
        resolution = _Resolution()
        self._reactor.nameResolver.resolveHostName(resolution, self._host, self._port)
        addresses = await resolution.complete
        if not addresses:
            raise DNSLookupError(f"{self._host} has no address")
        return await _Attempts(self._reactor, self._endpoints(addresses), factory).first

    def _endpoints(self, addresses: list[Any]) -> Iterator[Any]:
        for each in addresses:
            kind = TCP4ClientEndpoint if isinstance(each, IPv4Address) else TCP6ClientEndpoint
            yield kind(self._reactor, each.host, each.port, self._timeout)


@implementer(IResolutionReceiver)
class _Resolution:
    """Collects the addresses of a name."""

    def __init__(self) -> None:
        self.complete: Deferred[list[IAddress]] = Deferred()
        self._addresses: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Do nothing."""

    def addressResolved(self, address: IAddress) -> None:
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        if not self.complete.called:  # it was not cancelled
            self.complete.callback(self._addresses)


class _Attempts:
    """Connection attempts. The first that succeeds ends the others."""

    def __init__(self, reactor: Any, endpoints: Iterator[Any], factory: Any) -> None:
        self.first: Deferred[Any] = Deferred(self._cancelled)
        self._reactor = reactor
        self._endpoints = endpoints
        self._factory = factory
        self._pending: set[Deferred[Any]] = set()
        self._next: Any = None  # the delayed call of the next attempt
        self._over = False
        self._attempt()

    def _attempt(self) -> None:
        self._next = None
        endpoint = next(self._endpoints, None)
        if endpoint is None:
            return
        attempt = endpoint.connect(self._factory)
        self._pending.add(attempt)
        if len(self._pending) < AT_ONCE:
            self._next = self._reactor.callLater(ATTEMPT_DELAY, self._attempt)
        attempt.addBoth(self._ended, attempt)

    def _ended(self, result: Any, attempt: Deferred[Any]) -> None:
        self._pending.discard(attempt)
        if self._over:
            return  # cancelled, because another has succeeded
        if not isinstance(result, Failure):
            self._stop()
            self.first.callback(result)
            return
        if self._next is not None:
            self._next.cancel()
        self._attempt()
        if not (self._pending or self._next or self._over):
            self._over = True
            self.first.errback(result)

    def _stop(self) -> None:
        self._over = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for attempt in list(self._pending):
            attempt.cancel()

    def _cancelled(self, first: Deferred[Any]) -> None:
        self._stop()
        first.errback(ConnectingCancelledError(None))


@implementer(IStreamClientEndpoint)
class TLSEndpoint:
    """Starts TLS on the connections of another endpoint.

    :param creator: an IOpenSSLClientConnectionCreator, such as ``optionsForClientTLS(host)``.
    """

    def __init__(self, reactor: Any, creator: Any, endpoint: Any) -> None:
        self._reactor = reactor
        self._creator = creator
        self._endpoint = endpoint

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect.

        :return: a Deferred of the protocol within TLS.
        """
        connecting: Deferred[Any] = self._endpoint.connect(
            _TLSFactory(self._creator, True, protocolFactory, clock=self._reactor)
        )
        return connecting.addCallback(lambda layer: layer.wrappedProtocol)


class _TLSFactory(TLSMemoryBIOFactory):
    protocol = OwnTimeTLS
    noisy = False


def endpoint_of_uri(reactor: Any, uri: Any, timeout: float, tls_context: Any = None) -> Any:
    """Return the endpoint for a :class:`twisted.web.client.URI`.

    :param tls_context: for ``https``, instead of one that trusts the system's authorities.
    """
    host = uri.host.decode("ascii")
    endpoint = HostEndpoint(reactor, host, uri.port, timeout)
    if uri.scheme != b"https":
        return endpoint
    return TLSEndpoint(reactor, tls_context or optionsForClientTLS(host), endpoint)
