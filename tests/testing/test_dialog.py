"""Dialogs: parsing, playing, and the errors if a server replies differently."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.engine.test_tcp import TCPTestCase
from tests.support import handler
from txsmtpd import SMTPFactory
from txsmtpd.testing import Dialog, DialogError, Faults
from txsmtpd.testing import dialog as module

GOOD = """\
# A short one.
S: 220 mx.test
C: EHLO client.test
S: 250 SIZE
C: NOOP

C: MAIL FROM:<\\x00>
S: 250 2.0.0
S: 500
C< NOOP\\r\\nQU
C< IT\\r\\n
S: 250
S: 221
S.
"""


def server(faults: Faults | None = None, handler: object = None, **options: Any) -> SMTPFactory:
    return SMTPFactory(handler, hostname="mx.test", faults=faults, **options)


def failing(stage: str, effect: str, *arguments: Any, times: int = 1) -> SMTPFactory:
    """A server that does this a number of times."""
    faults = Faults()
    getattr(faults.on(stage).first(times), effect)(*arguments)
    return server(faults)


class ReadingTests(SynchronousTestCase):
    """From text to steps."""

    def test_steps(self) -> None:
        """Lines of the client without a reply in between are sent together. Escapes are octets."""
        steps = Dialog(GOOD).steps
        self.assertEqual(
            [(step.octets, [line.text for line in step.replies]) for step in steps],
            [
                (b"", ["220 mx.test"]),
                (b"EHLO client.test\r\n", ["250 SIZE"]),
                (b"NOOP\r\nMAIL FROM:<\0>\r\n", ["250 2.0.0", "500"]),
                (b"NOOP\r\nQUIT\r\n", ["250", "221"]),
            ],
        )
        self.assertEqual([step.end is not None for step in steps], [False, False, False, True])

    def test_octets(self) -> None:
        """UTF-8 and spaces are kept as in the file. A line may be empty."""
        (step,) = Dialog("C: NOOP \u00fc  \nC:\nC: \\xff").steps
        self.assertEqual(step.octets, "NOOP \u00fc  \r\n\r\n".encode() + b"\xff\r\n")

    def test_wrong(self) -> None:
        """An invalid line is refused, with its number and the file's name."""
        for text in (
            "C: a\nNOOP",
            "C: a\nC:NOOP",
            "C: a\nS:",
            "C: a\nS. now",
            "C: a\nC: \\x0",
            "S.\nS: 220",
            "C: a\n s: 1",
        ):
            with self.assertRaises(ValueError) as caught:
                Dialog(text, "some.smtp")
            self.assertIn("some.smtp, line 2: ", str(caught.exception))

    def test_file(self) -> None:
        """A file's name is the name of the dialog."""
        path = Path(self.mktemp())
        path.write_text(GOOD)
        self.assertEqual(Dialog.load(path).name, path.name)
        with self.assertRaises(OSError):
            Dialog.load(path.with_name("none"))


