"""Where messages are kept: limited memory, unnamed files, and disks that are slow, full or missing."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.filters.spool import MEMORY, PIECE, Spool


class Thread:
    """A thread that works when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.work.append((done, lambda: function(*arguments)))
        return done

    def run(self) -> None:
        """Run the work that has waited longest."""
        done, call = self.work.pop(0)
        execute(call).chainDeferred(done)


async def read(spool: Spool) -> bytes:
    """The whole content of a spool."""
    return b"".join([piece async for piece in spool.pieces()])


class SpoolTests(SynchronousTestCase):
    """One message in a spool."""

    def read(self, spool: Spool) -> bytes:
        return self.successResultOf(Deferred.fromCoroutine(read(spool)))

    def test_short(self) -> None:
        """A short message stays in memory, without work in a thread."""
        spool = Spool(Thread())
        for _ in range(MEMORY // 1024):
            spool.write(b"x" * 1024)
        self.assertEqual(self.read(spool), b"x" * MEMORY)
        self.assertEqual(spool.size, MEMORY)

    def test_long(self) -> None:
        """A long message is written to a file. It may be read any number of times, octet for octet."""
        spool = Spool(execute)
        pieces = [bytes([number % 251]) * 60001 for number in range(100)]
        for piece in pieces:
            spool.write(piece)
        for _ in range(2):
            self.assertEqual(self.read(spool), b"".join(pieces))
        self.assertLess(sum(map(len, spool._tail)), 2 * PIECE)

    def test_file(self) -> None:
        """The file has no name, and is removed when the spool is closed."""
        folder = self.mktemp()
        os.mkdir(folder)
        spool = Spool(execute, directory=folder)
        spool.write(b"x" * (MEMORY + 1))
        self.assertEqual(os.listdir(folder), [])
        descriptor = spool._file.fileno()
        os.fstat(descriptor)
        spool.close()
        self.assertRaises(OSError, os.fstat, descriptor)

    def test_slowDisk(self) -> None:
        """While the disk works, the writer is paused, so that memory is limited. Then it is resumed."""
        thread = Thread()
        spool = Spool(thread)
        told: list[str] = []
        spool.on_pressure(lambda: told.append("pause"), lambda: told.append("resume"))
        written = 0
        while "pause" not in told:
            spool.write(b"x" * 65536)
            written += 65536
        self.assertLessEqual(written, MEMORY + 3 * PIECE)
        thread.run()
        self.assertEqual(told, ["pause", "resume"])
        while thread.work:
            thread.run()
        reading = Deferred.fromCoroutine(read(spool))
        while thread.work:
            thread.run()
        self.assertEqual(len(self.successResultOf(reading)), written)

    def test_room(self) -> None:
        """A writer that cannot be paused waits for the disk instead."""
        thread = Thread()
        spool = Spool(thread)
        spool.write(b"x" * (MEMORY + 1))
        self.successResultOf(Deferred.fromCoroutine(spool.room()))
        spool.write(b"x" * 2 * PIECE)
        waiting = Deferred.fromCoroutine(spool.room())
        self.assertNoResult(waiting)
        thread.run()
        self.successResultOf(waiting)

    def test_fullDisk(self) -> None:
        """A full disk is an OSError, when writing and when reading."""
        thread = Thread()
        spool = Spool(thread)

        def full(*arguments: Any, **more: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(tempfile, "TemporaryFile", full)
        spool.write(b"x" * (MEMORY + 1))
        waiting = Deferred.fromCoroutine(read(spool))
        thread.run()
        self.assertEqual(self.failureResultOf(waiting, OSError).value.errno, errno.ENOSPC)
        self.assertRaises(OSError, spool.write, b"more")
        spool.close()

    def test_closedWhileWriting(self) -> None:
        """If a spool is closed while a thread writes, the file is closed after that."""
        thread = Thread()
        spool = Spool(thread)
        spool.write(b"x" * (MEMORY + 1))
        spool.close()
        thread.run()
        self.assertIsNone(spool._file)
        self.assertEqual(thread.work, [])

    def test_readerLeaves(self) -> None:
        """A caller that waits for the disk may be cancelled. The work continues, and other callers are notified."""
        thread = Thread()
        spool = Spool(thread)
        spool.write(b"x" * (MEMORY + 1))
        leaves, stays = (Deferred.fromCoroutine(spool.complete()) for _ in range(2))
        leaves.cancel()
        self.failureResultOf(leaves, CancelledError)
        thread.run()
        self.successResultOf(stays)
