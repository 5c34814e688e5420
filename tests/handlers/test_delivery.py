"""Messages that are stored in a maildir, piece by piece."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from txsmtpd.handlers import Mailbox
from txsmtpd.handlers.delivery import PIECE, Delivery
from txsmtpd.handlers.maildir import Maildir
from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler

HEADER = b"X-Trace: ours\n"


class Threads:
    """Stands for threads: work waits until the test runs it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def call(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((done, lambda: function(*arguments)))
        return done

    def run(self) -> None:
        """Run all pending work, and the work that results from it."""
        while self.waiting:
            done, work = self.waiting.pop(0)
            try:
                result = work()
            except Exception:
                result = Failure()
            if not done.called:
                done.callback(result)


class Producer:
    """Stands for the connection."""

    paused = 0
    resumed = 0

    def pauseProducing(self) -> None:
        self.paused += 1

    def resumeProducing(self) -> None:
        self.resumed += 1


class FullDisk:
    """The system's file operations, of which one fails."""

    def __init__(self, failing: str) -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        if name == self.failing:
            return self._fail
        return getattr(os, name)

    def _fail(self, *arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")


class NotStored(Exception):
    """The exception that the tests' deliveries raise for an OSError."""


class DeliveryTestCase(SynchronousTestCase):
    """Creates deliveries into its own maildir."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.maildir = Maildir(self.folder, durable=False)
        self.threads = Threads()

    def delivery(self, maildir: Maildir | None = None) -> Delivery:
        maildir = maildir or self.maildir
        delivery = Delivery(
            maildir,
            maildir.new_name(),
            HEADER,
            self.threads.call,
            lambda name: f"250 stored {name}",
            lambda error: NotStored(error.errno),
        )
        self.producer = Producer()
        delivery.registerProducer(self.producer, True)
        return delivery

    def finished(self, delivery: Delivery) -> Any:
        delivery.unregisterProducer()
        done = Deferred.fromCoroutine(delivery.finish())
        self.threads.run()
        return done

    def files(self, folder: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.folder / folder).iterdir())]


class DeliveryTests(DeliveryTestCase):
    def test_interface(self) -> None:
        """A delivery is a receiver of messages."""
        self.assertTrue(verifyObject(IMessageReceiver, self.delivery()))

    def test_shortMessage(self) -> None:
        """A short message needs one call in a thread. It is stored after the trace header, with LF line ends."""
        delivery = self.delivery()
        delivery.write(b"Subject: x\r\n\r\n")
        delivery.write(b"body\r\n")
        self.assertEqual(self.threads.waiting, [])
        done = Deferred.fromCoroutine(delivery.finish())
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.run()
        self.assertEqual(self.successResultOf(done), f"250 stored {os.listdir(self.folder / 'new')[0]}")
        self.assertEqual(self.files("new"), [HEADER + b"Subject: x\n\nbody\n"])

    def test_emptyMessage(self) -> None:
        """An empty message is stored too."""
        self.successResultOf(self.finished(self.delivery()))
        self.assertEqual(self.files("new"), [HEADER])

    def test_cutAnywhere(self) -> None:
        """The file does not depend on how a message is split into pieces."""
        line = b"x" * 70 + b"\r\n"
        message = b"Subject: long\r\nX-Peer: forged\r\n\r\n" + line * (2 * PIECE // len(line))
        expected = [HEADER + b"Subject: long\n\n" + message[message.index(b"\r\n\r\n") + 4 :].replace(b"\r\n", b"\n")]

        @settings(max_examples=40, deadline=None)
        @given(st.lists(st.integers(0, len(message)), max_size=4), st.booleans())
        def check(cuts: list[int], at_once: bool) -> None:
            delivery = self.delivery()
            for start, end in pairwise(sorted([0, *cuts, PIECE + 1, len(message)])):
                delivery.write(message[start:end])
                if at_once:
                    self.threads.run()
            self.successResultOf(self.finished(delivery))
            self.assertEqual(self.files("new"), expected)
            for path in (self.folder / "new").iterdir():
                path.unlink()

        check()

    def test_carriageReturnAtTheEdge(self) -> None:
        """A CR LF that is split becomes one LF."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n\r\n" + b"y" * PIECE + b"\r")
        self.threads.run()
        delivery.write(b"\nend\r\n")
        self.successResultOf(self.finished(delivery))
        self.assertEqual(self.files("new"), [HEADER + b"A: b\n\n" + b"y" * PIECE + b"\nend\n"])

    def test_bareCarriageReturnsStay(self) -> None:
        """A bare CR is kept."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n\r\na\rb\r\n")
        self.successResultOf(self.finished(delivery))
        self.assertEqual(self.files("new"), [HEADER + b"A: b\n\na\rb\n"])

    def test_slowDisk(self) -> None:
        """While a piece is written and a second one is complete, the client is slowed down."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n\r\n" + b"y" * PIECE)
        self.assertEqual(self.producer.paused, 0)
        delivery.write(b"z" * PIECE)
        self.assertEqual(self.producer.paused, 1)
        self.threads.run()
        self.assertGreater(self.producer.resumed, 0)
        self.successResultOf(self.finished(delivery))
        self.assertEqual(self.files("new"), [HEADER + b"A: b\n\n" + b"y" * PIECE + b"z" * PIECE])

    def test_forgeryFarDown(self) -> None:
        """A forged field is found anywhere in a long header."""
        delivery = self.delivery()
        long = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 60) for number in range(2 * PIECE // 64))
        delivery.write(long)
        self.threads.run()
        delivery.write(b"X-RcptTo: forged\r\nLast: field\r\n\r\nbody\r\n")
        self.successResultOf(self.finished(delivery))
        self.assertEqual(self.files("new"), [HEADER + long.replace(b"\r\n", b"\n") + b"Last: field\n\nbody\n"])

    def test_forgeryBehindMegabytes(self) -> None:
        """A forged field is not stored, however much header precedes it."""
        delivery = self.delivery()
        for number in range(40):
            delivery.write(b"X-%d: %s\r\n" % (number, b"v" * PIECE))
            self.threads.run()
        delivery.write(b"X-RcptTo: forged\r\n forged, too\r\nX-Pe")
        delivery.write(b"er: forged\r\nLast: field\r\n\r\nX-Peer: body\r\n")
        self.successResultOf(self.finished(delivery))
        [stored] = self.files("new")
        self.assertNotIn(b"forged", stored)
        self.assertTrue(stored.endswith(b"v\nLast: field\n\nX-Peer: body\n"))

    def test_headerWithoutEnd(self) -> None:
        """A header without an end is written as it arrives, and is not collected in memory."""
        delivery = self.delivery()
        for _ in range(16):
            delivery.write(b"a" * PIECE)
            self.assertEqual(len(self.threads.waiting), 1)
            self.threads.run()
        self.successResultOf(self.finished(delivery))
        self.assertEqual(self.files("new"), [HEADER + b"a" * 16 * PIECE])

    def test_abort(self) -> None:
        """Nothing is left of an incomplete message."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n\r\n" + b"y" * PIECE)
        self.threads.run()
        self.assertEqual(len(self.files("tmp")), 1)
        delivery.write(b"y" * PIECE)
        delivery.abort(ConnectionLost())
        self.threads.run()
        self.assertEqual(self.files("tmp") + self.files("new"), [])

    def test_abortBeforeAnything(self) -> None:
        """A message of which nothing was written is discarded."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n")
        delivery.abort(ConnectionLost())
        self.threads.run()
        self.assertEqual(self.files("tmp") + self.files("new"), [])

    def test_cancelledWhileWriting(self) -> None:
        """If it is cancelled before it is complete, nothing is left of it."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n\r\n" + b"y" * PIECE)
        done = Deferred.fromCoroutine(delivery.finish())
        done.cancel()
        self.threads.run()
        self.failureResultOf(done)
        self.assertEqual(self.files("tmp") + self.files("new"), [])

    def test_faults(self) -> None:
        """Whatever the disk refuses, the client gets a refusal, and nothing is left."""
        for failing in ("open", "write", "rename", "close"):
            for octets in (10, 2 * PIECE):
                maildir = Maildir(self.folder, durable=False)
                maildir._os = FullDisk(failing)
                delivery = self.delivery(maildir)
                delivery.write(b"A: b\r\n\r\n" + b"y" * octets)
                self.threads.run()
                delivery.write(b"more")
                self.failureResultOf(self.finished(delivery), NotStored)
                self.assertEqual(self.files("tmp") + self.files("new"), [], f"{failing} {octets}")


class MailboxStreamsTests(SynchronousTestCase):
    def test_streams(self) -> None:
        """A Mailbox receives messages as they arrive. A subclass that reads messages gets them whole."""

        class Filter(Mailbox):
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
                return await super().handle_DATA(server, session, envelope)

        class Sorted(Mailbox):
            def handle_message(self, message: Any) -> Any:
                return super().handle_message(message)

        self.assertTrue(IStreamingHandler.providedBy(Mailbox(self.mktemp())))
        self.assertFalse(IStreamingHandler.providedBy(Filter(self.mktemp())))
        self.assertFalse(IStreamingHandler.providedBy(Sorted(self.mktemp())))


class TwoThreadsTests(DeliveryTestCase):
    def test_goneDuringCommit(self) -> None:
        """If a client disconnects while its message is committed, the commit continues and no other code touches the
        file."""
        delivery = self.delivery()
        delivery.write(b"A: b\r\n\r\n" + b"y" * PIECE)
        self.threads.run()
        delivery.write(b"the end\r\n")
        done = Deferred.fromCoroutine(delivery.finish())
        done.cancel()  # the commit is queued for the thread, but has not started
        self.failureResultOf(done)
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.run()
        self.assertEqual(self.files("tmp"), [])
        self.assertEqual(self.files("new"), [HEADER + b"A: b\n\n" + b"y" * PIECE + b"the end\n"])
