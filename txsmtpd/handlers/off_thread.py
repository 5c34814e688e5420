"""Work that may take long, in a thread: nobody else waits meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool

from txsmtpd.session import Envelope

AT_ONCE = 2**13  # octets of a message that is looked at in the reactor's thread; that takes a millisecond
THREADS = 2  # for one handler at a time; more would only compete for the interpreter

T = TypeVar("T")


class OffThread:
    """Calls functions for messages: at once for a short one, in a thread for a long one."""

    def __init__(self, threads: int = THREADS) -> None:
        self._tokens = DeferredSemaphore(threads)

    async def run(self, server: Any, envelope: Envelope, function: Callable[..., T], *arguments: Any) -> T:
        """Call the function for the envelope's message.

        :param server: the connection that it came by.
        """
        reactor = reactor_with_threads(server)
        if reactor is None or len(envelope.content or b"") <= AT_ONCE:
            return function(*arguments)
        result: T = await self._tokens.run(deferToThreadPool, reactor, reactor.getThreadPool(), function, *arguments)
        return result


def reactor_with_threads(server: Any) -> Any:
    """The reactor in which a server's connections run, if it runs and has threads; otherwise None, as in memory."""
    settings = getattr(server, "settings", None)
    clock = None if settings is None else settings.clock()
    reactor = getattr(clock, "reactor", clock)
    return reactor if IReactorThreads.providedBy(reactor) and getattr(reactor, "running", False) else None
