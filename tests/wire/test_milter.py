"""The milter protocol as octets: commands, responses, and arbitrary input."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.reply import Reply
from txsmtpd.wire import milter
from txsmtpd.wire.milter import (
    ACCEPT,
    ALL_ACTIONS,
    CONTINUE,
    SKIP,
    Actions,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    InsertHeader,
    MilterError,
    Negotiation,
    PacketReader,
    Quarantine,
    RemoveRecipient,
    ReplaceBody,
    ReplyCode,
    Stage,
    Steps,
)


class CommandTests(SynchronousTestCase):
    """The commands of the server, octet for octet."""

    def test_commands(self) -> None:
        """Each command consists of its length, its letter and its strings."""
        for sent, expected in (
            (milter.negotiate(), b"\0\0\0\x0dO\0\0\0\x06\0\0\x01\xff\0\x1f\xf7\xff"),
            (milter.macros(b"C", [("j", "mx"), ("daemon_name", "smtpd")]), b"DCj\0mx\0{daemon_name}\0smtpd\0"),
            (milter.connect("[192.0.2.1]", "192.0.2.1", 1025), b"C[192.0.2.1]\0004\x04\x01192.0.2.1\0"),
            (milter.connect("c.test", "2001:db8::1", 25), b"Cc.test\0006\0\x192001:db8::1\0"),
            (milter.connect("localhost", "/run/mail"), b"Clocalhost\0L\0\0/run/mail\0"),
            (milter.connect("unknown", None), b"Cunknown\0U"),
            (milter.helo("c.test"), b"Hc.test\0"),
            (milter.mail("a@b.test", ["SIZE=5"]), b"M<a@b.test>\0SIZE=5\0"),
            (milter.mail(""), b"M<>\0"),
            (milter.rcpt("c@d.test"), b"R<c@d.test>\0"),
            (milter.header(b"Subject", b"one\r\n two"), b"LSubject\0one\n two\0"),
            (milter.body(b"text\r\n"), b"Btext\r\n"),
            (milter.unknown(b"PING"), b"UPING\0"),
            (milter.packet(milter.QUIT), b"Q"),
        ):
            with self.subTest(expected=expected):
                self.assertEqual(sent[-len(expected) :], expected)
                self.assertIn(len(sent) - len(expected), (0, 4))
                self.assertEqual(struct.unpack("!I", sent[:4])[0], len(sent) - 4)

    def test_nul(self) -> None:
        """A NUL in a client's value does not start another string."""
        self.assertEqual(milter.header(b"Subject", b"a\0b")[5:], b"Subject\0ab\0")


class ResponseTests(SynchronousTestCase):
    """The responses of a filter."""

    def test_responses(self) -> None:
        """Each response is parsed to a value."""
        for command, data, expected in (
            (b"c", b"", CONTINUE),
            (b"a", b"", ACCEPT),
            (b"s", b"", SKIP),
            (b"y", b"550 5.7.1 100%% spam\0", ReplyCode(Reply(550, "5.7.1", "100% spam"))),
            (b"y", b"451-4.7.1 one\r\n451 4.7.1 two\0", ReplyCode(Reply(451, "4.7.1", "one\ntwo"))),
            (b"h", b"X-Spam\0yes\0", AddHeader(b"X-Spam", b"yes")),
            (b"i", b"\0\0\0\x01X\0a\n b\0", InsertHeader(1, b"X", b"a\n b")),
            (b"m", b"\0\0\0\0X\0\0", ChangeHeader(1, b"X", b"")),
            (b"m", b"\0\0\0\x02X\0y\0", ChangeHeader(2, b"X", b"y")),
            (b"b", b"any\0octets", ReplaceBody(b"any\0octets")),
            (b"e", b"<>\0", ChangeSender("")),
            (b"e", b"<a@b.test>\0RET=HDRS ENVID=1\0", ChangeSender("a@b.test", ("RET=HDRS", "ENVID=1"))),
            (b"+", b"<a@b.test>\0", AddRecipient("a@b.test")),
            (b"2", b'"a b"@c.test\0NOTIFY=NEVER\0', AddRecipient('"a b"@c.test', ("NOTIFY=NEVER",))),
            (b"-", b"<a@b.test>\0", RemoveRecipient("a@b.test")),
            (b"q", b"looks odd\0", Quarantine("looks odd")),
        ):
            with self.subTest(command=command, data=data):
                self.assertEqual(milter.parse_response(command, data), expected)

    def test_malformed(self) -> None:
        """An invalid response is detected, and no part of it is used."""
        for command, data in (
            (b"c", b"x"),
            (b"?", b""),
            (b"y", b"550 no end"),
            (b"y", b"250 2.0.0 not a refusal\0"),
            (b"y", b"hello\0"),
            (b"h", b"X\0no end"),
            (b"h", b"two words\0x\0"),
            (b"h", b"\0x\0"),
            (b"h", b"X:Y\0x\0"),
            (b"h", b"X\0one\0two\0"),
            (b"i", b"\0\0"),
            (b"i", b"\xff\xff\xff\xffX\0y\0"),
            (b"+", b"<>\0"),
            (b"+", b"a@b.test> NOTIFY=NEVER\0"),
            (b"+", b"a\r\nb@c.test\0"),
            (b"+", b"\xff@c.test\0"),
            (b"e", b"a@b.test"),
            (b"e", b"a@b.test\0one\0two\0"),
            (b"-", b"\xff\0"),
        ):
            with self.subTest(command=command, data=data):
                self.assertRaises(MilterError, milter.parse_response, command, data)

    def test_actions(self) -> None:
        """A filter may do what it has negotiated, and may always decide."""
        self.assertTrue(milter.is_allowed(CONTINUE, Actions(0)))
        self.assertTrue(milter.is_allowed(AddHeader(b"X", b""), Actions.ADD_HEADERS))
        self.assertFalse(milter.is_allowed(ChangeHeader(1, b"X", b""), Actions.ADD_HEADERS))
        self.assertTrue(milter.is_change(ReplaceBody(b"")))
        self.assertFalse(milter.is_change(ACCEPT))


