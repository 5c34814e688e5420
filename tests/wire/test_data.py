"""The reader of mail data (RFC 5321 4.1.1.4, 4.5.2), compared with a slow and simple implementation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import once
from txsmtpd.wire.data import DataReader, Fault

END = b".\r\n"

# The result of reading: the message or None, its fault, and the octets after the end (None: no end yet).
Outcome = tuple[bytes | None, Fault | None, bytes | None]


def read(
    segments: Iterable[bytes],
    size_limit: int | None = None,
    line_limit: int | None = None,
    bare_newlines: bool = False,
) -> Outcome:
    """The result of a :class:`DataReader` for the segments."""
    content: list[bytes] = []
    reader = DataReader(content.append, size_limit, line_limit, bare_newlines)
    segments = list(segments)
    for number, segment in enumerate(segments):
        end = reader.feed(segment)
        if end >= 0:
            rest = segment[end:] + b"".join(segments[number + 1 :])
            message = None if reader.fault else b"".join(content)
            if reader.fault is None and reader.size != len(b"".join(content)):
                raise AssertionError(f"{reader.size} octets counted, {content!r} passed on")
            return message, reader.fault, rest
    return None, None, None


def reference(
    octets: bytes, size_limit: int | None = None, line_limit: int | None = None, bare_newlines: bool = False
) -> Outcome:
    """The same result, from reading line by line as RFC 5321 4.5.2 describes."""
    lines: list[bytes] = []
    rest = octets
    while True:
        line, crlf, rest = rest.partition(b"\r\n")
        if not crlf:
            return None, None, None
        if line == b".":
            break
        lines.append(line.removeprefix(b"."))
    message = b"".join(line + b"\r\n" for line in lines)
    fault = None
    if line_limit is not None and any(len(line) + 2 > line_limit for line in lines):
        fault = Fault.LINE_TOO_LONG
    if not bare_newlines and any(octet in line for octet in b"\r\n" for line in lines):
        fault = Fault.BARE_NEWLINE
    if size_limit is not None and len(message) > size_limit:
        fault = Fault.TOO_LARGE
    return (None if fault else message), fault, rest


def in_pieces(octets: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The octets, split."""
    edges = [0, *sorted(cuts), len(octets)]
    return [octets[start:end] for start, end in itertools.pairwise(edges) if end > start]


NASTY = some.lists(
    some.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"x", b"\0", b"\r\n.\r\n", b"\r\n.", b"longer text"]),
    max_size=30,
).map(b"".join)
LIMITS = some.fixed_dictionaries(
    {},
    optional={
        "size_limit": some.integers(0, 40),
        "line_limit": some.integers(2, 20),
        "bare_newlines": some.booleans(),
    },
)


