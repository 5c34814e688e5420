"""Turns of a connection: segments, waiting hooks, half-closed and lost connections, clients that do not read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.support import (
    GREETING,
    MESSAGE,
    TRANSACTION,
    Client,
    LoggingTestCase,
    Waiting,
    answers,
    codes,
    conversation,
    handler,
)
from txsmtpd import SMTP, Envelope, SMTPFactory
from txsmtpd.engine.lines import ENDLESS_LINE
from txsmtpd.engine.turn import PREMATURE_CLOSE_GRACE
from txsmtpd.testing.dialog import Dialog
from txsmtpd.wire.data import EXCESS

SESSION = (
    GREETING
    + b"FOO\r\n\r\nMAIL FROM:<a@b> SIZE=10\nMAIL FROM:<a@b> SIZE=10\r\nRCPT TO:<>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
    + b"Subject: x\r\n\r\n..\r\n.\n\r\n.\r\nNOOP \x01\r\n"
    + TRANSACTION
    + b"DATA\r\nQUIT\r\n..QUIT\r\n.\r\nRSET\r\nNOOP "
    + b"x" * 600
    + b"\r\nQUIT\r\nNOOP\r\n"
)
SESSION_CODES = [220, 250, 500, 500, 500, 250, 553, 250, 354, 550, 500, 250, 250, 354, 250, 250, 500, 221]

DIALOGS = [Dialog.load(path) for path in sorted((Path(__file__).parent / "dialogs").glob("*.smtp"))]


class Sluggish:
    """A handler whose hooks all wait, and that records the order of events."""

    def __init__(self, clock: Clock, seconds: float = 1.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.log: list[str] = []
        self.envelopes: list[Envelope] = []

    async def _work(self, what: str) -> None:
        self.log.append(f"{what} begins")
        await deferLater(self.clock, self.seconds)
        self.log.append(f"{what} ends")

    async def handle_MAIL(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        await self._work("MAIL")
        return "250 2.1.0 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        await self._work("RCPT")
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        await self._work("DATA")
        self.envelopes.append(envelope)
        return "250 2.0.0 OK"

    async def handle_NOOP(self, server: Any, session: Any, envelope: Envelope, arg: str | None) -> str:
        await self._work("NOOP")
        return f"250 2.0.0 {arg}"


def sluggish(seconds: float = 1.0, **options: Any) -> tuple[Client, Sluggish]:
    """A client of a handler whose hooks wait."""
    clock = Clock()
    slow = Sluggish(clock, seconds)
    return Client(slow, reactor=clock, **options), slow


class CutTests(SynchronousTestCase):
    """The replies do not depend on how the input is split into segments."""

    def test_whole(self) -> None:
        """A pipelined session in one segment gets all its replies. Nothing after QUIT is executed."""
        said, closed = conversation(SESSION)
        self.assertEqual(codes(said), SESSION_CODES)
        self.assertTrue(closed)

    def test_everyCut(self) -> None:
        """The replies are the same if the input is split in two at any place, or into pieces of any equal size."""
        expected = conversation(SESSION)
        for cut in range(1, len(SESSION)):
            self.assertEqual(conversation(SESSION, [cut]), expected, cut)
        for size in (1, 2, 3, 5, 7, 64, 513):
            self.assertEqual(conversation(SESSION, range(size, len(SESSION), size)), expected, size)

    def test_everyCutWithWaitingHooks(self) -> None:
        """The same is true when every hook waits."""
        options = {"wait": 30}
        expected = conversation(SESSION)[0]
        for cuts in [(), range(1, len(SESSION)), *((cut,) for cut in range(1, len(SESSION), 7))]:
            clock = Clock()
            said, closed = conversation(SESSION, cuts, Sluggish(clock), reactor=clock, **options)
            self.assertEqual((codes(said), closed), (codes(expected), True), cuts)

    def test_oneWrite(self) -> None:
        """The replies to commands that arrive together are sent together."""
        client = Client()
        client.transport.writes.clear()
        client.talk(GREETING + TRANSACTION + b"DATA\r\n")
        self.assertEqual(len(client.transport.writes), 1)

    def test_octetsBehindQuit(self) -> None:
        """Input after QUIT is ignored, in the same segment or in another one."""
        for cuts in ((), (6,), (7,), (12,)):
            self.assertEqual(codes(conversation(b"QUIT\r\nGET / HTTP/1.1\r\n", cuts)[0]), [220, 221])


class DialogTests(SynchronousTestCase):
    """The dialog files: the client's lines and their replies."""

    def test_found(self) -> None:
        """There are dialog files."""
        self.assertGreater(len(DIALOGS), 5)

    def test_inStep(self) -> None:
        """Each dialog gets its replies when the client waits for them."""
        for dialog in DIALOGS:
            dialog.play(make_server)

    def test_pipelined(self) -> None:
        """Each dialog gets the same replies when the client does not wait, however its octets are split."""
        for dialog in DIALOGS:
            dialog.play_cut(make_server)


