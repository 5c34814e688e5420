"""Servers for programs that do not use Twisted, with methods to start and stop them. They are in one file, as in
aiosmtpd, and share most of their code.

Each :class:`Controller` has an event loop, a reactor on it, and a thread that runs them; its hooks run there as asyncio
tasks. An :class:`UnthreadedController` uses a loop of the program. Names and arguments are those of the module with the
same name in aiosmtpd.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from dataclasses import replace
from typing import Any, Self, Unpack

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from txsmtpd.bridges.asyncio_bridge import to_awaitable
from txsmtpd.bridges.loop_reactor import LoopReactor
from txsmtpd.bridges.reactor_thread import ReactorThread, ReactorThreadError
from txsmtpd.bridges.reactors import (
    current_reactor,
    global_reactor,
    has_reactor,
    loop_of_reactor,
    reactor_of_loop,
    runs_here,
)
from txsmtpd.factory import SMTPFactory
from txsmtpd.log.warning import warn_program
from txsmtpd.service.sockets import replace_stale_socket
from txsmtpd.settings import check_names, want_number
from txsmtpd.smtp import SMTP
from txsmtpd.typed import ControllerOptions, FactoryOptions, UnixSocketControllerOptions

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
STOPPING = 1.0  # seconds to wait for the thread after a start that took too long
BACKLOG = 50  # connections waiting to be accepted
# Programs that use a controller send mail to themselves, or receive it from devices. See the options' documentation.
DEFAULTS = {"enable_SMTPUTF8": True, "bare_newlines": True, "lenient_addresses": True}
TOLERANT = ("bare_newlines", "lenient_addresses")  # also of a protocol that an overridden factory() makes
FACTORY_OPTIONS = ("connection_limit", "connection_limit_per_host")


class IP6_IS:
    """Error numbers from binding ``::1``: those that mean that IPv6 is missing, and those that mean it exists."""

    NO = frozenset([errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
    YES = frozenset([errno.EADDRINUSE])


def get_localhost() -> str:
    """Return the loopback address: ``::1`` if the system has IPv6, else ``127.0.0.1``.

    :raises OSError: if the test fails with an unexpected error.
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


