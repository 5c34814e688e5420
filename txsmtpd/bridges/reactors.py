"""Which reactor is at work here: the program's, or that of the asyncio loop that runs in this thread.

Code that needs a reactor and was given none asks :func:`current_reactor` when it is at work, not before. Nothing here
knows of SMTP.
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

# By the identity of their loops, which live as long as they do.
_reactors: WeakValueDictionary[int, LoopReactor] = WeakValueDictionary()


def has_reactor() -> bool:
    """Whether the program has chosen a global reactor."""
    return "twisted.internet.reactor" in sys.modules


def global_reactor() -> Any:
    """The program's reactor. A program that has none yet gets Twisted's default."""
    found = sys.modules.get("twisted.internet.reactor")
    if found is None:
        from twisted.internet import reactor

        return reactor
    return found


def loop_of_reactor(reactor: Any) -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that a reactor is made of, if it is made of one."""
    return getattr(reactor, "_asyncioEventloop", None)


def has_asyncio_reactor() -> bool:
    """Whether the program has chosen a global reactor that is made of an asyncio loop."""
    return has_reactor() and loop_of_reactor(global_reactor()) is not None


def reactor_of_loop(loop: asyncio.AbstractEventLoop) -> Any:
    """The reactor of an asyncio loop: the program's, if that is made of this loop; else one of its own."""
    if has_reactor() and loop_of_reactor(global_reactor()) is loop:
        return global_reactor()
    found = _reactors.get(id(loop))
    if found is None or not found.running:
        found = _reactors[id(loop)] = LoopReactor(loop)
    return found


def current_reactor() -> Any:
    """The reactor at work in this thread: that of the asyncio loop that runs here, else the program's."""
    loop = asyncio._get_running_loop()
    return global_reactor() if loop is None else reactor_of_loop(loop)


def clock_of(reactor: Any) -> Any:
    """What keeps the time for a reactor (IReactorTime): itself, or the loop that it is made of."""
    loop = loop_of_reactor(reactor)
    if loop is None or isinstance(reactor, LoopReactor):
        return reactor
    clock = getattr(reactor, "_txsmtpd_clock", None)
    if clock is None:
        clock = reactor._txsmtpd_clock = LoopClock(loop, reactor)
    return clock


def runs_here(reactor: Any) -> bool:
    """Whether this is the thread in which the reactor runs now."""
    if isinstance(reactor, LoopReactor):
        return asyncio._get_running_loop() is loop_of_reactor(reactor)
    # In this order: the number of a reactor's thread that has ended may be another's by now. The thread that has run
    # the reactor, but does not now, may be trial's, between two tests.
    return bool(reactor.running) and threadable.isInIOThread()


def call_in_reactor(reactor: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call the function in a reactor's thread, without waiting for it.

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


def call_in_pool(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Call a function that blocks in a thread of the current reactor's pool."""
    reactor = current_reactor()
    return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)
