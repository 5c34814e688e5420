"""Messages that are passed on as they arrive: receivers, the single end of each, and back-pressure."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.error import TimeoutError as ClientTimeout
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.support import GREETING, TRANSACTION, Answer, Client, LoggingTestCase, Waiting, answers, codes
from txsmtpd import SMTPFactory
from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler
from txsmtpd.reply import Refused, Reply

START = GREETING + TRANSACTION
KEPT = Answer(250, ("2.0.0 kept",))
FULL = Reply(452, "4.3.1", "The disk is full")
FAILED = Answer(451, ("4.3.0 Internal error, try again later",))


def chunk(octets: bytes, last: bool = False) -> bytes:
    """BDAT and its payload."""
    return b"BDAT %d%s\r\n%s" % (len(octets), b" LAST" if last else b"", octets)


def stuffed(message: bytes) -> bytes:
    """DATA and the message, dot-stuffed, with its end."""
    text = b"\r\n" + message
    return b"DATA\r\n" + text.replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


@implementer(IMessageReceiver)
class Receiver:
    """Keeps a message, and checks the order of the server's calls.

    :param plan: the action in each call, by the name of the call, or by its name and number (``write0``).
    """

    def __init__(self, plan: dict[str, Callable[[Receiver], Any]] | None = None) -> None:
        self.plan = plan or {}
        self.calls: list[str] = []
        self.octets: list[bytes] = []
        self.producer: Any = None
        self.paused = False
        self.ends: list[str] = []
        self.reason: BaseException | None = None
        self.broken: list[str] = []  # mistakes of the server

    def _called(self, name: str) -> Any:
        if self.ends:
            self.broken.append(f"{name} after {self.ends}")
        self.calls.append(name)
        act = self.plan.get(name) or self.plan.get(f"{name}{self.calls.count(name) - 1}")
        return act(self) if act else None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.calls:
            self.broken.append(f"registerProducer after {self.calls}")
        if not streaming or not IPushProducer.providedBy(producer):
            self.broken.append("not a push producer")
        self.producer = producer
        self._called("registerProducer")

    def unregisterProducer(self) -> None:
        self._called("unregisterProducer")

    def write(self, data: bytes) -> None:
        if self.paused:
            self.broken.append("write to a receiver that has paused")
        if not isinstance(data, bytes) or not data:
            self.broken.append(f"write({data!r})")
        self.octets.append(data)
        self._called("write")

    def finish(self) -> Any:
        status = self._called("finish")
        self.ends.append("finish")
        return "250 2.0.0 kept" if status is None else status

    def abort(self, reason: BaseException) -> None:
        self.reason = reason
        try:
            self._called("abort")
        finally:
            self.ends.append("abort")

    # What the receiver may do while a method is called

    def pause(self) -> None:
        self.paused = True
        self.producer.pauseProducing()

    def resume(self) -> None:
        if self.paused and not self.ends:
            self.paused = False
            self.producer.resumeProducing()

    def stop(self) -> None:
        self.producer.stopProducing()

    def fail(self) -> None:
        raise ValueError("the receiver")

    def refuse(self) -> None:
        raise Refused(FULL)

    @property
    def message(self) -> bytes:
        return b"".join(self.octets)


@implementer(IStreamingHandler)
class Handler:
    """Opens receivers, each with the next plan."""

    def __init__(self, *plans: dict[str, Callable[[Receiver], Any]]) -> None:
        self.plans = list(plans)
        self.receivers: list[Receiver] = []
        self.opened: list[tuple[Any, Any]] = []
        self.hook: Callable[[Receiver], Any] = lambda receiver: receiver

    def open_message(self, server: Any, session: Any, envelope: Any) -> Any:
        self.opened.append((envelope.mail_from, list(envelope.rcpt_tos)))
        self.receivers.append(Receiver(self.plans.pop(0) if self.plans else None))
        return self.hook(self.receivers[-1])

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        raise AssertionError("not for a handler that streams")


class ReceiverTestCase(LoggingTestCase):
    def start(self, *plans: dict[str, Any], hook: Any = None, **options: Any) -> Client:
        """A client whose next input is the message."""
        self.handler = Handler(*plans)
        if hook is not None:
            self.handler.hook = hook
        client = Client(self.handler, **options)
        self.assertEqual(client.codes(START), [250, 250, 250])
        return client

    @property
    def receiver(self) -> Receiver:
        [receiver] = self.handler.receivers
        return receiver

    def assertEnded(self, how: str) -> None:
        """Assert that all receivers had this end, and that no rule was violated."""
        for receiver in self.handler.receivers:
            self.assertEqual((receiver.ends, receiver.broken), ([how], []), receiver.calls)


class MessageTests(ReceiverTestCase):
    """The calls that a receiver gets."""

    def test_data(self) -> None:
        """DATA: the octets without dot-stuffing, then finish. Its status is the reply."""
        client = self.start()
        self.assertEqual(codes(client.talk(b"DATA\r\n")), [354])
        self.assertEqual(self.handler.opened, [("a@example.com", ["b@example.com"])])
        self.assertEqual(answers(client.talk(b"..a\r\n.b\r\n.\r\n")), [KEPT])
        self.assertEqual(self.receiver.message, b".a\r\nb\r\n")
        self.assertEndedInOrder()

    def assertEndedInOrder(self) -> None:
        calls = [call for call in self.receiver.calls if call != "write"]
        self.assertEqual(calls, ["registerProducer", "unregisterProducer", "finish"])
        self.assertEnded("finish")

    def test_bdat(self) -> None:
        """BDAT: the octets of all chunks, unchanged; one receiver for the message."""
        client = self.start()
        self.assertEqual(codes(client.talk(chunk(b"..a\r\n") + chunk(b"\0\n.\r\n") + b"BDAT 0 LAST\r\n")), [250] * 3)
        self.assertEqual(self.receiver.message, b"..a\r\n\0\n.\r\n")
        self.assertEndedInOrder()

    def test_asTheyArrive(self) -> None:
        """Octets are passed on when they arrive, not at the end of the message."""
        for begin, behind in (b"DATA\r\n", b"\r\n.\r\n"), (b"BDAT 9 LAST\r\n", b"\r\n!"):
            client = self.start()
            client.say(begin)
            client.say(b"abc")
            self.assertEqual(self.receiver.message, b"abc")
            client.say(b"def")
            self.assertEqual(self.receiver.message, b"abcdef")
            client.say(behind)
            self.assertEnded("finish")

    def test_empty(self) -> None:
        """A message without octets causes no write."""
        for octets in b"DATA\r\n.\r\n", b"BDAT 0 LAST\r\n":
            client = self.start()
            self.assertEqual(answers(client.talk(octets))[-1], KEPT)
            self.assertEqual(self.receiver.calls, ["registerProducer", "unregisterProducer", "finish"])

    @given(
        message=some.lists(some.sampled_from([b".", b"..", b".x", b"text", b"\r\n", b"\0\xff"])).map(
            lambda parts: b"".join(parts) + b"\r\n"
        ),
        cuts=some.lists(some.integers(0, 120)),
    )
    @settings(deadline=None)
    def test_exactly(self, message: bytes, cuts: list[int]) -> None:
        """However the octets are split, by DATA or by BDAT, the receiver gets exactly the message."""
        for octets in stuffed(message), chunk(message, True), chunk(message) + b"BDAT 0 LAST\r\n":
            client = self.start()
            client.say(octets, cuts)
            self.assertEqual(answers(client.heard())[-1], KEPT)
            self.assertEqual(self.receiver.message, message)
            self.assertEnded("finish")

    def test_severalMessages(self) -> None:
        """Each message has its own receiver."""
        client = self.start()
        client.say(stuffed(b"a\r\n") + TRANSACTION + chunk(b"b", True) + TRANSACTION + stuffed(b"c\r\n"))
        self.assertEqual(codes(client.heard()), [354, 250, 250, 250, 250, 250, 250, 354, 250])
        self.assertEqual([each.message for each in self.handler.receivers], [b"a\r\n", b"b", b"c\r\n"])
        self.assertEnded("finish")

    def test_statuses(self) -> None:
        """finish returns its status as handle_DATA does: directly, as a coroutine, or as a Deferred."""

        async def later(receiver: Receiver) -> str:
            return "250 2.0.0 kept"

        def deferred(receiver: Receiver) -> Any:
            return Deferred.fromCoroutine(later(receiver))

        reply = Reply(250, "2.0.0", "kept")
        for finish in later, deferred, lambda receiver: reply, lambda receiver: None:
            client = self.start({"finish": finish})
            self.assertEqual(answers(client.talk(stuffed(b"a\r\n")))[-1], KEPT)
            self.assertEnded("finish")

    def test_refusedByFinish(self) -> None:
        """finish may refuse the message, by its status or by Refused. That is the single end of the message."""
        for finish in refusing, lambda receiver: str(FULL), lambda receiver: FULL:
            for octets in stuffed(b"a\r\n"), chunk(b"a", True):
                client = self.start({"finish": finish})
                self.assertEqual(answers(client.talk(octets))[-1], Answer(452, ("4.3.1 The disk is full",)))
                self.assertEnded("finish")

    def test_noStatus(self) -> None:
        """A finish that returns no status gets 451, and is logged."""
        client = self.start({"finish": lambda receiver: 42})
        self.assertEqual(codes(client.talk(stuffed(b"a\r\n"))), [354, 451])
        self.assertEqual(self.errors_logged(), 1)

    def test_421(self) -> None:
        """A finish that returns 421 closes the connection."""
        client = self.start({"finish": lambda receiver: "421 4.3.2 closing"})
        self.assertEqual(codes(client.talk(stuffed(b"a\r\n"))), [354, 421])
        self.assertTrue(client.closed)

    def test_producer(self) -> None:
        """A receiver is a consumer, and gets a push producer."""
        client = self.start()
        client.say(b"DATA\r\n")
        self.assertTrue(verifyObject(IPushProducer, self.receiver.producer))
        self.assertTrue(verifyObject(IConsumer, self.receiver))
        client.vanish()

    def test_notDeclared(self) -> None:
        """A handler that does not declare IStreamingHandler is a mistake, and its open_message is never called."""

        class Handler:
            def open_message(self, *arguments: Any) -> Any:
                raise AssertionError

            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                return f"250 2.0.0 {envelope.content!r}"

        self.assertIn("implementer(IStreamingHandler)", str(self.assertRaises(TypeError, SMTPFactory, Handler())))
        with warnings.catch_warnings(record=True) as warned:
            client = Client(factory=SMTPFactory(Handler(), strict_handler=False))
        self.assertIn("implementer(IStreamingHandler)", str(warned[0].message))
        client.say(START + stuffed(b"a\r\n"))
        self.assertEqual(answers(client.heard())[-1].text, r"2.0.0 b'a\r\n'")


def refusing(receiver: Receiver) -> Any:
    """A finish that raises Refused, recorded as the end of the receiver."""
    receiver.ends.append("finish")
    raise Refused(FULL)


class OpenTests(ReceiverTestCase):
    """open_message."""

    def test_refused(self) -> None:
        """Refused sets the reply in place of 354, and the transaction stays open. The next DATA may be accepted."""

        def refuse(receiver: Receiver) -> Any:
            raise Refused(FULL)

        client = self.start(hook=refuse)
        self.assertEqual(answers(client.talk(b"DATA\r\n")), [Answer(452, ("4.3.1 The disk is full",))])
        self.assertEqual(self.receiver.calls, [])
        self.handler.hook = lambda receiver: receiver
        self.assertEqual(codes(client.talk(stuffed(b"a\r\n"))), [354, 250])

    def test_raises(self) -> None:
        """Any other exception is logged, and the reply is 451 in place of 354."""

        def fail(receiver: Receiver) -> Any:
            raise ValueError("open_message")

        client = self.start(hook=fail)
        self.assertEqual(answers(client.talk(b"DATA\r\n")), [FAILED])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_nothing(self) -> None:
        """A result that is not a receiver gets 451, and is logged."""
        client = self.start(hook=lambda receiver: None)
        client.say(b"DATA\r\nNOOP\r\n")
        self.assertEqual(codes(client.heard())[0], 451)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_waits(self) -> None:
        """open_message may wait. 354 is sent when it is done, and octets that arrived earlier are passed on."""
        waiting = Waiting()

        async def wait(receiver: Receiver) -> Receiver:
            await waiting()
            return receiver

        for octets, expected in (stuffed(b"a\r\n"), [354, 250]), (chunk(b"a\r\n", True), [250]):
            client = self.start(hook=wait)
            self.assertEqual(client.talk(octets), b"")
            waiting.fire()
            self.assertEqual(codes(client.heard()), expected)
            self.assertEqual(self.receiver.message, b"a\r\n")
            self.assertEnded("finish")

    def test_tooLong(self) -> None:
        """If it takes too long, it is cancelled, and the reply is 451."""
        waiting = Waiting()
        client = self.start(hook=waiting, hook_timeout=5)
        client.say(b"DATA\r\n")
        self.assertEqual(codes(client.wait(6)), [451])
        self.assertEqual(waiting.cancelled, 1)

    def test_gone(self) -> None:
        """It is also cancelled if the client disconnects. If it opens a receiver nevertheless, that is aborted."""
        for obedient in True, False:
            waiting = Waiting(obedient=obedient)
            client = self.start(hook=waiting)
            client.say(b"DATA\r\n")
            waiting.result = self.receiver
            client.vanish()
            self.assertEqual(waiting.cancelled, 1)
            if not obedient:
                waiting.fire()
                self.assertEnded("abort")


class EndTests(ReceiverTestCase):
    """The single end of a message that is not completed."""

    def assertAborted(self, why: type[BaseException], reply: int | None = None) -> None:
        self.assertEnded("abort")
        reason = self.receiver.reason
        self.assertIsInstance(reason, why)
        if reply is not None:
            assert isinstance(reason, Refused)
            self.assertEqual(reason.reply.code, reply)
        self.assertEqual(self.receiver.calls[-2:], ["unregisterProducer", "abort"])

    def test_vanished(self) -> None:
        """The client disconnects: abort gets the reason."""
        for octets in b"DATA\r\nabc", b"BDAT 5\r\nabc", chunk(b"abc"):
            client = self.start()
            client.say(octets)
            client.vanish()
            self.assertAborted(ConnectionLost)

    def test_idle(self) -> None:
        """The client is idle for too long."""
        for octets in b"DATA\r\nabc", b"BDAT 5\r\nabc", chunk(b"abc"):
            client = self.start(timeout=10)
            client.say(octets)
            client.heard()
            self.assertEqual(codes(client.wait(11)), [421])
            self.assertAborted(ClientTimeout)

    def test_halfClosed(self) -> None:
        """The client closes its side before the end."""
        for octets in b"DATA\r\nabc", b"BDAT 5\r\nabc", chunk(b"abc"):
            client = self.start()
            client.say(octets)
            client.half_close()
            self.assertTrue(client.closed)
            self.assertAborted(ConnectionDone)

    def test_tooLarge(self) -> None:
        """The message is too large: the reason has the client's reply. No octets above the limit are passed on."""
        for octets in stuffed(bytes(20) + b"\r\n"), chunk(bytes(10)) + chunk(bytes(9)):
            client = self.start(data_size_limit=16)
            client.say(octets, range(len(octets)))
            self.assertEqual(codes(client.heard())[-1], 552)
            self.assertAborted(Refused, 552)
            self.assertLessEqual(len(self.receiver.message), 16)

    def test_bareNewline(self) -> None:
        """The message has a bare LF: it is read to its end, refused there, and aborted."""
        client = self.start()
        client.say(b"DATA\r\na\nb\r\nmore\r\n.\r\n")
        self.assertEqual(codes(client.heard()), [354, 550])
        self.assertAborted(Refused, 550)

    def test_lineTooLong(self) -> None:
        """A line is too long."""
        client = self.start(line_length_limit=10)
        client.say(b"DATA\r\n" + bytes(20) + b"\r\n.\r\n")
        self.assertEqual(codes(client.heard()), [354, 500])
        self.assertAborted(Refused, 500)

    def test_reset(self) -> None:
        """RSET, EHLO or QUIT between chunks."""
        for command, why in (b"RSET", Refused), (b"EHLO x", Refused), (b"HELO x", Refused), (b"QUIT", ConnectionDone):
            client = self.start()
            client.say(chunk(b"abc") + command + b"\r\n")
            self.assertAborted(why)

    def test_errorLimit(self) -> None:
        """Other input of the client ends the connection."""
        client = self.start(error_limit=2)
        client.say(chunk(b"abc") + b"BOGUS\r\nBOGUS\r\n")
        self.assertEqual(codes(client.heard()), [250, 500, 421])
        self.assertAborted(ConnectionDone)

    def test_writeRaises(self) -> None:
        """A receiver that raises an exception is aborted with it, and not written to again. The reply is 451, once."""
        for octets, expected in (stuffed(b"a\r\nb\r\n"), [354, 451]), (chunk(b"a", True), [451]):
            client = self.start({"write0": Receiver.fail})
            client.say(octets, range(len(octets)))
            self.assertEqual(codes(client.heard()), expected)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
            self.assertAborted(ValueError)
            self.assertEqual(self.receiver.calls.count("write"), 1)

    def test_writeRefuses(self) -> None:
        """A write may refuse the message: the rest is read, the reply is sent at the end, and nothing is logged."""
        client = self.start({"write0": Receiver.refuse})
        client.say(b"DATA\r\na\r\n")
        self.assertEqual(codes(client.heard()), [354])
        self.assertEqual(answers(client.talk(b"NOOP\r\n.\r\n")), [Answer(452, ("4.3.1 The disk is full",))])
        self.assertAborted(Refused, 452)

    def test_stopProducing(self) -> None:
        """stopProducing refuses the message: the receiver is aborted immediately, and the reply at the end is 451."""
        for where in "registerProducer", "write0":
            client = self.start({where: Receiver.stop})
            client.say(b"DATA\r\na\r\n")
            self.assertAborted(Refused, 451)
            self.assertEqual(codes(client.talk(b"b\r\n.\r\n")), [354, 451])
            self.assertAborted(Refused, 451)

    def test_stopsLater(self) -> None:
        """It may be called at any time, even while paused. After the end it has no effect."""
        client = self.start({"write0": Receiver.pause})
        client.say(b"DATA\r\na\r\n")
        self.receiver.stop()
        self.receiver.stop()
        self.assertEqual(codes(client.talk(b"b\r\n.\r\n")), [354, 451])
        self.assertEnded("abort")
        client = self.start()
        client.say(stuffed(b"a\r\n"))
        self.receiver.stop()
        self.assertEnded("finish")

    def test_othersRaise(self) -> None:
        """If registerProducer or unregisterProducer raises, the reply to the message is 451."""
        for name in "registerProducer", "unregisterProducer":
            client = self.start({name: Receiver.fail})
            self.assertEqual(codes(client.talk(stuffed(b"a\r\n"))), [354, 451])
            self.assertEnded("abort")
            self.assertGreater(len(self.flushLoggedErrors(ValueError)), 0)

    def test_finishRaises(self) -> None:
        """If finish raises, that is the end of the message: abort is not called."""
        client = self.start({"finish": Receiver.fail})
        self.assertEqual(answers(client.talk(stuffed(b"a\r\n")))[-1], FAILED)
        self.assertEqual(self.receiver.calls[-2:], ["unregisterProducer", "finish"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_abortRaises(self) -> None:
        """An exception of abort is logged, and has no other effect."""
        client = self.start({"abort": Receiver.fail})
        self.assertEqual(codes(client.talk(chunk(b"a") + b"RSET\r\nNOOP\r\n")), [250, 250, 250])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        client = self.start({"abort": Receiver.fail})
        client.say(b"DATA\r\na")
        client.vanish()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_errorIsNotLost(self) -> None:
        """The exception of a receiver is logged even if the message has no reply."""
        for behind in b"RSET\r\n", b"QUIT\r\n", None:
            client = self.start({"write0": Receiver.fail})
            client.say(chunk(b"a"))
            if behind:
                client.say(behind)
            else:
                client.vanish()
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1, behind)
            self.assertAborted(ValueError)

    def test_finishWaits(self) -> None:
        """While finish waits, the client's next commands wait for the reply."""
        waiting = Waiting("250 2.0.0 kept")
        client = self.start({"finish": waiting})
        client.say(stuffed(b"a\r\n") + b"NOOP\r\n")
        self.assertEqual(codes(client.heard()), [354])
        waiting.fire()
        self.assertEqual(codes(client.heard()), [250, 250])
        self.assertEnded("finish")

    def test_finishCancelled(self) -> None:
        """A finish that waits is cancelled if the client disconnects, or if it takes too long. That is the end of the
        message: abort is not called, and a receiver must clean up when its finish is cancelled."""
        for way in "vanish", "time out":
            for obedient in True, False:
                waiting = Waiting("250 2.0.0 kept", obedient)
                client = self.start({"finish": waiting}, hook_timeout=5)
                client.say(stuffed(b"a\r\n"))
                client.heard()
                if way == "vanish":
                    client.vanish()
                else:
                    self.assertEqual(codes(client.wait(6)), [451 if obedient else 421])
                self.assertEqual(waiting.cancelled, 1)
                if not obedient:
                    waiting.fire()
                self.assertEnded("finish")

    def test_transactionOver(self) -> None:
        """After any end, the transaction is over, and the next one works."""
        for plan in {}, {"write0": Receiver.fail}, {"finish": Receiver.fail}, {"write0": Receiver.stop}:
            client = self.start(plan)
            client.say(stuffed(b"a\r\n"))
            client.heard()
            self.assertEqual(codes(client.talk(TRANSACTION + stuffed(b"b\r\n"))), [250, 250, 354, 250])
            self.assertEqual(self.handler.receivers[-1].message, b"b\r\n")
            self.flushLoggedErrors(ValueError)


class PauseTests(ReceiverTestCase):
    """Receivers that pause."""

    def test_paused(self) -> None:
        """A receiver that has paused is not written to until it resumes. Then it gets everything that has arrived."""
        client = self.start({"write0": Receiver.pause})
        client.say(b"DATA\r\na")
        client.say(b"b")
        client.say(b"c\r\n.\r\nNOOP\r\n")
        self.assertEqual(self.receiver.message, b"a")
        self.assertEqual(codes(client.heard()), [354])
        self.receiver.resume()
        self.assertEqual(self.receiver.message, b"abc\r\n")
        self.assertEqual(codes(client.heard()), [250, 250])
        self.assertEnded("finish")

    def test_pausedAtOnce(self) -> None:
        """It may pause as soon as its producer is registered."""
        for octets in b"DATA\r\n", b"BDAT 1 LAST\r\n":
            client = self.start({"registerProducer": Receiver.pause})
            client.say(octets)
            client.say(b"a")
            self.assertEqual(self.receiver.message, b"")
            self.receiver.resume()
            self.assertEqual(self.receiver.message, b"a")
            client.vanish()

    def test_readingStops(self) -> None:
        """While it is paused, at most buffer_limit octets are read. Then the client is slowed down."""
        client = self.start({"write0": Receiver.pause}, buffer_limit=1000)
        client.say(b"DATA\r\na")
        for _ in range(20):
            client.say(b"b" * 100)
        self.assertFalse(client.reading)
        self.assertGreaterEqual(client.undelivered, 800)
        client.say(b"\r\n.\r\n")
        self.receiver.resume()
        self.assertEqual(codes(client.wait(0.25)), [354, 250])
        self.assertTrue(client.reading)
        self.assertEqual(client.undelivered, 0)
        self.assertEqual(self.receiver.message, b"a" + b"b" * 2000 + b"\r\n")
        self.assertEnded("finish")

    def test_pausesEachTime(self) -> None:
        """It may pause at each write."""
        plan = {f"write{number}": Receiver.pause for number in range(100)}
        message = b"0123456789" * 10 + b"\r\n"
        for octets in stuffed(message), chunk(message, True), chunk(message[:50]) + chunk(message[50:], True):
            client = self.start(plan)
            client.say(octets, range(0, len(octets), 10))
            for _ in range(30):
                self.receiver.resume()
            self.assertEqual(self.receiver.message, message)
            self.assertEnded("finish")

    def test_resumesAtOnce(self) -> None:
        """It may resume within the call in which it paused."""

        def both(receiver: Receiver) -> None:
            receiver.pause()
            receiver.resume()

        client = self.start({"registerProducer": both, "write0": both, "write1": both})
        self.assertEqual(codes(client.talk(stuffed(b"a\r\nb\r\n") + b"NOOP\r\n")), [354, 250, 250])

    def test_pausedAtTheEnd(self) -> None:
        """A receiver that pauses with the last octets does not stop the commands after its message: when it has
        finished, its pause ends."""
        for octets, expected in (stuffed(b"a\r\n"), [354, 250]), (chunk(b"a", True), [250]):
            client = self.start({"write0": Receiver.pause})
            self.assertEqual(codes(client.talk(octets + b"NOOP\r\n")), [*expected, 250])
            self.assertEnded("finish")

    def test_lateResume(self) -> None:
        """A receiver whose message is over does not affect the pause of the next receiver."""
        client = self.start({}, {"write0": Receiver.pause})
        client.say(chunk(b"old"))
        old = self.handler.receivers[0].producer
        client.say(b"RSET\r\n" + TRANSACTION + b"DATA\r\na")
        old.resumeProducing()
        client.say(b"b")
        self.assertEqual(self.handler.receivers[1].message, b"a")
        old.pauseProducing()
        self.handler.receivers[1].resume()
        self.assertEqual(self.handler.receivers[1].message, b"ab")
        client.vanish()
        self.assertEnded("abort")

    def test_tooManyCalls(self) -> None:
        """Redundant calls have no effect."""
        client = self.start()
        client.say(b"DATA\r\na")
        producer = self.receiver.producer
        producer.resumeProducing()
        producer.pauseProducing()
        producer.pauseProducing()
        client.say(b"b")
        self.assertEqual(self.receiver.message, b"a")
        producer.resumeProducing()
        producer.resumeProducing()
        self.assertEqual(codes(client.talk(b"\r\n.\r\n")), [354, 250])
        producer.resumeProducing()
        producer.pauseProducing()
        self.assertEqual(codes(client.talk(b"NOOP\r\n")), [250])

    def test_idleStandsStill(self) -> None:
        """While the receiver is paused, the client's timeouts do not run. Afterwards it has the whole time."""
        for where in "write0", "registerProducer":
            client = self.start({where: Receiver.pause}, timeout=10, hook_timeout=None)
            client.say(b"DATA\r\na")
            client.heard()
            self.assertEqual(client.wait(1000, 5), b"", where)
            self.receiver.resume()
            self.assertEqual(client.wait(9), b"")
            self.assertEqual(codes(client.wait(2)), [421])
            self.assertEnded("abort")

    def test_idleStandsStillAfterWait(self) -> None:
        """The same is true if open_message waited and its receiver pauses immediately."""
        waiting = Waiting()

        async def wait(receiver: Receiver) -> Receiver:
            await waiting()
            return receiver

        client = self.start({"registerProducer": Receiver.pause}, hook=wait, timeout=10, hook_timeout=None)
        client.say(b"DATA\r\n")
        waiting.fire()
        self.assertEqual(codes(client.heard()), [354])
        self.assertEqual(client.wait(100), b"")
        client.vanish()
        self.assertEnded("abort")

    def test_idleWhileFinishing(self) -> None:
        """A receiver that resumes during its finish does not start the client's timeouts."""
        waiting = Waiting("250 2.0.0 kept")
        client = self.start({"write0": Receiver.pause, "finish": waiting}, timeout=10, hook_timeout=None)
        client.say(stuffed(b"a\r\n"))
        self.receiver.paused = False
        self.receiver.producer.resumeProducing()
        self.assertEqual(codes(client.heard()), [354])
        self.assertEqual(client.wait(100), b"")
        waiting.fire()
        self.assertEqual(answers(client.heard()), [KEPT])

    def test_forEver(self) -> None:
        """A receiver that pauses for longer than hook_timeout ends the connection, and is aborted."""
        for octets in b"DATA\r\na", b"BDAT 5\r\na":
            client = self.start({"write0": Receiver.pause}, hook_timeout=5)
            client.say(octets)
            client.heard()
            self.assertEqual(client.wait(4.5), b"")
            self.assertEqual(codes(client.wait(1)), [421])
            self.assertTrue(client.closed)
            self.assertEnded("abort")

    def test_eachPauseHasItsTime(self) -> None:
        """hook_timeout applies to each pause, not to all of them together."""
        plan = {f"write{number}": Receiver.pause for number in range(10)}
        client = self.start(plan, hook_timeout=5)
        client.say(b"DATA\r\n")
        for _ in range(10):
            client.say(b"a")
            client.wait(4)
            self.receiver.resume()
        self.assertEqual(codes(client.talk(b"\r\n.\r\n")), [354, 250][1:])

    def test_vanishedWhilePaused(self) -> None:
        """If the client disconnects while the receiver is paused, the server notices immediately."""
        client = self.start({"write0": Receiver.pause})
        client.say(b"DATA\r\na")
        client.vanish()
        self.assertEnded("abort")
        self.receiver.producer.resumeProducing()
        self.assertEnded("abort")
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_halfClosedWhilePaused(self) -> None:
        """A client that has sent everything and half-closes meanwhile gets its replies."""
        client = self.start({"write0": Receiver.pause})
        client.say(b"DATA\r\na")
        client.say(b"\r\n.\r\nQUIT\r\n")
        client.half_close()
        self.assertFalse(client.closed)
        self.receiver.resume()
        self.assertEqual(codes(client.wait(0.25)), [354, 250, 221])
        self.assertTrue(client.closed)
        self.assertEnded("finish")

    def test_raisesWhilePaused(self) -> None:
        """If a receiver pauses and then raises in the same call, its pause ends."""

        def both(receiver: Receiver) -> None:
            receiver.pause()
            receiver.fail()

        client = self.start({"write0": both})
        client.say(b"DATA\r\na")
        self.assertEqual(codes(client.talk(b"\r\n.\r\nNOOP\r\n")), [354, 451, 250])
        self.assertEnded("abort")
        self.flushLoggedErrors(ValueError)

    def test_clientDoesNotRead(self) -> None:
        """A client that does not read its replies, and a paused receiver, do not end each other's pause."""
        client = self.start({"write0": Receiver.pause})
        client.say(b"DATA\r\na")
        client.server.pauseProducing()  # as the transport calls it
        self.receiver.resume()
        client.server.pauseProducing()
        client.say(b"b")
        self.assertEqual(self.receiver.message, b"a")
        client.server.resumeProducing()
        client.wait(0.25)
        self.assertEqual(self.receiver.message, b"ab")
        client.vanish()


# The property: each receiver is ended exactly once.

ACTS: dict[str, Callable[[Receiver], Any] | None] = {
    "": None,
    "fails": Receiver.fail,
    "refuses": Receiver.refuse,
    "pauses": Receiver.pause,
    "stops": Receiver.stop,
}
CALLS = ["registerProducer", "write0", "write1", "write2", "unregisterProducer"]
WAYS = ["DATA", "BDAT"]
ENDINGS = ["complete", "complete", "vanish", "idle", "half-close", "bare LF", "too large", "RSET", "EHLO"]
OPENINGS = ["at once", "at once", "coroutine", "waits", "waits regardless", "raises", "refuses", "fails late"]
FINISHES = ["status", "coroutine", "waits", "waits regardless", "raises", "refuses", "no status", "421"]
EVENTS = ["nothing", "nothing", "resume", "fire", "time", "pause", "stop"]

ACT = some.sampled_from(["", "", "", *ACTS])
LINES = some.lists(some.sampled_from([b"text", b".", b"..dots", b""]), max_size=6)
SENDING = some.fixed_dictionaries(
    {
        "way": some.sampled_from(WAYS),
        "ending": some.sampled_from(ENDINGS),
        "lines": LINES,
        "second chunk": some.integers(0, 40),
        "left out": some.integers(0, 12),
        "cuts": some.lists(some.tuples(some.integers(0, 100), some.sampled_from(EVENTS)), max_size=6),
        "opening": some.sampled_from(OPENINGS),
        "finish": some.sampled_from(FINISHES),
        "abort raises": some.booleans(),
        "acts": some.fixed_dictionaries(dict.fromkeys(CALLS, ACT)),
    }
)


class Scenario:
    """One client and its receivers."""

    def __init__(self, **options: Any) -> None:
        self.handler = Handler()
        self.handler.hook = self.open
        self.waiting: list[Waiting] = []
        self.expected: dict[Receiver, bytes] = {}
        self.client = Client(self.handler, **options)

    def wait(self, result: object, how: str) -> Any:
        self.waiting.append(Waiting(result, obedient=how != "waits regardless"))
        return self.waiting[-1]()

    def open(self, receiver: Receiver) -> Any:
        self.expected[receiver] = self.message
        plan = {name: ACTS[act] for name, act in self.sending["acts"].items()}
        receiver.plan = {name: act for name, act in plan.items() if act is not None}
        receiver.plan["finish"] = self.finish
        if self.sending["abort raises"]:
            receiver.plan["abort"] = Receiver.fail

        async def opened() -> Receiver:
            return receiver

        async def fails_late() -> None:
            await self.wait(None, "waits")
            receiver.fail()

        how, self.opening = self.opening, "at once"
        if how == "coroutine":
            return opened()
        if how.startswith("waits"):
            return self.wait(receiver, how)
        if how == "fails late":
            return fails_late()
        if how == "raises":
            receiver.fail()
        if how == "refuses":
            receiver.refuse()
        return receiver

    def finish(self, receiver: Receiver) -> Any:
        async def status() -> str:
            return "250 2.0.0 kept"

        how = self.sending["finish"]
        if how == "coroutine":
            return status()
        if how.startswith("waits"):
            return self.wait("250 2.0.0 kept", how)
        if how in ("raises", "refuses"):
            receiver.ends.append("finish")
            raise ValueError("finish") if how == "raises" else Refused(FULL)
        return {"no status": 42, "421": "421 4.3.2 closing"}.get(how)

    def octets(self, way: str, ending: str) -> bytes:
        """The octets of the message that the client sends."""
        message = b"".join(line + b"\r\n" for line in self.sending["lines"])
        message += {"bare LF": b"a\nb\r\n", "too large": bytes(200) + b"\r\n"}.get(ending, b"")
        self.message = message
        left_out = self.sending["left out"] if ending in ("vanish", "idle", "half-close") else 0
        if way == "DATA":
            whole = stuffed(message)
            return whole[: max(6, len(whole) - 3 - left_out)] if ending in ("vanish", "idle", "half-close") else whole
        cut = min(self.sending["second chunk"], len(message))
        ends = ending in ("complete", "bare LF", "too large")
        whole = chunk(message[:cut]) + chunk(message[cut:], ends)
        return whole[: len(whole) - left_out]

    def happens(self, event: str) -> None:
        """Events between two segments."""
        receiver = self.handler.receivers[-1] if self.handler.receivers else None
        if event == "fire":
            self.fire()
        elif event == "time":
            self.client.wait(1)
        elif event != "nothing" and receiver is not None and receiver.producer is not None and not receiver.ends:
            getattr(receiver, event)()

    def fire(self) -> None:
        for each in self.waiting:
            if each.waiting:
                each.fire()
                return

    def send(self, sending: dict[str, Any]) -> bool:
        """One message, with any events. Returns whether the client is still connected."""
        self.sending = sending
        self.opening = sending["opening"]  # only the first attempt fails
        way, ending = sending["way"], sending["ending"]
        if way == "DATA" and ending in ("RSET", "EHLO"):
            ending = "complete"
        octets = self.octets(way, ending)
        self.client.say(GREETING + TRANSACTION)
        start = 0
        for cut, event in sorted(sending["cuts"]):
            cut = min(cut, len(octets))
            self.client.say(octets[start:cut])
            start = cut
            self.happens(event)
        self.client.say(octets[start:])
        if ending in ("RSET", "EHLO"):
            self.client.say(ending.encode() + b" client.test\r\n")
        elif ending == "vanish":
            self.client.vanish()
        elif ending == "half-close":
            self.client.half_close()
        elif ending == "idle":
            self.client.wait(100, 1)
        self.settle()
        return not self.client.closed and ending not in ("vanish", "half-close", "idle")

    def settle(self) -> None:
        """Complete everything that is pending."""
        for _ in range(6):
            for receiver in self.handler.receivers:
                receiver.resume()
            self.fire()
            self.client.wait(0.25)


class PropertyTests(LoggingTestCase):
    """All combinations of clients and receivers."""

    @given(sendings=some.lists(SENDING, min_size=1, max_size=3))
    @settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
    def test_oneEnd(self, sendings: list[dict[str, Any]]) -> None:
        """Each receiver has exactly one end, and no call after it. It is written to only while it is not paused. A
        receiver that has finished has exactly the message, and 250 is sent for nothing else. Nothing is left behind."""
        scenario = Scenario(timeout=30, hook_timeout=20, data_size_limit=150)
        for sending in sendings:
            if not scenario.send(sending):
                break
        if not scenario.client.closed:
            scenario.client.vanish()
        scenario.settle()
        scenario.client.wait(100, 10)
        self.flushLoggedErrors(ValueError, Refused, CancelledError)
        finished = 0
        for receiver in scenario.handler.receivers:
            self.assertEqual(receiver.broken, [], receiver.calls)
            self.assertEqual(len(receiver.ends), int(receiver.producer is not None), receiver.calls)
            if receiver.ends == ["finish"]:
                finished += 1
                self.assertEqual(receiver.message, scenario.expected[receiver])
        said = answers(scenario.client.transport.taken)
        self.assertLessEqual(said.count(KEPT), finished)
        self.assertEqual(scenario.client.clock.getDelayedCalls(), [])


class Sends(Protocol):
    """A client that sends a large message as fast as the server reads it.

    :param size: the size of the message in octets.
    """

    PIECE = b"0123456789abcde\n".replace(b"\n", b"f") * 4096

    def __init__(self, size: int) -> None:
        self.left = size
        self.sent = hashlib.sha256()
        self.received = b""
        self.stalled: Deferred[int] = Deferred()
        self.ended: Deferred[bytes] = Deferred()
        self.total = size
        self._paused = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(START + b"BDAT %d LAST\r\n" % self.left)
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]
        self.resumeProducing()

    def resumeProducing(self) -> None:
        assert self.transport is not None
        self._paused = False
        while self.left and not self._paused:
            piece = self.PIECE[: self.left]
            self.left -= len(piece)
            self.sent.update(piece)
            self.transport.write(piece)
        if not self.left:
            self.transport.unregisterProducer()  # type: ignore[attr-defined]
            self.transport.write(b"QUIT\r\n")

    def pauseProducing(self) -> None:
        self._paused = True
        if not self.stalled.called and self.total - self.left > 8 * 2**20:
            self.stalled.callback(self.total - self.left)

    def stopProducing(self) -> None:
        pass

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(self.received)


