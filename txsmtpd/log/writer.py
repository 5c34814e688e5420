"""Writes lines to a file without blocking, even if the file is slow, full, or a pipe without a reader.

A thread writes the collected lines after a few milliseconds. While more lines arrive, it runs less often, because each
run interrupts the reactor's thread. So a line costs the reactor's thread almost nothing. If the file does not accept
lines, they are dropped and counted, so that the process neither blocks nor grows.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

BUFFER = 4 * 2**20  # characters to buffer; beyond that, lines are dropped
BATCH = 0.01  # seconds to collect lines at first
LONGEST_BATCH = 0.1  # and while lines keep coming
PAUSE = 0.1  # seconds to wait after a failed write
CLOSE_TIMEOUT = 2.0  # seconds to wait for the last lines


def report_on_standard_error(reason: str) -> None:
    """Report a problem with the file on standard error, if available."""
    if sys.__stderr__ is not None:
        print(reason, file=sys.__stderr__, flush=True)


def lost_lines(count: int, reason: str) -> str:
    """Return the line that reports dropped lines."""
    return f"({count} lines were lost: {reason})\n"


class Writer:
    """Writes lines to a file.

    :param path: the file, which is opened now for appending; or a file descriptor, which is not closed.
    :param lost: returns the line that reports how many lines were dropped, and why. Called in any thread.
    :raises OSError: if the file cannot be opened.
    """

    def __init__(self, path: str | int, lost: Callable[[int, str], str] = lost_lines, limit: int = BUFFER) -> None:
        self.path = path
        self.lost = lost
        self.complain: Callable[[str], None] = report_on_standard_error  #: called in any thread
        self._descriptor = path if isinstance(path, int) else _opened(path)
        self._limit = limit
        self._lock = threading.Lock()
        self._lines: list[str | bytes] = []
        self._size = 0
        self._dropped = 0  # lines dropped since the buffer has been full
        self._failed = 0  # lines that could not be written
        self._reason = ""
        self._torn = False  # whether the last line in the file is incomplete
        self._reopens = False
        self._closing = False
        self._closes = threading.Event()  # set by close(), so that the thread does not collect lines any longer
        self._stuck = False
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._sleeps = True  # as _idle, but read for every line: to check an Event takes as long as to queue a line
        self._thread: threading.Thread | None = None

    def write(self, line: str | bytes) -> None:
        """Queue a line, including its line feed, to be written soon. Does not block."""
        if sys.is_finalizing():  # the thread has ended, and starting another one would hang
            _write_now(self._descriptor, line)
            return
        with self._lock:
            if self._size > self._limit:
                self._dropped += 1
                return
            if self._dropped:
                self._lines.append(self.lost(self._dropped, "they were not written in time"))
                self._dropped = 0
            self._lines.append(line)
            self._size += len(line)
            if self._sleeps:
                self._start()
        if self._closing and not self._stuck:
            self._stuck = not self._idle.wait(CLOSE_TIMEOUT)

    def reopen(self) -> None:
        """Reopen the file by its name, after log rotation."""
        if isinstance(self.path, str):
            with self._lock:
                self._reopens = True
                self._start()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Write all queued lines. Afterwards, :meth:`write` waits until a line is in the file.

        :param timeout: the maximum time in seconds. What is not written by then is lost.
        :return: whether everything was written.
        """
        self._closing = True
        self._closes.set()
        self._stuck = not self._idle.wait(timeout)
        return not self._stuck

    def _start(self) -> None:
        self._sleeps = False
        self._idle.clear()
        if self._thread is None or not self._thread.is_alive():
            # A daemon thread: a file that blocks must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="txsmtpd log", daemon=True)
            self._thread.start()
        self._wake.set()

    # In the thread

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            pause = BATCH
            self._closes.wait(pause)
            while self._write_some():
                pause = min(2 * pause, LONGEST_BATCH)
                self._closes.wait(pause)

    def _write_some(self) -> bool:
        """Write queued lines. Return True if there may be more."""
        with self._lock:
            lines, self._lines, self._size = self._lines, [], 0
            reopens, self._reopens = self._reopens, False
            if not lines and not reopens:
                self._sleeps = True
                self._idle.set()
                return False
        if reopens:
            self._open_again()
        octets = _encoded(lines)
        try:
            if self._failed:  # reported with the next line that can be written
                self._write_all(self.lost(self._failed, self._reason).encode())
                self._failed = 0
            self._write_all(octets)
        except OSError as error:
            self._reason = error.strerror or str(error)
            if not self._failed:
                self._complain(f"{self._reason}; log lines are lost")
            self._failed += len(lines)
            time.sleep(PAUSE)
        return True

    def _write_all(self, octets: bytes) -> None:
        if self._torn:
            octets = b"\n" + octets
        while octets:
            try:
                written = os.write(self._descriptor, octets)
            except BlockingIOError:  # another program made a shared descriptor non-blocking
                select.select([], [self._descriptor], [])
                continue
            octets = octets[written:]
            self._torn = bool(octets)

    def _open_again(self) -> None:
        assert isinstance(self.path, str)
        try:
            descriptor = _opened(self.path)
        except OSError as error:
            self._complain(f"{error.strerror}; the log continues in the old file")
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _complain(self, reason: str) -> None:
        if isinstance(self.path, str):
            with suppress(OSError, ValueError):
                self.complain(f"{self.path}: {reason}")


def _encoded(lines: list[str | bytes]) -> bytes:
    try:
        return "".join(lines).encode("utf-8", "replace")  # type: ignore[arg-type]  # nearly always str alone
    except TypeError:  # some lines are bytes, which handlers have printed
        return b"".join(line if isinstance(line, bytes) else line.encode("utf-8", "replace") for line in lines)


def _write_now(descriptor: int, line: str | bytes) -> None:
    with suppress(OSError):
        os.write(descriptor, line if isinstance(line, bytes) else line.encode("utf-8", "replace"))


def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)


def stream_of(writer: Writer, original: TextIO) -> TextIO:
    """Make a non-blocking replacement for standard output or error.

    :param writer: writes to its descriptor.
    """
    encoding = getattr(original, "encoding", None) or "utf-8"
    raw = _Raw(writer, original)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


class _Raw(io.RawIOBase):
    def __init__(self, writer: Writer, original: TextIO) -> None:
        self._writer = writer
        self._original = original

    def writable(self) -> bool:
        return True

    def write(self, octets: object) -> int:
        copied = bytes(octets)  # type: ignore[call-overload]
        self._writer.write(copied)
        return len(copied)

    def fileno(self) -> int:
        return self._original.fileno()

    def isatty(self) -> bool:
        return self._original.isatty()