class Server(asyncio.Server):
    """The listening ports and their connections. Programs may test whether it is an ``asyncio.Server``.

    Use it in the thread of its loop, except for :attr:`sockets`.
    """

    def __init__(self, reactor: Any, factory: SMTPFactory, ports: list[Any]) -> None:
        self._reactor = reactor
        self.factory = factory
        self.ports: list[IListeningPort] = ports
        self._closings: list[Deferred[Any]] = []
        self._forever: Deferred[None] | None = None  # while serve_forever() waits
        self._held = isinstance(reactor, LoopReactor)
        if self._held:
            reactor.hold()

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets; ``sockets[0].getsockname()`` returns the address."""
        return tuple(port.socket for port in self.ports)  # type: ignore[attr-defined]

    def get_loop(self) -> Any:
        """Return the loop of the server, or None if its reactor has none."""
        return loop_of_reactor(self._reactor)

    def is_serving(self) -> bool:
        """Return True if the server is listening."""
        return bool(self.ports)

    async def start_serving(self) -> None:
        """Do nothing: it is already listening."""

    async def serve_forever(self) -> None:
        """Serve until this is cancelled or :meth:`close` is called, then close all connections.

        :raises asyncio.CancelledError: always.
        :raises RuntimeError: if something else already waits for it.
        """
        if self._forever is not None:
            raise RuntimeError("serve_forever() is already running")
        self._forever = forever = Deferred[None]()
        try:
            await to_awaitable(forever)
        finally:
            self._forever = None
            await self.end()

    def close(self) -> None:
        """Stop listening. Connections stay open."""
        ports, self.ports = self.ports, []
        self._closings += [maybeDeferred(port.stopListening) for port in ports]
        forever, self._forever = self._forever, None
        if forever is not None:
            forever.errback(asyncio.CancelledError())

    def wait_closed(self) -> Any:
        """Return an awaitable that is done when the ports are free."""
        closings, self._closings = self._closings, []
        return to_awaitable(DeferredList(closings))

    def close_clients(self) -> None:
        """Close all connections with 421: idle ones now, the others when their transaction is over."""
        self.factory.drain()

    def abort_clients(self) -> None:
        """Close all connections now, whatever they are doing."""
        for connection in list(self.factory.connections):
            connection.transport.abortConnection()

    def end(self) -> Any:
        """Stop listening, and close all connections now.

        :return: an awaitable.
        """
        return to_awaitable(Deferred.fromCoroutine(self._end()))

    async def _end(self) -> None:
        self.close()
        await DeferredList(self._closings)
        # Clients see the connection close, as with any asyncio server, without an unexpected reply.
        self.abort_clients()
        await self.factory.drain()
        held, self._held = self._held, False
        if held:
            self._reactor.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()
        await self.wait_closed()


async def _end(server: Any) -> None:
    """Stop the server that :meth:`BaseController._create_server` has returned."""
    if isinstance(server, Server):
        await server.end()
    elif server is not None:
        server.close()
        await server.wait_closed()


class BaseController:
    """The common base class of controllers.

    :param handler: the object with the hooks; see :mod:`txsmtpd.interfaces`.
    :param loop: the asyncio loop to use. Default: a new one.
    :param ssl_context: enables implicit TLS; any value that ``tls_context`` accepts.
    :param server_hostname: the server's name, for the option *hostname*.
    :param server_kwargs: deprecated: more options.
    :param sock: a bound socket to listen on. The server uses a duplicate, so the program must close it.
    :param SMTP_parameters: the options of :class:`~txsmtpd.factory.SMTPFactory`. *enable_SMTPUTF8*,
        *bare_newlines* and *lenient_addresses* are True by default.
    :raises TypeError: if an option is unknown or has a wrong type.
    :raises ValueError: if an option has an invalid value.
    """

    def __init__(
        self,
        handler: object,
        loop: Any = None,
        *,
        ssl_context: Any = None,
        server_hostname: str | None = None,
        server_kwargs: dict[str, Any] | None = None,
        sock: socket.socket | None = None,
        **SMTP_parameters: Unpack[FactoryOptions],
    ) -> None:
        if server_kwargs is not None:
            warn_program("server_kwargs is deprecated; pass its items as keyword arguments", DeprecationWarning)
        if not self._has_own_factory:  # it may have options of its own
            classes = [each for each in type(self).__mro__ if "__init__" in vars(each) and each is not object]
            check_names(SMTP_parameters, *(vars(each)["__init__"] for each in classes), SMTPFactory)
        self.handler = handler
        self._loop: asyncio.AbstractEventLoop | None = loop
        self.ssl_context = ssl_context
        self.sock = sock
        options = {**DEFAULTS, **(server_kwargs or {}), **SMTP_parameters}
        if server_hostname is not None:
            options["hostname"] = server_hostname
        if ssl_context is not None:
            options |= {"tls_context": ssl_context, "implicit_tls": True}
        self._protocol: type[SMTP] = options.pop("protocol", SMTP)
        self._limits = {name: options.pop(name) for name in FACTORY_OPTIONS if name in options}
        self.SMTP_kwargs: dict[str, Any] = options  #: the options that :meth:`factory` passes to the protocol
        self.smtpd: Any = None  #: the last protocol made
        self.server: Any = None  #: the :class:`Server`, or None while not listening
        self.server_coro: Any = None  #: the awaitable from :meth:`_create_server`
        self._made_for: tuple[Any, SMTPFactory] | None = None  # a reactor and its factory
        try:
            settings = self._make_factory({}).settings  # raises now if the options are invalid
        except (TypeError, ValueError):
            if not server_kwargs:
                raise
            return  # programs that pass options in this way expect the exception from start()
        if settings.mechanisms and settings.auth_require_tls and settings.tls_context is None:
            warn_program(
                "AUTH is never offered: auth_require_tls is on, and there is no TLS; give tls_context or ssl_context,"
                " or auth_require_tls=False"
            )

    def factory(self) -> Any:
        """Make the protocol of a connection. Override it to make another one. It is also called once at start.

        :return: an :class:`~txsmtpd.smtp.SMTP` or an instance of a subclass, made with ``self.handler`` and
            ``**self.SMTP_kwargs``.
        """
        return self._protocol(self.handler, **self.SMTP_kwargs)

    # From the options to a factory

    @property
    def _has_own_factory(self) -> bool:
        return getattr(self.factory, "__func__", None) is not BaseController.factory

    def _make_factory(self, defaults: dict[str, Any]) -> SMTPFactory:
        """Make the factory. If :meth:`factory` is overridden, it makes the factory's protocols."""
        if not self._has_own_factory:
            factory = SMTPFactory(
                self.handler,
                protocol=self._protocol,
                strict_handler=False,  # the handler may come from a program written for aiosmtpd
                **self._limits,
                **{**defaults, **self.SMTP_kwargs},
            )
        else:
            # It has its own options, which may differ from ours.
            factory = SMTPFactory(self.handler, strict_handler=False, **self._limits)
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
        # Options of the controller, which apply even if the protocol did not get them.
        wanted = {name: value for name, value in defaults.items() if not getattr(settings, name)}
        if protocol._given is not None:
            wanted |= {name: True for name in TOLERANT if name not in protocol._given}
        if self.ssl_context is not None and not settings.implicit_tls:
            wanted |= {"tls_context": self.ssl_context, "implicit_tls": True}
        if wanted:
            protocol.settings = replace(settings, **wanted)
            protocol._choose_parsers()
        return protocol

    # Listening

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the server, in which hooks run."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def _create_server(self) -> Any:
        """Listen. Await it in the loop. Overrides may return an ``asyncio.Server`` made with :meth:`_factory_invoker`.

        :raises OSError: if the address cannot be bound.
        """
        return self._listen()

    async def _listen(self, reactor: Any = None) -> Server:
        of_loop = reactor is None
        if of_loop:
            reactor = current_reactor()
        factory = self._factory_for(reactor)
        factory.protocol(self.handler, settings=factory.settings)
        if of_loop:
            await asyncio.sleep(0)  # the caller may have given up while the factory was made
        try:
            return Server(reactor, factory, self._ports(reactor, factory))
        except CannotListenError as error:
            raise _os_error(error) from None

    def _factory_for(self, reactor: Any) -> SMTPFactory:
        if self._made_for is None or self._made_for[0] is not reactor:
            # With an asyncio reactor, coroutines may expect to run as tasks.
            loop = loop_of_reactor(reactor)
            defaults = {} if loop is None else {"asyncio": loop, "reactor": reactor}
            self._made_for = reactor, self._make_factory(defaults)
        return self._made_for[1]

    def _factory_invoker(self) -> Any:
        """Make the protocol of a connection that an ``asyncio.Server`` has accepted."""
        return self._factory_for(current_reactor()).buildProtocol(None)

    def _cleanup(self) -> None:
        """Discard the state of a stopped server."""
        self.server = self.server_coro = self.smtpd = self._made_for = None

    def cancel_tasks(self, stop_loop: bool = True) -> None:
        """Cancel all tasks of the loop. Call it in its thread: ``loop.call_soon_threadsafe(c.cancel_tasks)``.

        :param stop_loop: also stop the loop, which stops the server.
        """
        if stop_loop:
            self.loop.stop()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    def _ports(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        if self.sock is None:
            return self._bind(reactor, factory)
        self.sock.setblocking(False)
        self.sock.listen(BACKLOG)
        return [reactor.adoptStreamPort(self.sock.fileno(), self.sock.family, factory)]

    def _bind(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        raise NotImplementedError("a controller needs a mixin that says where to listen")


def _os_error(error: CannotListenError) -> OSError:
    # The attributes are typed for the Internet; a Unix socket's path is octets.
    interface: Any = error.interface
    port: Any = error.port
    where = os.fsdecode(port) if isinstance(port, bytes) else f"{interface or '*'} port {port}"
    cause: Any = error.socketError
    number = getattr(cause, "errno", None) or errno.EADDRINUSE
    why = getattr(cause, "strerror", None) or cause
    return OSError(number, f"error while attempting to bind on address {where}: {why}")  # as asyncio says it


# Where to listen


class InetMixin(BaseController):
    """Listens on TCP.

    :param hostname: a name or an address; the server listens on all addresses of the name. None: that of
        :func:`get_localhost`. Empty: all addresses of this host.
    :param port: the port; 0 for any free one. A string of digits, as from the environment, is a number, too.
    :raises TypeError: if the hostname or the port has a wrong type.
    """

    def __init__(
        self,
        handler: object,
        hostname: str | None = None,
        port: int | str = 8025,
        loop: Any = None,
        **kwargs: Unpack[ControllerOptions],
    ) -> None:
        options: dict[str, Any] = {**kwargs}
        super().__init__(handler, loop, **options)
        if self.sock is not None:
            hostname, port = self.sock.getsockname()[:2]
        if not isinstance(hostname, str | None):
            raise TypeError(f"hostname must be a string or None, not {hostname!r}")
        self.hostname = get_localhost() if hostname is None else hostname
        self.port = port

    @property
    def port(self) -> int:
        """The port. If 0 was requested, the actual port while the server listens."""
        sockets = () if self.server is None else self.server.sockets
        return int(sockets[0].getsockname()[1]) if sockets else self._wanted_port

    @port.setter
    def port(self, port: int | str) -> None:
        number = int(port) if isinstance(port, str) and port.isdecimal() else port
        want_number("port", number, int)
        self._wanted_port = int(number)

    def _bind(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        ports: list[Any] = []
        number = self._wanted_port
        missing: CannotListenError | None = None
        for address in _addresses(self.hostname):
            try:
                ports.append(reactor.listenTCP(number, factory, interface=address))
            except CannotListenError as error:
                if getattr(error.socketError, "errno", None) not in IP6_IS.NO:
                    for port in ports:
                        port.stopListening()
                    raise
                missing = error  # the name has an address that this host does not have, usually ::1
            else:
                number = ports[0].getHost().port
        if missing is not None and not ports:
            raise missing
        return ports


def _addresses(hostname: str) -> list[str]:
    if not hostname:
        # An IPv6 socket accepts IPv4 connections too.
        return ["::" if get_localhost() == "::1" else "0.0.0.0"]
    found = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class UnixSocketMixin(BaseController):
    """Listens on a Unix socket.

    :param unix_socket: its path. A stale socket of an earlier server is removed.
    :param mode: the permissions of the socket's file, which decide who may connect.
    """

    def __init__(
        self,
        handler: object,
        unix_socket: str | os.PathLike[str],
        loop: Any = None,
        *,
        mode: int = 0o600,
        **kwargs: Unpack[UnixSocketControllerOptions],
    ) -> None:
        options: dict[str, Any] = {**kwargs}
        super().__init__(handler, loop, **options)
        self.unix_socket = os.fspath(unix_socket)
        self.mode = mode

    def _bind(self, reactor: Any, factory: SMTPFactory) -> list[Any]:
        ports: list[Any] = []
        replace_stale_socket(
            lambda: ports.append(reactor.listenUNIX(self.unix_socket, factory, mode=self.mode)),
        )
        return ports


# In which thread to run


class BaseThreadedController(BaseController):
    """Runs the server in a separate thread.

    :param ready_timeout: maximum time in seconds for :meth:`start`; the environment variable
        ``AIOSMTPD_CONTROLLER_TIMEOUT`` has precedence.

    It is a context manager that listens within the block. After a stop it may be started again, unless a loop was
    passed to it, since that is closed.
    """

    _thread: threading.Thread | None = None  # also after a failed start, until stop()
    _thread_exception: BaseException | None = None  # the reason of the failure

    def __init__(self, *args: Any, ready_timeout: float = DEFAULT_READY_TIMEOUT, **kwargs: Any) -> None:
        self._runner: ReactorThread | None = None
        self._changing = threading.RLock()  # two threads may start or stop it at the same time
        self.ready_timeout = float(os.environ.get("AIOSMTPD_CONTROLLER_TIMEOUT", ready_timeout))
        super().__init__(*args, **kwargs)
        self._given_loop = self._loop is not None

    def start(self) -> None:
        """Start listening.

        :raises AssertionError: if it is already listening.
        :raises OSError: if the address cannot be bound.
        :raises TimeoutError: if it takes longer than *ready_timeout*. Then the server is stopped again.
        :raises RuntimeError: if the loop that was passed is closed, or already running.
        :raises Exception: any exception that :meth:`factory` raises.
        """
        with self._changing:
            if self._thread is not None and self._thread.is_alive():
                raise AssertionError("SMTP daemon already running")
            if not self._given_loop and self._loop is not None and self._loop.is_closed():
                self._loop = None
            serving: list[Any] = []  # the server of this start, even if other threads act meanwhile

            async def begin() -> None:
                self.server_coro = self._create_server()
                serving.append(await self.server_coro)

            async def finish() -> None:
                for server in serving:
                    await _end(server)

            self._runner = runner = ReactorThread(self.loop, finish)
            runner.start()
            self._thread = runner.thread
            try:
                runner.run(begin, timeout=self.ready_timeout)
                (self.server,) = serving
                self._trigger_server()
            except BaseException as error:
                # After a timeout something may block the thread for ever, so do not wait long for it.
                runner.stop(STOPPING if isinstance(error, TimeoutError) else None)
                self._runner = None
                self._cleanup()
                self._thread_exception = error
                raise

    def _trigger_server(self) -> None:
        """Called when the server listens, in the thread of :meth:`start`."""

    def stop(self, no_assert: bool = False) -> None:
        """Stop listening, and close all connections. When it returns, they are closed and the port is free.

        :param no_assert: allow the server to be stopped already.
        :raises AssertionError: if it is already stopped, unless :meth:`start` has failed.
        :raises ReactorThreadError: if called in the server's own thread, which cannot wait for itself.
        """
        if self._runner is not None:
            self._runner.require_other_thread()
        with self._changing:
            if self._thread is not None:
                self._end()
            elif not no_assert:
                raise AssertionError("SMTP daemon not running")

    def _end(self) -> None:
        if self._runner is not None:
            self._runner.stop()
        self._thread = self._runner = self._thread_exception = None
        self._cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(no_assert=True)


class BaseUnthreadedController(BaseController):
    """Runs the server in the caller's thread, in which the program runs an asyncio loop or the reactor.

    :param loop: the asyncio loop. Default: the running one; else, in a program that uses Twisted, only the reactor;
        else a new loop.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ended = threading.Event()  #: set once the server has ended
        super().__init__(*args, **kwargs)
        if self._loop is None:
            self._loop = asyncio._get_running_loop()

    def begin(self) -> None:
        """Start listening. The server works while the loop or the reactor runs.

        :raises AssertionError: if it is already listening.
        :raises OSError: if the address cannot be bound.
        :raises ReactorThreadError: if the loop or the reactor runs in another thread.
        """
        if self.server is not None:
            raise AssertionError("SMTP daemon already running")
        running = asyncio._get_running_loop()
        if self._loop is None and running is None and has_reactor():
            reactor = global_reactor()
            if reactor.running and not runs_here(reactor):
                raise ReactorThreadError("the reactor runs in another thread; use a threaded Controller")
            self.server = self._listen_at_once(reactor)
            self._loop = loop_of_reactor(reactor)
        else:
            self._begin_in_loop(running)
        self.ended.clear()

    def _begin_in_loop(self, running: asyncio.AbstractEventLoop | None) -> None:
        if running is None:
            asyncio.set_event_loop(self.loop)
        if self.loop.is_running() and self.loop is not running:
            raise ReactorThreadError("the loop runs in another thread; call begin there, or use a threaded Controller")
        if running is None:
            self.server_coro = self._create_server()
            self.server = self.loop.run_until_complete(self.server_coro)
        else:
            self.server = self._listen_at_once(reactor_of_loop(self.loop))

    def _listen_at_once(self, reactor: Any) -> Server:
        if type(self)._create_server is not BaseController._create_server:
            raise RuntimeError(
                "begin() cannot wait for an overridden _create_server() here; await it: server = await _create_server()"
            )
        coroutine = self._listen(reactor)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration.value is Any
        raise AssertionError("there is nothing to wait for")

    def finalize(self) -> Any:
        """Stop listening, and close all connections.

        :return: an awaitable.
        """
        server, self.server = self.server, None
        if isinstance(server, Server) or server is None:
            ended: Deferred[Any] = maybeDeferred(server._end) if server is not None else Deferred()
            if server is None:
                ended.callback(None)
        else:
            ended = Deferred.fromFuture(asyncio.ensure_future(_end(server), loop=self.loop))
        ended.addBoth(self._set_ended)
        return to_awaitable(ended)

    def end(self) -> None:
        """Do the same as :meth:`finalize`: now if the loop is not running, else in the background."""
        loop = self._loop
        if loop is not None and loop.is_closed():
            # All that can still be done is to close the ports.
            server, self.server = self.server, None
            for each in () if server is None else server.sockets:
                each.close()
            self.ended.set()
            return
        closed = self.finalize()
        if loop is not None and not loop.is_running() and isinstance(closed, Deferred):
            loop.run_until_complete(closed.asFuture(loop))

    def _set_ended(self, result: Any) -> Any:
        self._cleanup()
        self.ended.set()
        return result


class Controller(InetMixin, BaseThreadedController):
    """A server on TCP, for programs that do not use Twisted.

    ::

        with Controller(handler, port=0) as controller:
            client = smtplib.SMTP(controller.hostname, controller.port)
    """


class UnixSocketController(UnixSocketMixin, BaseThreadedController):
    """A server on a Unix socket, for programs that do not use Twisted."""


class UnthreadedController(InetMixin, BaseUnthreadedController):
    """A server on TCP, in the thread of a program that runs the reactor or an asyncio loop."""


class UnixSocketUnthreadedController(UnixSocketMixin, BaseUnthreadedController):
    """A server on a Unix socket, in the thread of a program that runs the reactor or an asyncio loop."""
