"""Writing mail data, and parsing replies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.reply import Reply
from txsmtpd.wire.data import DataReader
from txsmtpd.wire.outgoing import NoReply, ReplyReader, stuffed, with_crlf


class OutgoingTests(SynchronousTestCase):
    """The written data is what a reader of mail data reads."""

    def test_lineEnds(self) -> None:
        """Each bare CR and LF becomes a CRLF. A message without any is returned as the same object."""
        for message, expected in (
            (b"a\nb", b"a\r\nb"),
            (b"a\rb\r\n", b"a\r\nb\r\n"),
            (b"\n\r", b"\r\n\r\n"),
            (b"\r\r\n", b"\r\n\r\n"),
        ):
            self.assertEqual(with_crlf(message), expected)
        message = b"a\r\n\r\nb\r\n"
        self.assertIs(with_crlf(message), message)

    def test_stuffed(self) -> None:
        """Dots at the beginning of lines are doubled, and the last line gets a line end."""
        for message, expected in (
            (b"", b".\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b"a\r\n.\r\n.b", b"a\r\n..\r\n..b\r\n.\r\n"),
            (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
        ):
            self.assertEqual(b"".join(stuffed(message)), expected)

    @given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"a"])).map(b"".join))
    def test_readBack(self, message: bytes) -> None:
        """Any octets arrive as one message, with nothing left over."""
        read: list[bytes] = []
        octets = b"".join(stuffed(with_crlf(message)))
        reader = DataReader(read.append)
        self.assertEqual(reader.feed(octets, 0), len(octets))
        self.assertIsNone(reader.fault)
        whole = with_crlf(message)
        self.assertIn(b"".join(read), (whole, whole + b"\r\n"))


class ReplyTests(SynchronousTestCase):
    """Replies, line by line."""

    def read(self, *lines: bytes) -> list[Reply | None]:
        """The result of each line."""
        reader = ReplyReader()
        return [reader.feed(line) for line in lines]

    def test_lines(self) -> None:
        """One line or several, with a status code or without."""
        self.assertEqual(self.read(b"250 2.0.0 OK"), [Reply(250, "2.0.0", "OK")])
        self.assertEqual(self.read(b"250"), [Reply(250, None, "")])
        self.assertEqual(
            self.read(b"550-5.7.1 a", b"550-", b"550 5.7.1 250 b", b"220 x"),
            [None, None, Reply(550, "5.7.1", ["a", "", "250 b"]), Reply(220, None, "x")],
        )

    def test_text(self) -> None:
        """UTF-8 is text. Other octets, and line ends within a line, are replaced."""
        self.assertEqual(self.read(b"250 caf\xc3\xa9 \xff"), [Reply(250, None, "caf\u00e9 \ufffd")])
        (reply,) = self.read(b"250 a\n250 b\rc")
        self.assertEqual(reply, Reply(250, None, "a?250 b?c"))

    def test_none(self) -> None:
        """Invalid lines, two codes, and a missing end."""
        for lines in (
            (b"",),
            (b"25 a",),
            (b"2500",),
            (b"600 a",),
            (b"260 a",),
            (b"250-a", b"251 b"),
            (b"250_a",),
            (b" 250 a",),
        ):
            self.assertRaises(NoReply, self.read, *lines)
        self.assertRaises(NoReply, self.read, *[b"250-" + b"x" * 1000] * 20)
