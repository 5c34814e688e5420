"""Trace header fields: their contents, and that values from the client cannot end a field."""

from __future__ import annotations

import email
import email.policy
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.handlers import trace_header
from txsmtpd.mime import email_message
from txsmtpd.session import Envelope, Session

HOSTILE = "a\r\nX-MailFrom: <boss@example.com>\r\n\r\nbody\x00\x85\u2028(b) by evil; c\udcff"
NAMES = ["Return-Path", "Received", "X-Peer", "X-MailFrom", "X-RcptTo"]


def exchange(sender="a@example.com", recipients=("b@example.com",), peer=("192.0.2.1", 4321), **attributes):
    """A session and an envelope after EHLO, MAIL and RCPT."""
    session, envelope = Session(), Envelope()
    session.peer, session.host_name, session.extended_smtp = peer, "client.example", True
    envelope.mail_from, envelope.rcpt_tos = sender, list(recipients)
    for name, value in attributes.items():
        setattr(envelope if hasattr(envelope, name) else session, name, value)
    return session, envelope


def header(*arguments, **attributes):
    return trace_header.trace_header("mx.example", *exchange(*arguments, **attributes), "1.M2", now=86400 * 365)


class TraceHeaderTests(SynchronousTestCase):
    def test_fields(self):
        """A message gets Return-Path, Received, X-Peer, X-MailFrom and X-RcptTo, in this order, with LF line ends."""
        date = trace_header._date(86400 * 365)
        self.assertEqual(
            header().decode(),
            "Return-Path: <a@example.com>\n"
            "Received: from client.example ([192.0.2.1])\n"
            "\tby mx.example with ESMTP id 1.M2\n"
            f"\tfor <b@example.com>;\n\t{date}\n"
            "X-Peer: ('192.0.2.1', 4321)\n"
            "X-MailFrom: a@example.com\n"
            "X-RcptTo: b@example.com\n",
        )

    def test_date(self):
        """The date has the form of RFC 5322 with a numeric zone, and is the given time."""
        message = email.message_from_bytes(header(), policy=email.policy.default)
        text = message["Received"].rpartition(";")[2].strip()
        self.assertEqual(email.utils.parsedate_to_datetime(text).timestamp(), 86400 * 365)
        self.assertRegex(text, r"[+-]\d{4}$")

    def test_dateIsOfNow(self):
        """By default, it is the current time."""
        self.assertIn(b";\n\t", trace_header.trace_header("mx.example", *exchange(), "1"))

    def test_bounce(self):
        """A bounce has an empty Return-Path and an empty X-MailFrom."""
        message = email.message_from_bytes(header(sender=""))
        self.assertEqual((message["Return-Path"], message["X-MailFrom"]), ("<>", ""))

    def test_blindCopies(self):
        """Received names no recipient if there are several."""
        message = email.message_from_bytes(header(recipients=["b@example.com", "c@example.com"]))
        self.assertNotIn("example.com>", message["Received"])
        self.assertEqual(message["X-RcptTo"], "b@example.com, c@example.com")

    def test_transmissionTypes(self):
        """The with clause shows EHLO, TLS, AUTH, SMTPUTF8 and LMTP with the registered keywords."""
        for attributes, lmtp, name in [
            ({"extended_smtp": False}, False, "SMTP"),
            ({}, False, "ESMTP"),
            ({"ssl": {"cipher": "x"}}, False, "ESMTPS"),
            ({"authenticated": True}, False, "ESMTPA"),
            ({"authenticated": False}, False, "ESMTP"),
            ({"ssl": True, "authenticated": True}, False, "ESMTPSA"),
            ({"smtp_utf8": True}, False, "UTF8SMTP"),
            ({"smtp_utf8": True, "ssl": True, "authenticated": True}, False, "UTF8SMTPSA"),
            ({}, True, "LMTP"),
            ({"ssl": True}, True, "LMTPS"),
            ({"smtp_utf8": True, "authenticated": True}, True, "UTF8LMTPA"),
        ]:
            self.assertEqual(trace_header.transmission_type(*exchange(**attributes), lmtp=lmtp), name)

    def test_clientAddress(self):
        """The client's address is an address literal of RFC 5321. A Unix socket has none."""
        for peer, literal in [
            (("2001:db8::1", 25, 0, 0), "from client.example ([IPv6:2001:db8::1])\n"),
            (("fe80::1%eth0", 25), "from client.example ([IPv6:fe80::1])\n"),
            ("", "from client.example\n"),
            (None, "from client.example\n"),
            (("1) by (x", 25), "from client.example ([1??by??x])\n"),
        ]:
            self.assertIn(literal, header(peer=peer).decode())

    def test_noGreeting(self):
        """A client without a name is called unknown."""
        self.assertIn(b"Received: from unknown ([", header(host_name=None))

    def test_hostileClient(self):
        """Line ends, NULs and parentheses in values from the client add no field, clause or body."""
        for attributes in [
            {"host_name": HOSTILE},
            {"sender": HOSTILE},
            {"recipients": [HOSTILE]},
            {"peer": (HOSTILE, 1)},
        ]:
            octets = header(**attributes)
            message = email.message_from_bytes(octets)
            self.assertEqual(message.keys(), NAMES)
            self.assertEqual(message.get_payload(), "")
            self.assertNotRegex(octets, rb"[\x00-\x08\x0b-\x1f]")
            octets.decode("utf-8")

    def test_hostileName(self):
        """A greeting with spaces, comments and semicolons is a single word in Received."""
        self.assertIn(b"Received: from a??by?evil???x ([192.0.2.1])\n", header(host_name="a (by evil) ;x"))

    def test_longName(self):
        """A greeting in Received is not longer than a domain can be."""
        octets = header(host_name="x" * 5000)
        self.assertLess(max(map(len, octets.split(b"\n"))), 300)

    def test_utf8Addresses(self):
        """Addresses that are not ASCII are UTF-8 in most fields, and encoded in the fields that programs read."""
        octets = header("jörg@example.com", ["用户@例子.example"], smtp_utf8=True)
        self.assertIn("Return-Path: <jörg@example.com>\n".encode(), octets)
        self.assertIn("for <用户@例子.example>;".encode(), octets)
        message = email.message_from_bytes(octets, policy=email.policy.default)
        self.assertEqual((message["X-MailFrom"], message["X-RcptTo"]), ("jörg@example.com", "用户@例子.example"))

    def test_manyRecipients(self):
        """A thousand recipients are all in X-RcptTo, in lines that are not too long, and are read as one value."""
        recipients = [f"user{number}@example.com" for number in range(1000)]
        octets = header(recipients=recipients)
        self.assertLess(max(map(len, octets.split(b"\n"))), 998)
        message = email.message_from_bytes(octets, policy=email.policy.default)
        self.assertEqual(message["X-RcptTo"], ", ".join(recipients))


