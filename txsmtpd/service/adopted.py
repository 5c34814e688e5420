"""Listens on sockets opened by another process, such as systemd, without changing or removing them.

Twisted's port for an adopted Unix socket changes the mode of its path, shuts the socket down for all processes that
share it, and removes the path when it stops. That is right only for a socket that the process has created itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from twisted.internet import fdesc
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import AlreadyListened
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

DOMAINS = ("INET", "INET6", "UNIX")


def systemd_endpoint(reactor: Any, description: str, environ: Mapping[str, str] = os.environ) -> IStreamServerEndpoint:
    """Return the endpoint for a description such as ``systemd:domain=UNIX:name=lmtp``.

    :raises ValueError: if systemd has passed no such socket to this process, one of another domain, or one on which no
        clients can be accepted.
    """
    from twisted.internet.endpoints import serverFromString

    try:
        endpoint: Any = serverFromString(reactor, description)
    except AttributeError:
        raise ValueError(f"domain must be {', '.join(DOMAINS[:-1])} or {DOMAINS[-1]}") from None
    except (TypeError, ValueError):  # the index is not a number
        raise ValueError("write systemd:domain=INET6:name=NAME, or systemd:domain=INET6:index=0") from None
    except (IndexError, KeyError):
        raise ValueError(f"systemd has passed no such socket; {_passed(environ)}") from None
    found = _family_of(endpoint.fileno)
    if found != endpoint.addressFamily:
        known = found is not None and found.name.removeprefix("AF_")
        what = f"a socket of domain {known}" if known else "no socket"
        raise ValueError(f"systemd has passed {what}")
    if not _is_listening(endpoint.fileno):
        raise ValueError(
            "systemd has passed a socket that does not listen; the socket unit needs ListenStream=, and no Accept=yes"
        )
    if found == getattr(socket, "AF_UNIX", None):
        return AdoptedUnixSocket(reactor, endpoint.fileno)
    adopted: IStreamServerEndpoint = endpoint
    return adopted


def _passed(environ: Mapping[str, str]) -> str:
    names = environ.get("LISTEN_FDNAMES")
    if names:
        return f"LISTEN_FDNAMES has {names.replace(':', ', ')}, for process {environ.get('LISTEN_PID', os.getpid())}"
    return (
        "it sets LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID in the environment of a service that has sockets,"
        " and all three are needed"
    )


def _family_of(descriptor: int) -> socket.AddressFamily | None:
    try:
        duplicate = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None
    with duplicate:
        return socket.AddressFamily(duplicate.family)


def _is_listening(descriptor: int) -> bool:
    """Return True if a descriptor is a listening socket. A datagram socket and a client's connection are not."""
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return bool(duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@implementer(IStreamServerEndpoint)
class AdoptedUnixSocket:
    """Listens on an open Unix socket. The mode and the path of the socket do not change, even when the port stops.

    :param fileno: the descriptor of the socket. It is closed when the endpoint listens; the port has a duplicate.
    """

    def __init__(self, reactor: Any, fileno: int) -> None:
        self.fileno = fileno
        self._reactor = reactor
        self._used = False

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        if self._used:
            raise AlreadyListened()
        self._used = True
        fdesc.setNonBlocking(self.fileno)
        port = _port_class()._fromListeningDescriptor(self._reactor, self.fileno, factory)
        os.close(self.fileno)
        port.startListening()
        adopted: IListeningPort = port
        return adopted


def _port_class() -> Any:
    from twisted.internet import unix  # not available on Windows

    class AdoptedPort(unix.Port):
        _shouldShutdown = False  # other processes may listen on the socket, too

        def startListening(self) -> None:
            # Make it look like an abstract socket, so that Twisted neither changes its mode nor removes its file.
            self._bindPath = b"\0" + self._bindPath
            self.backlog = socket.SOMAXCONN  # as systemd sets it; Twisted's default would reduce it
            super().startListening()

    return AdoptedPort
