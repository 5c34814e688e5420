"""The log and the standard streams of the command line's process. Neither can block the server."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Self

from txsmtpd.log.events import INFO
from txsmtpd.log.lines import Lines
from txsmtpd.log.writer import Writer, stream_of

STDOUT, STDERR = 1, 2
NAMES = {"-": STDOUT, "+": STDERR}


@dataclass(eq=False)
class CommandLog:
    """Where the lines of a log go."""

    lines: Lines
    writer: Writer
    _streams: tuple[Writer, ...] = ()

    @classmethod
    def open(cls, path: str = "+", *, as_json: bool = False, level: int = INFO) -> Self:
        """Open a log.

        :param path: a file; ``-`` is standard output, ``+`` standard error.
        :raises OSError: if it cannot be opened.
        """
        writer = Writer(NAMES.get(path) or os.path.abspath(path))
        lines = Lines(writer.write, as_json=as_json, level=level)
        writer.lost = lines.lost
        return cls(lines, writer)

    @property
    def on_terminal(self) -> bool:
        """Whether the log goes to a terminal."""
        return isinstance(self.writer.path, int) and os.isatty(self.writer.path)

    def take_standard_streams(self) -> None:
        """Make standard output and error non-blocking. Output still goes to the same place as before logging."""
        writers = {self.writer.path: self.writer}
        for number, name in (STDOUT, "stdout"), (STDERR, "stderr"):
            original = getattr(sys, f"__{name}__")
            if original is not None:
                writer = writers.setdefault(number, Writer(number))
                setattr(sys, name, stream_of(writer, original))
        self._streams = tuple(writer for writer in writers.values() if writer is not self.writer)

    def reopen(self) -> None:
        """Reopen its file, after log rotation."""
        self.writer.reopen()

    def close(self) -> None:
        """Write what was logged and printed, with a short timeout."""
        for stream in sys.stdout, sys.stderr:
            if stream is not None:
                stream.flush()
        for writer in (self.writer, *self._streams):
            writer.close()
