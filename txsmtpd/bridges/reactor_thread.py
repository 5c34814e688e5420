"""The reactor for programs that are not Twisted: run in a thread of its own, for as long as somebody holds it.

A process has one reactor. Whoever leaves something in it, such as a port that listens, holds it meanwhile; with the
last hold the reactor is let go, so that another may run it: trial, for the next test. A reactor that runs already, in
whatever thread, is used as it is. Nothing here knows of SMTP.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from time import monotonic
from typing import Any, Self

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRestartable
from twisted.logger import ILogObserver, LogEvent, Logger, STDLibLogObserver, globalLogBeginner, globalLogPublisher
from twisted.python import threadable
from zope.interface import implementer

LOOK_AGAIN = 1.0  # seconds between looks at a reactor that may have stopped without a word
LOGGER = "mail.log"  # where programs that were written for asyncio expect what the server has to say
FAREWELL = 5.0  # seconds that the reactor has to shut down when the program ends

log = Logger()
_choosing = threading.Lock()


class ReactorThreadError(RuntimeError):
    """The reactor cannot be waited for; the text says why, and what to do."""


def call_in_reactor(reactor: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call the function in the reactor's thread, without waiting for it.

    :return: its result. Cancelled, the function is not called any more, or what it waits for is cancelled.
    """
    result: Future[Any] = Future()
    working: list[Deferred[Any]] = []

    def work() -> None:
        if result.cancelled():
            return
        deferred = maybeDeferred(function, *args, **kwargs)
        working.append(deferred)
        deferred.addCallbacks(result.set_result, lambda failure: result.set_exception(failure.value))
        deferred.addErrback(lambda _: None)  # it was cancelled meanwhile

    def cancel() -> None:
        for deferred in working:
            deferred.cancel()

    result.add_done_callback(lambda _: result.cancelled() and reactor.callFromThread(cancel))
    reactor.callFromThread(work)
    return result


