"""Over real TCP: clients that disconnect, half-close, send floods and never read; real client programs."""

from __future__ import annotations

import os
import select
import smtplib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.engine.test_conversation import DIALOGS, SESSION, SESSION_CODES
from tests.support import GREETING, MESSAGE, TRANSACTION, Waiting, codes, handler
from tests.support.programs import program
from txsmtpd import SMTP, Envelope, Session, SMTPFactory

PATIENCE = 60.0  # the timeout in seconds of sockets in these tests


class Inbox:
    """A handler that keeps its messages."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 OK"


class Slow(Inbox):
    """A handler whose hooks wait for a moment of real time."""

    async def handle_MAIL(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        await deferLater(reactor, 0.1)  # type: ignore[arg-type]
        return "250 2.1.0 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await deferLater(reactor, 0.8)  # type: ignore[arg-type]
        return await super().handle_DATA(server, session, envelope)


def resident() -> int:
    """The memory of this process in octets."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = []
    while octets := connection.recv(65536):
        received.append(octets)
    return b"".join(received)


def read_replies(connection: socket.socket, count: int) -> bytes:
    """This number of complete replies."""
    received = b""
    while len([line for line in received.split(b"\r\n")[:-1] if line[3:4] != b"-"]) < count or received[-2:] != b"\r\n":
        octets = connection.recv(65536)
        if not octets:
            raise AssertionError(f"closed after {received!r}")
        received += octets
    return received


