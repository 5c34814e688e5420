"""An event loop, a reactor on it, and a thread that runs both, for programs that do not use Twisted.

A process may have several. Each can be stopped separately, with everything that runs in it. This module does not depend
on SMTP, and does not use the global reactor.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from time import monotonic
from typing import Any
from weakref import WeakSet

from twisted.logger import ILogObserver, LogEvent, Logger, STDLibLogObserver, globalLogBeginner, globalLogPublisher
from zope.interface import implementer

from txsmtpd.bridges.asyncio_bridge import as_task
from txsmtpd.bridges.loop_reactor import LoopReactor
from txsmtpd.bridges.reactors import call_in_reactor, reactor_of_loop, runs_here

LOOK_AGAIN = 1.0  # seconds between checks whether a reactor has stopped without notice
LOGGER = "mail.log"  # the logger of aiosmtpd, which programs written for it expect
FAREWELL = 5.0  # seconds to wait for tasks to end when the loop is stopped

log = Logger()


class ReactorThreadError(RuntimeError):
    """Waiting for the reactor is not possible. The message says why, and what to do."""


OWN_THREAD = "this is the reactor's own thread, which would wait for itself; call it from another one"
STOPPED = "the reactor has been stopped"


class ReactorThread:
    """A loop and its reactor, in a daemon thread.

    :param loop: the loop. Default: a new one. It is closed at the end.
    :param finish: called in the thread before the loop is closed; its result is awaited.
    :raises RuntimeError: if the loop is already running, or is closed.
    """

    reactor: LoopReactor  #: the reactor, while the thread runs
    thread: threading.Thread

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, finish: Callable[[], Any] = lambda: None) -> None:
        self.loop = asyncio.new_event_loop() if loop is None else loop
        self._finish = finish
        self._calls: set[Future[Any]] = set()
        self._process = os.getpid()
        if self.loop.is_closed():
            raise RuntimeError("the event loop is closed; pass a new one, or None")
        if self.loop.is_running():
            raise RuntimeError("the event loop runs already; use an UnthreadedController there")

    def start(self) -> None:
        """Run the loop."""
        spare_trial_worker()
        _log_to_python()
        self.reactor = reactor_of_loop(self.loop)
        self.thread = threading.Thread(target=self._run, name="reactor", daemon=True)
        _threads.add(self)
        self.thread.start()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call a function in the thread, and wait for its result.

        :param function: a plain function, a coroutine function, or one that returns a Deferred.
        :param timeout: maximum time to wait, in seconds; then the call is cancelled.
        :raises TimeoutError: if it takes longer.
        :raises ReactorThreadError: if called in that thread, or the loop has ended.
        :raises Exception: the exception that the function raises.
        """
        self.require_other_thread()
        if self._process != os.getpid():
            raise ReactorThreadError("this process was forked from the one in which the reactor runs")

        async def work() -> Any:
            result = function(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

        working = work()
        task = as_task(working, self.loop)
        try:
            result = asyncio.run_coroutine_threadsafe(task, self.loop)
        except RuntimeError:  # the loop is closed
            task.close()
            working.close()
            raise ReactorThreadError(STOPPED) from None
        self._calls.add(result)
        result.add_done_callback(self._calls.discard)
        if not self.thread.is_alive():  # it may have ended before it processed the call
            self._refuse_calls()
        try:
            return result.result(timeout)
        except BaseException as error:
            if result.done() and not isinstance(error, KeyboardInterrupt):
                raise
            result.cancel()
            if isinstance(error, TookTooLong):
                raise TimeoutError(f"the reactor did not do this within {timeout} seconds") from None
            raise

    def stop(self, timeout: float | None = None) -> None:
        """Stop the loop and the thread.

        :param timeout: seconds to wait for the thread; None: until it has ended.
        :raises ReactorThreadError: if called in that thread.
        """
        if self._process != os.getpid():
            return  # a forked process has the object but not the thread; the loop belongs to its parent
        self.require_other_thread()
        with contextlib.suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout)

    def require_other_thread(self) -> None:
        """Check that the caller would not wait for itself.

        :raises ReactorThreadError: if called in the thread of the loop.
        """
        if threading.current_thread() is self.thread:
            raise ReactorThreadError(OWN_THREAD)

    # In the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self._run_loop()
        finally:
            try:
                self._end()
            finally:
                self.loop.close()
                asyncio.set_event_loop(None)
                self._refuse_calls()
                _threads.discard(self)

    def _run_loop(self) -> None:
        while True:
            try:
                return self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit) as error:
                # asyncio lets these exceptions stop the loop, but they are meant for the program's main thread.
                log.failure("{error} was raised in the reactor's thread, which continues", error=repr(error))

    def _end(self) -> None:
        for step in (self._finish, self._cancel_tasks, self._close_reactor, self._end_asyncgens, self._end_executor):
            try:
                self.loop.run_until_complete(as_task(_result_of(step), self.loop))
            except (Exception, asyncio.CancelledError):
                log.failure("the reactor's thread did not end cleanly")

    async def _cancel_tasks(self) -> None:
        await asyncio.sleep(0)  # let newly started tasks notice that they are cancelled
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL)

    async def _close_reactor(self) -> None:
        self.reactor.close()

    async def _end_asyncgens(self) -> None:
        await asyncio.wait_for(self.loop.shutdown_asyncgens(), FAREWELL)

    async def _end_executor(self) -> None:
        with contextlib.suppress(RuntimeError):  # it needs a thread, and none can start while the interpreter exits
            await asyncio.wait_for(self.loop.shutdown_default_executor(), FAREWELL)

    def _refuse_calls(self) -> None:
        for call in list(self._calls):
            with contextlib.suppress(Exception):  # it is done
                call.set_exception(ReactorThreadError(STOPPED))


