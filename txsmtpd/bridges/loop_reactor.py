"""A reactor on an asyncio loop. A process may have several, each with its own loop and thread.

It is based on Twisted's asyncio reactor, but shares nothing with other reactors of the process: it is not the global
reactor, its timers are those of the loop, and its transports use its own clock. This module does not depend on SMTP,
and does not import the global reactor.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import _producer_helpers, tcp, unix
from twisted.internet._newtls import _BypassTLS  # used by startTLS of Twisted's own transports below TLS
from twisted.internet.abstract import FileDescriptor
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import directlyProvides, implementer

log = Logger()
_failed = log.failureHandler("a timed call failed")


# Time


@implementer(IDelayedCall)
class LoopTimer:
    """A delayed call of an asyncio loop. When cancelled, it releases the function and its arguments."""

    __slots__ = ("_active", "_call", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float, call: tuple[Any, ...], active: set[Any]) -> None:
        self._loop = loop
        self._call: tuple[Any, ...] | None = call  # function, arguments, keywords; None after the call
        self._active = active
        active.add(self)
        self._handle = loop.call_later(delay, self._make)

    def _make(self) -> None:
        assert self._call is not None
        function, args, kwargs = self._call
        self._call = None
        self._active.discard(self)
        with _failed:
            function(*args, **kwargs)

    def getTime(self) -> float:
        """Return the time of the call, in seconds of the loop's clock."""
        return self._handle.when()

    def active(self) -> bool:
        """Return True if the call is still pending."""
        return self._call is not None and not self._handle.cancelled()

    def cancel(self) -> None:
        """Cancel the call.

        :raises AlreadyCalled: if it was made.
        :raises AlreadyCancelled: if it was cancelled.
        """
        self._require_active()
        self._handle.cancel()
        self._active.discard(self)

    def reset(self, secondsFromNow: float) -> None:
        """Reschedule the call to this many seconds from now.

        :raises AlreadyCalled: if it was made.
        :raises AlreadyCancelled: if it was cancelled.
        """
        self._require_active()
        self._handle.cancel()
        self._handle = self._loop.call_later(secondsFromNow, self._make)

    def delay(self, secondsLater: float) -> None:
        """Delay the call by this many seconds.

        :raises AlreadyCalled: if it was made.
        :raises AlreadyCancelled: if it was cancelled.
        """
        self.reset(self.getTime() + secondsLater - self._loop.time())

    def _require_active(self) -> None:
        if self._call is None:
            raise AlreadyCalled
        if self._handle.cancelled():
            raise AlreadyCancelled


@implementer(IReactorTime)
class LoopClock:
    """A clock (IReactorTime) that uses the timers of an asyncio loop.

    Twisted's asyncio reactor keeps each cancelled call until its time comes, which takes minutes for idle timeouts; a
    loop drops them earlier.

    :param reactor: the reactor that uses this clock, if any.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, reactor: Any = None) -> None:
        self.reactor = reactor
        self._loop = loop
        self._active: set[LoopTimer] = set()
        self.seconds = loop.time

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> LoopTimer:
        """Call the function after so many seconds."""
        return LoopTimer(self._loop, delay, (callable, args, kwargs), self._active)

    def getDelayedCalls(self) -> list[LoopTimer]:
        """Return the pending calls."""
        return list(self._active)


# Transports


class _OwnTime:
    """A transport whose TLS uses the clock of its own reactor; Twisted's transports use the global reactor."""

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        _start_tls(self, ctx, normal)


def _start_tls(transport: Any, context: Any, normal: bool) -> None:
    producer, streaming = transport.producer, transport.streamingProducer
    if producer is not None:
        transport.unregisterProducer()
    factory = TLSMemoryBIOFactory(context, transport._tlsClientDefault is normal, _NOTHING, clock=transport.reactor)
    layer = OwnTimeTLS(factory, transport.protocol, False)
    transport.getHandle, transport.getPeerCertificate = layer.getHandle, layer.getPeerCertificate
    transport.protocol = layer
    transport.TLS = True
    directlyProvides(transport, ISSLTransport)
    layer.makeConnection(_BypassTLS(FileDescriptor, transport))
    if producer is not None:
        transport.registerProducer(producer, streaming)


_NOTHING: Any = None  # the protocol already exists


class OwnTimeTLS(BufferingTLSTransport):
    """TLS that calls pull producers with the clock of its factory."""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if streaming or self._lostTLSConnection:
            super().registerProducer(producer, True)
        else:
            pushed = _PullToPush(producer, self, self.factory._clock)
            super().registerProducer(pushed, True)
            pushed.startStreaming()


