"""Writes one message into a maildir while it arrives. Memory use is constant, and a slow disk slows the client down.

A short message is written in a thread at its end; a long one piece by piece as it arrives. The file operations are in
:mod:`txsmtpd.handlers.maildir`, the header in :mod:`txsmtpd.handlers.trace_header`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted
from zope.interface import implementer

from txsmtpd.bridges.flow_control import FlowControl
from txsmtpd.handlers import trace_header
from txsmtpd.handlers.maildir import Draft, Maildir
from txsmtpd.interfaces import IMessageReceiver

PIECE = 2**17  # octets collected before they are written

_BARE_CR = re.compile(rb"\r(?!\n)")


def with_lf(octets: bytes) -> bytes:
    """Convert line ends to LF."""
    # If each CR is followed by LF, as is usual, removing all CRs is twice as fast.
    return octets.replace(b"\r\n", b"\n") if _BARE_CR.search(octets) else octets.translate(None, b"\r")


@implementer(IMessageReceiver)
class Delivery(FlowControl):
    """A message that is being stored.

    :param maildir: where to store it.
    :param name: the file name.
    :param header: header fields to put before the message.
    :param in_thread: calls a function with arguments in a thread; returns a Deferred.
    :param stored: called with the name of the stored file; returns the status.
    :param failed: called with an OSError; returns the exception to raise.
    :param binary: whether to store the message unchanged, with CRLF (RFC 3030), instead of with LF line ends.
    """

    def __init__(
        self,
        maildir: Maildir,
        name: str,
        header: bytes,
        in_thread: Callable[..., Deferred[Any]],
        stored: Callable[[str], Any],
        failed: Callable[[OSError], Exception],
        binary: bool = False,
    ) -> None:
        self._maildir = maildir
        self._name = name
        self._header = header.replace(b"\n", b"\r\n") if binary else header
        self._forgeries = trace_header.ForgeryFilter(b"\r\n" if binary else b"\n")
        self._with_lf: Callable[[bytes], bytes] = bytes if binary else with_lf
        self._in_thread = in_thread
        self._stored = stored
        self._failed = failed
        self._pieces: list[bytes] = []  # not yet passed to a thread
        self._octets = 0  # the size of these
        self._draft: Draft | None = None
        self._writing: Deferred[None] | None = None
        self._error: Exception | None = None
        self._committing = False

    def write(self, data: bytes) -> None:
        if self._error is not None:
            return
        self._pieces.append(data)
        self._octets += len(data)
        if self._octets >= PIECE:
            if self._writing is None:
                self._write_in_thread()
            else:
                self._pause()

    async def finish(self) -> Any:
        try:
            await self._all_written()
            self._committing = True  # from now on the file belongs to the commit, and abort() leaves it alone
            await self._in_thread(self._commit, self._taken())
        except OSError as error:
            raise self._failed(error) from error
        except CancelledError:
            # A commit that has started continues, and what is stored stays. An incomplete message is removed.
            self.abort(ConnectionAborted())
            raise
        return self._stored(self._name)

    def abort(self, reason: BaseException) -> None:
        self._taken()
        Deferred.fromCoroutine(self._clean_up())

    async def _clean_up(self) -> None:
        with suppress(OSError):  # the message is discarded anyway
            await self._all_written()
        if self._draft is not None and not self._committing:
            await self._in_thread(self._maildir.abort, self._draft)

    async def _all_written(self) -> None:
        while self._writing is not None:
            await when_done(self._writing)
        if self._error is not None:
            raise self._error

    def _write_in_thread(self) -> None:
        piece = self._taken()
        if piece.endswith(b"\r"):
            self._pieces.append(b"\r")
            self._octets = 1
            piece = piece[:-1]
        self._writing = self._in_thread(self._add, piece)
        self._writing.addErrback(self._note_error)
        self._writing.addCallback(self._written)

    def _taken(self) -> bytes:
        octets = b"".join(self._pieces)
        self._pieces.clear()
        self._octets = 0
        return octets

    def _note_error(self, failure: Any) -> None:
        self._error = failure.value
        self._pieces.clear()

    def _written(self, _: object) -> None:
        self._writing = None
        if self._octets >= PIECE and self._error is None:
            self._write_in_thread()
        self._resume()

    # In threads, one call at a time

    def _add(self, piece: bytes) -> None:
        """Write the next piece; before the first one, the header."""
        if self._draft is None:
            self._draft = self._maildir.open(self._name)
            self._name = self._draft.name
            piece = self._header + self._forgeries.feed(self._with_lf(piece))
        else:
            piece = self._forgeries.feed(self._with_lf(piece))
        self._write(piece)

    def _write(self, octets: bytes) -> None:
        assert self._draft is not None
        try:
            self._maildir.write(self._draft, octets)
        except BaseException:
            self._maildir.abort(self._draft)
            raise

    def _commit(self, rest: bytes) -> None:
        self._add(rest)
        self._write(self._forgeries.close())
        assert self._draft is not None
        try:
            self._maildir.commit(self._draft)
        except BaseException:
            self._maildir.abort(self._draft)
            raise


def when_done(work: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires when the work is done or has failed. Cancelling it does not cancel the work."""
    done: Deferred[None] = Deferred()

    def tell(result: Any) -> Any:
        if not done.called:
            done.callback(None)
        return result

    work.addBoth(tell)
    return done
