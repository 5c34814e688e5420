"""Serves in programs that do not run a reactor: the counterpart of ``asyncore.loop()``.

:func:`loop` runs the reactor in the calling thread until the servers are closed, so that their code runs in the same
thread as before. If the program already runs the reactor, no loop is needed; calling it from another thread waits.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

from twisted.python import threadable

from txsmtpd.bridges.loop_reactor import daemon_thread
from txsmtpd.bridges.reactor_thread import ReactorThreadError, wait_for_reactor

LOOK_AGAIN = 0.5  # seconds between checks of a reactor in another thread, which may end without notice

#: The open servers, by an arbitrary number; :func:`loop` returns when none is left.
socket_map: dict[int, Any] = {}


def loop(
    timeout: float = 30.0,
    use_poll: bool = False,
    map: MutableMapping[int, Any] | None = None,
    count: int | None = None,
) -> None:
    """Serve until all servers are closed.

    An exception of a signal handler, such as KeyboardInterrupt, ends the loop, and the loop raises it. The same is true
    for an exception such as SystemExit in a server's code, which is not a subclass of ``Exception``. After that, the
    loop may be called again.

    :param timeout: with *count*, the duration of an iteration in seconds.
    :param use_poll: ignored.
    :param map: the servers to wait for, which were made with the same map. Default: those made without a map.
    :param count: return after so many iterations in any case.
    :raises RuntimeError: in the thread of a running reactor, which serves without a loop.
    """
    driver.loop(socket_map if map is None else map, None if count is None else timeout * count)


def close_all(map: MutableMapping[int, Any] | None = None) -> None:
    """Close all servers at once, with their connections."""
    for server in list((socket_map if map is None else map).values()):
        server.close(abort=True)


class Driver:
    """Runs the reactor for the servers, and calls their functions in the thread that runs it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: int | None = None  # the thread that runs the reactor in `loop`
        self._servers: MutableMapping[int, Any] = {}  # the servers that this loop waits for
        self._error: BaseException | None = None  # the exception that the loop will raise
        self._calls = 0  # calls of the program's code in progress

    # For servers

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with the reactor, in the reactor's thread if it runs, and return the result.

        :param function: if it returns a Deferred, and the caller is in another thread, this waits for its result.
        """
        from twisted.internet import reactor

        with self._changed:
            if not self._runs(reactor):
                return function(reactor)
        if self.is_here(reactor):
            return function(reactor)
        return wait_for_reactor(reactor, function, reactor)

    def _runs(self, reactor: Any) -> bool:
        return self._thread is not None or bool(reactor.running)

    def is_here(self, reactor: Any) -> bool:
        """Return True if this is the thread that runs the reactor."""
        return self._thread == threading.get_ident() or (bool(reactor.running) and threadable.isInIOThread())

    def is_elsewhere(self) -> bool:
        """Return True if another thread runs the reactor."""
        from twisted.internet import reactor

        return self._runs(reactor) and not self.is_here(reactor)

    def forget(self, servers: MutableMapping[int, Any], number: int) -> None:
        """Remove a server that is closed."""
        with self._changed:
            servers.pop(number, None)
            self._changed.notify_all()
        if self._thread == threading.get_ident():
            self._stop_if_done()

    @contextmanager
    def server_code(self) -> Iterator[None]:
        """Enter this context for each call of the program's code, whose exceptions may end the loop."""
        self._calls += 1
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            self._stop(error)
            raise
        finally:
            self._calls -= 1

    # The loop

    def loop(self, servers: MutableMapping[int, Any], seconds: float | None) -> None:
        """See :func:`loop`."""
        from twisted.internet import reactor

        deadline = None if seconds is None else monotonic() + seconds
        while servers:
            left = None if deadline is None else max(deadline - monotonic(), 0.0)
            if self._begin(reactor, LOOK_AGAIN if left is None else min(left, LOOK_AGAIN)):
                try:
                    self._run(reactor, servers, left)
                finally:
                    with self._changed:
                        self._thread = None
                        self._changed.notify_all()
            if deadline is not None and monotonic() >= deadline:
                return

    def _begin(self, reactor: Any, seconds: float) -> bool:
        """Claim the reactor for this thread, and return True. If another thread runs it, wait for a change, for at most
        so many seconds, and return False."""
        with self._changed:
            if not self._runs(reactor):
                self._thread = threading.get_ident()
                return True
            if self.is_here(reactor):
                raise RuntimeError("the reactor runs already in this thread, and serves without loop()")
            self._changed.wait(seconds)
            return False

    def _run(self, reactor: Any, servers: MutableMapping[int, Any], seconds: float | None) -> None:
        self._servers = servers
        self._error = None
        # The pool resolves names. It is never stopped, so its threads must not keep the program alive.
        reactor.getThreadPool().threadFactory = daemon_thread
        reactor.callWhenRunning(self._stop_if_done)
        end = None if seconds is None else reactor.callLater(seconds, self._stop, None)
        with self._interruptible(reactor):
            reactor.run(installSignalHandlers=False)
        if end is not None and end.active():
            end.cancel()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _stop_if_done(self) -> None:
        if not self._servers:
            self._stop(None)

    def _stop(self, error: BaseException | None) -> None:
        """Make the loop return, or raise the error, after the current call of the reactor."""
        from twisted.internet import reactor

        if self._thread is None:
            return
        self._error = error or self._error
        loop: Any = reactor
        # A reactor cannot run again after stop(). callFromThread wakes the reactor up.
        loop.callFromThread(type(loop).crash, loop)

    @contextmanager
    def _interruptible(self, reactor: Any) -> Iterator[None]:
        """Let exceptions of signal handlers end the loop; a reactor would log them and continue."""
        wrapped = {}
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            # Python calls a handler between two of its own instructions. Without the wakeup descriptor, a signal just
            # before the reactor waits would not be handled until something else wakes the reactor up.
            wakeup = signal.set_wakeup_fd(reactor.waker.o, warn_on_full_buffer=False)
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(handler, signal.Handlers):
                    wrapped[number] = handler, self._wrap(handler)
        for number, (_, wrapper) in wrapped.items():
            signal.signal(number, wrapper)
        try:
            yield
        finally:
            for number, (handler, wrapper) in wrapped.items():
                if signal.getsignal(number) is wrapper:
                    signal.signal(number, handler)
            if in_main_thread:
                signal.set_wakeup_fd(wakeup)

    def _wrap(self, handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as error:
                if self._calls:
                    raise  # through the program's code, which may handle it
                self._stop(error)

        return handle


driver = Driver()

__all__ = ["ReactorThreadError", "close_all", "driver", "loop", "socket_map"]
