"""Random sessions as of attackers and broken clients: the server keeps executing commands, and no reply is lost.

In addition to :mod:`tests.engine.test_property`, with AUTH, PROXY headers, receivers that fail, and smuggling.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as some
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer

from tests.support import PEER, Client, LoggingTestCase, answers
from txsmtpd.interfaces import IStreamingHandler
from txsmtpd.testing.strategies import cuts

UNLIMITED: dict[str, Any] = dict.fromkeys(
    ("junk_command_limit", "error_limit", "timeout", "command_timeout", "auth_failure_limit", "hook_timeout")
)
LONGEST_CHUNK = 99  # octets; the ending must be longer, because a chunk may contain its beginning

PLAIN = base64.b64encode(b"\0fred\0secret")
PARTS = some.sampled_from(
    [
        *(b"EHLO a.test\r\n", b"HELO a.test\r\n", b"EHLO\r\n", b"EHLO \xff\r\n", b"LHLO a.test\r\n"),
        *(b"MAIL FROM:<a@x.test>\r\n", b"MAIL FROM:<>\r\n", b"MAIL FROM:<a@x.test> BODY=BINARYMIME SIZE=10\r\n"),
        *(b"MAIL FROM:<a@x.test> SIZE=99999999999999999999\r\n", b"MAIL FROM:a@x.test\r\n", b"MAIL\r\n"),
        *(b"MAIL FROM:<a@x.test> AUTH=<> SMTPUTF8 SMTPUTF8\r\n", b"mail from : < a@x.test >\r\n"),
        *(b"RCPT TO:<b@y.test>\r\n", b"RCPT TO:<fails@y.test>\r\n", b"RCPT TO:<@a,@b:c@y.test>\r\n"),
        *(b"RCPT TO:<" + b"x" * 600 + b"@y.test>\r\n", b'RCPT TO:<"a\\\r\n"@y.test>\r\n', b"RCPT TO:<\0@y.test>\r\n"),
        *(b"DATA\r\n", b"DATA now\r\n", b".\r\n", b"\r\n.\r\n", b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"..\r\n"),
        *(b"\r\n.\rMAIL FROM:<evil@x.test>\r\n", b"Subject: x\r\n\r\ntext\r\n", b"x" * 1200 + b"\r\n", b"\0\r\n"),
        *(b"BDAT 0\r\n", b"BDAT 5\r\nhello", b"BDAT 5 LAST\r\nhello", b"BDAT 99 LAST\r\n", b"BDAT 7\r\nQUIT\r\n."),
        *(b"BDAT -1\r\n", b"BDAT\r\n", b"BDAT 1 FIRST\r\n", b"BDAT 0 LAST\r\n", b"BDAT 2 LAST\r\n\r\n"),
        *(b"AUTH PLAIN\r\n", b"AUTH PLAIN " + PLAIN + b"\r\n", b"AUTH PLAIN =\r\n", b"AUTH LOGIN\r\n", PLAIN + b"\r\n"),
        *(
            b"AUTH LOGIN ZnJlZA==\r\n",
            b"c2VjcmV0\r\n",
            b"*\r\n",
            b"=\r\n",
            b"!!!\r\n",
            b"\r\n",
            b"AUTH\r\n",
            b"AUTH X\r\n",
        ),
        *(b"AUTH CRAM-MD5\r\n", b"ZnJlZCAw\r\n", b"AUTH SCRAM-SHA-256 eSwsbj1mcmVkLHI9eA==\r\n"),
        *(b"STARTTLS\r\n", b"STARTTLS\r\nNOOP\r\n", b"STARTTLS x\r\n", b"\x16\x03\x01\x00\x05hello"),
        *(
            b"RSET\r\n",
            b"NOOP\r\n",
            b"VRFY fred\r\n",
            b"EXPN all\r\n",
            b"HELP\r\n",
            b"HELP MAIL\r\n",
            b"QUIT\n",
            b" \r\n",
        ),
        *(b"NOOP\n", b"NOOP\rNOOP\r\n", b"PROXY UNKNOWN\r\n", b"XCLIENT ADDR=1.2.3.4\r\n", b"GET / HTTP/1.1\r\n"),
    ]
)


def proxied(version: int, address: bytes) -> bytes:
    """A PROXY header of version 2, with these octets in the place of addresses."""
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", version, 0x11, len(address)) + address


HEADERS = some.one_of(
    some.sampled_from(
        [
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4321 25\r\n",
            b"PROXY TCP6 2001:db8::7 2001:db8::1 4321 25\r\n",
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN whatever\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4321\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4321 25\n",
            b"PROXY " + b"x" * 200 + b"\r\n",
            b"\r\n\r\n\0\r\nQUIT\r\n",
            b"EHLO a.test\r\n",
        ]
    ),
    some.builds(proxied, some.sampled_from([0x20, 0x21, 0x2F, 0x11]), some.binary(max_size=40)),
)


class Receiver:
    """Receives a message. Fails in the given method."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.content = b""

    def _reached(self, where: str) -> None:
        if self.fails == where:
            raise Broken(where)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._reached("registerProducer")

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._reached("write")
        self.content += data

    def finish(self) -> str:
        self._reached("finish")
        return "250 2.0.0 OK"

    def abort(self, reason: Any) -> None:
        self._reached("abort")


