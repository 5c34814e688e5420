"""The bodies of web hooks, the table of responses, signatures, and the circuit breaker, without a network."""

from __future__ import annotations

import email
import hashlib
import hmac
import json
from email.policy import HTTP

from twisted.trial.unittest import SynchronousTestCase

from tests.handoff.test_message import message
from txsmtpd.handoff.breaker import Breaker
from txsmtpd.handoff.message import HandoffMessage
from txsmtpd.handoff.outcome import NotTaken
from txsmtpd.handoff.seven_bit import in_seven_bits
from txsmtpd.handoff.signature import Secrets, lines_of, signed
from txsmtpd.handoff.webhook import Url
from txsmtpd.handoff.webhook_answers import Answer, pause_of, reply_to
from txsmtpd.handoff.webhook_formats import Request, mailgun, sendgrid

EIGHT_BIT = (
    b"Subject: caf\xc3\xa9\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"
    b"--x\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\nna\xefve\r\n\r\n"
    b"--x\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n\xff\x00\xfe\r\n"
    b"--x\r\nContent-Type: text/plain\r\n\r\nplain\r\n--x--\r\n"
)


def fields_of(request: Request) -> dict[str, bytes]:
    """The fields of a form."""
    [(name, content_type)] = request.headers
    parsed = email.message_from_bytes(f"{name}: {content_type}\r\n\r\n".encode() + request.body, policy=HTTP)
    found = {}
    for part in parsed.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        found[part["content-disposition"].params["name"]] = payload
    return found


class SevenBitTests(SynchronousTestCase):
    """Messages in ASCII."""

    def test_ascii(self) -> None:
        """An ASCII message is unchanged, octet for octet."""
        for content in b"", b"Subject: a\r\n\r\nb\n c\r\r\n":
            self.assertEqual(in_seven_bits(content), content)

    def test_parts(self) -> None:
        """Parts have the same meaning as before. ASCII parts are unchanged."""
        parsed = email.message_from_bytes(in_seven_bits(EIGHT_BIT))
        parts = [part for part in parsed.walk() if not part.is_multipart()]
        self.assertEqual([part["Content-Transfer-Encoding"] for part in parts], ["base64", "base64", None])
        payloads = [part.get_payload(decode=True) for part in parts]
        self.assertEqual(payloads[:2], ["naïve\r\n".encode("iso-8859-1"), b"\xff\x00\xfe"])

    def test_header(self) -> None:
        """Header fields in UTF-8 are kept. The rest of the message becomes ASCII."""
        header, _, body = in_seven_bits(EIGHT_BIT).partition(b"\r\n\r\n")
        self.assertIn("Subject: café".encode(), header)
        self.assertTrue(body.isascii())

    def test_nested(self) -> None:
        """The same is true for a message within the message."""
        inner = b"Content-Type: message/rfc822\r\n\r\n" + EIGHT_BIT
        self.assertTrue(in_seven_bits(inner).partition(b"--x")[2].isascii())


class FormTests(SynchronousTestCase):
    """The forms of existing services."""

    def test_sendgrid(self) -> None:
        """The message, and the envelope with all recipients."""
        [request] = sendgrid(message("b@y.test", "c@y.test"), None, 1000)
        fields = fields_of(request)
        self.assertEqual(fields["email"], b"hello")
        self.assertEqual(json.loads(fields["envelope"]), {"to": ["b@y.test", "c@y.test"], "from": "a@x.test"})
        self.assertEqual(fields["sender_ip"], b"198.51.100.7")

    def test_mailgun(self) -> None:
        """A request for each recipient, the same at each attempt, with Mailgun's signature."""
        requests = mailgun(message("b@y.test", "c@y.test"), b"key", 1000)
        self.assertEqual([fields_of(each)["recipient"] for each in requests], [b"b@y.test", b"c@y.test"])
        fields = fields_of(requests[0])
        expected = hmac.new(b"key", b"1000" + fields["token"], hashlib.sha256).hexdigest().encode()
        self.assertEqual(fields["signature"], expected)
        self.assertNotEqual(fields["token"], fields_of(requests[1])["token"])
        self.assertEqual(fields["token"], fields_of(mailgun(message("b@y.test"), b"key", 2000)[0])["token"])

    def test_boundary(self) -> None:
        """If a message contains the boundary, another one is used."""
        original = message()
        [request] = sendgrid(original, None, 0)
        boundary = request.headers[0][1].partition("boundary=")[2]
        [again] = sendgrid(HandoffMessage(original.envelope, f"--{boundary}--".encode()), None, 0)
        self.assertEqual(fields_of(again)["email"], f"--{boundary}--".encode())