class DataReaderTests(SynchronousTestCase):
    """The results of a DataReader."""

    def assertReads(self, octets: bytes, expected: Outcome, **limits: int) -> None:
        """Passed completely, octet by octet, split at any place, and with octets after the end, the result is as
        expected."""
        self.assertEqual(read([octets], **limits), expected)
        self.assertEqual(read(in_pieces(octets, range(len(octets))), **limits), expected)
        for cut in range(1, len(octets)):
            self.assertEqual(read(in_pieces(octets, [cut]), **limits), expected, cut)
        message, fault, rest = expected
        if rest is not None:
            for behind in (b"QUIT\r\n", b".\r\n", b"\r\n.\r\n", b"\n"):
                whole = octets + behind
                self.assertEqual(read([whole], **limits), (message, fault, rest + behind))
                self.assertEqual(read(in_pieces(whole, range(len(whole))), **limits), (message, fault, rest + behind))

    def test_message(self) -> None:
        """The message is everything before CRLF . CRLF, including its last CRLF."""
        self.assertReads(b"Subject: x\r\n\r\nHello\r\n.\r\n", (b"Subject: x\r\n\r\nHello\r\n", None, b""))

    def test_empty(self) -> None:
        """A single dot in the first line is an empty message."""
        self.assertReads(b".\r\n", (b"", None, b""))

    def test_emptyLine(self) -> None:
        """An empty line is part of the message."""
        self.assertReads(b"\r\n.\r\n", (b"\r\n", None, b""))

    def test_dots(self) -> None:
        """One dot at the beginning of a line is removed. Other dots are text."""
        self.assertReads(
            b"..\r\n...\r\n..a\r\n.b\r\nc.\r\nd.e\r\n.\r\n",
            (b".\r\n..\r\n.a\r\nb\r\nc.\r\nd.e\r\n", None, b""),
        )

    def test_octets(self) -> None:
        """NUL, and all octets except CR and LF, are ordinary octets."""
        octets = bytes(set(range(256)) - {10, 13}) * 3 + b"\r\n"
        self.assertReads(octets + END, (octets, None, b""))

    def test_noEnd(self) -> None:
        """Data without an end is incomplete."""
        for octets in (
            b"",
            b"a",
            b".",
            b".\r",
            b"a\r\n.",
            b"a\r\n.\r",
            b"a\r\n.x\r\n",
            b"a\r\n.\n",
            b"a\n.\r\n",
            b"a\r.\r\n",
        ):
            self.assertReads(octets, (None, None, None))

    def test_bareNewlines(self) -> None:
        """A bare CR or LF is a fault, and never a part of the end."""
        for bare in (
            b"\n",
            b"\r",
            b"\n.\n",
            b"\n.\r\n",
            b"\r.\r",
            b"\r\n.\n",
            b"\r\n.\r",
            b"\n.\r",
            b"\r.\r\n",
            b"\r\r\n",
        ):
            self.assertReads(b"a" + bare + b"b\r\n" + END, (None, Fault.BARE_NEWLINE, b""))

    def test_bareNewlinesKept(self) -> None:
        """If they are allowed, a bare CR or LF is kept, and is still no part of the end."""
        for bare in (b"\n", b"\r", b"\n.\n", b"\n.\r\n", b"\r.\r", b"\n.\r", b"\r.\r\n", b"\r\r\n"):
            octets = b"a" + bare + b"b\r\n"
            self.assertReads(octets + END, (octets, None, b""), bare_newlines=True)
        self.assertReads(b"a\r\n.\nb\r\n" + END, (b"a\r\n\nb\r\n", None, b""), bare_newlines=True)

    def test_nulBeforeDot(self) -> None:
        """A NUL between CRLF and the dot makes it an ordinary line."""
        self.assertReads(b"a\r\n\0.\r\nb\r\n" + END, (b"a\r\n\0.\r\nb\r\n", None, b""))

    def test_sizeLimit(self) -> None:
        """A message may have as many octets as the limit, without dot-stuffing (RFC 1870 5)."""
        self.assertReads(b"..345678\r\n.\r\n", (b".345678\r\n", None, b""), size_limit=9)
        self.assertReads(b"123456789\r\n.\r\n", (None, Fault.TOO_LARGE, b""), size_limit=10)
        self.assertReads(b".\r\n", (b"", None, b""), size_limit=0)

    def test_lineLimit(self) -> None:
        """A line may have as many octets as the limit, with CRLF but without a stuffed dot."""
        self.assertReads(b"12345678\r\n.12345678\r\n.\r\n", (b"12345678\r\n12345678\r\n", None, b""), line_limit=10)
        self.assertReads(b"a\r\n123456789\r\n.\r\n", (None, Fault.LINE_TOO_LONG, b""), line_limit=10)
        self.assertReads(b"123456789\r\n.\r\n", (None, Fault.LINE_TOO_LONG, b""), line_limit=10)

    def test_gravestFault(self) -> None:
        """Of several faults, the most serious one is reported, whichever was first."""
        self.assertReads(b"a\nb\r\n123456789\r\n.\r\n", (None, Fault.BARE_NEWLINE, b""), line_limit=10)
        self.assertReads(b"123456789\r\na\nb\r\n.\r\n", (None, Fault.BARE_NEWLINE, b""), line_limit=10)
        self.assertReads(b"a\nb\r\n12345\r\n.\r\n", (None, Fault.TOO_LARGE, b""), size_limit=10)
        self.assertReads(b"123456789\r\n12345\r\n.\r\n", (None, Fault.TOO_LARGE, b""), size_limit=10, line_limit=10)

    def test_readsOnAfterFault(self) -> None:
        """After a fault, the data are read to their real end, and nothing more is passed on."""
        content: list[bytes] = []
        reader = DataReader(content.append, size_limit=100)
        for _ in range(1000):
            self.assertEqual(reader.feed(b"MAIL FROM:<a@b>\r\n" * 100), -1)
        self.assertIs(reader.fault, Fault.TOO_LARGE)
        self.assertLess(sum(map(len, content)), 2000)
        self.assertEqual(reader.feed(b".\r\nQUIT\r\n"), 3)

    def test_start(self) -> None:
        """Octets before *start* do not belong to the data."""
        content: list[bytes] = []
        reader = DataReader(content.append)
        self.assertEqual(reader.feed(b"DATA\r\na\r\n.\r\nQUIT\r\n", 6), 12)
        self.assertEqual(b"".join(content), b"a\r\n")

    def test_everyShortString(self) -> None:
        """For all strings of up to six of CR, LF, dot, x and NUL, split in all ways, the result is that of the simple
        implementation."""
        once()
        for length in range(7):
            for letters in itertools.product(b"\r\n.x\0", repeat=length):
                self._compare(bytes(letters), every_cut=length <= 5)

    def test_everyShortStringAfterText(self) -> None:
        """The same is true after a line of text."""
        for length in range(6):
            for letters in itertools.product(b"\r\n.x\0", repeat=length):
                self._compare(b"x\r\n" + bytes(letters) + b"\r\n.\r\n", every_cut=False)

    def _compare(self, octets: bytes, every_cut: bool) -> None:
        places = range(1, len(octets))
        if every_cut:
            ways = [cuts for count in range(len(octets)) for cuts in itertools.combinations(places, count)]
        else:
            ways = [(), *((cut,) for cut in places), tuple(places)]
        for bare_newlines in (False, True):
            expected = reference(octets, bare_newlines=bare_newlines)
            for cuts in ways or [()]:
                found = read(in_pieces(octets, cuts), bare_newlines=bare_newlines)
                if found != expected:
                    self.fail(f"{octets!r} cut at {cuts}: {found!r} instead of {expected!r}")

    @given(NASTY, LIMITS, some.sets(some.integers(1, 60)))
    def test_anything(self, octets: bytes, limits: dict[str, int], cuts: set[int]) -> None:
        """With any limits, and split anywhere, the result is that of the simple implementation."""
        octets += b"\r\n.\r\nbehind"
        pieces = in_pieces(octets, (cut for cut in cuts if cut < len(octets)))
        self.assertEqual(read(pieces, **limits), reference(octets, **limits))

    def test_largeChunks(self) -> None:
        """A message of several megabytes, with dots, is correct in segments of any size."""
        line = b"." + b"x" * 70 + b"\r\n"
        message = line * 50_000
        wire = (b"." + line) * 50_000 + END
        for size in (1 << 16, 4095, 1 << 22):
            pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
            self.assertEqual(read(pieces), (message, None, b""))
