"""The reader of chunks, and the argument of BDAT (RFC 3030 2), as units."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.reply import Refused
from txsmtpd.wire.chunk import Chunk, ChunkReader, parse_bdat


def read(size: int, segments: Iterable[bytes]) -> tuple[bytes, bytes | None]:
    """What a :class:`ChunkReader` passes on, and what follows the chunk (None: it is not complete)."""
    content: list[bytes] = []
    reader = ChunkReader(size, content.append)
    segments = list(segments)
    for number, segment in enumerate(segments):
        end = reader.feed(segment)
        if end >= 0:
            return b"".join(content), segment[end:] + b"".join(segments[number + 1 :])
    return b"".join(content), None


class ChunkReaderTests(SynchronousTestCase):
    """ChunkReader."""

    def test_whole(self) -> None:
        """A chunk that arrives completely is passed on immediately."""
        self.assertEqual(read(5, [b"hello"]), (b"hello", b""))

    def test_trailing(self) -> None:
        """Octets after the chunk do not belong to it, even in the same segment."""
        self.assertEqual(read(5, [b"helloQUIT\r\n"]), (b"hello", b"QUIT\r\n"))
        self.assertEqual(read(1, [b"hello"]), (b"h", b"ello"))

    def test_unfinished(self) -> None:
        """While octets are missing, the chunk is incomplete. Received octets are passed on."""
        self.assertEqual(read(5, []), (b"", None))
        self.assertEqual(read(5, [b"he", b"ll"]), (b"hell", None))

    def test_everySplit(self) -> None:
        """However the octets are split, the result is the same."""
        octets = b"\r\n.\r\nBDAT 1\0\xff\n\rtail"
        size = len(octets) - 4
        self.assertEqual(read(size, [octets[i : i + 1] for i in range(len(octets))]), (octets[:size], b"tail"))
        for first in range(len(octets)):
            for second in range(first, len(octets)):
                segments = [octets[:first], octets[first:second], octets[second:]]
                self.assertEqual(read(size, segments), (octets[:size], b"tail"))

    def test_start(self) -> None:
        """Octets before *start* do not belong to the chunk. The end is an index into the whole data."""
        content: list[bytes] = []
        reader = ChunkReader(5, content.append)
        self.assertEqual(reader.feed(b"BDAT 5\r\nhe", 8), -1)
        self.assertEqual(reader.feed(b"xlloNOOP", 1), 4)
        self.assertEqual(b"".join(content), b"hello")

    @given(some.binary(min_size=1, max_size=60), some.binary(max_size=20), some.lists(some.integers(0, 80)))
    def test_anyOctets(self, chunk: bytes, behind: bytes, cuts: list[int]) -> None:
        """Any octets, in any segments, are unchanged."""
        octets = chunk + behind
        places = [0, *sorted(cut for cut in cuts if cut < len(octets)), len(octets)]
        segments = [octets[a:b] for a, b in itertools.pairwise(places)]
        self.assertEqual(read(len(chunk), segments), (chunk, behind))

    def test_large(self) -> None:
        """A chunk of any size is counted, not collected: each piece is passed on when it arrives."""
        runs: list[int] = []
        reader = ChunkReader(10**20 - 1, lambda octets: runs.append(len(octets)))
        for _ in range(3):
            self.assertEqual(reader.feed(bytes(65536)), -1)
        self.assertEqual(runs, [65536] * 3)


class ParseTests(SynchronousTestCase):
    """parse_bdat."""

    def test_good(self) -> None:
        """A size has up to 20 digits, and LAST is case-insensitive."""
        for octets, expected in [
            (b"0", Chunk(0, False)),
            (b"86", Chunk(86, False)),
            (b"0 LAST", Chunk(0, True)),
            (b"86 last", Chunk(86, True)),
            (b"86 LaSt", Chunk(86, True)),
            (b"007", Chunk(7, False)),
            (b"9" * 20, Chunk(10**20 - 1, False)),
        ]:
            self.assertEqual(parse_bdat(octets), expected)

    def test_blanks(self) -> None:
        """Additional spaces are accepted."""
        for octets in b"5  LAST", b" 5 LAST", b"5 LAST ", b"5 LAST \t ", b"   5   LAST   ":
            self.assertEqual(parse_bdat(octets), Chunk(5, True))
        self.assertEqual(parse_bdat(b"5 "), Chunk(5, False))

    def test_malformed(self) -> None:
        """Anything else is refused with 421, since the number of octets that follow is unknown."""
        for octets in [
            b"",
            b" ",
            b"LAST",
            b"-1",
            b"-1 LAST",
            b"+5",
            b"1_0",
            b"5.0",
            b"1e3",
            b"0x10",
            b"5,000",
            b"9" * 21,
            b"0" * 21,
            b"5LAST",
            b"5 LAST LAST",
            b"5 LASTLY",
            b"5 LAS",
            b"5 FIRST",
            b"5 6",
            b"5 LAST 6",
            b"LAST 5",
            b"5\tLAST",
            b"\t5",
            b"5\0",
            b"5 LAST\0",
            b"5\r",
            b"5\r LAST",
            b"5\n",
            b"5\x0b",
            b"5\x85",
            "\N{ARABIC-INDIC DIGIT FIVE}".encode(),
            "\N{FULLWIDTH DIGIT FIVE}".encode(),
            "\N{SUPERSCRIPT TWO}".encode(),
            "5 LA\N{LATIN SMALL LETTER LONG S}T".encode(),
            b"\xa05",
            "5\N{NO-BREAK SPACE}LAST".encode(),
        ]:
            refused = self.assertRaises(Refused, parse_bdat, octets)
            self.assertEqual((refused.reply.code, refused.reply.status), (421, "4.5.4"), octets)

    @given(some.binary(max_size=30) | some.text("0123456789 \tLASTlast+-_", max_size=30).map(str.encode))
    def test_anything(self, octets: bytes) -> None:
        """No input raises anything but Refused. An accepted size consists of ASCII digits."""
        try:
            chunk = parse_bdat(octets)
        except Refused as refused:
            self.assertEqual(refused.reply.code, 421)
        else:
            words = octets.split()
            self.assertEqual(words[0], b"%0*d" % (len(words[0]), chunk.size))
            self.assertEqual([word.upper() for word in words[1:]], [b"LAST"] * chunk.last)
