r"""Dialogs: text files with the two sides of a session, and a player that checks a server against them.

::

    # An ordinary message.
    S: 220 mx.test
    C: EHLO client.test
    S: 250
    C: MAIL FROM:<a@example.com>
    S: 250 2.1.0
    C: QUIT
    S: 221
    S.

``C:`` is a line that the client sends; ``C<`` octets without a line end. Both may have escapes such as ``\x00``, ``\r``
and ``\n``. ``S:`` is the beginning of a line of a reply; ``S.`` means that the server closes the connection. ``#``
starts a comment.

A dialog is played in memory, either step by step or with all of the client's octets sent at once and cut at any place;
or over a socket.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from txsmtpd.factory import SMTPFactory
from txsmtpd.faults.replies import reply_lines
from txsmtpd.observe.matching import reply_fits
from txsmtpd.testing.memory import MemorySession

PATIENCE = 10.0  # seconds without data from a real server until a dialog fails
CUTS = 400  # number of places at which a dialog is cut, at most
_UNDERLINE = "<- here"


class DialogError(AssertionError):
    """The server's reply differs from the dialog."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a dialog."""

    number: int  #: in the file, from 1
    mark: str  #: ``C:``, ``C<``, ``S:`` or ``S.``
    text: str

    def __str__(self) -> str:
        return f"{self.mark} {self.text}".rstrip()


@dataclass(frozen=True, slots=True)
class Step:
    """What the client sends without waiting, and the replies that the server should send."""

    octets: bytes
    said: tuple[Line, ...]  #: the lines that contain the octets
    replies: tuple[Line, ...]
    end: Line | None  #: the line with ``S.``, or None

    @property
    def last(self) -> int:
        """The number of its last line."""
        return max((line.number for line in (*self.said, *self.replies, self.end) if line is not None), default=0)