class NegotiationTests(SynchronousTestCase):
    """The negotiation."""

    def test_agreed(self) -> None:
        """Version, actions, steps, and the requested macros. Unknown stages are ignored."""
        data = struct.pack("!III", 6, 0x11, 0x4FF)
        chosen = b"\0\0\0\x00j {daemon_name},_\0" + b"\0\0\0\x63i\0" + b"\0\0\0\x05i\0"
        self.assertEqual(
            milter.parse_negotiation(data + chosen),
            Negotiation(
                6,
                Actions.ADD_HEADERS | Actions.CHANGE_HEADERS,
                Steps(0x4FF),
                {Stage.CONNECT: ("j", "{daemon_name}", "_"), Stage.END_OF_MESSAGE: ("i",)},
            ),
        )

    def test_notOffered(self) -> None:
        """A filter that requests actions that were not offered, or another version, is refused."""
        for version, actions in ((7, 0), (1, 0), (6, 0x200)):
            with self.subTest(version=version, actions=actions):
                data = struct.pack("!III", version, actions, 0)
                self.assertRaises(MilterError, milter.parse_negotiation, data)

    def test_stepsNotOffered(self) -> None:
        """Steps that were not offered are ignored."""
        data = struct.pack("!III", 6, 0, 0x10000401)
        self.assertEqual(milter.parse_negotiation(data).steps, Steps.SKIP | Steps.NO_CONNECT)

    def test_cutOff(self) -> None:
        """No part of a negotiation is accepted as complete."""
        whole = struct.pack("!III", 6, 1, 1) + b"\0\0\0\0j\0"
        for end in range(len(whole)):
            if end != 12:
                self.assertRaises(MilterError, milter.parse_negotiation, whole[:end])


packets = st.lists(st.tuples(st.sampled_from(b"acdrtyspf4him+2-beqlOxZ"), st.binary(max_size=40)), max_size=8)


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    """The octets in pieces."""
    places = sorted({place % (len(octets) + 1) for place in places})
    return [octets[start:end] for start, end in zip([0, *places], [*places, len(octets)], strict=True)]


class ReaderTests(SynchronousTestCase):
    """Packets in a stream of octets."""

    @given(packets, st.lists(st.integers(0, 10000), max_size=5))
    def test_cuts(self, sent: list[Any], places: list[int]) -> None:
        """The packets are the same, wherever the octets are split."""
        expected = [(bytes([letter]), data) for letter, data in sent]
        reader = PacketReader()
        octets = b"".join(milter.packet(*each) for each in expected)
        found = [each for piece in cut(octets, places) for each in reader.feed(piece)]
        self.assertEqual(found, expected)

    @given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
    def test_anyOctets(self, octets: bytes, places: list[int]) -> None:
        """Arbitrary octets are packets, an incomplete packet, or a MilterError. The buffer stays below the limit."""
        reader = PacketReader(limit=100)
        try:
            for piece in cut(octets, places):
                for command, data in reader.feed(piece):
                    milter.parse_response(command, data)
        except MilterError:
            return
        self.assertLess(len(reader._buffer), 104)

    @given(st.sampled_from(b"acdrtyspf4him+2-beqlO"), st.binary(max_size=60))
    def test_anyData(self, letter: int, data: bytes) -> None:
        """Arbitrary data of any response is a value or a MilterError."""
        for parse in milter.parse_response, lambda command, data: milter.parse_negotiation(data, ALL_ACTIONS):
            try:
                parse(bytes([letter]), data)
            except MilterError:
                continue

    def test_tooLong(self) -> None:
        """A packet that is too long for libmilter, or empty, is refused before it has arrived."""
        for length in (0, milter.MAX_PACKET + 1, 0xFFFFFFFF):
            self.assertRaises(MilterError, PacketReader().feed, struct.pack("!I", length))