# Reverse-paths that look like another address, or like several lines, to a program that decodes encoded words.
DISGUISED = (
    "=?utf-8?q?root=40corp=2Eexample=2C?=@evil.example",
    '"=?utf-8?q?root=40corp=2Eexample=2C?="@evil.example',
    '"a =?utf-8?b?YQ==?= b"@evil.example',
    "=?utf-8?q?=0D=0AX-Peer:_x?=@evil.example",
    "jörg=?utf-8?q?a?=@evil.example",
)


class DisguisedTests(SynchronousTestCase):
    """Nothing from a client is decoded into something else."""

    def readings(self, octets):
        """The header as three kinds of readers parse it."""
        yield email.message_from_bytes(octets, policy=email.policy.default)
        yield email.message_from_bytes(octets, policy=email.policy.SMTP)
        yield email_message(octets)

    def test_x(self):
        """Readers that decode X-MailFrom and X-RcptTo get exactly what the client sent. For others they have no other
        meaning."""
        for path in DISGUISED:
            octets = header(path, [path, "b@example.com"])
            for message in self.readings(octets):
                self.assertEqual(message.keys(), NAMES)
                self.assertEqual(message["X-MailFrom"], path)
                self.assertEqual(message["X-RcptTo"], f"{path}, b@example.com")
            self.assertNotIn(b"root=40corp", octets.partition(b"X-MailFrom")[2])
            self.assertLess(max(map(len, octets.split(b"\n"))), 998)

    def test_paths(self):
        """Return-Path and Received have an equivalent address without encoded words."""
        octets = header(DISGUISED[0], [DISGUISED[0]])
        same = '<"=\\?utf-8?q?root=40corp=2Eexample=2C?="@evil.example>'
        for message in self.readings(octets):
            self.assertEqual(message["Return-Path"], same)
            self.assertIn(f"for {same};", " ".join(message["Received"].split()))
        for path in DISGUISED:
            octets = header(path, [path])
            for message in self.readings(octets):
                self.assertIn("=\\?", message["Return-Path"])
                self.assertEqual(message.keys(), NAMES)


