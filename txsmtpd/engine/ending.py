"""The end of a session: notifies all parts, once, for any cause."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost

from txsmtpd.engine.handshake import TLSSetupException
from txsmtpd.log import events
from txsmtpd.log.events import cause_text, client_text

PROBES = frozenset([b"", b"QUIT"])  # the last command of a health check


def session_ended(server: Any, cause: BaseException) -> None:
    """Notify the meter, the observer, the factory, an incomplete message, the log, the hooks, and the functions of
    at_end(). Called once, when the connection is lost.
    """
    dispatcher, observer, settings = server._dispatcher, server._connection.observer, server.settings
    if dispatcher.verb == b"QUIT" and server._connection.closing and type(cause) is ConnectionLost:
        # After the reply to QUIT, many clients close TCP without closing TLS, or reset the connection. The subclass
        # ConnectionAborted is kept: the server aborts the connection if the client does not read the reply.
        cause = ConnectionDone()
    if dispatcher.meter is not None:
        dispatcher.meter.closed(cause)
    if observer is not None:
        observer.closed(cause)
    disconnected = getattr(server.factory, "disconnected", None)
    if disconnected is not None:
        disconnected(server)
    message, server._message = server._message, None
    if message is not None:
        message.abort(cause)
    if settings.log_messages:
        dispatcher.log(
            events.PROBED if _is_probe(server) else events.ENDED,
            client=client_text(server.session.peer),
            messages=dispatcher.messages,
            cause=cause_text(cause),
        )
    if isinstance(cause, TLSSetupException):
        dispatcher.log(events.TLS_FAILED, client=client_text(server.session.peer), reason=str(cause))
        if "exception" in settings.hooks:
            _tell(server, "exception", cause)
    if "DISCONNECT" in settings.hooks:
        _tell(server, "DISCONNECT", server, server.session, server.envelope, cause)
    functions = server._at_end
    if functions:
        server._at_end = ()
    for function in functions:
        try:
            function()
        except BaseException as error:
            dispatcher.log.failure(events.FAILED, error, where=repr(function), why="")
    dispatcher.log_ended()


def _is_probe(server: Any) -> bool:
    """Whether the session was a health check: from a client without limits, and without commands except QUIT."""
    dispatcher = server._dispatcher
    return (
        not dispatcher.messages
        and dispatcher.verb in PROBES
        and server.settings.admission.network(server.session.peer) is None
    )


def _tell(server: Any, name: str, *arguments: Any) -> None:
    """Call a hook without waiting for its result."""
    Deferred.fromCoroutine(_run_hook(server, server._dispatcher.log, name, *arguments))


async def _run_hook(server: Any, log: Any, name: str, *arguments: Any) -> None:
    try:
        result = server.settings.hooks[name](*arguments)
        if isinstance(result, Awaitable):
            await result
    except GeneratorExit:  # the coroutine was closed, because nothing waits for the hook any more
        return
    except BaseException as error:
        log.failure(events.FAILED, error, where=f"handle_{name}", why="")
