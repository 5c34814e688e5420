"""STARTTLS (RFC 3207): the client may start TLS, if the server has a certificate and TLS is not on yet.

The handshake is in :mod:`txsmtpd.engine.handshake`.
"""

from __future__ import annotations

from typing import Any

from txsmtpd.command import Rule, syntax
from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Reply

READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")


def can_start_tls(server: Any) -> bool:
    """Return True if STARTTLS is offered now."""
    return server.tls_context is not None and server.session.ssl is None and hasattr(server.transport, "startTLS")


no_tls = Rule(lambda smtp, arg: smtp.session.ssl is None, Reply(503, "5.5.1", "TLS is already active"))
tls_available = Rule(lambda smtp, arg: can_start_tls(smtp), Reply(454, "4.7.0", "TLS is not available"))


@syntax("STARTTLS", when=can_start_tls, needs=[no_tls, tls_available], argument=False, rate="tls")
async def smtp_STARTTLS(server: Any, arg: None) -> None:
    """Start TLS, and discard the state of the session before it (RFC 3207 4.2)."""
    server.push(READY_FOR_TLS)
    server._reset_session()
    await server._start_tls()


class StartTLS(Extension):
    """STARTTLS. The command is a method of every server. The server refuses it if TLS is not available."""

    keyword = "STARTTLS"

    def parameter(self, server: Any) -> str | None:
        return "" if can_start_tls(server) else None
