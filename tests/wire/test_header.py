"""The header of a message, measured while it arrives."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.wire.header import HeaderMeter

PIECES = some.sampled_from([b"A: b\r\n", b"\r\n", b" c\r\n", b"\tc\r\n", b"A", b":", b"no field\r\n", b"\n", b"x" * 40])


def measured(
    message: bytes, size: int | None, fields: int | None, cuts: list[int] | None = None
) -> tuple[str | None, bytes]:
    """The exceeded limit, and the octets that were passed on."""
    passed: list[bytes] = []
    meter = HeaderMeter(passed.append, size, fields)
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts or []), len(message)]
    for start, end in pairwise(edges):
        meter.write(message[start:end])
    return meter.excess, b"".join(passed)


class MeterTests(SynchronousTestCase):
    """HeaderMeter."""

    def test_within(self) -> None:
        """A header within the limits is passed on unchanged. The body is not measured."""
        for message in (
            b"",
            b"\r\n",
            b"A: b\r\n\r\n" + b"C: d\r\n" * 100,
            b"A: b\r\n c\r\n\td\r\n\r\n",
            b"\r\n" + b"A: b\r\n" * 100,
        ):
            self.assertEqual(measured(message, 18, 2), (None, message))

    def test_beyond(self) -> None:
        """A header with too many octets or fields is detected, wherever it is split. Folded lines are not fields."""
        for cut in range(20):
            self.assertEqual(measured(b"A: b\r\n" * 3 + b"\r\n", 12, None, [cut])[0], "octets")
            self.assertEqual(measured(b"A: b\r\n" * 3 + b"\r\n", None, 2, [cut])[0], "fields")
            self.assertEqual(measured(b"A: b\r\n c\r\n c\r\n\r\n", None, 1, [cut])[0], None)

    def test_noEnd(self) -> None:
        """A header without an end is detected, even a single long field."""
        self.assertEqual(measured(b"A: b\r\n" * 100, 100, None)[0], "octets")
        self.assertEqual(measured(b"A: " + b"b" * 100, 100, None, [50])[0], "octets")

    def test_noHeader(self) -> None:
        """A message may have no header, or no empty line: a line that is not a field ends the header."""
        for message in (
            b"x" * 5000,
            b"Hello Bob\r\n" * 100,
            b"A: b\r\n" + b"no field\r\n" * 100,
            b"caf\xc3\xa9: x\r\n" * 50,
        ):
            self.assertEqual(measured(message, 20, 2), (None, message))
            self.assertEqual(measured(message, 20, 2, list(range(0, 200, 7))), (None, message))

    @given(some.lists(PIECES, max_size=12).map(b"".join), some.lists(some.integers(0, 100), max_size=4))
    def test_cuts(self, message: bytes, cuts: list[int]) -> None:
        """However a message is split, the result is the same, and a message within the limits is passed on
        completely."""
        for size, fields in ((20, None), (None, 2)):
            excess, passed = measured(message, size, fields, cuts)
            self.assertEqual(excess, measured(message, size, fields)[0])
            if excess is None:
                self.assertEqual(passed, message)
