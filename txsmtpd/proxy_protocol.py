"""The PROXY protocol for programs: the contents of a header, and how to read one from a stream.

The server reads headers itself (:attr:`~txsmtpd.settings.Settings.proxy_from`). Programs need these names to inspect
the values of ``handle_PROXY`` and ``session.proxy_data``, or for their own servers.
"""

from __future__ import annotations

import logging
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


log = logging.getLogger("mail.log")  # as the controllers


class AsyncReader(Protocol):
    """A stream to read a header from, such as an ``asyncio.StreamReader``."""

    async def readexactly(self, n: int) -> bytes:
        """Read *n* bytes. If the stream ends before, raise an EOFError with the bytes read so far in ``partial``."""


async def get_proxy(reader_func: AsyncReader) -> ProxyData:
    """Read a header of either version, and nothing after it.

    :return: the header's data. If the header is malformed or incomplete, it is not valid, and ``error`` has the reason,
        which is also logged.
    """
    data = await _read(reader_func)
    if not data:
        log.warning("PROXY header: %s", data.error)
    return data


async def _read(reader_func: AsyncReader) -> ProxyData:
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
