"""The log and the standard streams of the server's process. Writing to them never blocks the server."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Self

from txsmtpd.log.events import INFO
from txsmtpd.log.lines import Lines
from txsmtpd.log.writer import Writer, stream_of
from txsmtpd.service.exit_status import complain

STDOUT, STDERR = 1, 2
NAMES = {"-": STDOUT, "+": STDERR}


@dataclass(eq=False)
class CommandLog:
    """The log of a process: formats events as lines, and writes them to a file or a standard stream."""

    lines: Lines
    writer: Writer
    _streams: tuple[Writer, ...] = ()

    @classmethod
    def open(cls, path: str = "+", *, as_json: bool = False, level: int = INFO) -> Self:
        """Open a log.

        :param path: of a file; ``-`` is standard output, ``+`` standard error.
        :param as_json: write each event as a JSON object, not as text.
        :param level: the lowest level that is written.
        :raises OSError: if the file cannot be opened.
        """
        writer = Writer(NAMES.get(path) or os.path.abspath(path))
        lines = Lines(writer.write, as_json=as_json, level=level)
        writer.lost = lines.lost
        writer.complain = complain
        return cls(lines, writer)

    @property
    def on_terminal(self) -> bool:
        """True if the log is written to a terminal."""
        return isinstance(self.writer.path, int) and os.isatty(self.writer.path)

    def take_standard_streams(self) -> None:
        """Make ``sys.stdout`` and ``sys.stderr`` non-blocking. Their output goes to the same place as before."""
        writers = {self.writer.path: self.writer}
        for number, name in (STDOUT, "stdout"), (STDERR, "stderr"):
            original = getattr(sys, f"__{name}__")
            if original is not None:
                writer = writers.setdefault(number, Writer(number))
                setattr(sys, name, stream_of(writer, original))
        self._streams = tuple(writer for writer in writers.values() if writer is not self.writer)

    def reopen(self) -> None:
        """Reopen the file, after log rotation."""
        self.writer.reopen()

    def close(self) -> None:
        """Write the remaining log and output, with a short timeout."""
        for stream in sys.stdout, sys.stderr:
            if stream is not None:
                stream.flush()
        for writer in (self.writer, *self._streams):
            writer.close()
