"""The PROXY protocol for programs: what a header says, and how to read one from a stream.

The server reads headers by itself (:attr:`~txsmtpd.settings.Settings.proxy_from`). A program needs these names to look
at what ``handle_PROXY`` and ``session.proxy_data`` have, or for servers of its own.
"""

from __future__ import annotations

from typing import Protocol

from txsmtpd.wire.proxy import (
    AF,
    PROTO,
    V2_CMD,
    V2_SIGNATURE,
    MalformedTLV,
    ProxyData,
    ProxyReader,
    ProxyTLV,
    UnknownTypeTLV,
)

__all__ = [
    "AF",
    "PROTO",
    "V2_CMD",
    "V2_SIGNATURE",
    "AsyncReader",
    "MalformedTLV",
    "ProxyData",
    "ProxyTLV",
    "UnknownTypeTLV",
    "get_proxy",
]


class AsyncReader(Protocol):
    """What a header can be read from, such as an ``asyncio.StreamReader``."""

    async def readexactly(self, n: int) -> bytes:
        """The next octets, so many; an EOFError that has them in ``partial`` if the stream ends before."""


async def get_proxy(reader_func: AsyncReader) -> ProxyData:
    """Read a header, of either version, and no octet behind it.

    :return: what it says; not valid, with the reason in ``error``, if it is malformed or the stream ends within it.
    """
    reader = ProxyReader()
    while reader.result is None:
        try:
            octets = await reader_func.readexactly(reader.wanted)
        except EOFError as error:
            octets = getattr(error, "partial", b"")
        enough = len(octets) == reader.wanted
        reader.feed(octets)
        if not enough and reader.result is None:
            return reader.end()
    return reader.result
