"""The log file is slow, full, renamed, or a pipe without a reader: the server continues."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.log.writer import Writer, stream_of

PATIENCE = 60


class WriterTests(SynchronousTestCase):
    """Writer."""

    def writer(self, *arguments: Any, **options: Any) -> Writer:
        writer = Writer(*arguments, **options)
        self.addCleanup(writer.close, PATIENCE)
        return writer

    def pipe(self) -> tuple[int, int]:
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        return reading, writing

    def test_file(self) -> None:
        """Lines are appended in order, str and bytes."""
        path = self.mktemp()
        Path(path).write_text("before\n")
        writer = self.writer(path)
        for number in range(1000):
            writer.write(f"line {number} \u00e9\n")
        writer.write(b"octets\n")
        self.assertTrue(writer.close(PATIENCE))
        lines = Path(path).read_text("utf-8").splitlines()
        self.assertEqual(lines, ["before", *(f"line {number} \u00e9" for number in range(1000)), "octets"])

    def test_afterClose(self) -> None:
        """A line after the end is written immediately."""
        path = self.mktemp()
        writer = self.writer(path)
        writer.close()
        writer.write("late\n")
        self.assertEqual(Path(path).read_text(), "late\n")

    def test_batches(self) -> None:
        """The first line is in the file after some milliseconds. While others follow, the thread runs less often."""
        path = self.mktemp()
        writer = self.writer(path)
        pauses: list[float] = []
        done = threading.Event()

        class Hurry(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                pauses.append(timeout)
                if len(pauses) < 8:
                    writer.write("another\n")
                else:
                    writer._closes = threading.Event()
                    done.set()
                return False

        writer._closes = Hurry()
        writer.write("one\n")
        self.assertTrue(done.wait(PATIENCE))
        self.assertTrue(writer.close(PATIENCE))
        self.assertEqual(pauses, [0.01, 0.02, 0.04, 0.08, 0.1, 0.1, 0.1, 0.1])
        self.assertEqual(Path(path).read_text(), "one\n" + 7 * "another\n")

    def test_renamed(self) -> None:
        """After reopen(), lines are written to a new file with the same name, and none is lost."""
        path = self.mktemp()
        writer = self.writer(path)
        writer.write("one\n")
        writer.close(PATIENCE)
        os.rename(path, path + ".1")
        writer.write("two\n")
        writer.reopen()
        writer.write("three\n")
        self.assertEqual((Path(path + ".1").read_text(), Path(path).read_text()), ("one\ntwo\n", "three\n"))

    def test_nobodyReads(self) -> None:
        """Without a reader, write() does not wait, and memory is limited. When lines are read again, the number of lost
        ones is reported."""
        reading, writing = self.pipe()
        writer = self.writer(writing, limit=100_000)
        line = 99 * "x" + "\n"
        for _ in range(10_000):  # 1 MB; a pipe holds 64 KiB
            writer.write(line)
        self.assertLess(writer._size, 100_200)
        self.assertFalse(writer.close(0.05))
        writer._closing = writer._stuck = False
        with os.fdopen(reading) as stream:
            kept = [stream.readline()]
            thread = threading.Thread(target=lambda: kept.extend(iter(stream.readline, "after\n")), daemon=True)
            thread.start()
            self.assertTrue(writer._idle.wait(PATIENCE))
            writer.write("after\n")
            thread.join(PATIENCE)
        *lines, told = kept
        self.assertEqual(set(lines), {line})
        self.assertEqual(told, f"({10_000 - len(lines)} lines were lost: they were not written in time)\n")

    def test_fullDisk(self) -> None:
        """A full disk loses lines, and their number is written later. An incomplete line does not affect the next
        one."""
        path = self.mktemp()
        writer = self.writer(path)
        real, full = os.write, [True]

        def write(descriptor: int, octets: bytes) -> int:
            if full[0] and len(octets) > 5:
                return real(descriptor, octets[:5])
            if full[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, octets)

        self.patch(os, "write", write)
        writer.write("123456\n")
        writer.close(PATIENCE)
        full[0] = False
        writer.write("next\n")
        self.assertEqual(
            Path(path).read_text().splitlines(), ["12345", "(1 lines were lost: No space left on device)", "next"]
        )

    def test_complains(self) -> None:
        """The error of a log file is reported on standard error, once until the file can be written again."""
        self.patch(sys, "__stderr__", io.StringIO())
        writer = self.writer("/dev/full")
        for _ in range(3):
            writer.write("x\n")
            writer.close(PATIENCE)
        self.assertEqual(
            sys.__stderr__.getvalue(),  # type: ignore[union-attr]  # the test's own StringIO
            "/dev/full: No space left on device; log lines are lost\n",
        )

    def test_unopenable(self) -> None:
        """A file that cannot be opened is an error immediately."""
        self.assertRaises(OSError, Writer, os.path.join(self.mktemp(), "no", "such"))

    def test_stream(self) -> None:
        """Printed text is written line by line, with escapes for characters that cannot be encoded."""
        path = self.mktemp()
        writer = self.writer(path)
        written: list[bytes] = []
        self.patch(writer, "write", written.append)
        with open(os.devnull, "w", encoding="ascii") as original:
            stream = stream_of(writer, original)
            print("two", "words", "\u00e9", file=stream)
            print("next", file=stream)
            stream.buffer.write(b"octets")
            stream.flush()
            self.assertEqual(stream.fileno(), original.fileno())
        self.assertEqual(written, [b"two words \\xe9\n", b"next\n", b"octets"])
