"""Parsed messages, whatever their octets are."""

from __future__ import annotations

from email import policy
from email.message import EmailMessage

from hypothesis import example, given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from tests.support.effort import grows_faster_than_its_input
from tests.support.malformed import MALFORMED_FIELDS, NAMES, PIECES
from txsmtpd.mime import TOLERANT, Address, email_message, parse_message
from txsmtpd.mime.policy import Verbatim
from txsmtpd.mime.text import decoded, in_charset, without_encoded_words


@some.composite
def messages(draw: some.DrawFn) -> bytes:
    """Messages, most of them malformed."""
    values = some.lists(some.sampled_from(PIECES), max_size=12).map(b"".join)
    field = some.one_of(
        some.sampled_from(MALFORMED_FIELDS),
        some.tuples(some.sampled_from(NAMES), values).map(b": ".join),
    )
    header = b"\r\n".join(draw(some.lists(field, max_size=4)))
    return header + b"\r\n\r\n" + draw(values)


def read_all(content: bytes) -> None:
    """Read all attributes of a message."""
    message = parse_message(content)
    for value in message.subject, message.text, message.html, *message.links, *message.headers.values():
        value.encode("utf-8", "surrogatepass")
    assert "\n" not in message.subject
    for name in "To", "Cc", "From", "Nothing":
        for address in message.addresses(name):
            str(address)
        message.headers.get_all(name)
    for attachment in message.attachments:
        assert isinstance(attachment.content, bytes)
        repr(attachment)
    repr(message.headers)


def read_all_by_email(content: bytes) -> None:
    """Read the attributes of an EmailMessage that need parsers of fields."""
    message = email_message(content)
    for part in message.walk():
        for value in part.values():
            str(value)
            for address in getattr(value, "addresses", ()):
                str(address)
        part.get_content_type(), part.get_content_charset(), part.get_filename(), part.is_attachment()
    message.get_body(("plain", "html"))
    list(message.iter_attachments())


