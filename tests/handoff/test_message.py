"""The dictionary that is sent with a message, and its format for each kind of target."""

from __future__ import annotations

import hashlib
import json
import uuid
from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.handoff import HandoffMessage, bindings
from txsmtpd.handoff.message import Fingerprint, declared_size, envelope_of, new_id
from txsmtpd.parameters import Notify, OriginalRecipient, Recipient, Return
from txsmtpd.session import Envelope, Session, TLSInfo


def server(address: Any = None, **attributes: Any) -> Any:
    address = address or IPv4Address("TCP", "192.0.2.1", 25)
    return SimpleNamespace(hostname="mx.test", transport=SimpleNamespace(getHost=lambda: address), **attributes)


def session(**attributes: Any) -> Session:
    made = Session()
    made.peer = ("198.51.100.7", 4321)
    made.host_name = "client.test"
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def envelope(*recipients: str, **attributes: Any) -> Envelope:
    made = Envelope()
    made.mail_from = "a@x.test"
    made.rcpt_tos = list(recipients or ["b@y.test"])
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def message(*recipients: str, **attributes: Any) -> HandoffMessage:
    described = envelope_of(server(), session(), envelope(*recipients, **attributes), "the-id", now=0.5)
    return HandoffMessage({**described, "fingerprint": "abc", "size": 5}, b"hello")


class EnvelopeTests(SynchronousTestCase):
    """The dictionary."""

    def test_plain(self) -> None:
        """All names are present. Missing values are None."""
        made = envelope_of(server(), session(), envelope(), "the-id", now=0.5)
        session_id = made.pop("session")
        self.assertTrue(session_id)
        self.assertEqual(
            made,
            {
                "id": "the-id",
                "time": "1970-01-01T00:00:00.500Z",
                "source": "smtp://mx.test/192.0.2.1:25",
                "type": "org.txsmtpd.message.v1",
                "mail_from": "a@x.test",
                "rcpt_tos": ["b@y.test"],
                "client": {"address": "198.51.100.7", "port": 4321, "name": "client.test", "tls": None},
                "login": None,
                "body": None,
                "smtputf8": False,
                "require_tls": False,
                "dsn": None,
                "received_by": "mx.test",
            },
        )

    def test_said(self) -> None:
        """TLS, the login, and the parameters of RFC 3461."""
        said = Recipient(frozenset([Notify.SUCCESS, Notify.DELAY]), OriginalRecipient("rfc822", "old@y.test"))
        made = envelope_of(
            server(lmtp=True),
            session(ssl=TLSInfo("TLSv1.3", "AES"), authenticated=True, login_data=b"ann"),
            envelope(
                "b@y.test",
                "c@y.test",
                dsn_return=Return.HEADERS,
                dsn_id="77",
                recipient_parameters={0: ("b@y.test", said)},
            ),
            "the-id",
        )
        self.assertEqual(made["client"]["tls"], {"version": "TLSv1.3", "cipher": "AES"})
        self.assertEqual(made["login"], "ann")
        self.assertEqual(made["source"][:7], "lmtp://")
        self.assertEqual(
            made["dsn"],
            {
                "ret": "HDRS",
                "envid": "77",
                "recipients": [
                    {"notify": ["DELAY", "SUCCESS"], "orcpt": "rfc822;old@y.test"},
                    {"notify": None, "orcpt": None},
                ],
            },
        )

    def test_source(self) -> None:
        """IPv6 addresses have brackets, and socket paths have no slash."""
        sources = [
            envelope_of(server(address), session(peer=""), envelope(), "id")["source"]
            for address in (IPv6Address("TCP", "2001:db8::1", 25), UNIXAddress("/run/lmtp.sock"))
        ]
        self.assertEqual(sources, ["smtp://mx.test/[2001:db8::1]:25", "smtp://mx.test/%2Frun%2Flmtp.sock"])

    def test_size(self) -> None:
        """The size that MAIL has declared, if any."""
        self.assertEqual(declared_size(envelope(mail_options=["BODY=8BITMIME", "SIZE=17"])), 17)
        self.assertIsNone(declared_size(envelope(mail_options=["SIZE="])))
        self.assertIsNone(declared_size(envelope()))

    def test_fingerprint(self) -> None:
        """The fingerprint is easy to compute: each path and a line feed, an empty line, the message."""
        fingerprint = Fingerprint("a@x.test", ["b@y.test", "c@y.test"])
        fingerprint.update(b"Subject: hello\r\n")
        fingerprint.update(b"\r\n")
        expected = hashlib.sha256(b"a@x.test\nb@y.test\nc@y.test\n\nSubject: hello\r\n\r\n").hexdigest()
        self.assertEqual(str(fingerprint), expected)

    def test_id(self) -> None:
        """Ids are UUIDs of version 7, which sort by time."""
        found = [uuid.UUID(new_id()) for _ in range(3)]
        self.assertEqual({(each.version, each.variant) for each in found}, {(7, uuid.RFC_4122)})
        self.assertEqual(len(set(found)), 3)
        self.assertEqual(found[0].int >> 90, found[2].int >> 90)


class BindingTests(SynchronousTestCase):
    """AMQP, Kafka, NATS, HTTP."""

    def test_amqp(self) -> None:
        """Messages are persistent, with the envelope as JSON, and headers for routing."""
        properties = bindings.amqp_properties(message("b@Sub.Y.test"))
        headers = properties["headers"]
        self.assertEqual(json.loads(headers["envelope"])["rcpt_tos"], ["b@Sub.Y.test"])
        self.assertEqual((headers["mail_from"], headers["rcpt_domain"]), ("a@x.test", "sub.y.test"))
        self.assertEqual((properties["delivery_mode"], properties["timestamp"]), (2, 0))

    def test_routingKey(self) -> None:
        """The domain in reverse order. A recipient without a domain has none. The limit is 255 octets."""
        keys = [bindings.routing_key(message(path)) for path in ("b@Sub.Y.test", "postmaster", "b@" + "x." * 200)]
        self.assertEqual(keys[:2], ["mail.test.y.sub", "mail"])
        self.assertLessEqual(len(keys[2]), 255)

    def test_kafka(self) -> None:
        """The names of CloudEvents, and the envelope."""
        headers = dict(bindings.kafka_headers(message()))
        self.assertEqual(headers["ce_id"], b"the-id")
        self.assertEqual(headers["content-type"], b"message/rfc822")
        self.assertEqual(json.loads(headers["envelope"])["mail_from"], "a@x.test")

    def test_nats(self) -> None:
        """JetStream drops repeated messages by their fingerprint."""
        self.assertEqual(bindings.nats_headers(message())["Nats-Msg-Id"], "abc")

    def test_http(self) -> None:
        """One header for each recipient. All values are printable ASCII."""
        headers = bindings.http_headers(message("b@y.test", "müller@y.test", 'a"%b@y.test', mail_from=""))
        self.assertEqual(
            [value for name, value in headers if name == "Mail-Rcpt"],
            ["b@y.test", "m%C3%BCller@y.test", "a%22%25b@y.test"],
        )
        self.assertIn(("ce-type", "org.txsmtpd.message.v1"), headers)
        self.assertIn(("Mail-From", ""), headers)

    def test_reference(self) -> None:
        """A reference replaces the message."""
        reference = bindings.with_reference(message(), "s3://bucket/key", 5, "00ff")
        self.assertEqual(reference.content_type, "application/vnd.txsmtpd.reference+json")
        self.assertEqual(json.loads(reference.content), {"uri": "s3://bucket/key", "size": 5, "sha256": "00ff"})
        self.assertEqual(reference.id, "the-id")