class _PullToPush(_producer_helpers._PullToPush):  # TLS checks for this class to stop the producer
    def __init__(self, producer: Any, consumer: Any, clock: IReactorTime) -> None:
        super().__init__(producer, consumer)
        self._cooperator = Cooperator(scheduler=lambda call: clock.callLater(0, call))

    def startStreaming(self) -> None:
        self._coopTask = self._cooperator.cooperate(self._pull())


class _Server(_OwnTime, tcp.Server):
    pass


class _Port(tcp.Port):
    transport = _Server


class _Client(_OwnTime, tcp.Client):
    pass


class _Connector(tcp.Connector):
    def _makeTransport(self) -> Any:
        return _Client(self.host, self.port, self.bindAddress, self, self.reactor)


class _UNIXServer(_OwnTime, unix.Server):
    pass


class _UNIXPort(unix.Port):
    """A port that does not change or remove files that it did not create.

    Such a file belongs to a socket that was passed to the port, or has replaced the port's own file. Twisted's port
    would change the mode of the first, and remove both.
    """

    transport = _UNIXServer
    _own: tuple[Any, Any] | None = None  # the path and the identity of the file that it has created

    def startListening(self) -> None:
        path = self._bindPath
        if self._preexistingSocket is None:
            super().startListening()
            self._own = path, _identity(path)
        else:
            self._bindPath = _NO_FILE
            super().startListening()

    def connectionLost(self, reason: Any) -> None:
        own, self._own = self._own, None
        self._bindPath = _NO_FILE
        super().connectionLost(reason)
        if own is not None and own[1] is not None and _identity(own[0]) == own[1]:
            os.unlink(own[0])


_NO_FILE = b"\0"  # the first octet of the names of abstract sockets (unix(7)), which have no file


def _identity(path: Any) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# The reactor


class LoopReactor(AsyncioSelectorReactor):
    """A reactor that is not the global one.

    It need not be started: it runs while its loop runs. It has no file descriptors of its own. :meth:`close` stops its
    threads and runs the triggers of the event ``shutdown``.

    :param loop: the loop to use.
    """

    _registerAsIOThread = False  # the I/O thread is that of the global reactor

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = LoopClock(loop, self)
        self.seconds = loop.time
        self.getDelayedCalls = self._clock.getDelayedCalls  # type: ignore[method-assign]
        self._holds = 0
        super().__init__(loop)
        self.startRunning(installSignalHandlers=False)

    def installWaker(self) -> None:
        """Do nothing: the loop has its own waker."""

    # Time

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        """Call the function after so many seconds."""
        return self._clock.callLater(delay, callable, *args, **kwargs)

    # Threads

    def callFromThread(self, f: Callable[..., Any], *args: object, **kwargs: object) -> None:  # type: ignore[override]
        """Call the function in the thread of the loop."""
        self._asyncioEventloop.call_soon_threadsafe(_call, f, args, kwargs)

    def _initThreadPool(self) -> None:
        super()._initThreadPool()
        assert self.threadpool is not None
        self.threadpool.threadFactory = daemon_thread  # type: ignore[assignment]  # a class in Twisted

    # Ports and connections

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        found = _Port(port, factory, backlog, interface, self)
        found.startListening()
        return found

    def listenUNIX(self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0) -> Any:
        found = _UNIXPort(address, factory, backlog, mode, self, wantPID)
        found.startListening()
        return found

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily == socket.AF_UNIX:
            found: Any = _UNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            found = _Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        found.startListening()
        return found

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily == socket.AF_UNIX:
            return _UNIXServer._fromConnectedSocket(fileDescriptor, factory, self)
        return _Server._fromConnectedSocket(fileDescriptor, addressFamily, factory, self)

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        connector = _Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    # The end

    def hold(self) -> None:
        """Keep the reactor open until :meth:`release`."""
        self._holds += 1

    def release(self) -> None:
        """Close the reactor, unless others hold it."""
        self._holds -= 1
        if self._holds <= 0:
            self.close()

    def close(self) -> None:
        """Close all connections, and stop the reactor's threads. The loop continues."""
        if not self._stopped:
            self._stopped = self._startedBefore = True
            self.fireSystemEvent("shutdown")

    def stop(self) -> None:
        """Close the reactor, and stop its loop."""
        self.close()
        self._asyncioEventloop.stop()

    def crash(self) -> None:
        """Called when the reactor is closed."""
        self._started = self.running = False


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with _failed:
        function(*args, **kwargs)


def daemon_thread(*args: Any, **kwargs: Any) -> threading.Thread:
    """Make a daemon thread, which does not keep the program running."""
    return threading.Thread(*args, daemon=True, **kwargs)