class Dialog:
    """A dialog.

    :param text: the dialog, as above.
    :param name: its name in error messages.
    :raises ValueError: if a line has a syntax error.

    >>> dialog = Dialog("S: 220\\nC: NOOP\\nS: 250\\n")
    >>> dialog.play(lambda: SMTPFactory())
    >>> dialog.play_cut(lambda: SMTPFactory())
    """

    def __init__(self, text: str, name: str = "dialog") -> None:
        self.name = name
        self.lines = [line for number, each in enumerate(text.splitlines(), 1) for line in self._read(number, each)]
        self.steps = self._in_steps()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dialog:
        """Load a dialog from a file.

        :raises OSError: if it cannot be read.
        """
        return cls(Path(path).read_text("utf-8"), Path(path).name)

    def __repr__(self) -> str:
        return f"<Dialog {self.name}>"

    # Reading

    def _read(self, number: int, text: str) -> Iterable[Line]:
        if not text.strip() or text.startswith("#"):
            return
        mark, rest = text[:2], text[2:]
        if mark not in ("C:", "C<", "S:", "S.") or rest[:1] not in ("", " ") or (mark == "S." and rest.strip()):
            raise ValueError(
                f"{self.name}, line {number}: {text!r} is not valid: lines begin with 'C: ', 'C< ', 'S: ' or '#',"
                " or are 'S.'"
            )
        if mark == "S:" and not rest.strip():
            raise ValueError(f"{self.name}, line {number}: S: needs the beginning of the reply")
        yield Line(number, mark, rest[1:])

    def _octets(self, line: Line) -> bytes:
        try:
            octets = line.text.encode("utf-8").decode("unicode_escape").encode("latin-1")
        except UnicodeError as error:
            raise ValueError(f"{self.name}, line {line.number}: {line.text!r} cannot be decoded: {error}") from None
        return octets + b"\r\n" if line.mark == "C:" else octets

    def _in_steps(self) -> list[Step]:
        steps: list[Step] = []
        said: list[Line] = []
        replies: list[Line] = []
        end: Line | None = None
        for line in [*self.lines, None]:
            if line is None or (line.mark[0] == "C" and (replies or end)):
                steps.append(Step(b"".join(map(self._octets, said)), tuple(said), tuple(replies), end))
                said, replies, end = [], [], None
            if line is None:
                break
            if line.mark == "S.":
                end = line
            elif end is not None:
                raise ValueError(f"{self.name}, line {line.number}: nothing can follow S., which ends the connection")
            else:
                (said if line.mark[0] == "C" else replies).append(line)
        return steps

    # Playing

    def play(self, make: Callable[[], SMTPFactory], wait: float = 0) -> None:
        """Play it in memory, step by step: the client waits for each reply.

        :param make: makes the factory of the server.
        :param wait: seconds that hooks may take at each step, on the session's clock.
        :raises DialogError: if the server's replies differ.
        :raises TypeError: if *make* is a factory instead of a callable that makes one.
        """
        session = _session(make)
        said = session.welcome
        for step in self.steps:
            said += session.talk(step.octets)
            if wait:
                said += session.wait(wait)
            self._check([step], said, session.closed)
            said = b""

    def play_cut(self, make: Callable[[], SMTPFactory], wait: float = 0) -> None:
        """Play it in memory, without waiting: once with all octets at once, and once for each place where they can be
        cut in two (for long dialogs, some hundreds of them). The replies must be the same (RFC 2920 3.2).

        :param make: makes the factory of the server; called each time.
        :param wait: seconds that hooks may take, on the session's clock.
        :raises DialogError: if the server's replies differ.
        """
        octets = b"".join(step.octets for step in self.steps)
        for cut in [0, *range(1, len(octets), max(1, len(octets) // CUTS))]:
            session = _session(make)
            said = session.welcome + session.talk(octets, [cut])
            if wait:
                said += session.wait(wait)
            where = f"with all octets at once, cut behind {octets[:cut][-20:]!r}" if cut else "with all octets at once"
            self._check(self.steps, said, session.closed, where)

    def play_over(self, connection: socket.socket) -> None:
        """Play it step by step over a socket that is connected to any SMTP server.

        :raises DialogError: if the server's replies differ, or if it sends nothing for too long.
        """
        connection.settimeout(PATIENCE)
        for step in self.steps:
            if step.octets:
                connection.sendall(step.octets)
            said, closed = _hear(connection, len(step.replies), step.end is not None)
            self._check([step], said, closed)

    def _check(self, steps: Iterable[Step], said: bytes, closed: bool, where: str = "") -> None:
        try:
            seen = [_as_lines(code, texts) for code, texts in reply_lines(said)]
        except AssertionError as error:
            raise self._error(
                self.steps[-1].last, "the server sent something that is not a reply", str(error), where
            ) from None
        expected = [line for step in steps for line in step.replies]
        last = max(step.last for step in steps)
        for line, lines in zip(expected, seen, strict=False):
            if not reply_fits(line.text, lines):
                raise self._error(line.number, "another reply was expected", "S: " + "\n   ".join(lines), where)
        if len(seen) > len(expected):
            raise self._error(last, "no further reply was expected", "S: " + "\n   ".join(seen[len(expected)]), where)
        if len(seen) < len(expected):
            what = "the connection was closed" if closed else "nothing"
            raise self._error(expected[len(seen)].number, "a reply was expected", what, where)
        end = list(steps)[-1].end
        if closed != (end is not None):
            seen_end = "the connection was closed" if closed else "the connection is open"
            wanted = "the dialog does not end with S." if closed else "the connection should be closed"
            raise self._error(end.number if end is not None else last, wanted, seen_end, where)

    def _error(self, number: int, what: str, seen: str, where: str) -> DialogError:
        shown = [f"{line.number:4} {line}{'   ' + _UNDERLINE if line.number == number else ''}" for line in self.lines]
        position = next((n for n, line in enumerate(self.lines) if line.number >= number), len(shown) - 1)
        context = "\n".join(shown[max(0, position - 4) : position + 2])
        how = f" ({where})" if where else ""
        return DialogError(f"{self.name}, line {number}: {what}{how}\n{context}\nseen: {seen}")


def _session(make: Callable[[], SMTPFactory]) -> MemorySession:
    if not callable(make):
        raise TypeError(
            f"play() needs a function that makes a factory, as in play(lambda: SMTPFactory(MyHandler())), not {make!r}"
        )
    return MemorySession(make())


def _as_lines(code: int, texts: tuple[str, ...]) -> list[str]:
    return [f"{code}-{text}" for text in texts[:-1]] + [f"{code} {texts[-1]}"]


def _hear(connection: socket.socket, count: int, to_end: bool) -> tuple[bytes, bool]:
    """Return what the server sends until *count* replies are complete or it closes, and whether it has closed."""
    said = b""
    while to_end or not _complete(said, count):
        try:
            octets = connection.recv(65536)
        except TimeoutError:
            return said, False
        except ConnectionError:
            return said, True
        if not octets:
            return said, True
        said += octets
    return said, False


def _complete(said: bytes, count: int) -> bool:
    last = [line for line in said.split(b"\r\n")[:-1] if line[3:4] != b"-"]
    return len(last) >= count and (not said or said.endswith(b"\r\n"))
