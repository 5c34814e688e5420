"""aiosmtpd: the same two coroutines, or its own Mailbox, in a plain asyncio loop."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import options
from aiosmtpd.handlers import Mailbox
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP


class Accept:
    """Accept and discard every message."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str:
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 OK"


async def main() -> None:
    told = options.read()
    handler = Mailbox(told.maildir) if told.maildir else Accept()
    settings: dict[str, Any] = {"hostname": "localhost"}
    if told.certificate:
        settings["tls_context"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        settings["tls_context"].load_cert_chain(told.certificate, told.key)
    protocol = LMTP if told.lmtp else SMTP
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: protocol(handler, loop=loop, **settings), "127.0.0.1", told.port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
