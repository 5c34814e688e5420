"""CHUNKING (RFC 3030 2): messages in chunks of known size, with BDAT instead of DATA.

:mod:`txsmtpd.engine.message` reads the message and passes it on.
"""

from __future__ import annotations

from typing import Any

from txsmtpd.command import authorized, greeted, recipients, syntax
from txsmtpd.extensions.base import Extension
from txsmtpd.wire.chunk import parse_bdat


@syntax("BDAT size [LAST]", needs=[greeted, authorized, recipients], payload=lambda arg: parse_bdat(arg).size)
async def smtp_BDAT(server: Any, arg: str) -> Any:
    """Read a chunk of the message. The reply to the last one is the reply to the message."""
    chunk = parse_bdat(arg.encode("ascii"))
    if not chunk.size and not chunk.last:
        server._dispatcher.count_junk()
    return await server._begin_message().read_chunk(chunk.size, chunk.last)


class Chunking(Extension):
    """CHUNKING. Its command is a method of every server."""

    keyword = "CHUNKING"
