"""False ends of mail data: what looks like the end to some servers must not be the end to this one.

In each session, a client sends one message. It contains a false end, and after that a text that would be a second
message if the false end were the real one.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, Client, codes
from txsmtpd import SMTP, Envelope, Session

FALSE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\r\n",
    b"\r\n\0.\r\n",
]
MORE_FALSE_ENDS = [
    b"\r\r\n.\r\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\n\r.\r\n",
    b"\r\n..\r\n",
    b"\x85.\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
    b"\x0b.\x0b",
    b"\x0c.\x0c",
    b"\r\n.\\r\\n",
]

FIRST = b"MAIL FROM:<real@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\nSubject: first\r\n\r\nbefore"
SECOND = (
    b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nSubject: second\r\n\r\nforged\r\n.\r\n"
)


class Inbox:
    """A handler that keeps its messages."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 OK"


class SmugglingTests(SynchronousTestCase):
    """One message remains one message."""

    def send(self, octets: bytes, cuts: list[int], **options: bool) -> tuple[list[int], list[Envelope], Client]:
        """The codes of the replies, the accepted messages, and the client."""
        inbox = Inbox()
        client = Client(inbox, **options)
        client.say(octets, cuts)
        return codes(client.heard()), inbox.envelopes, client

    def ways(self, octets: bytes, end: int) -> list[list[int]]:
        """No split, splits around the false end, and every octet alone."""
        around = range(end - 2, end + 10)
        return [[], *([cut] for cut in around), list(range(1, len(octets)))]

    def test_refused(self) -> None:
        """A message with a bare CR or LF is refused with 550 at its real end."""
        for false_end in FALSE_ENDS[:-1]:
            octets = GREETING + FIRST + false_end + SECOND + b"NOOP\r\n"
            for cuts in self.ways(octets, len(GREETING + FIRST)):
                said, taken, client = self.send(octets, cuts)
                self.assertEqual(said, [250, 250, 250, 354, 550, 250], (false_end, cuts))
                self.assertEqual(taken, [])
                self.assertFalse(client.closed)

    def test_nul(self) -> None:
        """A NUL before the dot makes it text: one message, which contains the second one."""
        octets = GREETING + FIRST + b"\r\n\0.\r\n" + SECOND + b"NOOP\r\n"
        for cuts in self.ways(octets, len(GREETING + FIRST)):
            said, taken, _ = self.send(octets, cuts)
            self.assertEqual(said, [250, 250, 250, 354, 250, 250], cuts)
            self.assertEqual(len(taken), 1)
            self.assertEqual((taken[0].mail_from, taken[0].rcpt_tos), ("real@example.com", ["b@example.com"]))
            self.assertIn(b"\r\n\0.\r\nMAIL FROM:<admin@example.com>\r\n", taken[0].original_content or b"")

    def test_bareNewlinesAllowed(self) -> None:
        """If they are allowed, the result is one message that contains the second one as text."""
        for false_end in FALSE_ENDS + MORE_FALSE_ENDS:
            octets = GREETING + FIRST + false_end + SECOND + b"NOOP\r\n"
            for cuts in self.ways(octets, len(GREETING + FIRST)):
                said, taken, _ = self.send(octets, cuts, bare_newlines=True)
                self.assertEqual(said, [250, 250, 250, 354, 250, 250], (false_end, cuts))
                self.assertEqual(len(taken), 1)
                self.assertEqual((taken[0].mail_from, taken[0].rcpt_tos), ("real@example.com", ["b@example.com"]))
                self.assertIn(b"MAIL FROM:<admin@example.com>", taken[0].original_content or b"")

    def test_otherFalseEnds(self) -> None:
        """Other sequences that resemble the end result in at most one message, with an unambiguous reply."""
        for false_end in MORE_FALSE_ENDS:
            octets = GREETING + FIRST + false_end + SECOND + b"NOOP\r\n"
            said, taken, _ = self.send(octets, [])
            self.assertEqual(said[:4] + said[5:], [250, 250, 250, 354, 250], false_end)
            self.assertIn(said[4], (250, 550))
            self.assertEqual(len(taken), int(said[4] == 250))
            self.assertTrue(all(envelope.mail_from == "real@example.com" for envelope in taken))

    def test_atTheBeginning(self) -> None:
        """A false end at the very beginning of the data does not end it either."""
        opening = GREETING + FIRST[: FIRST.index(b"Subject")]
        for false_end in [b".\n", b".\r", b"\n.\r\n", b"\r.\r\n", b".\r\r\n", b"\0.\r\n", b"..\r\n"]:
            for bare_newlines in (False, True):
                said, taken, _ = self.send(opening + false_end + SECOND, [], bare_newlines=bare_newlines)
                self.assertEqual(len(said), 5, false_end)
                self.assertLessEqual(len(taken), 1)
                self.assertTrue(all(envelope.mail_from == "real@example.com" for envelope in taken))

    def test_realEnd(self) -> None:
        """The real end ends the message, so that these tests could fail."""
        said, taken, _ = self.send(GREETING + FIRST + b"\r\n.\r\n" + SECOND, [])
        self.assertEqual(said, [250, 250, 250, 354, 250, 250, 250, 354, 250])
        self.assertEqual(len(taken), 2)

    def test_tooLarge(self) -> None:
        """A message that is too large is read to its real end, and no part of it is executed."""
        for false_end in FALSE_ENDS:
            inbox = Inbox()
            client = Client(inbox, data_size_limit=50)
            said = client.codes(GREETING + FIRST + b"x" * 50 + false_end + SECOND + b"NOOP\r\n")
            self.assertEqual(said, [250, 250, 250, 354, 552, 250], false_end)
            self.assertEqual(inbox.envelopes, [])

    def test_tooLongLine(self) -> None:
        """The same is true for a message with a line that is too long."""
        for false_end in FALSE_ENDS:
            inbox = Inbox()
            client = Client(inbox, line_length_limit=100)
            said = client.codes(GREETING + FIRST + b"x" * 500 + false_end + SECOND + b"NOOP\r\n")
            self.assertEqual(said[:4] + said[5:], [250, 250, 250, 354, 250], false_end)
            self.assertIn(said[4], (500, 550))
            self.assertEqual(inbox.envelopes, [])