class ReactorHold:
    """A right to the reactor: it runs at least until :meth:`release`. Made by :func:`hold_reactor`."""

    def __init__(self, reactor: Any, release: Callable[[], None] | None) -> None:
        self.reactor = reactor
        self._release = release

    def run(self, function: Callable[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call the function in the reactor's thread, and wait for its result.

        :param function: may be a coroutine function, or return a Deferred.
        :param timeout: seconds to wait at most; then it is cancelled.
        :raises TimeoutError: if it has taken longer.
        :raises ReactorThreadError: if this is the reactor's own thread, or the reactor has ended.
        :raises Exception: what the function has raised.
        """
        refuse_reactor_thread()
        if not self.running:
            raise ReactorThreadError("the reactor has been stopped")
        result = call_in_reactor(self.reactor, function, *args, **kwargs)
        try:
            self._await(result, timeout)
        except BaseException:
            result.cancel()
            raise
        return result.result()

    def _await(self, result: Future[Any], timeout: float | None) -> None:
        deadline = None if timeout is None else monotonic() + timeout
        while not result.done():
            left = LOOK_AGAIN if deadline is None else min(LOOK_AGAIN, deadline - monotonic())
            if left <= 0:
                raise TimeoutError(f"the reactor did not do this within {timeout} seconds")
            wait([result], left)
            if not self.reactor.running and not result.done():
                raise ReactorThreadError("the reactor has been stopped")

    @property
    def running(self) -> bool:
        """Whether the reactor runs."""
        return bool(self.reactor.running)

    def release(self) -> None:
        """Let go. The second time, and those after it, do nothing.

        :raises ReactorThreadError: if this is the reactor's own thread.
        """
        refuse_reactor_thread()
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def hold_reactor() -> ReactorHold:
    """Hold the reactor: run it in a daemon thread, unless it runs already.

    :raises ReactorThreadError: if this is the reactor's own thread, or the reactor can run no more.
    """
    refuse_reactor_thread()
    return _thread.hold(_choose_reactor(None))


def _choose_reactor(loop: asyncio.AbstractEventLoop | None) -> Any:
    """The program's reactor. One that has none gets asyncio's: its coroutines can only have been written for that.

    :param loop: the loop that such a reactor is given.
    """
    with _choosing:
        # Trial's tests, whoever runs them, expect the default.
        if not has_reactor() and (loop is not None or "twisted.trial" not in sys.modules):
            from twisted.internet import asyncioreactor

            if loop is None:
                loop = asyncio.SelectorEventLoop()
                _thread.close_at_end = loop
            asyncioreactor.install(loop)
        from twisted.internet import reactor

    return reactor


def has_reactor() -> bool:
    """Whether the program has chosen a reactor."""
    return "twisted.internet.reactor" in sys.modules


def loop_of_reactor(reactor: Any) -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that a reactor is made of, if it is made of one."""
    return getattr(reactor, "_asyncioEventloop", None)


def has_asyncio_reactor() -> bool:
    """Whether the program has chosen a reactor that is made of an asyncio loop."""
    if not has_reactor():
        return False
    from twisted.internet import reactor

    return loop_of_reactor(reactor) is not None


def reactor_in_loop(loop: asyncio.AbstractEventLoop | None) -> Any:
    """A reactor that works while an asyncio loop of the program's does.

    :param loop: default: the one that runs, or else a new one.
    :raises ReactorThreadError: if the program has another reactor already, or it runs in another thread.
    """
    loop = loop or asyncio._get_running_loop()
    reactor = _choose_reactor(loop)
    if loop is not None and loop_of_reactor(reactor) is not loop:
        raise ReactorThreadError(
            "this program has a reactor already, and not one in this loop; a process has only one, in one loop"
        )
    refuse_other_thread(reactor)
    if not reactor.running:
        reactor.startRunning(installSignalHandlers=False)
    return reactor


def refuse_other_thread(reactor: Any) -> None:
    """Raise rather than call the reactor while it works.

    :raises ReactorThreadError: if the reactor runs in another thread.
    """
    if reactor.running and not threadable.isInIOThread():
        raise ReactorThreadError("the reactor runs in another thread; use a threaded Controller")


def run_in_reactor(function: Callable[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
    """Call a function in the reactor's thread, and wait for its result; see :meth:`ReactorHold.run`.

    For a call that leaves nothing behind: without another hold, the reactor does not run afterwards.
    """
    with hold_reactor() as held:
        return held.run(function, *args, timeout=timeout, **kwargs)


def refuse_reactor_thread() -> None:
    """Raise rather than wait for ever.

    :raises ReactorThreadError: if this is the thread of a reactor that runs, or a fork of a process that had one.
    """
    _thread.refuse_fork()
    if not has_reactor():
        return
    from twisted.internet import reactor

    # In this order: the number of a reactor's thread that has ended may be another's by now. The thread that has run
    # the reactor, but does not now, may be trial's, between two tests.
    if reactor.running and threadable.isInIOThread():
        raise ReactorThreadError(
            "this is the reactor's own thread, which would wait for itself; in a program that runs the reactor,"
            " listen with SMTPFactory on an endpoint, or with txsmtpd.service.SMTPService"
        )


class _ReactorThread:
    """The one thread, and how many hold it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._holds = 0
        self._process: int | None = None  # where the reactor was first run by us
        self.close_at_end: asyncio.AbstractEventLoop | None = None

    def refuse_fork(self) -> None:
        if self._process not in (None, os.getpid()):
            # The descriptors of the reactor are shared by both processes, its thread is not.
            raise ReactorThreadError(
                "this process was forked from one that has used the reactor, and has no reactor of its own; start it"
                ' with multiprocessing\'s "spawn", or use the reactor only after the fork'
            )

    def hold(self, reactor: Any) -> ReactorHold:
        with self._lock:
            ours = self._thread is not None and self._thread.is_alive()
            if reactor.running and not ours:
                return ReactorHold(reactor, None)
            if not ours:
                self._thread = self._start(reactor)
                self._holds = 0
            self._holds += 1
            thread = self._thread
        return ReactorHold(reactor, lambda: self._release(reactor, thread))

    def _release(self, reactor: Any, thread: threading.Thread | None) -> None:
        with self._lock:
            if thread is not self._thread:  # it has ended, and another has begun
                return
            self._holds -= 1
            if self._holds or thread is None:
                return
            if thread.is_alive():
                # Not stop(), after which no reactor runs again; and the class's own: trial warns of crash() in tests.
                reactor.callFromThread(type(reactor).crash, reactor)
                thread.join()
            self._thread = None

    def _start(self, reactor: Any) -> threading.Thread:
        started: Future[None] = Future()

        def run() -> None:
            try:
                reactor.callWhenRunning(started.set_result, None)
                turn: Callable[[], object] = partial(reactor.run, installSignalHandlers=False)
                loop = loop_of_reactor(reactor)
                while not started.done() or (loop is not None and reactor.running):
                    try:
                        turn()
                    except (KeyboardInterrupt, SystemExit) as error:
                        # Only asyncio lets them out, and the program's own thread is where they would be of use.
                        if loop is None or not started.done():
                            raise
                        log.failure("{error} was raised in the reactor's thread, which goes on", error=repr(error))
                    # Somebody has stopped the loop, and not the reactor.
                    turn = loop.run_forever if loop is not None else turn
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

        spare_trial_worker()
        thread = threading.Thread(target=run, name="reactor", daemon=True)
        thread.start()
        try:
            started.result()
        except ReactorNotRestartable:
            raise ReactorThreadError("the reactor of this process was stopped, and cannot run again") from None
        if self._process is None:
            self._process = os.getpid()
            _log_to_python()
            threading.Thread(target=self._see_off, args=(reactor,), name="reactor's end").start()
        return thread

    def _see_off(self, reactor: Any) -> None:
        """When the program ends, let the reactor shut down: its pool of threads would keep the process alive."""
        threading.main_thread().join()
        thread = self._thread
        if thread is not None and thread.is_alive():
            reactor.callFromThread(_stop, reactor)
            thread.join(FAREWELL)
        if self.close_at_end is not None and not self.close_at_end.is_running():
            self.close_at_end.close()


def _log_to_python() -> None:
    """Let a program that has no log of Twisted's find everything in Python's, where :data:`LOGGER` says."""
    if getattr(globalLogBeginner, "_temporaryObserver", None) is None:  # it has one
        return
    # Warnings are none of a logger's business in a program that is not Twisted.
    shown = warnings.showwarning
    globalLogBeginner.beginLoggingTo([STDLibLogObserver(LOGGER)], redirectStandardIO=False)
    warnings.showwarning = shown


def spare_trial_worker() -> None:
    """In a worker of ``trial -j``, keep other threads from what carries the log: two at once would garble it."""
    for observer in list(getattr(globalLogPublisher, "_observers", ())):
        owner = getattr(getattr(observer, "legacyObserver", None), "__self__", None)
        if type(owner).__name__ == "WorkerLogObserver":
            globalLogPublisher.removeObserver(observer)
            globalLogPublisher.addObserver(_InMainThread(observer))


@implementer(ILogObserver)
class _InMainThread:
    """An observer that is told only what happens in the main thread."""

    def __init__(self, observer: ILogObserver) -> None:
        self.observer = observer

    def __call__(self, event: LogEvent) -> None:
        if threading.current_thread() is threading.main_thread():
            self.observer(event)


def _stop(reactor: Any) -> None:
    if reactor.running:
        reactor.stop()


_thread = _ReactorThread()