@implementer(IMessageReceiver)
class Slow:
    """A receiver that pauses after each write, and resumes in a later iteration of the reactor, or when the test says
    so."""

    def __init__(self, rests: bool = True) -> None:
        self.rests = rests
        self.largest = self.total = 0
        self.got = hashlib.sha256()
        self.began: Deferred[None] = Deferred()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.largest = max(self.largest, len(data))
        self.total += len(data)
        self.got.update(data)
        self.producer.pauseProducing()
        if self.rests:
            reactor.callLater(0, self.producer.resumeProducing)  # type: ignore[attr-defined]
        elif not self.began.called:
            self.began.callback(None)

    def finish(self) -> str:
        return "250 2.0.0 kept"

    def abort(self, reason: BaseException) -> None:
        raise AssertionError(reason)


class TCPTests(TestCase):
    """Back-pressure over real sockets."""

    timeout = 120

    def run_client(self, receiver: Slow, size: int) -> Sends:
        """Let a client send a message of this size to this receiver."""

        @implementer(IStreamingHandler)
        class Handler:
            def open_message(self, server: Any, session: Any, envelope: Any) -> Slow:
                return receiver

        factory = SMTPFactory(Handler(), data_size_limit=None, buffer_limit=65536)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        client = Sends(size)
        connector = ClientFactory()
        connector.buildProtocol = lambda address: client  # type: ignore[method-assign]
        connector.noisy = False
        reactor.connectTCP("127.0.0.1", port.getHost().port, connector)  # type: ignore[attr-defined]
        return client

    async def test_slowReceiver(self) -> None:
        """A receiver that pauses after each write gets the whole message. No write is larger than the buffer."""
        receiver = Slow()
        client = self.run_client(receiver, 16 * 2**20)
        said = await client.ended
        self.assertEqual(codes(said), [220, 250, 250, 250, 250, 221])
        self.assertEqual(receiver.got.hexdigest(), client.sent.hexdigest())
        self.assertLessEqual(receiver.largest, 2 * 65536 + 65536)

    async def test_stalledReceiver(self) -> None:
        """While a receiver is paused, the client cannot send more than the sockets buffer. Then it continues, and
        nothing is lost."""
        size = 256 * 2**20
        receiver = Slow(rests=False)
        client = self.run_client(receiver, size)
        await receiver.began
        seen = receiver.total
        # The sockets' buffers fill up. The client is stalled if it sends nothing in many iterations of the reactor.
        before, turns = -1, 0
        while turns < 200:
            waits: Deferred[None] = Deferred()
            reactor.callLater(0, waits.callback, None)  # type: ignore[attr-defined]
            await waits
            turns = turns + 1 if client.left == before else 0
            before = client.left
        self.assertGreater(client.left, size // 2)
        self.assertEqual(receiver.total, seen)
        receiver.rests = True
        receiver.producer.resumeProducing()
        said = await client.ended
        self.assertEqual(codes(said), [220, 250, 250, 250, 250, 221])
        self.assertEqual((receiver.total, receiver.got.hexdigest()), (size, client.sent.hexdigest()))


class InterfaceTests(SynchronousTestCase):
    """The methods that a handler and a receiver need."""

    def test_receiver(self) -> None:
        """The receivers of these tests provide the interface."""
        self.assertTrue(verifyObject(IMessageReceiver, Receiver()))
        self.assertTrue(verifyObject(IStreamingHandler, Handler()))