class PlayingTests(SynchronousTestCase):
    """In memory."""

    def test_good(self) -> None:
        """A server with the expected replies passes, step by step and cut."""
        Dialog(GOOD).play(server)
        Dialog(GOOD).play_cut(server)

    def test_everyCut(self) -> None:
        """It is cut at each place, with a new server for each."""
        made = []

        def make() -> SMTPFactory:
            made.append(server())
            return made[-1]

        Dialog(GOOD).play_cut(make)
        self.assertEqual(len(made), sum(len(step.octets) for step in Dialog(GOOD).steps))

    def test_waitingHooks(self) -> None:
        """Hooks that take time pass if the player waits for them."""

        def slow() -> SMTPFactory:
            clock = Clock()

            async def wait(*arguments: Any) -> str:
                await deferLater(clock, 1)
                return "250 2.0.0 at last"

            return server(handler=handler(NOOP=wait), reactor=clock)

        Dialog(GOOD).play(slow, wait=2)
        Dialog("S: 220\nC: NOOP\nS: 250 2.0.0 at last").play_cut(slow, wait=2)
        with self.assertRaises(DialogError):
            Dialog(GOOD).play(slow)

    def refused(self, factory: SMTPFactory, *expected: str, text: str = GOOD) -> None:
        for play in (Dialog.play, Dialog.play_cut):
            with self.assertRaises(DialogError) as caught:
                play(Dialog(text, "some.smtp"), lambda: factory)
            for each in expected:
                self.assertIn(each, str(caught.exception))

    def test_anotherReply(self) -> None:
        """The error has the file, the line, the expected and the actual reply."""
        with self.assertRaises(DialogError) as caught:
            Dialog(GOOD, "some.smtp").play(lambda: failing("noop", "reply", "451 4.3.0 no"))
        self.assertEqual(
            str(caught.exception),
            "some.smtp, line 8: another reply was expected\n"
            "   3 C: EHLO client.test\n"
            "   4 S: 250 SIZE\n"
            "   5 C: NOOP\n"
            "   7 C: MAIL FROM:<\\x00>\n"
            "   8 S: 250 2.0.0   <- here\n"
            "   9 S: 500\n"
            "seen: S: 451 4.3.0 no",
        )

    def test_cut(self) -> None:
        """The error of a cut has its place."""
        with self.assertRaises(DialogError) as caught:
            Dialog("S: 220\nC: NOOP\nS: 251").play_cut(server)
        self.assertIn("(with all octets at once)", str(caught.exception))

    def test_otherDifferences(self) -> None:
        """Too many replies, too few, none, an unexpected end, and a missing end."""
        self.refused(
            server(),
            "line 3: no further reply was expected",
            "S: 250",
            text="S: 220\nC: NOOP\nC: NOOP\nS: 250".replace("\nS: 250", ""),
        )
        self.refused(server(), "line 4: a reply was expected", "seen: nothing", text="S: 220\nC: NOOP\nS: 250\nS: 250")
        self.refused(server(), "the connection was closed", text="S: 220\nC: QUIT\nS: 221")
        self.refused(server(), "line 4: the connection should be closed", text="S: 220\nC: NOOP\nS: 250\nS.")
        self.refused(failing("connect", "drop", times=100), "the connection was closed", text="S: 220\nC: NOOP\nS: 250")

    def test_factory(self) -> None:
        """A factory in place of a callable is refused, with the fix."""
        dialog = Dialog("S: 220\n")
        for play in (dialog.play, dialog.play_cut):
            self.assertIn("play(lambda:", str(self.assertRaises(TypeError, play, SMTPFactory())))

    def test_garbage(self) -> None:
        """Output that is not a reply is an error."""
        with self.assertRaises(DialogError) as caught:
            Dialog(GOOD).play(lambda: failing("noop", "garbage", b"\xff\r\n"))
        self.assertIn("the server sent something that is not a reply", str(caught.exception))


class SocketTests(TCPTestCase):
    """Over TCP."""

    async def test_good(self) -> None:
        """The same is true over a socket."""
        await self.serve()
        await self.client(Dialog(GOOD).play_over)

    async def test_wrong(self) -> None:
        """Another reply, an early end, and silence."""
        self.patch(module, "PATIENCE", 0.3)
        await self.serve()
        for text, expected in {
            "S: 220\nC: NOOP\nS: 251": "seen: S: 250 2.0.0 OK",
            "S: 220\nC: QUIT\nS: 221\nS: 250": "seen: the connection was closed",
            "S: 220\nC: NOOP\nS: 250\nS: 250": "seen: nothing",
            "S: 220\nC: NOOP\nS: 250\nS.": "the connection should be closed",
        }.items():

            def act(connection: socket.socket, text: str = text) -> None:
                Dialog(text).play_over(connection)

            with self.assertRaises(DialogError) as caught:
                await self.client(act)
            self.assertIn(expected, str(caught.exception))
