"""talk(): a session in memory, printed."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd import SMTPFactory
from txsmtpd.testing import talk


def printed(*arguments: Any, **options: Any) -> list[str]:
    with redirect_stdout(StringIO()) as output:
        talk(*arguments, **options)
    return output.getvalue().splitlines()


class Recording:
    """A handler that prints its input, as in examples."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def handle_CONNECT(self, server: Any, session: Any, envelope: Any) -> None:
        self.events.append(session.peer)

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        print("message:", envelope.content)
        return "250 2.0.0 OK"

    def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, reason: Any) -> None:
        self.events.append("disconnected")


class TalkTests(SynchronousTestCase):
    def test_bothSides(self) -> None:
        """Lines of the client and of the server are printed in order, with the output of a handler in between."""
        lines = printed(
            SMTPFactory(Recording(), hostname="mx.test"),
            "EHLO client.test",
            "MAIL FROM:<a@example.com>",
            "RCPT TO:<b@example.com>",
            "DATA",
            "",
            "h\N{LATIN SMALL LETTER E WITH ACUTE}",
            ".",
        )
        self.assertEqual(lines[:3], ["S: 220 mx.test ESMTP txsmtpd", "C: EHLO client.test", "S: 250-mx.test"])
        self.assertEqual(
            lines[-5:],
            [
                "C:",
                "C: h\N{LATIN SMALL LETTER E WITH ACUTE}",
                "C: .",
                "message: b'\\r\\nh\\xc3\\xa9\\r\\n'",
                "S: 250 2.0.0 OK",
            ],
        )

    def test_closed(self) -> None:
        """The end of the connection is printed if the server closes it."""
        self.assertEqual(printed(None, "QUIT")[-3:], ["C: QUIT", "S: 221 2.0.0 Goodbye", "(closed)"])

    def test_disconnects(self) -> None:
        """After the lines, the client disconnects. Nothing is printed, and the handler is notified."""
        handler = Recording()
        self.assertEqual(printed(handler, "NOOP")[-1], "S: 250 2.0.0 OK")
        self.assertEqual(handler.events[-1], "disconnected")

    def test_peer(self) -> None:
        """The client has the given address."""
        handler = Recording()
        printed(handler, peer=IPv4Address("TCP", "198.51.100.9", 99))
        self.assertEqual(handler.events[0], ("198.51.100.9", 99))

    def test_bytes(self) -> None:
        """A line of bytes is a TypeError before anything is printed."""
        with self.assertRaisesRegex(TypeError, "a line is a string without a line end, not b'NOOP'"):
            printed(None, b"NOOP")
