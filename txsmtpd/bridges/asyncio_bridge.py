"""Runs coroutines written for asyncio in a program that uses a Twisted reactor.

With Twisted's asyncio reactor both share one loop, and a coroutine may await anything. With other reactors an asyncio
loop runs in a separate thread, one for the process. This module does not depend on SMTP.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from types import coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from txsmtpd.bridges.reactors import call_in_reactor, current_reactor

HINT = "it awaits asyncio outside of an asyncio task; use the option asyncio=True, or --reactor=asyncio"
# Error messages of asyncio for coroutines that asyncio does not run.
_COMPLAINTS = (
    "no running event loop",
    "await wasn't used with future",
    "should be used inside a task",
    "must be used inside a task",
    "cannot determine the current task",
)


def asks_for_asyncio(error: BaseException) -> bool:
    """Return True if an exception means that a coroutine needs asyncio, but was run without it."""
    if not isinstance(error, RuntimeError):
        return False
    text = repr(error.args).lower()  # str() may be overridden, and may raise
    return any(each in text for each in _COMPLAINTS)


# Started coroutines


def run_rest(turn: Coroutine[Any, Any, Any], awaited: Any) -> Deferred[Any]:
    """Run the rest of a coroutine whose first step was made.

    :param awaited: the object that it waits for: a Deferred, or a future of the running loop.
    """
    if asyncio._get_running_loop() is None and type(awaited) is Deferred:
        # While the awaited Deferred has not fired, another step of the coroutine only yields the same Deferred again.
        return Deferred.fromCoroutine(turn)
    return Deferred.fromCoroutine(_with_futures(turn, awaited))


@coroutine
def _with_futures(turn: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """Run the coroutine with its futures converted to Deferreds. Inside it, cancellation raises asyncio's
    CancelledError."""
    step: tuple[Callable[[Any], Any], Any]
    while True:
        is_future = getattr(awaited, "_asyncio_future_blocking", False)
        try:
            value = yield _deferred_of_future(awaited) if is_future else _next_turn() if awaited is None else awaited
        except CancelledError as error:
            step = turn.throw, asyncio.CancelledError() if is_future else error
        except GeneratorExit:
            turn.close()
            raise
        except BaseException as error:
            step = turn.throw, error
        else:
            step = turn.send, value
        try:
            awaited = step[0](step[1])
        except StopIteration as end:
            return end.value
        except asyncio.CancelledError as error:
            raise CancelledError from error


def _deferred_of_future(future: Any) -> Deferred[Any]:
    future._asyncio_future_blocking = False  # as an asyncio task does
    if future.get_loop() is not asyncio._get_running_loop():
        raise RuntimeError("no running event loop, or another than the future's")
    return _of_future(future, _call)


def _next_turn() -> Deferred[None] | None:
    """Return a Deferred that fires in the next iteration, for ``asyncio.sleep(0)``."""
    loop = asyncio._get_running_loop()
    if loop is None:
        return None
    turn: Deferred[None] = Deferred()
    loop.call_soon(lambda: None if turn.called else turn.callback(None))
    return turn


# Coroutines as tasks


def in_asyncio(function: Callable[..., Any], loop: asyncio.AbstractEventLoop | None = None) -> Callable[..., Any]:
    """Wrap a coroutine function in a function that runs the coroutine as an asyncio task and returns a Deferred.

    The task runs in the reactor's loop if it has one, else in a thread. The coroutine may also await Deferreds. In a
    thread it may only read objects of the reactor's thread; but it may call ``push`` and ``challenge_auth`` of a server
    among the arguments, and ``challenge`` and ``decide`` of an AUTH exchange.

    :param loop: a loop that runs in another thread, to use instead.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        running = asyncio._get_running_loop()
        if running is not None and loop in (None, running):
            result = function(*args, **kwargs)
            return _in_this_loop(result, running) if inspect.iscoroutine(result) else result
        reactor = current_reactor()
        result = function(*(_from_thread(each, reactor) for each in args), **kwargs)
        return _in_thread(result, loop or loop_in_thread(), reactor) if inspect.iscoroutine(result) else result

    return call


