"""Stores a message for its filters: in memory while it is small, then in an unnamed temporary file.

Disk I/O is done in threads. The unwritten data is bounded: the writer is asked to pause.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

MEMORY = 2**20  # bytes to keep in memory
PIECE = 2**18  # bytes to write or read at a time


class Spool:
    """Stores bytes until it is closed.

    :param in_thread: calls a function in a thread; returns a Deferred.
    :param memory: bytes; larger messages use a file.
    :param directory: the directory of the unnamed file. Default: the system's directory for temporary files.
    """

    def __init__(
        self, in_thread: Callable[..., Deferred[Any]], memory: int = MEMORY, directory: str | None = None
    ) -> None:
        self.size = 0  #: bytes so far
        self._in_thread = in_thread
        self._memory = memory
        self._directory = directory
        self._tail: list[bytes] = []  # what is not yet in the file
        self._gathered = 0  # the size of that
        self._file: Any = None
        self._in_file = 0
        self._busy: Deferred[Any] | None = None  # the thread that works on the file
        self._error: BaseException | None = None
        self._closed = False
        self._pause: Callable[[], object] | None = None
        self._resume: Callable[[], object] | None = None
        self._paused = False

    def on_pressure(self, pause: Callable[[], object], resume: Callable[[], object]) -> None:
        """Set functions to call when the writer should pause and resume."""
        self._pause, self._resume = pause, resume

    def write(self, data: bytes) -> None:
        """Add more bytes.

        :raises OSError: if earlier ones could not be written.
        """
        if self._error is not None:
            raise self._error
        self._tail.append(data)
        self._gathered += len(data)
        self.size += len(data)
        if self.size <= self._memory or self._gathered < PIECE:
            return
        if self._busy is None:
            self._write_in_thread()
        elif self._gathered >= 2 * PIECE and self._pause is not None and not self._paused:
            self._paused = True
            self._pause()

    def _write_in_thread(self) -> None:
        octets = b"".join(self._tail)
        self._tail.clear()
        self._gathered = 0
        self._work(self._append, octets).addCallbacks(self._written, self._failed)

    def _append(self, octets: bytes) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115  # closed by close()
        view = memoryview(octets)
        while view:
            view = view[self._file.write(view) :]
        return len(octets)

    def _written(self, octets: int) -> None:
        self._in_file += octets
        if self._gathered >= PIECE and not self._closed:
            self._write_in_thread()
        if self._paused:
            self._paused = False
            assert self._resume is not None
            self._resume()

    def _failed(self, failure: Failure) -> None:
        self._error = failure.value
        self._tail.clear()
        if self._paused:
            self._paused = False
            assert self._resume is not None
            self._resume()

    def _work(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Call the function in a thread. The file stays open until it has returned."""
        # The work cannot be cancelled, so each waiter gets its own Deferred, which can.
        result: Deferred[Any] = Deferred()
        busy: Deferred[Any] = Deferred()
        self._busy = busy

        def done(outcome: Any) -> None:
            self._busy = None
            if not result.called:
                result.callback(outcome)  # this may start the next work
            busy.callback(None)
            if self._closed and self._busy is None:
                self._close_file()

        self._in_thread(function, *arguments).addBoth(done)
        return result

    async def room(self) -> None:
        """Wait while too much unwritten data is in memory, for writers that cannot be paused."""
        while self._busy is not None and self._gathered >= 2 * PIECE:
            await self._work_done(self._busy)

    async def complete(self) -> None:
        """Wait until everything can be read.

        :raises OSError: if it could not be written.
        """
        while self._busy is not None:
            await self._work_done(self._busy)
        if self._error is not None:
            raise self._error

    def _work_done(self, busy: Deferred[Any]) -> Deferred[None]:
        # The waiter may be cancelled; the work continues.
        waits: Deferred[None] = Deferred()
        busy.addCallback(_wake, waits)
        return waits

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all bytes from the beginning, in chunks.

        :raises OSError: if the file cannot be written or read.
        """
        await self.complete()
        offset = 0
        while offset < self._in_file:
            piece = await self._work(os.pread, self._file.fileno(), min(PIECE, self._in_file - offset), offset)
            if not piece:
                raise OSError("the temporary file is truncated")
            offset += len(piece)
            yield piece
        for piece in tuple(self._tail):
            yield piece

    def close(self) -> None:
        """Discard everything."""
        self._closed = True
        self._tail.clear()
        self._gathered = 0
        if self._busy is None:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _wake(result: None, waiting: Deferred[None]) -> None:
    if not waiting.called:
        waiting.callback(None)
