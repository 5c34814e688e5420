"""Finds the current reactor: the global one, or that of the asyncio loop that runs in this thread.

Code that needs a reactor and was not given one calls :func:`current_reactor` when it runs, not before. This module does
not depend on SMTP.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.python import threadable

from txsmtpd.bridges.loop_reactor import LoopClock, LoopReactor

# By the id of their loops, which live as long as the reactors.
_reactors: WeakValueDictionary[int, LoopReactor] = WeakValueDictionary()


def has_reactor() -> bool:
    """Return True if the program has chosen a global reactor."""
    return "twisted.internet.reactor" in sys.modules


def global_reactor() -> Any:
    """Return the global reactor. If there is none yet, Twisted's default is installed."""
    found = sys.modules.get("twisted.internet.reactor")
    if found is None:
        from twisted.internet import reactor

        return reactor
    return found


def loop_of_reactor(reactor: Any) -> asyncio.AbstractEventLoop | None:
    """Return the asyncio loop of a reactor, or None if it does not use one."""
    return getattr(reactor, "_asyncioEventloop", None)


def has_asyncio_reactor() -> bool:
    """Return True if the program has chosen a global reactor that uses an asyncio loop."""
    return has_reactor() and loop_of_reactor(global_reactor()) is not None


def reactor_of_loop(loop: asyncio.AbstractEventLoop) -> Any:
    """Return the reactor of an asyncio loop: the global one if it uses this loop, else a separate one."""
    if has_reactor() and loop_of_reactor(global_reactor()) is loop:
        return global_reactor()
    found = _reactors.get(id(loop))
    if found is None or not found.running:
        found = _reactors[id(loop)] = LoopReactor(loop)
    return found


def current_reactor() -> Any:
    """Return the reactor of this thread: that of the running asyncio loop, else the global one."""
    loop = asyncio._get_running_loop()
    return global_reactor() if loop is None else reactor_of_loop(loop)


def clock_of(reactor: Any) -> Any:
    """Return the clock of a reactor (IReactorTime): the reactor itself, or that of its loop."""
    loop = loop_of_reactor(reactor)
    if loop is None or isinstance(reactor, LoopReactor):
        return reactor
    clock = getattr(reactor, "_txsmtpd_clock", None)
    if clock is None:
        clock = reactor._txsmtpd_clock = LoopClock(loop, reactor)
    return clock


def runs_here(reactor: Any) -> bool:
    """Return True if the reactor is running in this thread."""
    if isinstance(reactor, LoopReactor):
        return asyncio._get_running_loop() is loop_of_reactor(reactor)
    # Check in this order: the id of a reactor's thread that has ended may have been reused. And in trial the reactor's
    # thread runs without the reactor between two tests.
    return bool(reactor.running) and threadable.isInIOThread()


def call_in_reactor(reactor: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call the function in a reactor's thread, without waiting for it.

    :return: a future of its result. Cancelling it prevents the call, or cancels what the function waits for.
    """
    result: Future[Any] = Future()
    working: list[Deferred[Any]] = []

    def work() -> None:
        if result.cancelled():
            return
        deferred = maybeDeferred(function, *args, **kwargs)
        working.append(deferred)
        deferred.addCallbacks(result.set_result, lambda failure: result.set_exception(failure.value))
        deferred.addErrback(lambda _: None)  # the future was cancelled meanwhile

    def cancel() -> None:
        for deferred in working:
            deferred.cancel()

    result.add_done_callback(lambda _: result.cancelled() and reactor.callFromThread(cancel))
    reactor.callFromThread(work)
    return result


def call_in_pool(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Call a function that blocks in a thread of the current reactor's pool."""
    reactor = current_reactor()
    return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)