class TCPTestCase(TestCase):
    """A server on a free port of the loopback interface."""

    timeout = 120

    async def serve(self, handler: object = None, **options: Any) -> None:
        """Start the server."""
        options.setdefault("hostname", "mx.test")
        self.factory = SMTPFactory(handler, **options)
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        listening: IListeningPort = await endpoint.listen(self.factory)
        self.port: int = listening.getHost().port  # type: ignore[attr-defined]
        self.addCleanup(self._stop, listening)

    async def _stop(self, listening: IListeningPort) -> None:
        await listening.stopListening()
        for protocol in list(self.factory.connections):
            protocol.transport.abortConnection()
        await self.eventually(lambda: not self.factory.connections, "all connections are gone")

    def connect(self) -> socket.socket:
        """A client's connection, for use in a thread."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    async def client(self, act: Callable[[socket.socket], Any]) -> Any:
        """Let a client act in a thread, and return its result."""

        def run() -> Any:
            with self.connect() as connection:
                return act(connection)

        return await deferToThread(run)

    async def eventually(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds. Fails after a timeout."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > PATIENCE:
                self.fail(f"not within {PATIENCE} s: {what}")
            await deferLater(reactor, 0.005)  # type: ignore[arg-type]


class DialogTests(TCPTestCase):
    """Sessions over TCP are equal to those in memory."""

    async def test_session(self) -> None:
        """A pipelined session gets all its replies, and the connection closes."""
        await self.serve()

        def act(connection: socket.socket) -> bytes:
            connection.sendall(SESSION[: SESSION.rindex(b"QUIT") + 6])
            return read_all(connection)

        self.assertEqual(codes(await self.client(act)), SESSION_CODES)

    async def test_octetByOctet(self) -> None:
        """So does a session that arrives octet by octet."""
        await self.serve()
        session = SESSION[: SESSION.rindex(b"QUIT") + 6]  # with more input, the kernel could reset the connection

        def act(connection: socket.socket) -> bytes:
            for octet in session:
                connection.sendall(bytes([octet]))
            return read_all(connection)

        self.assertEqual(codes(await self.client(act)), SESSION_CODES)

    async def test_dialogs(self) -> None:
        """The dialog files get the same replies as in memory."""
        await self.serve()
        for dialog in DIALOGS:
            await self.client(dialog.play_over)


class LeavingTests(TCPTestCase):
    """Clients that disconnect while a hook waits."""

    async def gone(self, leave: Callable[[socket.socket], None]) -> None:
        """When a client disconnects while its hook waits, the hook is cancelled without a timeout."""
        hook = Waiting()
        causes: list[BaseException] = []
        no_limits = dict.fromkeys(("timeout", "hook_timeout", "command_timeout"), None)
        await self.serve(handler(NOOP=hook, DISCONNECT=lambda *arguments: causes.append(arguments[-1])), **no_limits)

        def begin() -> socket.socket:
            connection = self.connect()
            connection.sendall(b"NOOP\r\nNOOP\r\n")
            return connection

        connection = await deferToThread(begin)
        await self.eventually(lambda: bool(hook.calls), "the hook is called")
        await deferToThread(leave, connection)
        await self.eventually(lambda: hook.cancelled > 0, "the hook is cancelled")
        await self.eventually(lambda: bool(causes), "the end is told")
        self.assertEqual((hook.cancelled, len(hook.calls), len(causes)), (1, 1, 1))
        self.assertEqual(self.factory.connections, set())
        connection.close()

    async def test_reset(self) -> None:
        """A client that resets the connection cancels the hook."""

        def leave(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        await self.gone(leave)

    async def test_close(self) -> None:
        """So does a client that closes it."""
        await self.gone(lambda connection: connection.close())

    async def test_closeAfterReading(self) -> None:
        """So does a client that closes it after it has read everything."""

        def leave(connection: socket.socket) -> None:
            read_replies(connection, 1)
            connection.close()

        await self.gone(leave)

    async def test_halfClose(self) -> None:
        """So does a client that closes its side without QUIT."""
        await self.gone(lambda connection: connection.shutdown(socket.SHUT_WR))

    async def test_inMessage(self) -> None:
        """A client that disconnects during a message leaves nothing behind."""
        inbox = Inbox()
        await self.serve(inbox)

        def act(connection: socket.socket) -> None:
            connection.sendall(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE)
            read_replies(connection, 5)

        await self.client(act)
        await self.eventually(lambda: not self.factory.connections, "the connection is gone")
        self.assertEqual(inbox.envelopes, [])

    async def test_resetBeforeReplies(self) -> None:
        """Many clients that reset their connections while replies are sent leave nothing behind, and no traceback."""
        await self.serve(Slow(), junk_command_limit=None)

        def rude() -> None:
            for number in range(40):
                with self.connect() as connection:
                    connection.sendall(GREETING + b"NOOP\r\n" * 200 + TRANSACTION * (number % 3))
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await deferToThread(rude)
        await self.eventually(lambda: not self.factory.connections, "the connections are gone")


class HalfCloseTests(TCPTestCase):
    """Clients that close their side and wait for the replies, as ``nc -N`` does."""

    async def session(self, octets: bytes, handler: object) -> bytes:
        """All output of the server to a client that sends this and closes its side."""
        await self.serve(handler)

        def act(connection: socket.socket) -> bytes:
            connection.sendall(octets)
            connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

        said: bytes = await self.client(act)
        return said

    async def test_waitingHooks(self) -> None:
        """After a pipelined session with QUIT, the client gets all replies, no matter how long its hooks wait."""
        slow = Slow()
        octets = GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nNOOP\r\nQUIT\r\n"
        self.assertEqual(codes(await self.session(octets, slow)), [220, 250, 250, 250, 354, 250, 250, 221])
        self.assertEqual([envelope.content for envelope in slow.envelopes], [MESSAGE])

    async def test_readyHooks(self) -> None:
        """Without waiting hooks, it gets all replies without QUIT, too."""
        inbox = Inbox()
        octets = GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n"
        self.assertEqual(codes(await self.session(octets, inbox)), [220, 250, 250, 250, 354, 250])
        self.assertEqual(len(inbox.envelopes), 1)

    async def test_inMessage(self) -> None:
        """During a message, nothing is stored."""
        inbox = Inbox()
        octets = GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE
        self.assertEqual(codes(await self.session(octets, inbox)), [220, 250, 250, 250, 354])
        self.assertEqual(inbox.envelopes, [])


class FloodTests(TCPTestCase):
    """Clients that send without an end."""

    async def flood(self, octets: bytes, total: int, **options: Any) -> tuple[int, int]:
        """Send the octets repeatedly without reading, up to a total.

        :return: the number of octets that the server has read, and the growth of this process in octets.
        """
        await self.serve(**options)
        before = resident()

        def act(connection: socket.socket) -> int:
            connection.setblocking(False)
            sent = 0
            while sent < total:
                _, writable, _ = select.select([], [connection], [], 2)
                if not writable:
                    break
                try:
                    sent += connection.send(octets)
                except (BrokenPipeError, ConnectionResetError):
                    break
            growth.append(resident() - before)
            return sent

        growth: list[int] = []
        sent: int = await self.client(act)
        return sent, growth[0]

    async def test_unreadReplies(self) -> None:
        """A flood of pipelined commands from a client that does not read is stopped, and memory stays bounded."""
        sent, grown = await self.flood(b"NOOP\r\n" * 10_000, 200_000_000, junk_command_limit=None)
        self.assertLess(sent, 60_000_000)
        self.assertLess(grown, 30_000_000)

    async def test_endlessLine(self) -> None:
        """A line without an end ends the session, and memory stays bounded."""
        sent, grown = await self.flood(b"x" * 65536, 200_000_000)
        self.assertLess(sent, 60_000_000)
        self.assertLess(grown, 30_000_000)

    async def test_whileHookWaits(self) -> None:
        """Whatever is sent while a hook waits, memory stays bounded."""
        hook = Waiting()
        sent, grown = await self.flood(b"NOOP\r\n" * 10_000, 200_000_000, handler=handler(NOOP=hook))
        self.assertLess(sent, 60_000_000)
        self.assertLess(grown, 30_000_000)
        self.assertEqual(len(hook.calls), 1)

    async def test_endlessMessage(self) -> None:
        """A message beyond the limit is read to its end, and memory stays bounded."""
        await self.serve(Inbox(), data_size_limit=30_000_000)
        before = resident()

        def act(connection: socket.socket) -> tuple[int, bytes]:
            connection.sendall(GREETING + TRANSACTION + b"DATA\r\n")
            read_replies(connection, 5)
            for _ in range(1000):
                connection.sendall((b"x" * 998 + b"\r\n") * 100)
            grown = resident() - before
            connection.sendall(b".\r\nQUIT\r\n")
            return grown, read_all(connection)

        grown, said = await self.client(act)
        self.assertEqual(codes(said), [552, 221])
        self.assertLess(grown, 90_000_000)

    async def test_messageFarTooLarge(self) -> None:
        """A message of more than 16 times the limit is not read to its end: 552, and the connection closes."""
        await self.serve(Inbox(), data_size_limit=100_000)

        def act(connection: socket.socket) -> bytes:
            connection.sendall(GREETING + TRANSACTION + b"DATA\r\n")
            read_replies(connection, 5)
            line = b"x" * 998 + b"\r\n"
            try:
                for _ in range(100):
                    connection.sendall(line * 100)
                    time.sleep(0)
            except ConnectionError:
                return b""
            return read_all(connection)

        # The reply may be lost, if the kernel resets the connection because of unread input.
        self.assertIn(codes(await self.client(act)), ([552], []))

    async def test_everythingAnswered(self) -> None:
        """A flood whose client reads late gets every reply, in order."""

        class Server(SMTP):
            def smtp_COUNT(self, arg: str | None) -> str:
                return f"250 {arg}"

        await self.serve(protocol=Server)
        lines = b"".join(b"COUNT %d\r\n" % number for number in range(300_000)) + b"QUIT\r\n"

        def act(connection: socket.socket) -> bytes:
            connection.setblocking(False)
            received, sent = [], 0
            while True:
                # Read only if nothing can be written.
                _, writable, _ = select.select([], [connection] if sent < len(lines) else [], [], 0.2)
                if writable:
                    sent += connection.send(lines[sent : sent + 100_000])
                    continue
                readable, _, _ = select.select([connection], [], [], PATIENCE)
                if not readable:
                    raise AssertionError("the server has stopped")
                octets = connection.recv(1 << 20)
                if not octets:
                    return b"".join(received)
                received.append(octets)

        said = await self.client(act)
        numbers = [line[4:] for line in said.split(b"\r\n")[1:-2]]
        self.assertEqual(numbers, [b"%d" % number for number in range(300_000)])


class ProgramTests(TCPTestCase):
    """Real clients."""

    def run_program(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    async def test_smtpSource(self) -> None:
        """2,000 messages of Postfix's smtp-source over 20 connections are all received."""
        path = program("smtp-source", "postfix")
        inbox = Inbox()
        await self.serve(inbox)
        command = [path, "-s", "20", "-m", "2000", "-l", "1000", "-f", "a@example.com", "-t", "b@example.com"]
        done = await deferToThread(self.run_program, *command, f"inet:127.0.0.1:{self.port}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(len(inbox.envelopes), 2000)
        self.assertEqual({envelope.mail_from for envelope in inbox.envelopes}, {"a@example.com"})
        self.assertTrue(all(len(envelope.content or b"") >= 1000 for envelope in inbox.envelopes))

    async def test_smtpSourceNewConnections(self) -> None:
        """The same with a connection for each message, several recipients, and hooks that wait."""
        path = program("smtp-source", "postfix")

        class Waits(Inbox):
            async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
                await deferLater(reactor, 0.001)  # type: ignore[arg-type]
                return await super().handle_DATA(server, session, envelope)

        inbox = Waits()
        await self.serve(inbox)
        command = [
            path,
            "-d",
            "-s",
            "20",
            "-m",
            "500",
            "-l",
            "100",
            "-r",
            "3",
            "-f",
            "a@example.com",
            "-t",
            "b@example.com",
        ]
        done = await deferToThread(self.run_program, *command, f"inet:127.0.0.1:{self.port}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(len(inbox.envelopes), 500)
        self.assertEqual({len(envelope.rcpt_tos) for envelope in inbox.envelopes}, {3})

    async def test_swaks(self) -> None:
        """swaks delivers a message."""
        path = program("swaks", "swaks")
        inbox = Inbox()
        await self.serve(inbox)
        done = await deferToThread(
            self.run_program,
            *[
                path,
                "--server",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--from",
                "a@example.com",
                "--to",
                "b@example.com",
            ],
            *["--h-Subject", "by swaks", "--body", "one\n.\n..two"],
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        (envelope,) = inbox.envelopes
        self.assertEqual((envelope.mail_from, envelope.rcpt_tos), ("a@example.com", ["b@example.com"]))
        self.assertIn(b"Subject: by swaks\r\n", envelope.original_content or b"")
        self.assertIn(b"\r\none\r\n.\r\n..two\r\n", envelope.original_content or b"")

    async def test_smtplib(self) -> None:
        """A whole session with Python's smtplib: EHLO, help, verify, messages, refusals, and a closed connection."""
        inbox = Inbox()

        async def rcpt(server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
            if address.startswith("no"):
                return "550 5.1.1 unknown"
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"

        inbox.handle_RCPT = rcpt  # type: ignore[attr-defined]
        await self.serve(inbox, enable_SMTPUTF8=True, data_size_limit=10_000)

        def act() -> None:
            with smtplib.SMTP("127.0.0.1", self.port, local_hostname="client.test", timeout=PATIENCE) as client:
                self.assertEqual(client.ehlo()[0], 250)
                self.assertEqual(client.esmtp_features["size"], "10000")
                self.assertTrue(client.has_extn("smtputf8") and client.has_extn("pipelining"))
                self.assertEqual(client.verify("b@example.com")[0], 252)
                self.assertEqual(client.noop()[0], 250)
                refused = client.sendmail("a@example.com", ["b@example.com", "no@example.com"], "Subject: 1\n\n.\n")
                self.assertEqual(refused, {"no@example.com": (550, b"5.1.1 unknown")})
                self.assertRaises(smtplib.SMTPRecipientsRefused, client.sendmail, "a@b", ["no@b"], "x")
                self.assertRaises(smtplib.SMTPSenderRefused, client.sendmail, "a@b", ["c@d"], "x" * 20_000)
                client.sendmail("\u00fc@example.com", ["b@example.com"], b"Subject: 2\r\n", ["SMTPUTF8"])

        await deferToThread(act)
        first, second = inbox.envelopes
        self.assertEqual(first.original_content, b"Subject: 1\r\n\r\n.\r\n")
        self.assertEqual(first.rcpt_tos, ["b@example.com"])
        self.assertEqual((second.mail_from, second.smtp_utf8), ("\u00fc@example.com", True))

    async def test_drain(self) -> None:
        """A server that shuts down sends 421 to idle clients, and lets the others finish."""
        inbox = Inbox()
        await self.serve(inbox)

        def begin() -> tuple[socket.socket, socket.socket]:
            idle, busy = self.connect(), self.connect()
            read_replies(idle, 1)
            busy.sendall(GREETING + TRANSACTION + b"DATA\r\n")
            read_replies(busy, 5)
            return idle, busy

        idle, busy = await deferToThread(begin)
        done: Awaitable[None] | Deferred[None] = self.factory.drain()

        def end() -> tuple[bytes, bytes]:
            with idle, busy:
                first = read_all(idle)
                busy.sendall(MESSAGE + b".\r\n")
                return first, read_all(busy)

        said = await deferToThread(end)
        await done
        self.assertEqual([codes(each) for each in said], [[421], [250, 421]])
        self.assertEqual(len(inbox.envelopes), 1)


class BlockedTests(TCPTestCase):
    """A hook has blocked the reactor."""

    async def test_notIdle(self) -> None:
        """A client whose input is still in its socket is not idle: the socket is read first."""
        idle = 2.0
        await self.serve(timeout=idle, command_timeout=None)
        greeted: Deferred[None] = Deferred()
        blocked, spoken = threading.Event(), threading.Event()

        def act(connection: socket.socket) -> bytes:
            connection.recv(1000)
            reactor.callFromThread(greeted.callback, None)  # type: ignore[attr-defined]
            blocked.wait(PATIENCE)
            connection.sendall(b"NOOP\r\n")
            spoken.set()
            return connection.recv(1000)

        waiting = Deferred.fromCoroutine(self.client(act))
        await greeted
        blocked.set()
        spoken.wait(PATIENCE)
        time.sleep(idle)  # block the reactor, as a hook must not do
        self.assertEqual(await waiting, b"250 2.0.0 OK\r\n")