def make_server() -> SMTPFactory:
    return SMTPFactory(hostname="mx.test")


class WaitingTests(LoggingTestCase):
    """While a hook waits."""

    def test_oneAtATime(self) -> None:
        """No command starts before the previous one has its reply. Replies are sent in order."""
        client, slow = sluggish()
        client.say(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nNOOP 1\r\nNOOP 2\r\nQUIT\r\n")
        self.assertEqual(codes(client.heard()), [250])
        for expected in ([250], [250, 354], [250], [250], [250, 221]):
            self.assertEqual(codes(client.wait(1)), expected)
        self.assertTrue(client.closed)
        order = ["MAIL", "RCPT", "DATA", "NOOP", "NOOP"]
        self.assertEqual(slow.log, [f"{what} {when}" for what in order for when in ("begins", "ends")])
        self.assertEqual(slow.envelopes[0].content, MESSAGE)

    def test_messageDuringWait(self) -> None:
        """A message that is sent before its turn is kept until then."""
        client, slow = sluggish()
        client.say(GREETING + TRANSACTION + b"DATA\r\n")
        for octet in MESSAGE + b".\r\n":
            client.say(bytes([octet]))
        self.assertEqual(codes(client.wait(5)), [250, 250, 250, 354, 250])
        self.assertEqual(slow.envelopes[0].content, MESSAGE)

    def test_readsOn(self) -> None:
        """While a hook waits, the server continues to read, so that it notices when the client disconnects."""
        client, _ = sluggish()
        client.say(b"NOOP\r\nRSET\r\n")
        self.assertTrue(client.reading)

    def test_bufferIsBounded(self) -> None:
        """Above the buffer limit the connection is not read. Below it, reading continues."""
        hook = Waiting()
        client = Client(handler(NOOP=hook), buffer_limit=1000, junk_command_limit=None)
        line = b"RSET " + b" " * 93 + b"\r\n"
        client.say(b"NOOP\r\n")
        for _ in range(100):
            client.say(line)
        self.assertFalse(client.reading)
        self.assertGreaterEqual(client.undelivered, 100 * 100 - 1000 - 100)
        self.assertEqual(client.heard(), b"")
        hook.fire()
        client.settle()
        self.assertEqual(codes(client.heard()), [250] * 101)
        self.assertTrue(client.reading)

    def test_pausedOnce(self) -> None:
        """If a hook is followed by another that waits, the connection is not read until the buffer is used up."""
        client, _ = sluggish(buffer_limit=1000, junk_command_limit=None)
        client.say(b"NOOP " + b"x" * 93 + b"\r\n")
        for _ in range(50):
            client.say(b"NOOP " + b"x" * 93 + b"\r\n")
        said = client.wait(60)
        self.assertEqual(codes(said), [250] * 51)

    def test_manyReadyResults(self) -> None:
        """Thousands of commands whose hooks do not wait do not nest calls."""

        class Server(SMTP):
            def smtp_DEFER(self, arg: str | None) -> Deferred[str]:
                done: Deferred[str] = Deferred()
                done.callback("250 OK")
                return done

        client = Client(protocol=Server)
        self.assertEqual(client.codes(b"DEFER\r\n" * 5000), [250] * 5000)

    def test_manyFiredResults(self) -> None:
        """Thousands of hooks that each fire the next one's Deferred do not nest calls either."""
        waiting: list[Deferred[str]] = []

        def hook(*arguments: Any) -> Deferred[str]:
            if waiting:
                done: Deferred[str] = Deferred()
                done.callback("250 OK")
                return done
            waiting.append(Deferred())
            return waiting[0]

        client = Client(handler(NOOP=hook), junk_command_limit=None)
        client.say(b"NOOP\r\n" * 5000)
        waiting[0].callback("250 OK")
        self.assertEqual(codes(client.heard()), [250] * 5000)

    def test_hookFiresAtOnce(self) -> None:
        """A hook that waits several times is one turn."""

        async def hook(*arguments: Any) -> str:
            for _ in range(3):
                done: Deferred[None] = Deferred()
                done.callback(None)
                await done
            return "250 OK"

        self.assertEqual(Client(handler(NOOP=hook)).codes(b"NOOP\r\nNOOP\r\n"), [250, 250])


class ClientGoneTests(LoggingTestCase):
    """The client disconnects while a hook waits."""

    def test_cancelled(self) -> None:
        """The hook is cancelled immediately, and nothing is logged."""
        hook = Waiting()
        client = Client(handler(NOOP=hook))
        client.say(b"NOOP\r\nNOOP\r\n")
        client.vanish()
        self.assertEqual((hook.cancelled, len(hook.calls)), (1, 1))
        self.assertEqual(self.logged("error") + self.logged("critical"), [])

    def test_lateResult(self) -> None:
        """The result of a hook that ignores the cancellation is discarded."""
        hook = Waiting(obedient=False)
        client = Client(handler(NOOP=hook))
        client.say(b"NOOP\r\nNOOP\r\n")
        client.vanish()
        hook.fire()
        self.assertEqual(client.heard(), b"")
        self.assertEqual(len(hook.calls), 1)

    def test_cleansUp(self) -> None:
        """A cancelled hook can clean up. If that raises an exception, the log has its traceback."""
        done: list[str] = []

        async def hook(*arguments: Any) -> str:
            try:
                await Deferred()
            except CancelledError:
                done.append("cleaned up")
                raise LookupError("but badly") from None
            return "250 OK"

        client = Client(handler(NOOP=hook))
        client.say(b"NOOP\r\n")
        client.vanish()
        self.assertEqual(done, ["cleaned up"])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_inMessage(self) -> None:
        """A client that disconnects during a message leaves nothing behind."""
        client, slow = sluggish(seconds=0)
        client.say(GREETING + TRANSACTION + b"DATA\r\n")
        client.wait(1)
        client.say(MESSAGE)
        client.vanish()
        client.wait(5)
        self.assertEqual(slow.envelopes, [])

    def test_dataHook(self) -> None:
        """The same is true if the DATA hook is cancelled."""
        hook = Waiting()
        client = Client(handler(DATA=hook))
        client.say(GREETING + TRANSACTION + b"DATA\r\n.\r\n")
        client.vanish()
        self.assertEqual(hook.cancelled, 1)


class HalfCloseTests(SynchronousTestCase):
    """The client closes its side, as ``nc -N`` does."""

    def test_idle(self) -> None:
        """A client that has all its replies is disconnected."""
        client = Client()
        client.talk(b"NOOP\r\n")
        client.half_close()
        self.assertTrue(client.closed)
        self.assertEqual(client.heard(), b"")

    def test_farewell(self) -> None:
        """A client that has sent QUIT gets all replies, no matter how long the hooks take."""
        for farewell in (b"QUIT\r\n", b"quit\r\n", b"QUIT \r\n"):
            client, slow = sluggish(seconds=200)
            client.say(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n" + farewell)
            client.half_close()
            said = client.wait(1000, step=10)
            self.assertEqual(codes(said), [250, 250, 250, 354, 250, 221], farewell)
            self.assertTrue(client.closed)
            self.assertEqual(len(slow.envelopes), 1)

    def test_farewellHook(self) -> None:
        """The hook of QUIT itself may take any time, too."""
        hook = Waiting("221 2.0.0 at last")
        client = Client(handler(QUIT=hook))
        client.say(b"NOOP\r\nQUIT\r\n")
        client.half_close()
        client.wait(10)
        self.assertEqual(hook.cancelled, 0)
        hook.fire()
        client.settle()
        self.assertIn(b"221 2.0.0 at last\r\n", client.transport.taken)
        self.assertTrue(client.closed)

    def test_farewellIsTheLastLine(self) -> None:
        """A line that only ends in QUIT does not count as QUIT."""
        client, slow = sluggish(seconds=200)
        client.say(b"NOOP\r\nNOOP QUIT\r\n")
        client.half_close()
        client.wait(2)
        self.assertTrue(client.closed)
        self.assertEqual(slow.log, ["NOOP begins"])

    def test_farewellWithoutEnd(self) -> None:
        """QUIT without a line end does not count as QUIT."""
        client, _ = sluggish(seconds=200)
        client.say(b"NOOP\r\nQUIT")
        client.half_close()
        client.wait(2)
        self.assertTrue(client.closed)

    def test_invalidLine(self) -> None:
        """A client that does not wait for the greeting any more gets no delayed reply to an invalid line."""
        client = Client(unlimited_networks=[])
        client.talk(b"NOOP\n" * 9)
        client.say(b"NOOP\n")
        client.half_close()
        self.assertEqual(client.wait(5), b"")
        self.assertTrue(client.closed)

    def test_withoutFarewell(self) -> None:
        """Without QUIT, the client gets the replies that are ready. The waiting hook is cancelled within a second."""
        hook = Waiting()
        client = Client(handler(NOOP=hook))
        client.say(b"RSET\r\nNOOP\r\nRSET\r\n")
        client.half_close()
        self.assertEqual(client.wait(1), b"250 2.0.0 OK\r\n")
        self.assertEqual(hook.cancelled, 1)
        self.assertTrue(client.closed)

    def test_withoutFarewellInTime(self) -> None:
        """The replies of hooks that finish within a moment are sent."""
        client, _ = sluggish(seconds=PREMATURE_CLOSE_GRACE / 2)
        client.say(GREETING + TRANSACTION + b"NOOP x\r\n")
        client.half_close()
        self.assertEqual(codes(client.wait(3, step=0.05)), [250, 250, 250, 250])
        self.assertTrue(client.closed)

    def test_pipelined(self) -> None:
        """A pipelined session without waiting hooks gets all its replies, with and without QUIT."""
        for end in (b"", b"QUIT\r\n"):
            client = Client()
            client.say(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n" + end)
            client.half_close()
            self.assertEqual(codes(client.heard()), [250, 250, 250, 354, 250] + [221] * bool(end))
            self.assertTrue(client.closed)

    def test_inMessage(self) -> None:
        """A half-close during a message stores nothing, and the connection closes."""
        for cut in (0, 1, len(MESSAGE), len(MESSAGE) + 1, len(MESSAGE) + 2):
            client, slow = sluggish(seconds=0)
            client.say(GREETING + TRANSACTION + b"DATA\r\n")
            client.wait(1)
            client.say((MESSAGE + b".\r\n")[:cut])
            client.half_close()
            client.wait(2)
            self.assertTrue(client.closed, cut)
            self.assertEqual(slow.envelopes, [])

    def test_inMessageWhileHookWaits(self) -> None:
        """The same is true if the incomplete message still waits for its turn."""
        client, slow = sluggish(seconds=0.1)
        client.say(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE)
        client.half_close()
        client.wait(10)
        self.assertTrue(client.closed)
        self.assertEqual(slow.envelopes, [])

    def test_messageThatSaysQuit(self) -> None:
        """An incomplete message whose last line is QUIT is not stored."""
        client, slow = sluggish(seconds=200)
        client.say(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b"QUIT\r\n")
        client.half_close()
        client.wait(1000, step=10)
        self.assertTrue(client.closed)
        self.assertEqual(slow.envelopes, [])

    def test_unfinishedLine(self) -> None:
        """A line without a line end is not executed."""
        client = Client()
        client.say(GREETING + b"MAIL FROM:<a@b>")
        client.half_close()
        self.assertEqual(codes(client.heard()), [250])
        self.assertTrue(client.closed)

    def test_whileGreetingWaits(self) -> None:
        """A client that half-closes before the greeting gets it. If it has sent QUIT, it gets all replies."""
        for said, expected in ((b"NOOP\r\nQUIT\r\n", [220, 250, 221]), (b"NOOP\r\n", [220, 250]), (b"", [220])):
            hook = Waiting(None)
            client = Client(handler(CONNECT=hook))
            client.say(said)
            client.half_close()
            client.wait(20)
            hook.fire()
            client.settle()
            self.assertEqual(codes(client.transport.taken), expected)
            self.assertTrue(client.closed)

    def test_unread(self) -> None:
        """The server waits for a half-closed client that does not read only for the linger time."""
        client = Client(junk_command_limit=None)
        client.stop_reading()
        client.say(b"NOOP\r\n" * 20000 + b"QUIT\r\n", range(10000, 120_000, 10000))
        client.half_close()
        client.wait(1000, step=10)
        self.assertTrue(client.closed)


class UnreadTests(SynchronousTestCase):
    """The client does not read its replies."""

    def test_flood(self) -> None:
        """Memory stays bounded if a client sends many commands and does not read: the server stops reading."""
        client = Client(junk_command_limit=None)
        client.stop_reading()
        segment = b"NOOP\r\n" * 1000
        for _ in range(1000):
            client.say(segment)
        self.assertFalse(client.reading)
        self.assertLess(client.transport.unread, 200_000)
        self.assertLess(len(client.server._connection.lines.data), 200_000)
        self.assertGreater(client.undelivered, 5_000_000)

    def test_readsAgain(self) -> None:
        """When the client reads again, all replies are sent, once and in order."""
        client = Client(junk_command_limit=None, protocol=Counting)
        client.stop_reading()
        lines = [b"COUNT %d\r\n" % number for number in range(20_000)]
        for first in range(0, len(lines), 500):
            client.say(b"".join(lines[first : first + 500]))
        self.assertGreater(client.undelivered, 0)
        client.read_again()
        self.assertEqual([answer.text for answer in answers(client.heard())], [str(number) for number in range(20_000)])
        self.assertTrue(client.reading)

    def test_floodWhileHookWaits(self) -> None:
        """The same is true with a hook that waits in between."""
        hook = Waiting()
        client = Client(handler(VRFY=hook), junk_command_limit=None, hook_timeout=None, timeout=None)
        client.stop_reading()
        for _ in range(100):
            client.say(b"NOOP\r\n" * 1000 + b"VRFY a@b\r\n")
        for _ in range(300):
            if hook.waiting:
                hook.fire()
                client.settle()
        self.assertLess(client.transport.unread, 200_000)
        client.read_again()
        while hook.waiting:
            hook.fire()
            client.settle()
        self.assertEqual(codes(client.heard()), [250] * (100 * 1001))

    def test_hookEndsWhileUnread(self) -> None:
        """A reply that is ready while the client does not read is kept, and no further command starts."""
        hook = Waiting()
        client = Client(handler(VRFY=hook), junk_command_limit=None)
        client.say(b"VRFY a@b\r\nRSET\r\n")
        client.server.pauseProducing()
        hook.fire()
        client.settle()
        self.assertEqual(codes(client.heard()), [250])
        client.server.resumeProducing()
        client.settle()
        self.assertEqual(codes(client.heard()), [250])

    def test_pausedWhileHookWaits(self) -> None:
        """A client that reads again while a hook waits does not start the next command."""
        hook = Waiting()
        client = Client(handler(VRFY=hook))
        client.say(b"VRFY a@b\r\nRSET\r\n")
        client.server.pauseProducing()
        client.server.resumeProducing()
        client.settle()
        self.assertEqual(client.heard(), b"")
        self.assertTrue(client.reading)
        hook.fire()
        self.assertEqual(codes(client.heard()), [250, 250])

    def test_timeout(self) -> None:
        """The connection of a client that does not read in time is closed and aborted."""
        client = Client(junk_command_limit=None, timeout=300, linger=10)
        client.stop_reading()
        client.say(b"NOOP\r\n" * 20_000)
        client.wait(311, step=1)
        self.assertTrue(client.transport.aborted)
        self.assertTrue(client.closed)

    def test_gone(self) -> None:
        """A client that disconnects without reading leaves nothing behind."""
        client = Client(junk_command_limit=None)
        client.stop_reading()
        client.say(b"NOOP\r\n" * 20_000)
        client.server.connectionLost()
        client.transport.disconnected = True
        self.assertEqual(client.clock.getDelayedCalls(), [])
        self.assertEqual(client.server._connection.lines.data, b"")


class Counting(SMTP):
    """A server that repeats its input."""

    def smtp_COUNT(self, arg: str | None) -> str:
        return f"250 {arg}"


class BoundedTests(SynchronousTestCase):
    """Input without end."""

    def test_endlessLine(self) -> None:
        """A line without an end uses limited memory, and ends the session."""
        client = Client()
        for _ in range(ENDLESS_LINE // 1000 + 2):
            client.say(b"x" * 1000)
            self.assertLess(len(client.server._connection.lines.data), 2000)
            if client.closed:
                break
        self.assertEqual(codes(client.heard()), [421])

    def test_endlessLineWhileHookWaits(self) -> None:
        """The same is true while a hook waits: the connection is read only up to the buffer limit."""
        client = Client(handler(NOOP=Waiting()))
        client.say(b"NOOP\r\n")
        for _ in range(1000):
            client.say(b"x" * 1000)
        self.assertLess(len(client.server._connection.lines.data), 70_000)
        self.assertFalse(client.reading)

    def test_endlessMessage(self) -> None:
        """A message without an end uses limited memory."""
        client = Client(data_size_limit=10_000)
        client.say(GREETING + TRANSACTION + b"DATA\r\n")
        for _ in range(1000):
            client.say(b"x" * 998 + b"\r\n")
        self.assertLess(len(client.server._connection.lines.data), 10)
        self.assertEqual(client.codes(b".\r\nNOOP\r\n")[-2:], [552, 250])

    def test_octetByOctet(self) -> None:
        """A session whose octets arrive one by one uses no more memory than its longest line."""
        client = Client()
        for octet in SESSION:
            client.say(bytes([octet]))
            self.assertLess(len(client.server._connection.lines.data), 700)


def all_cuts(octets: bytes, most: int) -> Iterable[tuple[int, ...]]:
    """All ways to split the octets into at most this number of pieces."""
    for count in range(most):
        yield from itertools.combinations(range(1, len(octets)), count)


class ShortInputTests(SynchronousTestCase):
    """Short inputs, split in all possible ways."""

    def test_lineEnds(self) -> None:
        """All kinds of line ends are parsed in the same way, however they are split."""
        for octets in (
            b"NOOP\r\nNOOP\n",
            b"\r\n\r\n\n\r",
            b"\rNOOP\r\r\n",
            b"NOOP\n\rRSET\r\n",
            b"\x16\x03NOOP\r\n",
            b"N\0\r\n",
        ):
            expected = conversation(octets)
            for cuts in all_cuts(octets, 5):
                self.assertEqual(conversation(octets, cuts), expected, (octets, cuts))

    def test_endOfMessage(self) -> None:
        """So are messages with octets after them."""
        before = GREETING + TRANSACTION + b"DATA\r\n"
        for rest in (b".\r\nNOOP\r\n", b"a\r\n.\r\n.\r\n", b"a\n.\r\n\r\n.\r\n", b".\r\r\n.\r\nx\n"):
            expected = conversation(before + rest)
            for cuts in all_cuts(rest, 4):
                found = conversation(before + rest, [len(before), *(len(before) + cut for cut in cuts)])
                self.assertEqual(found, expected, (rest, cuts))


class GivenUpInTheMiddleTests(LoggingTestCase):
    """A message whose connection is closed while its octets are processed."""

    def test_farTooLargeAtOnce(self) -> None:
        """A message that is far too large gets 552 once, even if its end is in the same segment."""
        octets = b"x" * (EXCESS + 1000) + b"\r\nmore\r\n.\r\nNOOP\r\n"
        for size in (len(octets), 4096):
            client = Client(data_size_limit=10)
            client.talk(GREETING + TRANSACTION + b"DATA\r\n")
            client.say(octets, range(size, len(octets), size))
            self.assertEqual(codes(client.heard()), [552])
            self.assertTrue(client.closed)
        self.assertEqual(self.errors_logged(), 0)

    def test_largeAndLong(self) -> None:
        """A message that is too large is read to its end, for a limited time. The client gets 552, and need not try
        again."""
        clock = Clock()
        client = Client(data_size_limit=10, reactor=clock)
        client.talk(GREETING + TRANSACTION + b"DATA\r\n")
        self.assertEqual(client.codes(b"x" * 150 + b"\r\n.\r\nNOOP\r\n"), [552, 250])
        self.assertEqual(client.codes(TRANSACTION + b"DATA\r\n"), [250, 250, 354])
        for _ in range(7):
            self.assertEqual(client.talk(b"x" * 15), b"")
            clock.advance(40)
        clock.advance(20)
        self.assertEqual(codes(client.heard()), [552])
        self.assertTrue(client.closed)
