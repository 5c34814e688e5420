"""The grammar of commands: what is accepted, and how other input is refused (RFC 5321 4.1.2, RFC 6531 3.3)."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import re
import string
import unicodedata
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from tests.support.effort import FACTOR, grows_faster_than_its_input, processor_time
from tests.support.programs import once
from txsmtpd.reply import Refused
from txsmtpd.wire import grammar

# Mailboxes of RFC 5321 4.1.2, which must be accepted in brackets, and returned unchanged.
MAILBOXES = [
    "a@b",
    "user@example.com",
    "User@EXAMPLE.com",
    "first.last@example.com",
    "user+tag@example.com",
    "!#$%&'*+-/=?^_`{|}~@example.com",
    "1@2.example",
    "user@1.2.3.4.example",
    "user@a-b.example",
    "user@xn--bcher-kva.example",
    "user@under_score.internal",
    '"quoted"@example.com',
    '""@example.com',
    '"with blank"@example.com',
    '"with@sign"@example.com',
    '"with>bracket"@example.com',
    '"with<bracket"@example.com',
    '"with,comma;and:colon"@example.com',
    r'"escaped\"quote"@example.com',
    r'"back\\slash"@example.com',
    r'"needless\escape"@example.com',
    '"two..dots."@example.com',
    "user@[192.0.2.1]",
    "user@[IPv6:2001:db8::1]",
    "user@[ipv6:::1]",
    "user@[IPv6:::ffff:192.0.2.1]",
    "Δοκιμή@παράδειγμα.δοκιμή",
    "user@bücher.example",
    "用户@例子.广告",
    '"ü ü"@example.com',
    "👍@example.com",
    "x" * 200 + "@example.com",
]

NO_MAILBOXES = [
    "user",
    "@example.com",
    "user@",
    "@",
    "a@b@c",
    "user@@example.com",
    "user@example..com",
    "user@.example.com",
    "user@example.com.",
    "user@-example.com",
    "user@example-.com",
    "user@exam ple.com",
    "user@example,com",
    "user@exam!ple",
    "user@(comment)example.com",
    ".user@example.com",
    "user.@example.com",
    "us..er@example.com",
    "us er@example.com",
    "us(comment)er@example.com",
    "us\\er@example.com",
    "us,er@example.com",
    "us;er@example.com",
    "us:er@example.com",
    'us"er@example.com',
    '"user@example.com',
    'user"@example.com',
    '"us"er"@example.com',
    '"user"x@example.com',
    'x"user"@example.com',
    '"a"."b"@example.com',
    '"open\\"@example.com',
    "user@[192.0.2]",
    "user@[192.0.2.256]",
    "user@[192.0.2.1",
    "user@192.0.2.1]",
    "user@[192.0.2.1]x",
    "user@[192.0.02.1]",
    "user@[IPv6:2001:db8::g]",
    "user@[2001:db8::1]",
    "user@[IPv6:192.0.2.1]",
    "user@[IPv6:1:2:3:4:5:6:7:8:9]",
    "user@[]",
    "user@[x-tag:content]",
    "user@[٣.0.2.1]",
]

KELVIN, LONG_S, DOTTED_I, FULLWIDTH_AT = "\u212a", "\u017f", "\u0130", "\uff20"


def refusal(function: Callable[..., Any], *arguments: Any) -> tuple[int, str | None]:
    """The code and the enhanced status code of the function's refusal.

    :raises AssertionError: if it does not refuse.
    """
    try:
        result = function(*arguments)
    except Refused as refused:
        return refused.reply.code, refused.reply.status
    raise AssertionError(f"{arguments!r} was not refused but taken for {result!r}")


def has_control(text: str) -> bool:
    """Return True if the text contains a character that could end a line or control a terminal."""
    return any(unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") for letter in text)


class PathTests(SynchronousTestCase):
    """The addresses of MAIL and RCPT."""

    def test_accepted(self) -> None:
        """An address of RFC 5321 is accepted, and kept as written."""
        for mailbox in MAILBOXES:
            self.assertEqual(grammar.parse_mail(f"FROM:<{mailbox}>"), (mailbox, {}), mailbox)
            self.assertEqual(grammar.parse_rcpt(f"TO:<{mailbox}>"), (mailbox, {}), mailbox)
            self.assertTrue(grammar.is_mailbox(mailbox), mailbox)

    def test_refused(self) -> None:
        """An invalid address is refused with 553 if its end is recognizable, and otherwise with 501."""
        for mailbox in NO_MAILBOXES:
            self.assertIn(refusal(grammar.parse_mail, f"FROM:<{mailbox}>"), [(553, "5.1.7"), (501, "5.5.4")], mailbox)
            self.assertIn(refusal(grammar.parse_rcpt, f"TO:<{mailbox}>"), [(553, "5.1.3"), (501, "5.5.4")], mailbox)
            self.assertFalse(grammar.is_mailbox(mailbox), mailbox)

    def test_refusals(self) -> None:
        """Errors in the form of the command (501 5.5.4) are distinguished from errors in its address (553 5.1.7,
        5.1.3)."""
        for argument, expected in (
            (None, (501, "5.5.4")),
            ("", (501, "5.5.4")),
            ("FROM", (501, "5.5.4")),
            ("FROM:", (501, "5.5.4")),
            ("FROM:   ", (501, "5.5.4")),
            ("FROM <a@b>", (501, "5.5.4")),
            ("FROM :<a@b>", (501, "5.5.4")),
            ("TO:<a@b>", (501, "5.5.4")),
            ("<a@b>", (501, "5.5.4")),
            ("FROM:<a@b", (501, "5.5.4")),
            ("FROM:<a@b>SIZE=1", (501, "5.5.4")),
            ("FROM:<a@b> =", (501, "5.5.4")),
            ("FROM:<a@b>>", (501, "5.5.4")),
            ("FROM:<a@b><c@d>", (501, "5.5.4")),
            ("FROM:<<a@b>>", (501, "5.5.4")),
            ("FROM:<a>", (553, "5.1.7")),
            ("FROM:a", (553, "5.1.7")),
            ("FROM:< a@b>", (553, "5.1.7")),
            ("FROM:<a@b >", (553, "5.1.7")),
            ("FROM:Name <a@b>", (553, "5.1.7")),
            ("FROM:<Postmaster>", (553, "5.1.7")),
        ):
            self.assertEqual(refusal(grammar.parse_mail, argument), expected, argument)

    def test_nullPath(self) -> None:
        """The null reverse-path is the empty string. A forward-path cannot be null."""
        self.assertEqual(grammar.parse_mail("FROM:<>"), ("", {}))
        self.assertEqual(grammar.parse_mail("FROM: <> SIZE=10"), ("", {"SIZE": "10"}))
        self.assertEqual(refusal(grammar.parse_rcpt, "TO:<>"), (553, "5.1.3"))

    def test_postmaster(self) -> None:
        """Postmaster needs no domain as a recipient. It is case-insensitive."""
        for word in ("Postmaster", "postmaster", "POSTMASTER"):
            self.assertEqual(grammar.parse_rcpt(f"TO:<{word}>"), (word, {}))
            self.assertEqual(grammar.parse_rcpt(f"TO:{word}"), (word, {}))
        self.assertEqual(refusal(grammar.parse_rcpt, "TO:<Postmasters>"), (553, "5.1.3"))
        self.assertEqual(refusal(grammar.parse_rcpt, f"TO:<po{LONG_S}tma{LONG_S}ter>"), (553, "5.1.3"))

    def test_sourceRoute(self) -> None:
        """A source route is accepted and ignored (RFC 5321 appendix C)."""
        for route in ("@one.example:", "@one.example,@two.example:", "@bücher.example:"):
            self.assertEqual(grammar.parse_rcpt(f"TO:<{route}user@example.com>"), ("user@example.com", {}))
            self.assertEqual(grammar.parse_mail(f"FROM:<{route}user@example.com>"), ("user@example.com", {}))
        for route in ("@:", "@one.example,:", "@one.example @two.example:", "one.example:", "@one.example;"):
            self.assertEqual(refusal(grammar.parse_rcpt, f"TO:<{route}user@example.com>")[0], 553, route)
        self.assertEqual(refusal(grammar.parse_mail, "FROM:<@one.example:>"), (553, "5.1.7"))

    def test_noBrackets(self) -> None:
        """The brackets around an address may be missing, even if parameters follow."""
        for mailbox in MAILBOXES:
            self.assertEqual(grammar.parse_rcpt(f"TO:{mailbox}"), (mailbox, {}), mailbox)
            self.assertEqual(grammar.parse_mail(f"FROM:{mailbox} SIZE=1"), (mailbox, {"SIZE": "1"}), mailbox)
        for mailbox in NO_MAILBOXES:
            self.assertEqual(refusal(grammar.parse_mail, f"FROM:{mailbox}")[0] // 100, 5, mailbox)

    def test_blanksAfterColon(self) -> None:
        """Spaces are accepted between the colon and the address, and not before the colon."""
        self.assertEqual(grammar.parse_mail("FROM:   <a@b>"), ("a@b", {}))
        self.assertEqual(grammar.parse_rcpt("TO: a@b"), ("a@b", {}))
        self.assertEqual(refusal(grammar.parse_rcpt, "TO : <a@b>"), (501, "5.5.4"))

    def test_caseOfKeyword(self) -> None:
        """FROM and TO are case-insensitive, in ASCII letters only."""
        self.assertEqual(grammar.parse_mail("from:<a@b>"), ("a@b", {}))
        self.assertEqual(grammar.parse_rcpt("To:<a@b>"), ("a@b", {}))
        self.assertEqual(refusal(grammar.parse_mail, "\uff26\uff32\uff2f\uff2d:<a@b>"), (501, "5.5.4"))

    def test_lookalikes(self) -> None:
        """Letters that look like ASCII, or fold to it, do not match."""
        self.assertEqual(refusal(grammar.parse_rcpt, f"TO:<user{FULLWIDTH_AT}example.com>"), (553, "5.1.3"))
        self.assertEqual(grammar.parse_rcpt(f"TO:<{KELVIN}@example.com>"), (f"{KELVIN}@example.com", {}))
        self.assertEqual(refusal(grammar.parse_mail, f"FROM:<a@b> {LONG_S}IZE=1"), (501, "5.5.4"))
        self.assertEqual(refusal(grammar.parse_mail, f"FROM:<a@b> {KELVIN}EY=1"), (501, "5.5.4"))
        self.assertEqual(refusal(grammar.parse_mail, f"FROM:<a@b> S{DOTTED_I}ZE=1"), (501, "5.5.4"))

    def test_endOfText(self) -> None:
        """A line end after an address is detected."""
        for end in ("\n", "\r\n", "\r", "\0", "\v"):
            self.assertEqual(refusal(grammar.parse_mail, f"FROM:<a@b>{end}")[0] // 100, 5)
            self.assertEqual(refusal(grammar.parse_mail, f"FROM:a@b{end}")[0] // 100, 5)
            self.assertFalse(grammar.is_mailbox(f"a@b{end}"))
            self.assertFalse(grammar.is_host(f"b{end}"))

    def test_localPart(self) -> None:
        """The local part is the text before the last @, including quotes."""
        self.assertEqual(grammar.local_part("user@example.com"), "user")
        self.assertEqual(grammar.local_part('"a@b"@example.com'), '"a@b"')
        self.assertEqual(grammar.local_part("Postmaster"), "Postmaster")


class LenientTests(SynchronousTestCase):
    """Addresses as devices and frameworks send them."""

    def test_taken(self) -> None:
        """An invalid mailbox is returned as written, with the parameters after it."""
        for written, path in {
            "<webmaster>": "webmaster",
            "<MAILER-DAEMON>": "MAILER-DAEMON",
            r"<DOMAIN\user>": r"DOMAIN\user",
            "< ann@example.com >": "ann@example.com",
            "<ann smith@example.com>": "ann smith@example.com",
            "<a..b@docomo.example>": "a..b@docomo.example",
            "<b.@docomo.example>": "b.@docomo.example",
            "<ann@[999.1.1.1]>": "ann@[999.1.1.1]",
            '<"ann@example.com>': '"ann@example.com',
            "webmaster": "webmaster",
            r'much."more\ unusual"@example.com': r'much."more\ unusual"@example.com',
            '"<a b>"."c d"@example.com': '"<a b>"."c d"@example.com',
            r"Fred\ Bloggs@example.com": r"Fred\ Bloggs@example.com",
            "ann(her name)@example.com": "ann(her name)@example.com",
            '"ann': '"ann',
            "<ann@example.com>": "ann@example.com",
            "<@relay.example:ann@example.com>": "ann@example.com",
            '<"a > b"@example.com>': '"a > b"@example.com',
        }.items():
            self.assertEqual(grammar.parse_mail_leniently(f"FROM:{written} SIZE=1"), (path, {"SIZE": "1"}), written)
            self.assertEqual(grammar.parse_rcpt_leniently(f"to: {written}"), (path, {}), written)

    def test_nullPath(self) -> None:
        """The null path is a valid reverse-path, even with spaces, and not a valid recipient."""
        self.assertEqual(grammar.parse_mail_leniently("FROM:<>"), ("", {}))
        self.assertEqual(grammar.parse_mail_leniently("FROM:< >"), ("", {}))
        for text in ("TO:<>", "TO:< >"):
            self.assertEqual(refusal(grammar.parse_rcpt_leniently, text)[0], 553)

    def test_half(self) -> None:
        """An address with nothing before or after its @ is refused with 553."""
        for written in ("<@example.com>", "<ann@>", "@example.com", "ann@", "<@>", "<@@>", "< @example.com >"):
            self.assertEqual(refusal(grammar.parse_mail_leniently, f"FROM:{written}"), (553, "5.1.7"), written)
            self.assertEqual(refusal(grammar.parse_rcpt_leniently, f"TO:{written}"), (553, "5.1.3"), written)

    def test_endOfBare(self) -> None:
        """Without brackets, an address ends at the first space outside of quoted strings, quoted pairs and comments.
        After a comment, a space after a dot does not end it. If one of these is not closed, the address ends at the
        first space of any kind."""
        for text, path, parameters in (
            ("ann@example.com. SIZE=1", "ann@example.com.", {"SIZE": "1"}),
            ('"ann smith SIZE=1', '"ann', {"SMITH": None, "SIZE": "1"}),
            ("ann(smith SIZE=1", "ann(smith", {"SIZE": "1"}),
            ("ann)smith SIZE=1", "ann)smith", {"SIZE": "1"}),
            ('"a(b"@example.com SIZE=1', '"a(b"@example.com', {"SIZE": "1"}),
            ("a(b (c) d)@e(f) SIZE=1", "a(b (c) d)@e(f)", {"SIZE": "1"}),
            ("ann@host(her own).  example SIZE=1", "ann@host(her own).  example", {"SIZE": "1"}),
        ):
            self.assertEqual(grammar.parse_mail_leniently(f"FROM:{text}"), (path, parameters))

    def test_refused(self) -> None:
        """A missing address is refused, and so are malformed parameters."""
        for text in ("", "FROM:", "FROM: ", "TO:<a@b>", "FROM:<a@b", "FROM:<a@b>x", "FROM:<a<b>@c>", "FROM:a>b"):
            refusal(grammar.parse_mail_leniently, text)
        self.assertEqual(refusal(grammar.parse_mail_leniently, "FROM:<webmaster> =1"), (501, "5.5.4"))
        self.assertEqual(grammar.parse_mail("FROM:<a@b> SIZE=1"), ("a@b", {"SIZE": "1"}))


class ParameterTests(SynchronousTestCase):
    """The parameters after the address."""

    def test_parameters(self) -> None:
        """Parameters are keywords in upper case with their value as written, or None."""
        for text, expected in (
            ("SIZE=1000", {"SIZE": "1000"}),
            ("size=1000 Body=8BitMime SMTPUTF8", {"SIZE": "1000", "BODY": "8BitMime", "SMTPUTF8": None}),
            ("MT-PRIORITY=-3", {"MT-PRIORITY": "-3"}),
            ("8bit", {"8BIT": None}),
            ("  A   B=2  ", {"A": None, "B": "2"}),
            ("ORCPT=rfc822;a+40b", {"ORCPT": "rfc822;a+40b"}),
            ("ENVID=ü", {"ENVID": "ü"}),
        ):
            self.assertEqual(grammar.parse_parameters(text), expected, text)
            self.assertEqual(grammar.parse_mail(f"FROM:<a@b> {text}"), ("a@b", expected), text)

    def test_malformed(self) -> None:
        """A malformed parameter is refused with 501 5.5.4."""
        for text in (
            "=",
            "=1",
            "SIZE=",
            "SIZE=1=2",
            "-A",
            "A_B",
            "A.B",
            "SIZE=\t1",
            "A\0",
            "A=\0",
            "ü=1",
            "A\n",
            "A=1\n",
        ):
            self.assertEqual(refusal(grammar.parse_parameters, text), (501, "5.5.4"), text)

    def test_twice(self) -> None:
        """A repeated parameter with another value is refused. With the same value it is accepted."""
        for text in ("SIZE=1 SIZE=1", "SIZE=1 size=1", "SIZE=1 SIZE=1 SIZE=1"):
            self.assertEqual(grammar.parse_mail(f"FROM:<a@b> {text}"), ("a@b", {"SIZE": "1"}))
        self.assertEqual(grammar.parse_mail("FROM:<a@b> SMTPUTF8 SMTPUTF8"), ("a@b", {"SMTPUTF8": None}))
        for text in ("SIZE=1 SIZE=2", "SIZE=1 size", "SMTPUTF8 SMTPUTF8=1"):
            self.assertEqual(refusal(grammar.parse_mail, f"FROM:<a@b> {text}"), (501, "5.5.4"), text)

    def test_size(self) -> None:
        """SIZE accepts ASCII digits."""
        self.assertEqual(grammar.parse_size("0"), 0)
        self.assertEqual(grammar.parse_size("00012"), 12)
        self.assertEqual(grammar.parse_size("9" * 20), 10**20 - 1)

    def test_noSize(self) -> None:
        """SIZE accepts nothing else that Python treats as a number, and limits the number of digits."""
        for value in (
            None,
            "",
            "-1",
            "+1",
            "1_0",
            " 1",
            "1 ",
            "1\n",
            "0x10",
            "1e3",
            "1.0",
            "²",
            "١٢",
            "\uff11",
            "9" * 21,
            "9" * 9999,
        ):
            self.assertEqual(refusal(grammar.parse_size, value), (501, "5.5.4"), value)


class OtherArgumentsTests(SynchronousTestCase):
    """VRFY, host names, xtext, and decoding of commands."""

    def test_vrfy(self) -> None:
        """VRFY accepts a user name or an address, with or without brackets."""
        for text, expected in (
            ("user", "user"),
            ("<user>", "user"),
            ("user@example.com", "user@example.com"),
            ("<user@example.com>", "user@example.com"),
            ('"a b"@example.com', '"a b"@example.com'),
            ("ü@example.com", "ü@example.com"),
        ):
            self.assertEqual(grammar.parse_vrfy(text), expected)
        for text in ("a b", "@", "user@", "<>", "", "a\nb", "a(b)", "user@[1.2.3.4"):
            self.assertEqual(refusal(grammar.parse_vrfy, text)[0], 502, text)

    def test_vrfyLiteral(self) -> None:
        """VRFY refuses the same address literals as MAIL."""
        self.assertEqual(grammar.parse_vrfy("user@[192.0.2.1]"), "user@[192.0.2.1]")
        self.assertEqual(refusal(grammar.parse_vrfy, "user@[999.0.2.1]")[0], 502)

    def test_vrfyOneBracket(self) -> None:
        """VRFY refuses an address with only one bracket."""
        for text in ("<user@example.com", "user@example.com>", "<user", "user>"):
            self.assertEqual(refusal(grammar.parse_vrfy, text)[0], 502, text)

    def test_hosts(self) -> None:
        """A host is a domain or an address literal."""
        for host in (
            "a",
            "example.com",
            "mx-1.example.com",
            "container_1",
            "[192.0.2.1]",
            "[IPv6:2001:db8::1]",
            "bücher.example",
        ):
            self.assertTrue(grammar.is_host(host), host)
        for host in (
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "a b",
            "a@b",
            "[192.0.2.1",
            "[1.2.3]",
            "[IPv6:x]",
            "[]",
            "a\n",
            "a\0",
            "a/b",
        ):
            self.assertFalse(grammar.is_host(host), host)

    def test_xtext(self) -> None:
        """xtext encodes characters that a parameter's value cannot contain (RFC 3461 4)."""
        for text, coded in (("", ""), ("abc", "abc"), ("a=b", "a+3Db"), ("a+b c", "a+2Bb+20c"), ("ü", "+C3+BC")):
            self.assertEqual(grammar.encode_xtext(text), coded)
            self.assertEqual(grammar.decode_xtext(coded), text)

    def test_noXtext(self) -> None:
        """Invalid xtext, and encoded control characters, are refused with 501."""
        for text in (
            "+",
            "+3",
            "+3d",
            "+GG",
            "a=b",
            "a b",
            "ü",
            "+0A",
            "+0D+0A",
            "+00",
            "+7F",
            "+FF",
            "+C2+85",
            "+E2+80+A8",
            "a\n",
        ):
            self.assertEqual(refusal(grammar.decode_xtext, text), (501, "5.5.4"), text)

    @given(some.text())
    def test_xtextRoundTrip(self, text: str) -> None:
        """Text without control characters is the same after encoding and decoding."""
        if has_control(text):
            return
        coded = grammar.encode_xtext(text)
        self.assertTrue(coded.isascii() and coded.isprintable() and " " not in coded and "=" not in coded)
        self.assertEqual(grammar.decode_xtext(coded), text)

    def test_decode(self) -> None:
        """Commands are ASCII or UTF-8."""
        for text in ("plain", "", "ü", "a\u200db", "\u3000", "\u00a0", "\U0001f44d", "\u00ad"):
            self.assertEqual(grammar.decode(text.encode()), text)

    def test_controlCharacters(self) -> None:
        """Any control character in a command is refused, at any place."""
        for character in [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"]:
            for text in (character, f"a{character}", f"{character}a", f"ü{character}b"):
                self.assertEqual(refusal(grammar.decode, text.encode()), (500, "5.5.2"), repr(text))

    def test_notUTF8(self) -> None:
        """Commands that are not UTF-8 are refused: Latin-1, overlong forms, surrogates."""
        for octets in (
            b"\xff",
            b"\xfc",
            b"a\x80",
            b"\xc0\x8a",
            b"\xe0\x80\x8a",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc3",
        ):
            self.assertEqual(refusal(grammar.decode, octets), (500, "5.5.2"), octets)


PARSERS: list[Callable[[str], Any]] = [
    grammar.parse_mail,
    grammar.parse_rcpt,
    grammar.parse_parameters,
    grammar.parse_size,
    grammar.parse_vrfy,
    grammar.decode_xtext,
    grammar.encode_xtext,
    grammar.is_mailbox,
    grammar.is_host,
    grammar.local_part,
]

# Pieces of text that is almost valid.
PIECES = [
    "FROM:",
    "TO:",
    "<",
    ">",
    "@",
    '"',
    "\\",
    " ",
    ".",
    ",",
    ":",
    "[",
    "]",
    "IPv6:",
    "1",
    "::",
    "a",
    "b.c",
    "ü",
    "=",
]
PIECES += ["SIZE=", "+3D", "+", "-", "\0", "\r\n", "\u2028", "postmaster", KELVIN, LONG_S, "\ud800", "(", ";"]
NEARLY = some.lists(some.sampled_from(PIECES), max_size=14).map("".join)


def strings_in(result: Any) -> list[str]:
    """All strings in a parser's result."""
    if isinstance(result, str):
        return [result]
    if isinstance(result, tuple):
        path, parameters = result
        return [path, *parameters, *filter(None, parameters.values())]
    if isinstance(result, dict):
        return [*result, *filter(None, result.values())]
    return []


class AnythingTests(SynchronousTestCase):
    """Arbitrary input."""

    @given(some.text() | NEARLY | NEARLY.map("FROM:<a@b>".__add__) | NEARLY.map("TO:<".__add__))
    def test_text(self, text: str) -> None:
        """No text makes the grammar raise anything but Refused."""
        for parse in PARSERS:
            if parse is grammar.encode_xtext and has_control(text):
                continue
            try:
                parse(text)
            except Refused as refused:
                self.assertIn(refused.reply.code, (500, 501, 502, 553))

    @given(some.binary() | NEARLY.map(lambda text: text.encode("utf-8", "surrogatepass")))
    def test_octets(self, octets: bytes) -> None:
        """No octets make decode raise anything but Refused, and no result contains control characters."""
        try:
            text = grammar.decode(octets)
        except Refused:
            return
        for parse in PARSERS:
            try:
                result = parse(text)
            except Refused:
                continue
            for each in strings_in(result):
                self.assertFalse(has_control(each), (parse, text, result))

    @given(NEARLY)
    def test_meaning(self, text: str) -> None:
        """An address that was accepted is accepted again, with the same result."""
        try:
            path, _ = grammar.parse_rcpt(f"TO:{text}")
        except Refused:
            return
        self.assertEqual(grammar.parse_rcpt(f"TO:<{path}>"), (path, {}))
        self.assertTrue(grammar.is_mailbox(path) or path.lower() == "postmaster")

    def test_everySingleCharacter(self) -> None:
        """Each of the first 65,536 characters is either kept in an address or refused."""
        for number in range(0x10000):
            character = chr(number)
            for form in ("TO:<a{}b@example.com>", "TO:<a@b{}c>"):
                try:
                    path, _ = grammar.parse_rcpt(form.format(character))
                except Refused:
                    continue
                self.assertIn(character, path)
                self.assertNotIn(character, ' "(),:;<>@[]\\\x7f', repr(character))
                self.assertGreater(number, 0x20)

    def test_time(self) -> None:
        """The time for the worst input of a pattern is proportional to its length."""
        once()
        size = 12 * 1024
        worst = [
            "a",
            "a.",
            "@",
            "a@",
            "@a,",
            "@a.a,",
            '"',
            '""',
            '\\"',
            '"\\',
            "\\",
            " ",
            "  =",
            "a=",
            "a ",
            "A=1 ",
            "-",
            "a-",
        ]
        worst += [
            "[",
            "1:",
            ">",
            "<",
            "<>",
            "+3D",
            "+",
            "ü",
            "=",
            ":",
            "\0",
            string.printable,
            'a"',
            '">',
            "\\\\",
            '\\"ü',
        ]
        mail = ["FROM:", "FROM:<", 'FROM:<"', "FROM:<@a:", "FROM:<@a,", "FROM:<a@b> ", 'FROM:"']
        forms: list[tuple[str, list[Callable[[str], Any]]]] = [(prefix, [grammar.parse_mail]) for prefix in mail]
        forms += [("TO:<", [grammar.parse_rcpt]), ("", PARSERS[2:]), ("<", [grammar.parse_vrfy])]
        endings = ["", ">", '"', "\\é", '"@b>', "!", " x", "\\é>"]

        def attempt(parse: Callable[[str], Any], text: str) -> None:
            with contextlib.suppress(Refused):
                parse(text)

        times = {}
        for (prefix, parsers), each, ending in itertools.product(forms, worst, endings):
            text = prefix + (each * size)[:size] + ending
            for parse in parsers:
                times[parse, prefix, each, ending] = processor_time(functools.partial(attempt, parse), text)
        # The slowest are measured again with growing input, since the machine may have been slow, and not the pattern.
        for parse, prefix, each, ending in heapq.nlargest(20, times, key=times.__getitem__):

            def make(length: int, prefix: str = prefix, each: str = each, ending: str = ending) -> str:
                return prefix + (each * length)[:length] + ending

            grown = grows_faster_than_its_input(functools.partial(attempt, parse), make, size // FACTOR)
            self.assertEqual(grown, "", (parse.__name__, prefix, each, ending))


class PatternTests(SynchronousTestCase):
    """The regular expressions themselves."""

    def test_domainCharacters(self) -> None:
        """A label has letters, digits, hyphens, underscores, and all characters beyond ASCII (RFC 6531 3.3)."""
        for character in [*map(chr, range(0x20, 0x7F)), "ü", "\u2603", "\uffff", "\U0001f4e8", "\U0010ffff"]:
            accepted = character.isalnum() or character in "-_" or not character.isascii()
            if character in '.@">':  # these separate the parts of an address
                continue
            with contextlib.suppress(Refused):
                path, _ = grammar.parse_rcpt(f"TO:<user@exa{character}mple.test>")
                self.assertEqual((path, accepted), (f"user@exa{character}mple.test", True))
                continue
            self.assertFalse(accepted, character)

    def test_compiled(self) -> None:
        """The patterns are compiled quickly, since every program that imports the server waits for them."""

        def compiled(pattern: str) -> float:
            def work(text: str) -> None:
                re.purge()
                re.compile(text)

            return min(processor_time(work, pattern) for _ in range(5))

        simple = compiled(r"[^\x00-\x20@]+@(?P<domain>[^\x00-\x20@]+)")
        for name, value in vars(grammar).items():
            if isinstance(value, re.Pattern):
                self.assertLess(compiled(value.pattern), 60 * simple, name)
