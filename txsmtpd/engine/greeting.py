"""The beginning of a session: the PROXY header, implicit TLS, the hook CONNECT, and the greeting."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from txsmtpd.engine.admission import require
from txsmtpd.engine.handshake import is_wrapped, start_tls
from txsmtpd.engine.proxy_header import ProxyHeader, expects_header
from txsmtpd.engine.results import ClosingReply
from txsmtpd.reply import BAD_SEQUENCE, Refused, Reply

_COUNTED = ("connections", "tls")  # kinds of rate limits that apply at the beginning of a session


def first_turn(server: Any) -> Any:
    """Run the first turn of a connection, before any input is read."""
    if expects_header(server):
        return ProxyHeader(server, begin_session).start()
    return begin_session(server)


def begin_session(server: Any) -> Any:
    """Start TLS if it is implicit, and greet the client. A PROXY header has been read before."""
    interceptor = server._dispatcher.interceptor
    if interceptor is not None:
        return interceptor.connect(lambda: _begin_session(server))
    return _begin_session(server)


def _begin_session(server: Any) -> Any:
    settings = server.settings
    in_tls = settings.implicit_tls or is_wrapped(server.transport)
    if not settings.admission.kinds.isdisjoint(_COUNTED):
        return _greet_once_admitted(server, in_tls)
    return _greet_in_tls(server) if in_tls else greet(server)


async def _greet_once_admitted(server: Any, in_tls: bool) -> Any:
    admission = server.settings.admission
    try:
        for kind in ("connections", "tls") if in_tls else ("connections",):
            answer = admission.admit(kind, server.session)
            if answer is not None:
                await require(admission, kind, answer)
    except BaseException:
        server._dispatcher.closes_after_reply = True
        raise
    greeting = _greet_in_tls(server) if in_tls else greet(server)
    return await greeting if isinstance(greeting, Awaitable) else greeting


async def _greet_in_tls(server: Any) -> Reply:
    # After a PROXY header, the first octets of the handshake may already be in the buffer.
    await start_tls(server, server._connection.lines.clear())
    if server._dispatcher.refuse_all is not None:  # the hook STARTTLS has refused the client
        reply: Reply = server._dispatcher.refuse_all
        return reply
    greeting = greet(server)
    return greeting if isinstance(greeting, Reply) else await greeting


def greet(server: Any) -> Any:
    """Send the greeting, after the handshake if TLS is implicit."""
    interceptor = server._dispatcher.interceptor
    return server._greet() if interceptor is None else interceptor.greet(server._greet)


def default_greeting(server: Any) -> Any:
    """Return the greeting, or the reply of the hook CONNECT."""
    return _greeting_from_hook(server) if "CONNECT" in server.settings.hooks else server.settings.greeting


async def _greeting_from_hook(server: Any) -> Reply:
    dispatcher = server._dispatcher
    greeting: Reply = server.settings.greeting
    try:
        status = await dispatcher.result_of_hook("CONNECT")
        reply: Reply = greeting if status is None else dispatcher.reply_from_hook(status, "CONNECT")
    except Refused as refused:
        reply = dispatcher.reply_from_hook(refused.reply, "CONNECT")
    except BaseException:
        dispatcher.closes_after_reply = True
        raise
    if reply.positive:
        return reply if reply.code == 220 else greeting
    if reply.code >= 500:
        dispatcher.refuse_all = BAD_SEQUENCE  # RFC 5321 3.1: wait for QUIT, reply 503 to all other commands
        return reply
    return ClosingReply.of(reply)
