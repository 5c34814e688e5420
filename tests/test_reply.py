"""Replies as values (RFC 5321 4.2, RFC 2034)."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from tests.support import answers
from txsmtpd.reply import MAX_REPLY_LINE, Refused, Reply, parse_status


class ReplyTests(SynchronousTestCase):
    """The class Reply."""

    def test_octets(self) -> None:
        """A reply is sent as its code, its enhanced status code and its text."""
        self.assertEqual(Reply(250, "2.1.5", "OK").octets, b"250 2.1.5 OK\r\n")
        self.assertEqual(Reply(354, None, "Go on").octets, b"354 Go on\r\n")
        self.assertEqual(Reply(250, None, "").octets, b"250 \r\n")

    def test_severalLines(self) -> None:
        """Each line of a reply has the code and the enhanced status code. All lines but the last have a hyphen."""
        expected = b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n"
        self.assertEqual(Reply(550, "5.7.1", "one\ntwo\r\nthree").octets, expected)
        self.assertEqual(Reply(550, "5.7.1", ["one", "two", "three"]).octets, expected)
        self.assertEqual(Reply(550, "5.7.1", "one\ntwo\rthree").lines, ("one", "two", "three"))

    def test_value(self) -> None:
        """Replies with the same contents are equal and hashable. Others are different."""
        self.assertEqual(Reply(250, "2.0.0", "OK"), Reply(250, "2.0.0", ["OK"]))
        self.assertEqual(len({Reply(250, "2.0.0", "OK"), Reply(250, "2.0.0", "OK")}), 1)
        self.assertNotEqual(Reply(250, "2.0.0", "OK"), Reply(251, "2.0.0", "OK"))
        self.assertNotEqual(Reply(250, "2.0.0", "OK"), Reply(250, "2.1.0", "OK"))
        self.assertNotEqual(Reply(250, "2.0.0", "OK"), Reply(250, "2.0.0", "Fine"))
        self.assertNotEqual(Reply(250, "2.0.0", "OK"), "250 2.0.0 OK")

    def test_unchanging(self) -> None:
        """A reply is immutable."""
        reply = Reply(250, "2.0.0", "OK")
        for change in (
            lambda: setattr(reply, "code", 550),
            lambda: setattr(reply, "octets", b"550 no\r\n"),
            lambda: setattr(reply, "other", 1),
            lambda: delattr(reply, "code"),
        ):
            self.assertRaises(AttributeError, change)
        self.assertEqual(reply.octets, b"250 2.0.0 OK\r\n")

    def test_pickled(self) -> None:
        """A reply that was pickled is the same."""
        reply = Reply(550, "5.7.1", "one\ntwo")
        self.assertEqual(pickle.loads(pickle.dumps(reply)), reply)

    def test_shown(self) -> None:
        """str() returns the reply as sent, and repr() the call that creates it."""
        reply = Reply(550, "5.7.1", "one\ntwo")
        self.assertEqual(str(reply), "550-5.7.1 one\n550 5.7.1 two")
        self.assertEqual(reply.one_line, "550-5.7.1 one / 550 5.7.1 two")
        self.assertEqual(str(Reply(550, None, "n\u00f6")), "550 n\u00f6")
        self.assertEqual(eval(repr(reply)), reply)
        self.assertEqual(reply.text, "one\ntwo")

    def test_positive(self) -> None:
        """Only 2yz is positive."""
        self.assertTrue(Reply(250, None, "").positive)
        for code in (354, 451, 550):
            self.assertFalse(Reply(code, None, "").positive)

    def test_wrongCodes(self) -> None:
        """Invalid reply codes are refused. A code that RFC 5321 does not list is allowed."""
        self.assertEqual(Reply(599, None, "mine").octets, b"599 mine\r\n")
        for code in (-1, 0, 25, 99, 100, 199, 600, 999, 2500):
            self.assertRaises(ValueError, Reply, code, None, "text")

    def test_wrongStatus(self) -> None:
        """An enhanced status code must be valid, and agree with the code."""
        for status in ("", "2", "2.0", "2.0.0.0", "4.0.0", "3.0.0", "2.0.1234", "2.0.0 ", " 2.0.0", "2.0.x", "2.0.0\n"):
            try:
                reply = Reply(250, status, "text")
            except ValueError:
                continue
            self.fail(f"the status {status!r} gave {reply.octets!r}")

    def test_controlCharacters(self) -> None:
        """Nothing in the text of a reply can end a line or control a terminal."""
        for character in "\0\x01\b\v\f\x1b\x1f\x7f\x85\x9b\u2028\u2029\ud800":
            reply = Reply(250, "2.0.0", f"a{character}b")
            self.assertEqual(reply.octets, b"250 2.0.0 a?b\r\n", repr(character))
            self.assertEqual(reply.encode(True), b"250 2.0.0 a?b\r\n", repr(character))
        self.assertEqual(Reply(250, None, ["a\r\nb"]).octets.count(b"\n"), 1)
        self.assertEqual(Reply(250, None, "a\tb").octets, b"250 a\tb\r\n")

    def test_beyondASCII(self) -> None:
        """Text that is not ASCII is sent only to clients that accept it."""
        reply = Reply(250, "2.0.0", "Grüß dich")
        self.assertEqual(reply.encode(True), "250 2.0.0 Grüß dich\r\n".encode())
        self.assertEqual(reply.encode(False), b"250 2.0.0 Gr?? dich\r\n")
        self.assertEqual(reply.octets, b"250 2.0.0 Gr?? dich\r\n")

    def test_longLine(self) -> None:
        """A line is truncated at the 512 octets of RFC 5321 4.5.3.1.5, and not within a character."""
        for text in ("x" * 2000, "ü" * 2000, "€" * 2000, "😀" * 2000, "x" * 500):
            for utf8 in (True, False):
                octets = Reply(250, "2.0.0", text).encode(utf8)
                self.assertLessEqual(len(octets), MAX_REPLY_LINE)
                octets.decode("utf-8")
        self.assertEqual(len(Reply(250, "2.0.0", "x" * 2000).octets), MAX_REPLY_LINE)
        exact = "x" * (MAX_REPLY_LINE - len("250 2.0.0 \r\n"))
        self.assertEqual(Reply(250, "2.0.0", exact).octets, f"250 2.0.0 {exact}\r\n".encode())

    @given(some.integers(200, 599), some.text() | some.lists(some.text()))
    def test_anyText(self, code: int, text: str | list[str]) -> None:
        """Any text results in one well-formed reply with that code."""
        if code // 10 % 10 > 5:
            return
        reply = Reply(code, None, text)
        for octets in (reply.octets, reply.encode(True)):
            found = answers(octets)
            self.assertEqual([answer.code for answer in found], [code])
            self.assertEqual(len(found[0].lines), len(reply.lines))


class ParseStatusTests(SynchronousTestCase):
    """Statuses that a handler may return."""

    def test_forms(self) -> None:
        """A status is a string or bytes with a code, optionally an enhanced status code, and text."""
        for status, reply in (
            ("250 2.0.0 OK", Reply(250, "2.0.0", "OK")),
            ("250 OK", Reply(250, None, "OK")),
            ("250", Reply(250, None, "")),
            ("250 ", Reply(250, None, "")),
            ("250 2.0.0", Reply(250, "2.0.0", "")),
            ("250 2.0.0 ", Reply(250, "2.0.0", "")),
            (b"250 2.0.0 OK", Reply(250, "2.0.0", "OK")),
            (bytearray(b"451 4.3.0 Later"), Reply(451, "4.3.0", "Later")),
            ("250 2.0.0 OK\r\n", Reply(250, "2.0.0", "OK")),
            ("550 4.3.0 does not agree", Reply(550, None, "4.3.0 does not agree")),
            ("550 5.7.1234 too long", Reply(550, None, "5.7.1234 too long")),
            ("250 2.0 text", Reply(250, None, "2.0 text")),
            ("250  two blanks", Reply(250, None, " two blanks")),
            ("250 \x1b", Reply(250, None, "\x1b")),
        ):
            self.assertEqual(parse_status(status), reply, status)

    def test_reply(self) -> None:
        """A Reply is returned unchanged."""
        reply = Reply(250, "2.0.0", "OK")
        self.assertIs(parse_status(reply), reply)

    def test_severalLines(self) -> None:
        """Several lines are one reply, with the code on each or only on the first."""
        expected = Reply(250, "2.0.0", ["one", "two", "three"])
        for status in (
            "250-2.0.0 one\r\n250-2.0.0 two\r\n250 2.0.0 three",
            "250-2.0.0 one\n250-2.0.0 two\n250 2.0.0 three\n",
            "250 2.0.0 one\n250 two\n250 three",
            "250 2.0.0 one\ntwo\nthree",
        ):
            self.assertEqual(parse_status(status), expected, status)

    def test_onlyPart(self) -> None:
        """A status whose last line has a hyphen is a complete reply, too."""
        self.assertEqual(answers(parse_status("250-more follows").octets)[0].lines, ("more follows",))

    def test_noStatus(self) -> None:
        """Text without a reply code is a ValueError that shows the valid form."""
        for status in ("", "OK", "25", "25O OK", "2500 OK", "250OK", " 250 OK", "150 OK", "650 OK", "٢٥٠ OK"):
            error = self.assertRaises(ValueError, parse_status, status)
            self.assertIn("250 2.0.0 OK", str(error))
        self.assertRaises(ValueError, parse_status, b"\xff\xfe")

    def test_twoCodes(self) -> None:
        """Lines with different codes are refused, and cannot forge a second reply."""
        self.assertRaises(ValueError, parse_status, "250-one\r\n550 two")
        self.assertRaises(ValueError, parse_status, "250 one\r\n354 two")

    def test_wrongType(self) -> None:
        """Other types than str, bytes and Reply are a TypeError."""
        for status in (None, 250, True, 2.5, ["250 OK"], ("250", "OK"), object(), {"code": 250}):
            self.assertRaises(TypeError, parse_status, status)

    @given(some.text() | some.binary())
    def test_anything(self, status: str | bytes) -> None:
        """Any text is one well-formed reply, or a ValueError."""
        try:
            reply = parse_status(status)
        except ValueError:
            return
        self.assertEqual(len(answers(reply.octets)), 1)
        self.assertEqual(len(answers(reply.encode(True))), 1)

    @given(some.integers(200, 255), some.sampled_from([None, "2.0.0", "2.999.1"]), some.text("ab 2.-", min_size=1))
    def test_roundTrip(self, code: int, status: str | None, text: str) -> None:
        """A reply that is written and parsed again is sent as the same octets."""
        octets = Reply(code, status, text).octets
        self.assertEqual(parse_status(octets).octets, octets)


class RefusedTests(SynchronousTestCase):
    """The exception that contains a reply."""

    def test_reply(self) -> None:
        """Refused takes a Reply or a status."""
        self.assertEqual(Refused("550 5.7.1 no").reply, Reply(550, "5.7.1", "no"))
        reply = Reply(452, "4.2.2", "full")
        self.assertIs(Refused(reply).reply, reply)

    def test_noStatus(self) -> None:
        """Refused without a status raises an exception where it is created."""
        self.assertRaises(ValueError, Refused, "go away")
