"""Servers for programs that are not Twisted: begun and ended by plain calls.

A :class:`Controller` listens in the reactor's thread, which it starts if there is none, and its methods wait until it
does. Names and arguments are those of aiosmtpd's module of this name.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import warnings
from dataclasses import replace
from typing import Any, Self

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from txsmtpd.bridges.reactor_thread import (
    ReactorHold,
    ReactorThreadError,
    has_reactor,
    hold_reactor,
    loop_of_reactor,
    reactor_in_loop,
    refuse_other_thread,
    refuse_reactor_thread,
)
from txsmtpd.factory import SMTPFactory
from txsmtpd.service.sockets import in_place_of_the_dead
from txsmtpd.smtp import SMTP

__all__ = [
    "IP6_IS",
    "BaseController",
    "BaseThreadedController",
    "BaseUnthreadedController",
    "Controller",
    "InetMixin",
    "Server",
    "UnixSocketController",
    "UnixSocketMixin",
    "UnixSocketUnthreadedController",
    "UnthreadedController",
    "get_localhost",
]

DEFAULT_READY_TIMEOUT = 5.0  # seconds
FAREWELL = 0.2  # seconds that a stopped server's clients have to close their side, until they are cut off
FACTORY_OPTIONS = ("connection_limit", "connection_limit_per_host")


class IP6_IS:
    """What the system says when ``::1`` is bound: what means that there is no IPv6, and what means that there is."""

    NO = frozenset([errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
    YES = frozenset([errno.EADDRINUSE])


def get_localhost() -> str:
    """The address of this host that only this host can reach: ``::1`` where there is IPv6, else ``127.0.0.1``.

    :raises OSError: if the system says something unexpected.
    """
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        if error.errno in IP6_IS.NO:
            return "127.0.0.1"
        if error.errno not in IP6_IS.YES:
            raise
    return "::1"


class Server:
    """What listens, and the connections that it has taken. Used in the reactor's thread, but for :attr:`sockets`."""

    def __init__(self, reactor: Any, factory: SMTPFactory, ports: list[Any]) -> None:
        self._reactor = reactor
        self.factory = factory
        self.ports: list[IListeningPort] = ports

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The sockets that listen; ``sockets[0].getsockname()`` tells the address."""
        return tuple(port.socket for port in self.ports)  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Listen no more, and end all connections, whatever they do."""
        ports, self.ports = self.ports, []
        await DeferredList([maybeDeferred(port.stopListening) for port in ports])
        if self.factory.connections:
            self.factory.abort()
            ended = self.factory.drain()
            # TLS ends when both sides have said so, and the client may be the very thread that waits for this.
            deadline = self._reactor.callLater(FAREWELL, self.factory.abort)
            await ended
            if deadline.active():
                deadline.cancel()


