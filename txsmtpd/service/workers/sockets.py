"""Listening sockets that processes share: the master binds and keeps them, and the workers adopt them."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import AlreadyListened
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.service.adopted import AdoptedUnixSocket
from txsmtpd.service.exit_status import cannot_listen
from txsmtpd.service.listening import address_text
from txsmtpd.service.sockets import replace_stale_socket

BACKLOG = 1024  # connections that may wait to be accepted; the system may allow fewer


class KeptSocket:
    """A listening socket of which this process accepts no connections.

    :param label: the name of the endpoint in messages, such as ``--listen=tcp:25``.
    :param endpoint: where to listen.
    """

    def __init__(self, label: str, endpoint: IStreamServerEndpoint) -> None:
        self.label = label
        self.endpoint = endpoint
        self.port: Any = None

    def bind(self) -> None:
        """Bind the socket.

        :raises SystemExit: with status 71, if it cannot be bound, or if processes cannot share it.
        """
        if self.port is not None:
            return
        try:
            replace_stale_socket(self._listen)
        except Exception as error:
            raise cannot_listen(self.label, error) from None

    def _listen(self) -> None:
        found: list[Any] = []
        self.endpoint.listen(MasterFactory()).addBoth(found.append)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        port = found[0]
        port.stopReading()  # at once, so that this process accepts no connection
        port.socket.listen(BACKLOG)
        port._shouldShutdown = False  # closing it here must not shut it down for the workers
        self.port = port

    @property
    def descriptor(self) -> int:
        descriptor: int = self.port.fileno()
        return descriptor

    @property
    def address(self) -> str:
        """The address as text, such as ``127.0.0.1:25``."""
        return address_text(self.port.getHost())

    @property
    def is_unix(self) -> bool:
        return isinstance(self.port.getHost(), UNIXAddress)

    def close(self) -> Any:
        """Close the socket in this process. Clients are refused when the workers have closed it, too.

        :return: a Deferred or None.
        """
        port, self.port = self.port, None
        return None if port is None else port.stopListening()


class MasterFactory(Factory):
    """The factory of the master's ports, which never accept a connection. Twisted logs its name."""

    noisy = False


@implementer(IStreamServerEndpoint)
class InheritedSocket:
    """Listens on a socket that this process has inherited.

    :param descriptor: of the socket. It is closed when the endpoint listens.
    """

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor: int | None = descriptor

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return execute(_raise, AlreadyListened())
        duplicate = socket.socket(fileno=os.dup(descriptor))
        family = duplicate.family
        duplicate.close()
        if family == socket.AF_UNIX:
            return AdoptedUnixSocket(self._reactor, descriptor).listen(protocolFactory)
        os.set_blocking(descriptor, False)
        port = self._reactor.adoptStreamPort(descriptor, family, protocolFactory)
        os.close(descriptor)
        return execute(lambda: port)


def _raise(error: Exception) -> Any:
    raise error
