"""A reactor made of an asyncio loop. A process may have many, each with a loop and a thread of its own.

Twisted's reactor for asyncio does most of the work; what it shares with the rest of the process is replaced: it is not
the global reactor, its timers are the loop's, and its transports take the time from it, not from the global reactor.
Nothing here knows of SMTP, and nothing here imports the global reactor.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import _producer_helpers, tcp, unix
from twisted.internet._newtls import _BypassTLS  # what startTLS of Twisted's own transports puts beneath TLS
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
    """A call that an asyncio loop makes later. Cancelled, it holds on to nothing."""

    __slots__ = ("_active", "_call", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float, call: tuple[Any, ...], active: set[Any]) -> None:
        self._loop = loop
        self._call: tuple[Any, ...] | None = call  # function, arguments, keywords; None: made
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
        """When it is made, in the seconds of the loop's clock."""
        return self._handle.when()

    def active(self) -> bool:
        """Whether it was neither made nor cancelled."""
        return self._call is not None and not self._handle.cancelled()

    def cancel(self) -> None:
        """Do not make it.

        :raises AlreadyCalled: if it was made.
        :raises AlreadyCancelled: if it was cancelled.
        """
        self._require_active()
        self._handle.cancel()
        self._active.discard(self)

    def reset(self, secondsFromNow: float) -> None:
        """Make it so many seconds from now instead.

        :raises AlreadyCalled: if it was made.
        :raises AlreadyCancelled: if it was cancelled.
        """
        self._require_active()
        self._handle.cancel()
        self._handle = self._loop.call_later(secondsFromNow, self._make)

    def delay(self, secondsLater: float) -> None:
        """Make it so many seconds later.

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
    """The time of an asyncio loop.

    Twisted's asyncio reactor keeps each cancelled call until its time comes, which for idle timeouts is minutes; a loop
    forgets them.

    :param reactor: the reactor whose time it keeps, if it is one's.
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
        """The calls that are still to be made."""
        return list(self._active)


# Transports


class _OwnTime:
    """A transport whose TLS takes the time from its own reactor; Twisted's take it from the global one."""

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        _start_tls(self, ctx, normal)


def _start_tls(transport: Any, context: Any, normal: bool) -> None:
    producer, streaming = transport.producer, transport.streamingProducer
    if producer is not None:
        transport.unregisterProducer()
    factory = TLSMemoryBIOFactory(context, transport._tlsClientDefault is normal, _NOTHING, clock=transport.reactor)
    layer = _TLS(factory, transport.protocol, False)
    transport.getHandle, transport.getPeerCertificate = layer.getHandle, layer.getPeerCertificate
    transport.protocol = layer
    transport.TLS = True
    directlyProvides(transport, ISSLTransport)
    layer.makeConnection(_BypassTLS(FileDescriptor, transport))
    if producer is not None:
        transport.registerProducer(producer, streaming)


_NOTHING: Any = None  # the protocol is made already


class _TLS(BufferingTLSTransport):
    """TLS that asks a pull producer for more in its reactor's time."""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if streaming or self._lostTLSConnection:
            super().registerProducer(producer, True)
        else:
            pushed = _PullToPush(producer, self, self.factory._clock)
            super().registerProducer(pushed, True)
            pushed.startStreaming()


class _PullToPush(_producer_helpers._PullToPush):  # by whose class TLS finds out what to stop
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
    """A port that leaves alone what is not its own: the file of a socket that it was given, and one that has taken the
    place of its own. Twisted's changes the mode of the one, and removes both.
    """

    transport = _UNIXServer
    _own: tuple[Any, Any] | None = None  # the path of the file that it has made, and which file that is

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


_NO_FILE = b"\0"  # what a path begins with that is none (unix(7), abstract sockets)


def _identity(path: Any) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# The reactor


class LoopReactor(AsyncioSelectorReactor):
    """A reactor that is not the global one.

    It runs from the beginning: when its loop does, so does it. It has no descriptors of its own, and ends with its
    loop; :meth:`close` stops its threads, and calls what waits for the event ``shutdown``.

    :param loop: the loop that it is made of.
    """

    _registerAsIOThread = False  # that is the global reactor's

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = LoopClock(loop, self)
        self.seconds = loop.time
        self.getDelayedCalls = self._clock.getDelayedCalls  # type: ignore[method-assign]
        self._holds = 0
        super().__init__(loop)
        self.startRunning(installSignalHandlers=False)

    def installWaker(self) -> None:
        """The loop wakes itself up."""

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
        """Somebody needs the reactor until :meth:`release`."""
        self._holds += 1

    def release(self) -> None:
        """Close the reactor, unless others hold it."""
        self._holds -= 1
        if self._holds <= 0:
            self.close()

    def close(self) -> None:
        """End all connections, and the reactor's threads. The loop goes on."""
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
    """A thread that keeps no program from its end."""
    return threading.Thread(*args, daemon=True, **kwargs)