class Broken(Exception):
    """The exception that a handler raises."""


class Base:
    """A handler whose hooks take time, or fail for an address."""

    def __init__(self, clock: Clock, delay: float, fails: str | None = None) -> None:
        self.clock = clock
        self.delay = delay
        self.fails = fails

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str:
        if self.delay:
            await deferLater(self.clock, self.delay)
        if address.startswith("fails"):
            raise Broken(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"


class Plain(Base):
    """It receives whole messages."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.delay:
            await deferLater(self.clock, self.delay)
        return "250 2.0.0 OK"


@implementer(IStreamingHandler)
class Streaming(Base):
    """Its receivers may fail."""

    def open_message(self, server: Any, session: Any, envelope: Any) -> Receiver:
        if self.fails == "open_message":
            raise Broken("open_message")
        return Receiver(self.fails or "")


# Calls everything that may fail in a handler.
FAILING = [
    b"EHLO a.test\r\n",
    b"MAIL FROM:<a@x.test>\r\n",
    b"RCPT TO:<fails@y.test>\r\n",
    b"RCPT TO:<b@y.test>\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\ntext\r\n",
]
FAILURES = some.sampled_from([None, "", "open_message", "registerProducer", "write", "finish", "abort"])


class HostileTests(LoggingTestCase):
    """Random dialogs."""

    def talk(self, octets: bytes, places: list[int], delay: float, fails: str | None, **options: Any) -> bytes:
        """All replies to the octets, and to enough NOOPs to tell whether the server still executes commands."""
        clock = Clock()
        client = Client(
            Plain(clock, delay) if fails is None else Streaming(clock, delay, fails),
            reactor=clock,
            authenticator=lambda *arguments: True,
            auth_require_tls=False,
            error_delay=0,
            auth_failure_delay=0,
            **UNLIMITED,
            **options,
        )
        # Ends a line, a message, an exchange of AUTH, or a chunk.
        ending = b"\r\n.\r\n*\r\n" + b"NOOP\r\n" * (LONGEST_CHUNK // 6 + 3)
        octets += ending
        start = 0
        for place in [*sorted({each for each in places if each < len(octets)}), len(octets)]:
            if not client.closed:
                client.say(octets[start:place])
            start = place
        for _ in range(500):
            if clock.getDelayedCalls() and not client.closed:
                client.wait(2, step=2)
        said: bytes = client.transport.taken
        if not client.closed:
            self.assertEqual(answers(said)[-1].code, 250, "nobody listens any more")
            client.vanish()
        self.assertEqual(client.factory.connections, set())
        self.assertEqual(clock.getDelayedCalls(), [])
        failures = [event["log_failure"] for event in self.events if "log_failure" in event]
        self.assertEqual([failure for failure in failures if not failure.check(Broken)], [])
        self.flushLoggedErrors(Broken)
        return said

    @settings(deadline=None, max_examples=80)
    @given(some.lists(PARTS, max_size=14), cuts(), some.sampled_from([0, 0, 2]), FAILURES)
    @example(FAILING, [], 2, None)
    @example(FAILING, [], 0, "open_message")
    @example(FAILING, [], 0, "write")
    @example(FAILING, [], 0, "finish")
    def test_dialogs(self, parts: list[bytes], places: list[int], delay: float, fails: str | None) -> None:
        """Each dialog gets well-formed replies, independent of segments and of the duration of hooks. Afterwards the
        server still executes commands, or has closed the connection. Only the handler's exceptions occur."""
        octets = b"".join(parts)
        expected = self.talk(octets, [], 0, fails)
        answers(expected)
        self.assertEqual(self.talk(octets, places, delay, fails), expected)
        self.assertEqual(self.talk(octets, list(range(1, len(octets))), 0, fails), expected)

    @settings(deadline=None, max_examples=60)
    @given(HEADERS, some.lists(PARTS, max_size=4), cuts())
    def test_proxied(self, header: bytes, parts: list[bytes], places: list[int]) -> None:
        """The same is true for a dialog that starts with a PROXY header, or with a malformed one."""
        octets = header + b"".join(parts)
        options: dict[str, Any] = {"proxy_from": [PEER.host], "proxy_protocol_timeout": 3}
        clock_free = self.talk(octets, [], 0, None, **options)
        answers(clock_free)
        self.assertEqual(self.talk(octets, places, 0, None, **options), clock_free)