class BaseController:
    """What all controllers have in common.

    :param handler: the object whose hooks decide; see :mod:`txsmtpd.interfaces`.
    :param loop: of no effect but for those that are not threaded. The attribute of this name is the loop of the reactor
        once the server has been started, if it is made of one.
    :param ssl_context: with it, connections begin with TLS. What ``tls_context`` takes.
    :param server_hostname: the server's name, for the option *hostname*.
    :param server_kwargs: options, in the way of old.
    :param SMTP_parameters: the options of :class:`~txsmtpd.factory.SMTPFactory`. *enable_SMTPUTF8* is True by default.
    :raises TypeError: for an unknown option, or one of a wrong type.
    :raises ValueError: for an option whose value will not do.
    """

    def __init__(
        self,
        handler: object,
        loop: Any = None,
        *,
        ssl_context: Any = None,
        server_hostname: str | None = None,
        server_kwargs: dict[str, Any] | None = None,
        **SMTP_parameters: Any,
    ) -> None:
        if server_kwargs is not None:
            warnings.warn("server_kwargs is of the old days; give its members as keywords", DeprecationWarning, 4)
        self.handler = handler
        self.loop = loop
        self.ssl_context = ssl_context
        options = {"enable_SMTPUTF8": True, **(server_kwargs or {}), **SMTP_parameters}
        if server_hostname is not None:
            options["hostname"] = server_hostname
        if ssl_context is not None:
            options |= {"tls_context": ssl_context, "implicit_tls": True}
        self._protocol: type[SMTP] = options.pop("protocol", SMTP)
        self._limits = {name: options.pop(name) for name in FACTORY_OPTIONS if name in options}
        self.SMTP_kwargs: dict[str, Any] = options  #: the options that :meth:`factory` gives to the protocol
        self.smtpd: Any = None  #: the protocol that was made last
        self.server: Server | None = None  #: what listens; None while nothing does
        self._make_factory({})  # what is wrong with the options is said now

    def factory(self) -> Any:
        """Make the protocol of a connection. Override it to make another; called once when the server starts, too.

        :return: an :class:`~txsmtpd.smtp.SMTP`, most often a subclass of it, given ``self.handler`` and
            ``**self.SMTP_kwargs``.
        """
        return self._protocol(self.handler, **self.SMTP_kwargs)

    # From the options to a factory

    @property
    def _has_own_factory(self) -> bool:
        return getattr(self.factory, "__func__", None) is not BaseController.factory

    def _make_factory(self, defaults: dict[str, Any]) -> SMTPFactory:
        """The factory, whose protocols :meth:`factory` makes if it was overridden."""
        if not self._has_own_factory:
            factory = SMTPFactory(
                self.handler, protocol=self._protocol, **self._limits, **{**defaults, **self.SMTP_kwargs}
            )
        else:
            # The options are its own affair, and may be others than ours.
            factory = SMTPFactory(self.handler, **self._limits)
        make = factory.protocol

        def remember(handler: object, *, settings: Any) -> SMTP:
            self.smtpd = self._made(defaults) if self._has_own_factory else make(handler, settings=settings)
            return self.smtpd  # type: ignore[no-any-return]

        factory.protocol = remember
        return factory

    def _made(self, defaults: dict[str, Any]) -> SMTP:
        protocol = self.factory()
        if protocol is None:
            raise RuntimeError("factory() returned None")
        if not isinstance(protocol, SMTP):
            raise TypeError(f"factory() must return an SMTP, not {protocol!r}")
        settings = protocol.settings
        # What belongs to the controller, whether or not its options were passed on.
        wanted = {name: value for name, value in defaults.items() if not getattr(settings, name)}
        if self.ssl_context is not None and not settings.implicit_tls:
            wanted |= {"tls_context": self.ssl_context, "implicit_tls": True}
        if wanted:
            protocol.settings = replace(settings, **wanted)
        return protocol

    # Listening

    def _listen(self, reactor: Any) -> Server:
        """Listen. Called in the reactor's thread.

        :raises OSError: if the address cannot be bound.
        """
        # Where the reactor is asyncio's, coroutines may expect that they are tasks.
        factory = self._make_factory({"asyncio": True} if loop_of_reactor(reactor) else {})
        factory.protocol(self.handler, settings=factory.settings)
        try:
            return Server(reactor, factory, self._bind(reactor, factory))
        except CannotListenError as error:
            raise _os_error(error) from None

    def _bind(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        raise NotImplementedError("a controller needs a mixin that says where to listen")


def _os_error(error: CannotListenError) -> OSError:
    # The attributes are typed for the Internet; a Unix socket's path is octets.
    interface: Any = error.interface
    port: Any = error.port
    where = os.fsdecode(port) if isinstance(port, bytes) else f"{interface or '*'} port {port}"
    cause: Any = error.socketError
    number = getattr(cause, "errno", None) or errno.EADDRINUSE
    return OSError(number, f"cannot listen on {where}: {getattr(cause, 'strerror', None) or cause}")


# Where they listen


class InetMixin(BaseController):
    """Listens on TCP.

    :param hostname: a name or an address; the server listens on all addresses that it stands for. None: the one of
        :func:`get_localhost`. Empty: all addresses of this host.
    :param port: 0 for any that is free.
    """

    def __init__(
        self, handler: object, hostname: str | None = None, port: int = 8025, loop: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.hostname = get_localhost() if hostname is None else hostname
        self._wanted_port = port

    @property
    def port(self) -> int:
        """The port. If 0 was asked for, the real one while the server listens."""
        if self.server is not None and self.server.ports:
            return int(self.server.ports[0].getHost().port)  # type: ignore[attr-defined]
        return self._wanted_port

    @port.setter
    def port(self, port: int) -> None:
        self._wanted_port = port

    def _bind(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        ports: list[Any] = []
        number = self._wanted_port
        try:
            for address in _addresses(self.hostname):
                ports.append(reactor.listenTCP(number, factory, interface=address))
                number = ports[0].getHost().port
        except BaseException:
            for port in ports:
                port.stopListening()
            raise
        return ports


def _addresses(hostname: str) -> list[str]:
    if not hostname:
        # A socket of IPv6 takes IPv4 as well.
        return ["::" if get_localhost() == "::1" else "0.0.0.0"]
    found = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class UnixSocketMixin(BaseController):
    """Listens on a Unix socket.

    :param unix_socket: its path. What a server has left there that is gone is removed.
    :param mode: who may connect, as the permissions of the socket's file.
    """

    def __init__(
        self,
        handler: object,
        unix_socket: str | os.PathLike[str],
        loop: Any = None,
        *,
        mode: int = 0o600,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.unix_socket = os.fspath(unix_socket)
        self.mode = mode

    def _bind(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        ports: list[Any] = []
        in_place_of_the_dead(
            lambda: ports.append(reactor.listenUNIX(self.unix_socket, factory, mode=self.mode)),
        )
        return ports


# Whose thread they run in


class BaseThreadedController(BaseController):
    """Runs the server in the reactor's thread.

    :param ready_timeout: seconds that :meth:`start` may take.

    It is a context manager: it listens within the block. It may be started again once it was stopped.
    """

    def __init__(self, *args: Any, ready_timeout: float = DEFAULT_READY_TIMEOUT, **kwargs: Any) -> None:
        self._held: ReactorHold | None = None
        self._changing = threading.RLock()  # two threads may both want it started, or stopped
        self.ready_timeout = ready_timeout
        super().__init__(*args, **kwargs)

    def start(self) -> None:
        """Listen.

        :raises AssertionError: if it does already.
        :raises OSError: if the address cannot be bound.
        :raises TimeoutError: if the reactor is kept from it for *ready_timeout*.
        :raises ReactorThreadError: if this is the reactor's own thread, which cannot wait for itself.
        :raises Exception: what :meth:`factory` raises.
        """
        refuse_reactor_thread()
        with self._changing:
            self._start()

    def _start(self) -> None:
        if self._held is not None:
            raise AssertionError("SMTP daemon already running")
        held = hold_reactor()
        try:
            self.server = held.run(self._listen, held.reactor, timeout=self.ready_timeout)
        except BaseException:
            held.release()
            raise
        self._held = held
        # Where other threads call coroutines of the handler's: asyncio.run_coroutine_threadsafe(work, controller.loop).
        self.loop = loop_of_reactor(held.reactor) or self.loop

    def stop(self, no_assert: bool = False) -> None:
        """Listen no more, and end all connections. When this returns they are gone, and the port is free.

        :param no_assert: whether it may be stopped already.
        :raises AssertionError: if it is.
        :raises ReactorThreadError: if this is the reactor's own thread, which cannot wait for itself.
        """
        if self._held is not None:
            refuse_reactor_thread()
        with self._changing:
            self._stop(no_assert)

    def _stop(self, no_assert: bool) -> None:
        held, server = self._held, self.server
        if held is None or server is None:
            if no_assert:
                return
            raise AssertionError("SMTP daemon not running")
        try:
            held.run(server.close)
        except ReactorThreadError:
            if held.running:
                raise
            # The reactor has ended, and all its connections with it.
        self._held = self.server = None
        held.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(no_assert=True)


class BaseUnthreadedController(BaseController):
    """Runs the server in the caller's thread, where the program runs the reactor, or an asyncio loop.

    :param loop: the asyncio loop, if it is to be that. Default: the one that runs when :meth:`begin` is called, or else
        a new one, if the program has no reactor.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ended = threading.Event()  #: set once the server has ended
        super().__init__(*args, **kwargs)

    def begin(self) -> None:
        """Listen. The server works while the reactor, or the loop, runs.

        :raises OSError: if the address cannot be bound.
        :raises ReactorThreadError: if the reactor runs in another thread, or is not that of *loop*.
        """
        if self.server is not None:
            raise AssertionError("SMTP daemon already running")
        if self.loop is None and has_reactor():
            from twisted.internet import reactor

            refuse_other_thread(reactor)
            self.server = self._listen(reactor)
        else:
            reactor = reactor_in_loop(self.loop)
            self.loop = loop_of_reactor(reactor)
            self.server = self._listen(reactor)
        self.ended.clear()

    def finalize(self) -> Any:
        """Listen no more, and end all connections.

        :return: to be awaited: in an asyncio task a future, else a Deferred.
        """
        server, self.server = self.server, None
        closed: Deferred[Any] = Deferred.fromCoroutine(server.close() if server is not None else _nothing())
        closed.addBoth(self._set_ended)
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        return closed if task is None else closed.asFuture(task.get_loop())

    def end(self) -> None:
        """Do what :meth:`finalize` does: at once if the loop does not run now, else while it goes on running."""
        closed = self.finalize()
        if self.loop is not None and not self.loop.is_running():
            self.loop.run_until_complete(closed.asFuture(self.loop))

    def _set_ended(self, result: Any) -> Any:
        self.ended.set()
        return result


async def _nothing() -> None:
    """What there is to end of a server that was not begun."""


class Controller(InetMixin, BaseThreadedController):
    """A server on TCP, for a program that is not Twisted.

    ::

        with Controller(handler, port=0) as controller:
            client = smtplib.SMTP(controller.hostname, controller.port)
    """


class UnixSocketController(UnixSocketMixin, BaseThreadedController):
    """A server on a Unix socket, for a program that is not Twisted."""


class UnthreadedController(InetMixin, BaseUnthreadedController):
    """A server on TCP, in the thread of a program that runs the reactor or an asyncio loop."""


class UnixSocketUnthreadedController(UnixSocketMixin, BaseUnthreadedController):
    """A server on a Unix socket, in the thread of a program that runs the reactor or an asyncio loop."""