class SignatureTests(SynchronousTestCase):
    """Standard Webhooks."""

    def test_known(self) -> None:
        """The signature is that of another implementation of the specification."""
        # The example of the specification's reference libraries.
        secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        headers = dict(Secrets([secret]).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'))
        self.assertEqual(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")

    def test_secrets(self) -> None:
        """Any text is a key. Each request has a signature of each key. None is in the repr."""
        secrets = Secrets(["canary", "whsec_bmV3"])
        signature = dict(secrets.headers("id", 1, b"x"))["webhook-signature"]
        self.assertEqual(signature, f"{signed(b'canary', 'id', 1, b'x')} {signed(b'new', 'id', 1, b'x')}")
        self.assertNotIn("canary", repr(secrets))
        for wrong in [], ["whsec_"], ["whsec_?"]:
            self.assertRaises(ValueError, Secrets, wrong)

    def test_file(self) -> None:
        """One secret in each line."""
        self.assertEqual(lines_of("# old\none\n\n two \n"), ["one", "two"])


class PauseTests(SynchronousTestCase):
    """When a receiver is not called, and for how long."""

    def test_retryAfter(self) -> None:
        """Seconds or a date, with 429 and 503."""
        date = "Thu, 01 Jan 1970 00:02:00 GMT"
        for status, value, pause in (
            (429, "30", 30.0),
            (503, date, 20.0),
            (503, "Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
            (429, "soon", None),
            (500, "30", None),
            (429, None, None),
        ):
            self.assertEqual(pause_of(Answer(status, retry_after=value), 100.0), pause)

    def test_busy(self) -> None:
        """503 with a pause is a refusal: the message was not taken."""
        error = self.assertRaises(NotTaken, reply_to, Answer(503, retry_after="5"))
        self.assertEqual((error.reply.code, error.reply.status), (451, "4.3.2"))

    def test_breaker(self) -> None:
        """Five failures in a row cause a pause, then one attempt, and so on until one succeeds."""
        breaker = Breaker(failures=5, pause=5.0)
        for _ in range(4):
            breaker.failed(0)
        breaker.succeeded()
        for _ in range(5):
            self.assertTrue(breaker.allows(0))
            breaker.failed(0)
        self.assertFalse(breaker.allows(4.9))
        self.assertTrue(breaker.allows(5))
        self.assertFalse(breaker.allows(5))  # one is enough
        breaker.failed(5)
        self.assertFalse(breaker.allows(9))
        self.assertTrue(breaker.allows(10))
        breaker.gave_up()
        self.assertTrue(breaker.allows(10))
        breaker.succeeded()
        self.assertTrue(breaker.allows(10))
        self.assertFalse(breaker.is_open(10))

    def test_longest(self) -> None:
        """No pause is longer than five minutes."""
        breaker = Breaker()
        breaker.pause(0, 1e9)
        self.assertFalse(breaker.allows(299))
        self.assertTrue(breaker.allows(300))


class UrlTests(SynchronousTestCase):
    """URLs for requests."""

    def test_secrets(self) -> None:
        """Neither the password nor the query is shown."""
        url = Url("https://user:canary@app.test:8443/mail?token=canary")
        self.assertEqual(str(url), "https://app.test:8443/mail")
        self.assertEqual(url.bare, "https://app.test:8443/mail?token=canary")

    def test_mistakes(self) -> None:
        """The error for an invalid URL does not contain the password."""
        for wrong in "app.test/mail", "ftp://a:canary@app.test/", "http://", "http://a:canary@app.test:x/", "http://ä/":
            error = self.assertRaises(ValueError, Url, wrong)
            self.assertNotIn("canary", str(error))
