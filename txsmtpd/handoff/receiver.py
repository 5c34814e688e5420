"""Receives one message into memory, within its share, or into a store, with back-pressure for the client.

:mod:`txsmtpd.handoff.promise` handles the complete message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.flow_control import FlowControl
from txsmtpd.handlers.delivery import when_done
from txsmtpd.handoff.bindings import with_reference
from txsmtpd.handoff.budget import Share
from txsmtpd.handoff.message import Fingerprint, HandoffMessage
from txsmtpd.handoff.outcome import BUSY, TOO_LARGE, NotTaken
from txsmtpd.interfaces import IMessageReceiver
from txsmtpd.reply import Refused

STEP = 2**16  # bytes by which a share grows; messages are rarely larger


@implementer(IMessageReceiver)
class Receiver(FlowControl):
    """Receives one message.

    :param envelope: its dictionary; see :func:`~txsmtpd.handoff.message.envelope_of`.
    :param header: bytes to put before it.
    :param share: its share of the memory.
    :param complain: called with errors that happen before the message is complete and are not the client's fault.
    :param settle: called with the complete message, its upload, and the share. Returns the status.
    :param limit: the maximum size in bytes, including *header*. None: unlimited.
    :param store: where messages of more than *inline* bytes are stored. None: all stay in memory.
    :param wait: seconds that it may wait for memory.
    :param reactor: provides the time.
    """

    def __init__(
        self,
        envelope: dict[str, Any],
        header: bytes,
        share: Share,
        settle: Callable[[HandoffMessage, Any, Share], Any],
        *,
        complain: Callable[[Exception], object],
        limit: int | None,
        store: Any,
        inline: int,
        wait: float,
        reactor: Any,
    ) -> None:
        self._envelope = envelope
        self._share = share
        self._settle = settle
        self._complain = complain
        self._limit = limit
        self._store = store
        self._inline = inline
        self._wait = wait
        self._reactor = reactor
        self._fingerprint = Fingerprint(envelope["mail_from"], envelope["rcpt_tos"])
        self._size = 0  # bytes that the client has sent
        self._buffer = BytesIO()
        self._buffer.write(header)
        self._paused_for = 0  # the number of reasons
        self._waiting: Deferred[None] | None = None  # for memory
        self._error: Exception | None = None
        self._upload: Any = None
        self._digest: Any = None  # of what is uploaded
        self._stored_octets = 0
        self._writing: Deferred[None] | None = None
        self._in_flight = 0  # bytes being written

    # IMessageReceiver

    def write(self, data: bytes) -> None:
        if self._error is not None:
            raise self._error
        if not self._size and data[:1] in (b" ", b"\t"):
            # This line would continue our field. It is not a header field, so it belongs to the body.
            self._buffer.write(b"\r\n")
        self._size += len(data)
        if self._limit is not None and self._buffer.tell() + len(data) > self._limit:
            raise Refused(TOO_LARGE)
        self._fingerprint.update(data)
        self._buffer.write(data)
        self._take_memory()
        if self._store is not None and (self._upload is not None or self._buffer.tell() > self._inline):
            self._store_more()

    async def finish(self) -> Any:
        try:
            if self._waiting is not None:
                await when_done(self._waiting)
            if self._error is not None:
                raise self._error
            message, upload = await self._complete()
        except CancelledError:
            self.abort(ConnectionAborted())
            raise
        except BaseException:
            self._give_up()
            raise
        self._buffer = BytesIO()
        return await self._settle(message, upload, self._share)

    def abort(self, reason: BaseException) -> None:
        self._error = self._error or ConnectionAborted()
        if self._waiting is not None:
            self._waiting.cancel()
        self._give_up()

    # Memory

    def _take_memory(self) -> None:
        missing = self._buffer.tell() + self._in_flight - self._share.octets
        if missing <= 0 or self._waiting is not None:
            return
        growing = self._share.grow(max(missing, STEP))
        if growing.called:
            return
        self._waiting = growing
        self._pause()
        growing.addTimeout(self._wait, self._reactor)
        growing.addErrback(self._no_memory)
        growing.addCallback(self._has_memory)

    def _no_memory(self, failure: Failure) -> None:
        if failure.check(DeferredTimeout):
            self._fail(NotTaken("too many messages are in memory", BUSY))
            self._buffer = BytesIO()
        else:
            failure.trap(CancelledError)

    def _has_memory(self, _: object) -> None:
        self._waiting = None
        self._resume()
        if self._error is None:
            self._take_memory()

    # The store

    def _store_more(self) -> None:
        if self._upload is None:
            when = datetime.fromisoformat(str(self._envelope["time"])).astimezone(UTC)
            self._upload = self._store.open(str(self._envelope["id"]), when)
            self._digest = hashlib.sha256()
        if self._buffer.tell() < self._store.part:
            return
        if self._writing is not None:
            if not self._paused_for:
                self._pause()
                self._writing.addCallback(lambda _: self._resume())
            return
        self._writing = writing = self._write_part()
        writing.addErrback(self._not_stored)
        writing.addCallback(self._stored)

    def _write_part(self) -> Deferred[None]:
        writing: Deferred[None] = self._upload.write(self._taken())
        return writing

    def _taken(self) -> bytes:
        """Return and clear what is in memory, for the store."""
        piece = self._buffer.getvalue()
        self._buffer = BytesIO()
        self._in_flight = len(piece)
        self._stored_octets += len(piece)
        self._digest.update(piece)
        return piece

    def _stored(self, _: object) -> None:
        self._writing = None
        self._in_flight = 0
        if self._error is None and self._producer is not None and self._buffer.tell() >= self._store.part:
            self._store_more()

    def _not_stored(self, failure: Failure) -> None:
        self._fail(_refusal(failure))

    async def _complete(self) -> tuple[HandoffMessage, Any]:
        """Return the message, and its upload if it is stored."""
        if self._upload is None:
            return self._message(self._buffer.getvalue()), None
        while self._writing is not None:
            await when_done(self._writing)
        if self._error is not None:
            raise self._error
        uri = await self._through(self._upload.finish(self._taken()))
        reference = with_reference(self._message(b""), uri, self._stored_octets, self._digest.hexdigest())
        return reference, self._upload

    async def _through(self, work: Deferred[Any]) -> Any:
        """Wait for the store. If the client disconnects, the work continues and is cleaned up afterwards."""
        results: list[Any] = []
        self._writing = work.addBoth(results.append)
        await when_done(work)
        self._writing = None
        if isinstance(results[0], Failure):
            self._fail(_refusal(results[0]))
            raise _refusal(results[0])
        return results[0]

    def _message(self, content: bytes) -> HandoffMessage:
        return HandoffMessage({**self._envelope, "fingerprint": str(self._fingerprint), "size": self._size}, content)

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._complain(error)

    def _give_up(self) -> None:
        """Discard the message."""
        self._buffer = BytesIO()
        Deferred.fromCoroutine(self._clean_up())

    async def _clean_up(self) -> None:
        upload, self._upload = self._upload, None
        if self._writing is not None:
            await when_done(self._writing)
        self._share.release()
        if upload is not None:
            await upload.abort()

    # The client

    def _pause(self) -> None:
        self._paused_for += 1
        if self._paused_for == 1:
            super()._pause()

    def _resume(self) -> None:
        self._paused_for -= 1
        if self._paused_for == 0:
            super()._resume()


def _refusal(failure: Failure) -> Exception:
    """Return the exception that tells the client why a message was not stored."""
    error = failure.value
    return error if isinstance(error, Refused) else NotTaken(f"the store failed: {failure.getErrorMessage()}")
