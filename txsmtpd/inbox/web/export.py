"""Exports messages as one file, streamed: an mbox (mboxrd, RFC 4155), or a zip of ``.eml`` files."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import AsyncIterator

from txsmtpd.inbox.message import Message
from txsmtpd.inbox.scope import Scope
from txsmtpd.inbox.search import Terms
from txsmtpd.inbox.store import Store
from txsmtpd.inbox.web.content import raw_pieces

TOGETHER = 200  # messages to look up at once

_FROM = re.compile(rb"(?m)^(>*From )")


async def _messages(store: Store, scope: Scope, ids: list[str] | None, terms: Terms) -> AsyncIterator[Message]:
    """Yield the messages, newest first."""
    if ids is not None:
        for message_id in ids:
            message = await store.message(message_id, scope)
            if message is not None:
                yield message
        return
    before: int | None = None
    while True:
        page = await store.page(scope, terms, limit=TOGETHER, before=before, exact=False)
        for message in page.messages:
            yield message
        if len(page.messages) < TOGETHER:
            return
        before = page.messages[-1].number


async def as_mbox(store: Store, scope: Scope, ids: list[str] | None, terms: Terms) -> AsyncIterator[bytes]:
    """Yield the messages as an mbox. Lines end in LF; lines that begin with ``From`` are quoted."""
    async for message in _messages(store, scope, ids, terms):
        sender = re.sub(r"[^!-~]", "_", message.envelope.mail_from) or "MAILER-DAEMON"
        date = time.asctime(time.gmtime(message.arrived))
        yield f"From {sender} {date}\n".encode()
        lines = b""
        async for lines in _whole_lines(raw_pieces(store, message, 0, message.size)):
            yield _FROM.sub(rb">\1", lines.replace(b"\r\n", b"\n"))
        yield b"\n" if lines.endswith(b"\n") else b"\n\n"


async def _whole_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in pieces that end with a line end."""
    rest: list[bytes] = []
    async for piece in pieces:
        lines, newline, begun = piece.rpartition(b"\n")
        if newline:
            yield b"".join([*rest, lines, newline])
            rest = []
        rest.append(begun)
    if last := b"".join(rest):
        yield last


class _Sink(io.RawIOBase):
    """Collects what a zip file writes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, octets: bytes) -> int:  # type: ignore[override]
        self._pieces.append(bytes(octets))
        return len(octets)

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


async def as_zip(store: Store, scope: Scope, ids: list[str] | None, terms: Terms) -> AsyncIterator[bytes]:
    """Yield the messages as a zip. File names are numbers and ids, and contain nothing from the mail."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        async for message in _messages(store, scope, ids, terms):
            when = max(time.gmtime(message.arrived)[:6], (1980, 1, 1, 0, 0, 0))
            entry = zipfile.ZipInfo(f"{message.number:08}-{message.id}.eml", when)
            with archive.open(entry, "w") as file:
                async for piece in raw_pieces(store, message, 0, message.size):
                    file.write(piece)
                    yield sink.taken()
    yield sink.taken()
