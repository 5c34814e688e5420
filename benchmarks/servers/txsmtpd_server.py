"""txsmtpd: a handler with two coroutines, or the Mailbox."""

from __future__ import annotations

import importlib
from typing import Any

import options
from certificate import tls_context
from twisted.internet import reactor

from txsmtpd import SMTP, SMTPFactory


class Accept:
    """Accept and discard every message."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str:
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 OK"


def part(module: str, name: str) -> Any:
    """Import a part of txsmtpd that an older version may not have."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        options.unavailable()


def main() -> None:
    told = options.read()
    mailbox = part("txsmtpd.handlers", "Mailbox")
    handler: Any = mailbox(told.maildir, durable=not told.no_fsync) if told.maildir else Accept()
    protocol = part("txsmtpd.lmtp", "LMTP") if told.lmtp else SMTP
    settings: dict[str, Any] = {"hostname": "localhost"}
    if told.certificate:
        settings["tls_context"] = tls_context(told.certificate, told.key)
    try:
        factory = SMTPFactory(handler, protocol=protocol, **settings)
    except TypeError:
        if "tls_context" not in settings:
            raise
        options.unavailable()
    reactor.listenTCP(told.port, factory, backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