class WithoutForgeriesTests(SynchronousTestCase):
    def check(self, message, expected):
        self.assertEqual(trace_header.without_forgeries(message), expected)

    def test_nothingToDo(self):
        """A message without forgeries is unchanged."""
        for message in [
            b"",
            b"\n",
            b"\nx-peer: y\n",
            b"Subject: x\n\nbody\n",
            b"Received: x\nX-Peering: y\n\nX-Peer: z\n",
        ]:
            self.check(message, message)

    def test_forgery(self):
        """Fields with these names are removed, in any case and however they are folded."""
        self.check(b"X-Peer: x\nA: b\nx-mailFROM :y\n z\n\tz\nC: d\nX-RcptTo:\n\nbody\n", b"A: b\nC: d\n\nbody\n")

    def test_onlyForgeries(self):
        """A header that consists of forgeries is removed, and the body stays."""
        self.check(b"Return-Path: <x>\nX-Peer: y\n\nbody\n", b"\nbody\n")

    def test_noBody(self):
        """A message may end with its header, even without a line end."""
        self.check(b"A: b\nX-Peer: y", b"A: b\n")

    def test_body(self):
        """Lines of the body do not count as forgeries."""
        self.check(b"A: b\nX-Peer: c\n\nX-Peer: x\n", b"A: b\n\nX-Peer: x\n")

    def test_foldedFirstLine(self):
        """A message that starts with a folded line does not continue the last trace field."""
        self.check(b" , boss@example.com\nA: b\n\nx\n", b"\n , boss@example.com\nA: b\n\nx\n")
        self.check(b"\tx\n", b"\n\tx\n")

    def test_bareCR(self):
        """A forgery after a bare CR is found, too: Python's email package treats it as a line end."""
        message = trace_header.without_forgeries(b"A: b\rX-Peer: x\nC: d\n\nbody\n")
        self.assertEqual(email.message_from_bytes(message).get_all("X-Peer"), None)

    PIECES = st.sampled_from(
        [b"X-Peer", b"x-mailfrom", b"Return-Path", b":", b" ", b"\t", b"\n", b"\n\n", b"\r", b"a", b"A: b\n", b" " * 70]
    )

    @given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 120), max_size=5))
    @example(b" a\rb", [4])
    @example(b" a\nb", [3])
    def test_binary(self, message, cuts):
        """The same is true with CR LF. A message without such fields keeps every octet."""
        message = message.replace(b"\n", b"\r\n")
        for content in message, b"A: " + message.replace(b"X", b"Y").replace(b"x", b"y").replace(b"R", b"S") + b"\r":
            forgeries = trace_header.ForgeryFilter(b"\r\n")
            edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
            fed = b"".join(forgeries.feed(content[start:end]) for start, end in pairwise(edges)) + forgeries.close()
            self.assertEqual(fed, trace_header.without_forgeries(content, b"\r\n"))
        self.assertEqual(fed, content)

    @given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 120), max_size=5))
    @example(b"A: b\nX-Peer" + b" " * 70 + b":x\n y\n", [70])
    @example(b"X-Peer: " + b"v" * 100 + b"\n w\nA: b\n\nx", [20, 110])
    def test_pieces(self, message, cuts):
        """The result does not depend on how a message is split, and has no fields with these names."""
        forgeries = trace_header.ForgeryFilter()
        edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
        fed = b"".join(forgeries.feed(message[start:end]) for start, end in pairwise(edges)) + forgeries.close()
        self.assertEqual(fed, trace_header.without_forgeries(message))
        parsed = email.message_from_bytes(b"Ours: x\n" + fed)
        self.assertEqual([name for name in parsed if name.lower() in ("x-peer", "x-mailfrom", "return-path")], [])
