"""A worker as the master sees it, without a process."""

from __future__ import annotations

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.workers import process
from txsmtpd.service.workers.messages import Beat, Channel
from txsmtpd.service.workers.process import Worker


class Watcher:
    """Records the events of a worker."""

    status: int | None = None
    signal: int | None = None

    def worker_ready(self, worker: Worker) -> None:
        raise NotImplementedError

    def worker_ended(self, worker: Worker, status: int | None, signal: int | None) -> None:
        self.status = status
        self.signal = signal


class PrintedTests(SynchronousTestCase):
    """The output of a worker that the master logs."""

    def test_wholeLines(self) -> None:
        """Complete lines are logged, however they arrive, from both streams, including the last ones."""
        watcher = Watcher()
        worker = Worker(0, 0, watcher, Clock(), lambda: 0.0)
        with capturedLogs() as events:
            for stream, printed in [(1, b"one\ntw"), (2, b"err"), (1, b"o\n"), (2, b"or\r\n"), (1, b"last")]:
                worker.childDataReceived(stream, printed)
            worker._ended(Failure(ProcessDone(0)))
        lines = [str(formatEvent(each)).partition(": ")[2] for each in events]
        self.assertEqual(lines, ["one", "two", "error", "last", ""])
        self.assertEqual(watcher.status, 0)
        self.flushLoggedErrors()

    def test_endlessLine(self) -> None:
        """A line without an end uses limited memory."""
        self.patch(process, "LONGEST_LINE", 2**12)  # trial -j cannot transfer 64 KiB of a log at once
        worker = Worker(0, 0, Watcher(), Clock(), lambda: 0.0)
        with capturedLogs() as events:
            for _ in range(10):
                worker.childDataReceived(1, b"x" * 2**10)
        self.assertEqual(len(events), 2)
        self.assertLess(sum(map(len, worker._unfinished.values())), 2**12)


class EndTests(SynchronousTestCase):
    """The end of a worker, of which its watcher is always notified."""

    def test_signals(self) -> None:
        """Any signal ends a worker, even one for which Python has no name."""
        for number, name in (9, "SIGKILL"), (35, "signal 35"):
            watcher = Watcher()
            worker = Worker(0, 0, watcher, Clock(), lambda: 0.0)
            with capturedLogs() as events:
                worker._ended(Failure(ProcessTerminated(signal=number)))
            self.assertEqual(watcher.signal, number)
            self.assertIn(f"was ended by {name}", str(formatEvent(events[-1])))


class ChannelTests(SynchronousTestCase):
    """The channel between master and worker."""

    def test_full(self) -> None:
        """A channel detects when the other end does not read, and when it reads again."""
        channel = Channel()
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.tell(Beat, counted=None, problems=[])
        self.assertIn(b"Beat", transport.value())
        self.assertFalse(channel.is_full)
        producer = transport.producer
        assert producer is not None and transport.streaming
        producer.pauseProducing()
        self.assertTrue(channel.is_full)
        producer.resumeProducing()
        self.assertFalse(channel.is_full)
