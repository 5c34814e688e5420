"""Command lines from octets that arrive in any pieces."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.engine.lines import BEGINNING, ENDLESS_LINE, BadLine, LineBuffer


def lines_of(octets: bytes, piece: int, longest: int = 20) -> list[bytes | BadLine]:
    """The lines of octets that arrive in pieces of a size."""
    buffer = LineBuffer(longest)
    found: list[bytes | BadLine] = []
    for start in range(0, len(octets), piece):
        buffer.data = buffer.data[buffer.offset :] + octets[start : start + piece]
        buffer.offset = 0
        while buffer.offset < len(buffer.data) and (line := buffer.next_line()) is not None:
            found.append(line)
    return found


class LineBufferTests(SynchronousTestCase):
    """Octets become lines."""

    def test_anyPieces(self) -> None:
        """The lines are the same, in whatever pieces their octets arrive."""
        long = b"LONG" + b"x" * 30
        octets = b"NOOP\r\n\r\n" + b"y" * 20 + b"\r\nbare\n" + long + b"\r\nRSET\r\n\n"
        expected = [
            b"NOOP",
            b"",
            b"y" * 20,
            BadLine("bare LF", b"bare"),
            BadLine("long", long[:BEGINNING]),
            b"RSET",
            BadLine("bare LF"),
        ]
        for piece in (1, 2, 3, 7, len(octets)):
            found = lines_of(octets, piece)
            self.assertEqual([each[:1] if isinstance(each, BadLine) else each for each in found], [
                each[:1] if isinstance(each, BadLine) else each for each in expected
            ])  # fmt: skip
        self.assertEqual(lines_of(octets, len(octets)), expected)

    def test_nothingKept(self) -> None:
        """Of a line that is too long, only the first octets are kept."""
        buffer = LineBuffer(20)
        for _ in range(100):
            buffer.data = buffer.data[buffer.offset :] + b"x" * 50
            buffer.offset = 0
            self.assertIsNone(buffer.next_line())
            self.assertEqual(len(buffer), 0)

    def test_endless(self) -> None:
        """An endless line is reported, whether it ends or not."""
        self.assertEqual(lines_of(b"x" * (ENDLESS_LINE + 2), 1000)[0], BadLine("endless"))
        self.assertEqual(lines_of(b"x" * (ENDLESS_LINE + 2) + b"\r\n", 10**6)[0][0], "endless")

    def test_foreign(self) -> None:
        """The first octets of TLS are not a line, and no line follows them."""
        self.assertEqual(lines_of(b"\x16\x03\x01NOOP\r\nNOOP\r\n", 100), [BadLine("TLS")])
        self.assertEqual(lines_of(b"\x80\x2e\x01\x03\x01NOOP\r\nNOOP\r\n", 100), [BadLine("TLS")])

    def test_notQuiteForeign(self) -> None:
        """Input that starts like SSL 2 and continues as text is a line, like other lines with octets that are not
        ASCII."""
        for line in (b"\x80", b"\x80a", b"\x80 FAIL", b"\x80" + b"x" * 10):
            self.assertEqual(lines_of(line + b"\r\nNOOP\r\n", 100), [line, b"NOOP"])
        self.assertEqual(lines_of(b"\x80" * 200 + b"\r\n", 100)[0][0], "long")
        self.assertEqual(lines_of(b"\x80abc\n", 100), [BadLine("bare LF", b"\x80abc")])

    def test_lastLine(self) -> None:
        """The last line is known only if it is complete."""
        buffer = LineBuffer(20)
        for octets, last in ((b"", None), (b"QU", None), (b"a\r\nQUIT\r\n", b"QUIT"), (b"QUIT\r\na", None)):
            buffer.data = octets
            self.assertEqual(buffer.last_line(), last)