def is_coroutine_function(function: object) -> bool:
    """Return True if a function or another callable returns coroutines."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _in_this_loop(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Deferred[Any]:
    return _of_future(loop.create_task(as_task(work, loop)), _call)


def _call(function: Callable[[], None]) -> None:
    function()


async def as_task(
    work: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    in_reactor: Callable[[Callable[[], None]], object] | None = None,
) -> Any:
    """Return the coroutine's result. To be run in an asyncio task of this loop; the coroutine may also await Deferreds.

    :param in_reactor: calls a function in the reactor's thread, if the loop runs in another.
    """
    return await _with_deferreds(work, loop, in_reactor)


@coroutine
def _with_deferreds(
    work: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    in_reactor: Callable[[Callable[[], None]], object] | None,
) -> Generator[Any, Any, Any]:
    """Run the coroutine with its Deferreds converted to futures."""
    step: tuple[Callable[[Any], Any], Any] = work.send, None
    while True:
        try:
            awaited = step[0](step[1])
        except StopIteration as end:
            return end.value
        try:
            if isinstance(awaited, Deferred):
                value: Any = yield from _watched(awaited, loop, in_reactor)  # type: ignore[func-returns-value]
            else:
                value = yield awaited
        except BaseException as error:
            step = work.throw, error
        else:
            step = work.send, value


def _watched(
    awaited: Deferred[Any],
    loop: asyncio.AbstractEventLoop,
    in_reactor: Callable[[Callable[[], None]], object] | None,
) -> Generator[Any, Any, None]:
    # The future has no result: the coroutine gets it from the Deferred when it is stepped again.
    fired = loop.create_future()

    def settle() -> None:
        if not fired.done():
            fired.set_result(None)

    def fire(result: Any) -> Any:
        if in_reactor is None:
            settle()
        else:
            loop.call_soon_threadsafe(settle)
        return result

    def watch() -> None:
        awaited.addBoth(fire)

    def cancel() -> None:
        awaited.cancel()
        awaited.addErrback(lambda failure: failure.trap(CancelledError))  # nothing else handles it

    call = in_reactor or _call
    call(watch)
    try:
        yield from fired
    except asyncio.CancelledError:
        call(cancel)
        raise


def _in_thread(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, reactor: Any) -> Deferred[Any]:
    call = reactor.callFromThread
    return _of_future(asyncio.run_coroutine_threadsafe(as_task(work, loop, call), loop), call)


def _of_future(future: Any, call: Callable[[Callable[[], None]], object]) -> Deferred[Any]:
    """Return a Deferred for a future of asyncio or of :mod:`concurrent.futures`.

    :param call: calls a function in the reactor's thread.
    """
    deferred: Deferred[Any] = Deferred(lambda _: future.cancel())

    def fire() -> None:
        if deferred.called:  # it was cancelled, and the result is not needed
            return
        if future.cancelled():
            deferred.errback(Failure(CancelledError()))
        elif (error := future.exception()) is not None:
            deferred.errback(Failure(error))
        else:
            deferred.callback(future.result())

    future.add_done_callback(lambda _: call(fire))
    return deferred


class _FromThread:
    """A server, for use in threads other than the reactor's."""

    def __init__(self, server: Any, reactor: Any) -> None:
        self.__dict__.update(_server=server, _reactor=reactor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._server, name, value)

    def push(self, status: Any) -> Any:
        """Send a reply."""
        return self._call(self._server.push, status)

    def challenge_auth(self, *args: Any, **kwargs: Any) -> Any:
        """Send a challenge and wait for the response."""
        return self._call(self._server.challenge_auth, *args, **kwargs)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return asyncio.wrap_future(call_in_reactor(self._reactor, function, *args, **kwargs))


class _ExchangeFromThread(_FromThread):
    """An AUTH exchange, for use in threads other than the reactor's."""

    def challenge(self, *args: Any) -> Any:
        """Send a challenge and wait for the response."""
        return self._call(self._server.challenge, *args)

    def decide(self, *args: Any) -> Any:
        """Call the authenticator."""
        return self._call(self._server.decide, *args)

    def failed(self) -> Any:
        """Count a failure."""
        return self._call(self._server.failed)


def _from_thread(argument: Any, reactor: Any) -> Any:
    if hasattr(argument, "challenge_auth"):
        return _FromThread(argument, reactor)
    if hasattr(argument, "challenge") and hasattr(argument, "decide"):
        return _ExchangeFromThread(argument, reactor)
    return argument


def to_awaitable(deferred: Deferred[Any]) -> Any:
    """Return the Deferred in a form that the calling code can await: a future in an asyncio task, else the Deferred."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return deferred if task is None else deferred.asFuture(task.get_loop())


# The loop in a thread

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def loop_in_thread() -> asyncio.AbstractEventLoop:
    """Return the process's loop that runs in a daemon thread. It is started on the first call."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="asyncio", daemon=True).start()
        return _loop


def loop_of_server(chosen: Any) -> asyncio.AbstractEventLoop:
    """Return the loop in which a server's coroutines run.

    :param chosen: the option ``asyncio``.
    :raises RuntimeError: if there is none.
    """
    running = asyncio._get_running_loop()
    if isinstance(chosen, asyncio.AbstractEventLoop):
        return chosen
    if running is not None:
        return running
    if chosen:
        return loop_in_thread()
    raise RuntimeError("no running event loop")
