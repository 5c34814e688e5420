"""Runs work that may take long in a thread, so that other clients do not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool

from txsmtpd.session import Envelope

AT_ONCE = 2**13  # octets; up to this size a message is processed in the reactor's thread, in about a millisecond
THREADS = 2  # that one handler uses at the same time; more would only compete for the interpreter

T = TypeVar("T")


class OffThread:
    """Calls functions that process messages: directly for a short message, in a thread for a long one."""

    def __init__(self, threads: int = THREADS) -> None:
        self._tokens = DeferredSemaphore(threads)

    async def run(self, server: Any, envelope: Envelope, function: Callable[..., T], *arguments: Any) -> T:
        """Call the function for the envelope's message.

        :param server: the connection on which it arrived.
        """
        reactor = reactor_with_threads(server)
        if reactor is None or len(envelope.content or b"") <= AT_ONCE:
            return function(*arguments)
        result: T = await self._tokens.run(deferToThreadPool, reactor, reactor.getThreadPool(), function, *arguments)
        return result


def reactor_with_threads(server: Any) -> Any:
    """Return the reactor of a server's connections if it is running and has threads, or None (as for sessions in
    memory)."""
    settings = getattr(server, "settings", None)
    clock = None if settings is None else settings.clock()
    reactor = getattr(clock, "reactor", clock)
    return reactor if IReactorThreads.providedBy(reactor) and getattr(reactor, "running", False) else None
