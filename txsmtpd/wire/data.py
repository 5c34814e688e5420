"""Read mail data (RFC 5321 4.1.1.4, 4.5.2). Octets only: no transport, no replies, no policy.

The data end at CRLF "." CRLF and nowhere else. Errors in the data are noted, and reading continues to the real end:
otherwise the rest would be taken for commands.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from io import IncrementalNewlineDecoder

EXCESS = 2**20  # octets
_END = b"\r\n.\r\n"
_STUFFED = re.compile(rb"\r\n\.")


class Fault(enum.Enum):
    """Errors in mail data, the most serious one first."""

    TOO_LARGE = "more octets than the limit"
    BARE_NEWLINE = "a CR or LF that is not part of a CRLF"
    LINE_TOO_LONG = "a line longer than the limit"


_SEVERITY = tuple(Fault)


class DataReader:
    """Reads the octets after DATA, passes the message on, and finds its end.

    :param write: called with each piece of the message, without dot-stuffing, until the end or a fault.
    :param size_limit: maximum size of the message in octets, without dot-stuffing (RFC 1870 5); None: no limit.
    :param line_limit: maximum length of a line in octets, with CRLF but without a stuffed dot (RFC 5321 4.5.3.1.6);
        None: no limit.
    :param bare_newlines: treat bare CR and LF as ordinary octets, not as a fault.
    :param discarded: how much of a too large message is read and discarded: this many times *size_limit*, plus a
        mebibyte.
    :param on_too_large: called once if the data are too large.
    :param on_excess: called once if the data exceed what is read and discarded.
    """

    __slots__ = (
        "_assumed",
        "_discarded",
        "_held",
        "_line",
        "_line_limit",
        "_newlines",
        "_on_excess",
        "_on_too_large",
        "_received",
        "_size_limit",
        "_write",
        "fault",
        "size",
    )

    def __init__(
        self,
        write: Callable[[bytes], object],
        size_limit: int | None = None,
        line_limit: int | None = None,
        bare_newlines: bool = False,
        discarded: int = 2,
        on_too_large: Callable[[], object] | None = None,
        on_excess: Callable[[], object] | None = None,
    ) -> None:
        self.size = 0  #: octets of the message so far, without dot-stuffing, while it is not too large
        #: The most serious fault in the data so far, or None. It is not the first one, so that the result does not
        #: depend on how the octets were cut into segments.
        self.fault: Fault | None = None
        self._write = write
        self._size_limit = size_limit
        self._discarded = discarded
        self._on_too_large = on_too_large
        self._on_excess = on_excess
        self._received = 0  # received octets, with dot-stuffing; counted even after a fault
        self._line_limit = line_limit
        # The decoder finds CRLF, CR and LF in one pass in C; two counts and a search would take three times as long.
        self._newlines = None if bare_newlines else IncrementalNewlineDecoder(None, translate=False)
        # Octets that may be the beginning of the end are held back. At first, a CRLF is assumed before the data, so
        # that "." CRLF may end them immediately. The assumed CRLF is not passed on.
        self._held = b"\r\n"
        self._assumed = 2
        self._line = 0  # octets of the last line so far

    def feed(self, data: bytes, start: int = 0) -> int:
        """Process received data from *start* on.

        :return: the index in *data* after the end of the data, or -1 if the end has not arrived.
        """
        held = self._held
        text = held + (data[start:] if start else data)
        # Search for a dot first: many pieces have none, and a search for one octet costs almost nothing. For three
        # octets, rfind is several times as fast as find.
        dot = text.rfind(b"\r\n.") if b"." in text else -1
        end = -1
        if dot >= 0:
            if text.startswith(_END, dot) and text.rfind(b"\r\n.", 0, dot + 2) < 0:
                end = dot
                dot = -1
            else:
                end = text.find(_END)
        if end >= 0:
            self._pass_on(text[: end + 2], dot >= 0)
            return start + end + len(_END) - len(held)
        keep = _beginning_of_end(text)
        if keep < len(text):
            self._held = text[len(text) - keep :]
            self._pass_on(text[: len(text) - keep] if keep else text, dot >= 0)
        else:
            self._held = text
        return -1

    def _pass_on(self, run: bytes, stuffed: bool) -> None:
        """Pass on a piece of the data, unless there is a fault. The piece contains nothing of the end of the data."""
        self._received += len(run)
        if self.fault is Fault.TOO_LARGE:
            self._look_for_excess()
            return
        newlines = self._newlines
        if newlines is not None:
            newlines.decode(str(run, "latin-1"))
            if newlines.newlines not in (None, "\r\n"):
                self._note(Fault.BARE_NEWLINE)
                self._newlines = None
        if stuffed:
            run = _STUFFED.sub(b"\r\n", run)
        if self._assumed:
            run = run[self._assumed :]
            self._assumed = 0
        self.size += len(run)
        if self._size_limit is not None and self.size > self._size_limit:
            self._note(Fault.TOO_LARGE)
            if self._on_too_large is not None:
                self._on_too_large()
            self._look_for_excess()
        elif self._line_limit is not None:
            self._measure(run, self._line_limit)
        if self.fault is None and run:
            self._write(run)

    def _look_for_excess(self) -> None:
        assert self._size_limit is not None
        if self._on_excess is not None and self._received > self._discarded * self._size_limit + EXCESS:
            tell, self._on_excess = self._on_excess, None
            tell()

    def _measure(self, run: bytes, limit: int) -> None:
        lines = run.split(b"\r\n")
        first = self._line + len(lines[0])
        if first + 2 > limit or max(map(len, lines)) + 2 > limit:
            self._note(Fault.LINE_TOO_LONG)
        self._line = len(lines[-1]) if len(lines) > 1 else first

    def _note(self, fault: Fault) -> None:
        if self.fault is None or _SEVERITY.index(fault) < _SEVERITY.index(self.fault):
            self.fault = fault


def _beginning_of_end(text: bytes) -> int:
    """Return how many octets at the end of the text may be the beginning of the end of the data."""
    for octets in (4, 3, 2, 1):
        if text.endswith(_END[:octets]):
            return octets
    return 0