class MalformedTests(SynchronousTestCase):
    """Reading a message never raises."""

    def test_fields(self) -> None:
        """Fields for which parsers raise are parsed as far as possible, in a message and in a part."""
        for line in MALFORMED_FIELDS:
            alone = line + b"\r\n\r\ntext\r\n"
            for content in alone, b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n" + alone + b"--a--\r\n":
                try:
                    read_all(content)
                    read_all_by_email(content)
                except Exception as error:
                    raise AssertionError(f"{content!r} raised {error!r}") from error

    @settings(max_examples=150, deadline=None)
    @given(messages())
    @example(b"")
    @example(b"\r\n")
    def test_any(self, content: bytes) -> None:
        """So are messages that are composed of difficult pieces."""
        read_all(content)
        read_all_by_email(content)

    @settings(max_examples=80, deadline=None)
    @given(some.binary(max_size=300))
    def test_anyOctets(self, content: bytes) -> None:
        """So are arbitrary octets."""
        read_all(content)
        read_all_by_email(content)

    def test_deep(self) -> None:
        """A thousand nested parts cause no error, and neither does a message that consists only of them."""
        content = b"".join(
            b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (level, level) for level in range(1000)
        )
        read_all(content)
        self.assertEqual(email_message(content).get_content_type(), "multipart/mixed")

    def test_time(self) -> None:
        """The time for parsing is proportional to the size of a message."""
        hostile = {
            "fields": lambda size: b"".join(b"X-%d: a\r\n" % number for number in range(size // 10)) + b"\r\n",
            "one field": lambda size: b"To: " + b"a@b.test, " * (size // 10) + b"\r\n\r\n",
            "comments": lambda size: b"To: " + b"(a) " * (size // 4) + b"\r\n\r\n",
            "words": lambda size: b"Subject: " + b"=?utf-8?q?a?= " * (size // 14) + b"\r\n\r\n",
            "no words": lambda size: b"Subject: " + b"=?a?q?" * (size // 6) + b"\r\n\r\n",
            "parameters": lambda size: b"Content-Type: text/plain" + b"; a=b" * (size // 5) + b"\r\n\r\n",
            "parts": lambda size: (
                b"Content-Type: multipart/mixed; boundary=a\r\n\r\n"
                + b"--a\r\nContent-Type: a/b;;;;;\r\n\r\n" * (size // 32)
            ),
            "boundaries": lambda size: b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"x--a" * (size // 4),
            "nested": lambda size: (
                b"".join(b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(300))
                + b"\r\n" * (size // 2)
            ),
            "html": lambda size: b"Content-Type: text/html\r\n\r\n" + b"<a <!--" * (size // 7),
            "hrefs": lambda size: b"Content-Type: text/html\r\n\r\n" + b"<a href=" * (size // 8),
        }
        # A header that is too long is parsed as text. Both sizes of each pair are above or both are below that limit.
        for size in 2**14, 2**19:
            for name, make in hostile.items():
                self.assertEqual(grows_faster_than_its_input(read_all, make, size), "", f"{name}, {size}")


class ReadingTests(SynchronousTestCase):
    """The contents of a message."""

    def message(self) -> bytes:
        made = EmailMessage()
        made["Subject"] = "Grüße, Bob"
        made["To"] = "Bob Müller <bob@example.com>, eve@example.com"
        made["Cc"] = "ann@example.com"
        made["X-Test"] = "17"
        made.set_content("Hallo, siehe https://example.com/a?b=1.\nGrüße\n")
        made.add_alternative('<p>Hallo <a href="https://example.com/c?d=1&amp;e=2">hier</a></p>', subtype="html")
        html = made.get_payload()[1]  # type: ignore[index]
        html.add_related(b"\x89PNG", "image", "png", cid="<logo@x>")  # type: ignore[union-attr]
        made.add_attachment(b"%PDF", "application", "pdf", filename="Rechnung für Bob.pdf")
        made.add_attachment("a;b\n", subtype="csv", filename="list.csv")
        return made.as_bytes(policy=policy.SMTP)

    def test_parts(self) -> None:
        """Text, HTML and attachments are distinguished and decoded."""
        message = parse_message(self.message())
        self.assertEqual(message.subject, "Grüße, Bob")
        self.assertEqual(message.text, "Hallo, siehe https://example.com/a?b=1.\nGrüße\n")
        self.assertIn('<a href="https://example.com/c?d=1&amp;e=2">hier</a>', message.html)
        self.assertEqual(
            [(each.name, each.type, each.content, each.content_id) for each in message.attachments],
            [
                ("", "image/png", b"\x89PNG", "logo@x"),
                ("Rechnung für Bob.pdf", "application/pdf", b"%PDF", ""),
                ("list.csv", "text/csv", b"a;b\r\n", ""),
            ],
        )

    def test_links(self) -> None:
        """Links of the HTML and of the text are found, in the form that a browser uses."""
        self.assertEqual(
            parse_message(self.message()).links, ["https://example.com/c?d=1&e=2", "https://example.com/a?b=1"]
        )

    def test_addresses(self) -> None:
        """Addresses are found with their decoded names."""
        message = parse_message(self.message())
        self.assertEqual(
            message.addresses("to"), [Address("Bob Müller", "bob@example.com"), Address("", "eve@example.com")]
        )
        self.assertEqual([str(each) for each in message.addresses("Cc")], ["ann@example.com"])
        odd = parse_message(b"To: Ann, Smith <ann@example.com>, bob@example.com\r\n\r\n")
        self.assertIn("bob@example.com", [each.address for each in odd.addresses("To")])

    def test_headers(self) -> None:
        """Field names are case-insensitive. A missing field is a KeyError that lists the existing ones."""
        headers = parse_message(self.message()).headers
        self.assertEqual(
            (headers["x-test"], headers.get("X-None"), "X-TEST" in headers, 5 in headers), ("17", None, True, False)
        )
        self.assertEqual(list(headers)[:3], ["Subject", "To", "Cc"])
        self.assertIn("the fields are Subject, To", str(self.assertRaises(KeyError, lambda: headers["X-None"])))
        twice = parse_message(b"A: 1\r\na: 2\r\n\r\n").headers
        self.assertEqual((twice["a"], twice.get_all("A"), len(twice)), ("1", ["1", "2"], 1))

    def test_onlyHTML(self) -> None:
        """If there is only HTML, the text is made from it."""
        message = parse_message(b"Content-Type: text/html\r\n\r\n<style>p {}</style><p>Hello &amp; welcome</p>")
        self.assertEqual(message.text, "Hello & welcome")

    def test_withoutCharset(self) -> None:
        """Text without a charset is UTF-8, or Latin-1 if that fails. An unknown charset is treated as UTF-8."""
        for octets, charset, text in (
            ("é".encode(), "", "é"),
            (b"\xe9", "", "é"),
            (b"\xe9", "iso-8859-1", "é"),
            ("é".encode() + b"\xff", "nosuch", "é\ufffd"),
            ("é".encode(), "a\0b", "é"),
            ("é".encode(), "hex", "é"),
            ("é".encode(), "idna", "é"),
        ):
            self.assertEqual(in_charset(octets, charset), text)

    def test_encodedWords(self) -> None:
        """Encoded words are decoded, even if a character is split between two. Other text is unchanged."""
        for value, text in (
            ("=?utf-8?q?a_b?= =?utf-8?b?w6k=?=", "a bé"),
            ("=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),
            ("ж =?utf-8*ru?Q?x?= \\u0436", "ж x \\u0436"),
            ("[=?iso-8859-1?q?=E9?=]", "[é]"),
            ("=?utf-8?q?a=0D=0Ab?=", "a  b"),
            ("a =? b ?= c", "a =? b ?= c"),
        ):
            self.assertEqual(without_encoded_words(value), text)

    def test_malformedEncodings(self) -> None:
        """Malformed base64 and quoted-printable are decoded as far as possible."""
        self.assertEqual(decoded(b"aGFsbG8", "base64"), b"hallo")
        self.assertEqual(decoded(b"aGFs*bG8=!", "base64"), b"hallo")
        self.assertEqual(decoded(b"a=3Db=", "quoted-printable"), b"a=b")
        self.assertEqual(decoded(b"x", "x-unknown"), b"x")


class PolicyTests(SynchronousTestCase):
    """Python's email package, with tolerant policies."""

    def test_wellFormed(self) -> None:
        """Well-formed fields are parsed as usual."""
        message = email_message(b"To: Ann <ann@example.com>\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xa9")
        self.assertEqual(message["To"].addresses[0].username, "ann")
        self.assertEqual(message.get_content(), "é")
        self.assertIs(message.policy, TOLERANT)

    def test_malformed(self) -> None:
        """The value of a field that cannot be parsed is a string with the attributes of all fields."""
        message = email_message(b'To: "\r\nContent-Type: text/plain; name*\r\nX: a\0b\r\n\r\nx')
        self.assertEqual((message["To"], message["To"].addresses), ('"', ()))
        self.assertEqual((message.get_content_type(), message["X"]), ("text/plain", "a\ufffdb"))

    def test_verbatim(self) -> None:
        """A value that must not be decoded is not decoded, even after it was written and parsed again."""
        for value in (
            "=?utf-8?q?root=40corp=2Eexample=2C?=@evil.example",
            "=?utf-8?q?=0D=0AX-Peer:_me?=@evil.example",
            "bob@example.com, " * 100 + "é@example.com",
            "bob@example.com, " * 100,
            "",
        ):
            message = EmailMessage(policy=TOLERANT)
            message.set_raw("X-MailFrom", Verbatim("X-MailFrom", value))  # type: ignore[attr-defined]
            self.assertEqual(message["X-MailFrom"], value)
            again = email_message(message.as_bytes())
            self.assertEqual(str(again["X-MailFrom"]).strip(), value.strip())
            self.assertEqual(len(again.keys()), 1)
