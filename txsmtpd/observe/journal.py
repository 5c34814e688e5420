"""Writes transcripts to a file, as JSON lines. Each record is written immediately."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime

from twisted.logger import Logger

from txsmtpd.observe.transcript import Record, Transcript


class Journal:
    """A file that records are appended to. It is created if missing, readable only by its owner.

    :param path: the file.
    :raises OSError: if it cannot be opened.
    """

    log = Logger(namespace="txsmtpd")

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _opened(path)
        self._torn = False  # whether the last line in the file is incomplete
        self._complained = False

    def __call__(self, transcript: Transcript, record: Record) -> None:
        """Write a record of the transcript's session."""
        line = json_line(transcript, record, datetime.now(UTC))
        try:
            self._write(b"\n" + line if self._torn else line)
        except OSError as error:
            if not self._complained:
                self._complained = True
                self.log.error("cannot write the transcript to {path}: {error}", path=self.path, error=error)
        else:
            self._complained = False

    def _write(self, octets: bytes) -> None:
        while octets:
            written = os.write(self._file, octets)
            self._torn = written < len(octets)
            octets = octets[written:]

    def reopen(self) -> None:
        """Reopen the file by its name, after log rotation.

        :raises OSError: if it cannot be opened; the old file stays open then.
        """
        file = _opened(self.path)
        os.close(self._file)
        self._file, self._torn = file, False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _opened(path: str) -> int:
    # With O_NONBLOCK, opening a pipe without a reader fails instead of blocking.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.open(path, flags, 0o600)
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(file, True)
    return file


def json_line(transcript: Transcript, record: Record, now: datetime) -> bytes:
    """Return a record as a line of JSON: time, session, kind, and its fields."""
    return (
        json.dumps(
            {
                "time": now.isoformat(timespec="microseconds"),
                "session": transcript.session,
                "kind": record.kind,
                **asdict(record),
                "at": round(record.at, 6),
            },
            ensure_ascii=False,
        ).encode("utf-8")
        + b"\n"
    )