async def _result_of(function: Callable[[], Any]) -> Any:
    result = function()
    return await result if isinstance(result, Awaitable) else result


_threads: WeakSet[ReactorThread] = WeakSet()


@atexit.register
def _end_all() -> None:
    """At exit, stop the threads that the program has not stopped."""
    for each in list(_threads):
        each.stop(FAREWELL)


# Reactors that run elsewhere


def wait_for_reactor(
    reactor: Any, function: Callable[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any
) -> Any:
    """Call the function in the thread of a running reactor, and wait for its result.

    :param function: a plain function, a coroutine function, or one that returns a Deferred.
    :param timeout: maximum time to wait, in seconds; then the call is cancelled.
    :raises TimeoutError: if it takes longer.
    :raises ReactorThreadError: if called in the reactor's own thread, or the reactor has ended.
    :raises Exception: the exception that the function raises.
    """
    if runs_here(reactor):
        raise ReactorThreadError(OWN_THREAD)
    if not reactor.running:
        raise ReactorThreadError(STOPPED)
    result = call_in_reactor(reactor, function, *args, **kwargs)
    try:
        _await(reactor, result, timeout)
    except BaseException:
        result.cancel()
        raise
    return result.result()


def _await(reactor: Any, result: Future[Any], timeout: float | None) -> None:
    deadline = None if timeout is None else monotonic() + timeout
    while not result.done():
        left = LOOK_AGAIN if deadline is None else min(LOOK_AGAIN, deadline - monotonic())
        if left <= 0:
            raise TimeoutError(f"the reactor did not do this within {timeout} seconds")
        with contextlib.suppress(TookTooLong, Exception):
            result.exception(left)
        if not reactor.running and not result.done():
            raise ReactorThreadError(STOPPED)


# The log


def _log_to_python() -> None:
    """In a program that does not use Twisted's log, send everything to Python's logger :data:`LOGGER`."""
    if getattr(globalLogBeginner, "_temporaryObserver", None) is None:  # it uses Twisted's log
        return
    # In a program that does not use Twisted, warnings should not go to a logger.
    shown = warnings.showwarning
    globalLogBeginner.beginLoggingTo([STDLibLogObserver(LOGGER)], redirectStandardIO=False)
    warnings.showwarning = shown


def spare_trial_worker() -> None:
    """In a worker of ``trial -j``, keep other threads from writing to the log's pipe, which is not thread-safe."""
    for observer in list(getattr(globalLogPublisher, "_observers", ())):
        owner = getattr(getattr(observer, "legacyObserver", None), "__self__", None)
        if type(owner).__name__ == "WorkerLogObserver":
            globalLogPublisher.removeObserver(observer)
            globalLogPublisher.addObserver(_InMainThread(observer))


@implementer(ILogObserver)
class _InMainThread:
    """An observer that gets only events of the main thread."""

    def __init__(self, observer: ILogObserver) -> None:
        self.observer = observer

    def __call__(self, event: LogEvent) -> None:
        if threading.current_thread() is threading.main_thread():
            self.observer(event)
