"""Interceptors can replace what a session does. Fault injection is an interceptor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Interceptor:
    """Can replace the actions of one session. Override the methods that you need.

    Each is called before an action. It calls *proceed* to perform the action, and returns the result of the turn.
    """

    def connect(self, proceed: Callable[[], Any]) -> Any:
        """A client has connected. Then it is greeted, after the handshake if TLS is implicit."""
        return proceed()

    def greet(self, proceed: Callable[[], Any]) -> Any:
        """The greeting is due."""
        return proceed()

    def command(self, verb: bytes, arg: str | None, proceed: Callable[[], Any]) -> Any:
        """A valid command was received. Then it is executed."""
        return proceed()

    async def message(self, octets: int, finish: Callable[[], Any]) -> Any:
        """A message was received completely. Then it is passed to the handler.

        :param finish: passes the message on, and returns a coroutine of the reply.
        """
        return await finish()

    def tls_context(self, context: Any) -> Any:
        """Return the context for a TLS handshake that starts now. By default it is the server's."""
        return context
