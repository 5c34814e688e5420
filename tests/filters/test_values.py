"""Headers and Authentication-Results: units of the filters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.effort import grows_faster_than_its_input
from txsmtpd.filters import Result, Verdict, authentication_results, parse_results
from txsmtpd.filters.header import Header, make_field
from txsmtpd.filters.results import remove_forgeries
from txsmtpd.session import Envelope

LONG_EXAMPLE = (
    "foo.example.net (foobar) 1 (baz); dkim (Because I like it) / 1 (One yay) = (wait for it) fail\r\n"
    " policy (A dot can go here) . (like that) expired (surprising) = (unexpected) 1362471462"
)


class HeaderTests(SynchronousTestCase):
    """Fields are parsed and written."""

    def test_fields(self) -> None:
        """Fields are found with all their lines, up to the empty line or a line that is not a field."""
        for octets, names, rest in (
            (b"A: 1\r\nB:2\r\n\tmore\r\n\r\nbody", [b"A", b"B"], b"\r\nbody"),
            (b"A : 1\r\nno field\r\n\r\n", [b"A"], b"no field\r\n\r\n"),
            (b"From a@example.com\r\nA: 1\r\n", [], b"From a@example.com\r\nA: 1\r\n"),
            (b" folded\r\nA: 1\r\n", [], b" folded\r\nA: 1\r\n"),
            (b"A: bare\nLF\rCR\r\n\r\n", [b"A"], b"\r\n"),
            (b"A: no end", [], b"A: no end"),
            (b"\xc3\xa4: 1\r\n", [], b"\xc3\xa4: 1\r\n"),
            (b"", [], b""),
        ):
            header, found = Header.parse(octets)
            self.assertEqual(([field.name for field in header], found), (names, rest))

    @given(st.lists(st.sampled_from([b"A", b": ", b":", b"\r\n", b"\r\n ", b"\r", b"\n", b"x", b"\t"]), max_size=30))
    def test_nothingIsLost(self, pieces: list[bytes]) -> None:
        """Whatever the octets are, the header and the rest together are unchanged."""
        octets = b"".join(pieces)
        header, rest = Header.parse(octets)
        self.assertEqual(header.octets + rest, octets)

    @given(st.text(), st.sampled_from([b" ", b"", b"\t"]))
    def test_oneField(self, value: str, space: bytes) -> None:
        """Any value results in one field: none of its lines starts another field, or ends the header."""
        octets = make_field("X-Test", value, space).octets
        header, rest = Header.parse(octets + b"\r\nbody")
        self.assertEqual((len(list(header)), rest), (1, b"\r\nbody"))

    def test_badName(self) -> None:
        """An invalid name of a field is refused."""
        for name in "", "two words", "X:", "X\r\nY", "\u00e4":
            self.assertRaises(ValueError, make_field, name, "value")

    def test_text(self) -> None:
        """A value is read as one line, whatever its octets are."""
        header, _ = Header.parse(b"Subject: one\r\n\t two \xff\r\n\r\n")
        self.assertEqual(header.get("SUBJECT"), "one two \ufffd")
        self.assertIsNone(header.get("From"))


class ResultsTests(SynchronousTestCase):
    """Authentication-Results."""

    def test_examples(self) -> None:
        """The examples of RFC 8601, appendix B."""
        for value, authserv_id, results in (
            ("example.org 1; none", "example.org", ()),
            (
                "example.com;\r\n spf=pass smtp.mailfrom=example.net",
                "example.com",
                (Result("spf", "pass", None, {"smtp.mailfrom": "example.net"}),),
            ),
            (
                "example.com; auth=pass (cram-md5) smtp.auth=sender@example.net; spf=pass smtp.mailfrom=example.net",
                "example.com",
                (
                    Result("auth", "pass", None, {"smtp.auth": "sender@example.net"}),
                    Result("spf", "pass", None, {"smtp.mailfrom": "example.net"}),
                ),
            ),
            (
                LONG_EXAMPLE,
                "foo.example.net",
                (Result("dkim", "fail", None, {"policy.expired": "1362471462"}),),
            ),
            (
                'example.com; dkim=fail reason="bad; signature" header.i=@newyork.example.com',
                "example.com",
                (Result("dkim", "fail", "bad; signature", {"header.i": "@newyork.example.com"}),),
            ),
        ):
            with self.subTest(value=value):
                found = parse_results(value)
                self.assertEqual((found.authserv_id, found.results), (authserv_id, results))

    @given(st.text(alphabet='ab=;."\\() \r\n/1'))
    def test_anyText(self, value: str) -> None:
        """Any text can be parsed."""
        parse_results(value)

    def test_longText(self) -> None:
        """The time is proportional to the length of the text, which may come from an attacker."""

        def read(text: str) -> None:
            parse_results("a;" + text)
            header, _ = Header.parse(b"Authentication-Results: " + text.encode() + b"\r\n")
            remove_forgeries(header, ["mx.example.com"])

        for part in "a.", "a/1", "b ", "(", "((a)", '"', '\\"', "a=", ";", "a;", ". ", "= =":
            self.assertEqual(grows_faster_than_its_input(read, part.__mul__, 4_000), "", part)

    def test_longHeader(self) -> None:
        """The same is true for a header."""

        def read(octets: bytes) -> None:
            header, _ = Header.parse(octets)
            remove_forgeries(header, [])
            make_field("X", octets)

        for part in b"a:\r\n", b"a: \r\r", b"a:\r\n ", b"a", b"a :", b" ", b"\r\n":
            self.assertEqual(grows_faster_than_its_input(read, part.__mul__, 4_000), "", repr(part))

    def test_ofFilters(self) -> None:
        """The results of all filters are read from the fields that they have added."""
        envelope = Envelope()
        self.assertEqual(authentication_results(envelope), [])
        envelope.filters = {
            "one": Verdict(headers=(("authentication-results", "mx; spf=pass"), ("X", "mx; dkim=pass"))),
            "two": Verdict(headers=(("Authentication-Results", "mx; dmarc=fail"),)),
        }
        self.assertEqual([each.method for each in authentication_results(envelope)], ["spf", "dmarc"])
