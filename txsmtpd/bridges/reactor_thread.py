"""An event loop, a reactor made of it, and a thread that runs both: for programs that are not Twisted.

A process may have many. Each ends alone, with all that it has begun. Nothing here knows of SMTP, and nothing here
touches the global reactor.
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

LOOK_AGAIN = 1.0  # seconds between looks at a reactor that may have stopped without a word
LOGGER = "mail.log"  # where programs that were written for asyncio expect what the server has to say
FAREWELL = 5.0  # seconds that what a loop has begun has to end when the loop does

log = Logger()


class ReactorThreadError(RuntimeError):
    """The reactor cannot be waited for; the text says why, and what to do."""


OWN_THREAD = "this is the reactor's own thread, which would wait for itself; call it from another one"
STOPPED = "the reactor has been stopped"


class ReactorThread:
    """A loop and its reactor, in a daemon thread.

    :param loop: the loop. Default: a new one. It is closed at the end.
    :param finish: called in the thread before the loop is closed; what it returns is waited for.
    :raises RuntimeError: if the loop runs already, or is closed.
    """

    reactor: LoopReactor  #: for as long as the thread runs
    thread: threading.Thread

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, finish: Callable[[], Any] = lambda: None) -> None:
        self.loop = asyncio.new_event_loop() if loop is None else loop
        self._finish = finish
        self._calls: set[Future[Any]] = set()
        self._process = os.getpid()
        if self.loop.is_closed():
            raise RuntimeError("the event loop is closed; give a new one, or none")
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

        :param function: may be a coroutine function, or return a Deferred.
        :param timeout: seconds to wait at most; then it is cancelled.
        :raises TimeoutError: if it has taken longer.
        :raises ReactorThreadError: if this is that thread, or the loop has ended.
        :raises Exception: what the function has raised.
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
        if not self.thread.is_alive():  # it may have ended before it saw the call
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
        """End what the loop does, and the thread.

        :param timeout: seconds to wait for the thread; None: until it has ended.
        :raises ReactorThreadError: if this is that thread.
        """
        if self._process != os.getpid():
            return  # a fork has the object, but not the thread; what the loop holds is its parent's
        self.require_other_thread()
        with contextlib.suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout)

    def require_other_thread(self) -> None:
        """Raise rather than wait for ever.

        :raises ReactorThreadError: if this is the thread of the loop.
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
                # Only asyncio lets them out, and the program's own thread is where they would be of use.
                log.failure("{error} was raised in the reactor's thread, which goes on", error=repr(error))

    def _end(self) -> None:
        for step in (self._finish, self._cancel_tasks, self._close_reactor, self._end_asyncgens, self._end_executor):
            try:
                self.loop.run_until_complete(as_task(_result_of(step), self.loop))
            except (Exception, asyncio.CancelledError):
                log.failure("the reactor's thread does not end in good order")

    async def _cancel_tasks(self) -> None:
        await asyncio.sleep(0)  # let tasks that were begun just now see that they are cancelled
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
        with contextlib.suppress(RuntimeError):  # no thread can be started for that while the interpreter ends
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
    """When the program ends, let what it has forgotten to stop end in order."""
    for each in list(_threads):
        each.stop(FAREWELL)


# A reactor that somebody else runs


def wait_for_reactor(
    reactor: Any, function: Callable[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any
) -> Any:
    """Call the function in the thread of a reactor that runs, and wait for its result.

    :param function: may be a coroutine function, or return a Deferred.
    :param timeout: seconds to wait at most; then it is cancelled.
    :raises TimeoutError: if it has taken longer.
    :raises ReactorThreadError: if this is the reactor's own thread, or the reactor has ended.
    :raises Exception: what the function has raised.
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
