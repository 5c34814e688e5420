"""The rule for every target: 250 once it has the message, and otherwise 451 or 552."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.support import GREETING, Answer, Client, LoggingTestCase, answers
from txsmtpd import SMTPFactory
from txsmtpd.handoff import Handoff, HandoffMessage, IHandoff, NotTaken, Unroutable
from txsmtpd.handoff.outcome import MISCONFIGURED
from txsmtpd.interfaces import IReadiness, IStreamingHandler
from txsmtpd.observe.counters import Counters
from txsmtpd.observe.metrics import Metrics
from txsmtpd.reply import Refused

MESSAGE = b"Subject: test\r\n\r\nHello\r\n"


@implementer(IHandoff)
class Target(Service):
    """Responds when the test says so."""

    def __init__(self, max_size: int | None = None) -> None:
        self.max_size = max_size
        self.messages: list[HandoffMessage] = []
        self.answers: list[Deferred[Any]] = []
        self.refusal: Exception | None = None

    def __str__(self) -> str:
        return "the target"

    async def check(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def hand_off(self, message: HandoffMessage) -> Deferred[Any]:
        self.messages.append(message)
        self.answers.append(Deferred())
        return self.answers[-1]


class PromiseTestCase(LoggingTestCase):
    """A hand-off, and clients in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.target = Target()
        self.clients = 0

    def serve(self, **options: Any) -> None:
        self.handoff = Handoff(self.target, reactor=self.clock, **options)
        self.factory = SMTPFactory(self.handoff, hostname="mx.test")

    def client(self) -> Client:
        client = Client(factory=self.factory)
        client.talk(GREETING)
        return client

    def begin(self, client: Client, message: bytes = MESSAGE, declared: bool = True) -> None:
        """Send a complete message, whatever the server replies."""
        size = b" SIZE=%d" % len(message) if declared else b""
        client.say(b"MAIL FROM:<a@x.test>%s\r\nRCPT TO:<b@y.test>\r\n" % size)
        client.say(b"BDAT %d LAST\r\n%s" % (len(message), message))

    def last(self, client: Client) -> Answer:
        return answers(client.transport.taken)[-1]


class OutcomeTests(PromiseTestCase):
    """The replies to the client."""

    def answered(self, answer: Any) -> Answer:
        client = self.client()
        self.begin(client)
        before = self.last(client)
        self.assertEqual(before.code, 250)  # the reply to RCPT: there is no reply to the message yet
        self.assertEqual(before.status, "2.1.5")
        if isinstance(answer, Exception):
            self.target.answers[-1].errback(answer)
        else:
            self.target.answers[-1].callback(answer)
        return self.last(client)

    def test_interfaces(self) -> None:
        """A hand-off is a streaming handler that provides IReadiness."""
        self.serve()
        verifyObject(IStreamingHandler, self.handoff)
        verifyObject(IReadiness, self.handoff)
        verifyObject(IHandoff, self.target)

    def test_outcomes(self) -> None:
        """250 once the target has the message. A refusal is the target's. After any other result, the client sends it
        again."""
        self.serve()
        taken = self.answered(None)
        self.assertEqual(taken.code, 250)
        self.assertIn(self.target.messages[0].id, taken.text)
        for answer, code, status in (
            ("250 2.0.0 its own words", 250, "2.0.0"),
            ("550 5.1.1 no such user", 550, "5.1.1"),
            (NotTaken("rejected"), 451, "4.3.0"),
            (Unroutable("no queue"), 451, "4.3.5"),
            (Refused("552 5.3.4 too large"), 552, "5.3.4"),
            (ConnectionLost(), 451, "4.4.2"),
            (ZeroDivisionError(), 451, "4.4.2"),
        ):
            reply = self.answered(answer)
            self.assertEqual((reply.code, reply.status), (code, status))
        self.assertEqual(self.handoff.budget.messages, 0)

    def test_metrics(self) -> None:
        """The outcomes of messages are counted by target and outcome, and their duration is measured."""
        counters = Counters()
        self.serve()
        self.factory = SMTPFactory(self.handoff, metrics=Metrics("tcp:25", counters))
        SMTPFactory(self.handoff, metrics=Metrics("tcp:587", counters))  # another listener with the same handler
        no = Refused("550 5.1.1 No such user")
        for answer in None, "250 OK", "550 5.7.1 No", no, NotTaken("no"), Unroutable("no"), ConnectionLost():
            self.answered(answer)
        client = self.client()
        self.begin(client)
        self.assertEqual(counters.snapshot()["handoff_in_flight"], [(["target"], 1)])
        self.clock.advance(60)
        counted = counters.snapshot()
        self.assertEqual(
            {labels[1]: value for labels, value in counted["handoff_total"] if labels[0] == "target"},
            {"confirmed": 2, "refused": 2, "not_taken": 1, "unroutable": 1, "unknown": 1, "timeout": 1},
        )
        self.assertEqual(counted["handoff_in_flight"], [(["target"], 0)])
        self.assertEqual(counted["handoff_ready"], [(["target"], 1)])
        [(_, seconds)] = counted["handoff_seconds"]
        self.assertEqual((sum(seconds[:-1]), seconds[-1]), (8, 60))
        by = {labels[1]: value for labels, value in counted["refusals_total"]}
        self.assertEqual(by, {"hook": 6})

    def test_timeout(self) -> None:
        """If a target does not respond in time, the reply is 451, and the memory is released."""
        self.serve(confirm_timeout=60)
        client = self.client()
        self.begin(client)
        self.clock.advance(59)
        self.assertEqual(self.last(client).status, "2.1.5")
        self.clock.advance(1)
        self.assertEqual((self.last(client).code, self.last(client).status), (451, "4.4.2"))
        self.assertEqual(self.handoff.budget.messages, 0)
        self.assertIn("no confirmation within 60 seconds", self.logged("error")[0])

    def test_content(self) -> None:
        """The message has a Received field, and its envelope."""
        self.serve()
        self.answered(None)
        message = self.target.messages[0]
        self.assertTrue(message.content.startswith(b"Received: from client.test"), message.content)
        self.assertIn(message.id.encode(), message.content)
        self.assertTrue(message.content.endswith(b"\r\n" + MESSAGE))
        self.assertNotIn(b"\n", message.content.replace(b"\r\n", b""))
        self.assertEqual((message.envelope["size"], message.rcpt_tos), (len(MESSAGE), ["b@y.test"]))

    def test_withoutReceived(self) -> None:
        """The octets are unchanged, if the option says so."""
        self.serve(received=False)
        self.answered(None)
        self.assertEqual(self.target.messages[0].content, MESSAGE)

    def test_noHeader(self) -> None:
        """A message that starts with white space does not continue the Received field."""
        self.serve()
        client = self.client()
        self.begin(client, b" not folded\r\n")
        self.assertTrue(self.target.messages[0].content.endswith(b"\r\n\r\n not folded\r\n"))

    def test_check(self) -> None:
        """A target that is not available refuses before the message is sent."""
        self.serve()
        self.target.refusal = NotTaken("away", MISCONFIGURED)
        client = self.client()
        reply = client.talk(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        self.assertIn(b"451 4.3.5", reply)
        self.assertNotIn(b"354", reply)
        self.assertEqual(self.target.messages, [])

    def test_clientLeaves(self) -> None:
        """If a client disconnects while the target has the message, nothing is cancelled, and nothing is kept
        forever."""
        self.serve()
        client = self.client()
        self.begin(client)
        client.vanish()
        self.assertEqual(self.handoff.budget.messages, 1)
        self.target.answers[0].errback(NotTaken("rejected"))
        self.assertEqual(self.handoff.budget.messages, 0)

    def test_clientLeavesEarly(self) -> None:
        """If a client disconnects during its message, nothing is handed over."""
        self.serve()
        client = self.client()
        client.say(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nSubject: half\r\n")
        self.assertEqual(self.handoff.budget.messages, 1)
        client.vanish()
        self.assertEqual((self.handoff.budget.messages, self.target.messages), (0, []))

    def test_readiness(self) -> None:
        """An unroutable message is logged once, as critical. The server is not ready until a message is accepted."""
        self.serve()
        self.assertIsNone(self.handoff.not_ready())
        for _ in range(3):
            self.answered(Unroutable("no queue takes it"))
        self.assertEqual(self.handoff.not_ready(), "no queue takes it")
        self.assertEqual(self.logged("critical"), ["the target does not accept mail: no queue takes it"])
        self.answered(None)
        self.assertIsNone(self.handoff.not_ready())

    def test_log(self) -> None:
        """Trouble is logged when it begins and when it ends. Refusals of single messages do not count as trouble."""
        self.serve()
        for answer in Refused("550 5.7.1 no"), None, ConnectionLost(), ConnectionLost(), Refused("550 5.7.1 no"), None:
            self.answered(answer)
        self.assertNotIn("the target accepts mail", self.logged("info"))  # the next message may fail again
        self.answered(ConnectionLost())
        self.clock.advance(61)
        self.answered(None)
        self.assertEqual(len(self.logged("error")), 1)
        lines = [line for line in self.logged("info") if "accepts mail" in line]
        self.assertEqual(lines, ["the target accepts mail"])


class SizeTests(PromiseTestCase):
    """Messages that are too large for the target: 552, and nothing is handed over."""

    def setUp(self) -> None:
        super().setUp()
        self.target.max_size = 2000

    def test_declared(self) -> None:
        """With a declared size, it is refused before it is sent."""
        self.serve()
        client = self.client()
        reply = client.talk(b"MAIL FROM:<a@x.test> SIZE=2001\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        self.assertIn(b"552 5.3.4", reply)
        self.assertNotIn(b"354", reply)

    def test_undeclared(self) -> None:
        """Without a declared size, it is refused at its end, and the session continues."""
        self.serve()
        client = self.client()
        self.begin(client, b"x" * 3000, declared=False)
        self.assertEqual(self.last(client).code, 552)
        self.assertEqual(self.target.messages, [])
        self.assertEqual(self.handoff.budget.messages, 0)
        self.begin(client)
        self.assertEqual(len(self.target.messages), 1)

    def test_received(self) -> None:
        """The Received field counts: the target never gets more than its limit."""
        self.serve()
        client = self.client()
        self.begin(client, b"x" * 1950)
        self.assertEqual(self.last(client).code, 552)

    def test_lower(self) -> None:
        """A limit of the hand-off applies, but is never above the target's."""
        for own, size, code in (500, 600, 552), (5000, 3000, 552):
            self.serve(max_size=own)
            client = self.client()
            self.begin(client, b"x" * size)
            self.assertEqual(self.last(client).code, code)


class PressureTests(PromiseTestCase):
    """Limited memory: clients wait, and then get 451."""

    def test_wait(self) -> None:
        """A message above the limit waits until another one is confirmed."""
        self.serve(in_flight=2)
        clients = [self.client() for _ in range(3)]
        for client in clients:
            self.begin(client)
        self.assertEqual(len(self.target.messages), 2)
        self.target.answers[0].callback(None)
        self.assertEqual(len(self.target.messages), 3)

    def test_tooLong(self) -> None:
        """A message that has waited too long is refused. The client may try again."""
        self.serve(in_flight=1, wait=30)
        first, second = self.client(), self.client()
        self.begin(first)
        self.begin(second)
        self.clock.advance(30)
        self.assertEqual((self.last(second).code, self.last(second).status), (451, "4.3.2"))
        self.target.answers[0].callback(None)
        self.begin(second)
        self.assertEqual(len(self.target.messages), 2)

    def test_growing(self) -> None:
        """Messages without a declared size are slowed down, and all are completed."""
        self.target.max_size = 1_000_000
        self.serve(memory=2_400_000)
        clients = [self.client() for _ in range(4)]
        for client in clients:
            self.begin(client, b"x" * 900_000, declared=False)
        self.assertLess(self.handoff.budget.octets, 2_400_000)
        self.assertLess(len(self.target.messages), 4)
        for number in range(4):
            self.target.answers[number].callback(None)
        self.assertEqual([len(message.content) > 900_000 for message in self.target.messages], [True] * 4)

    def test_growingTooLong(self) -> None:
        """A message that waits too long for memory before its end is refused at its end, and releases its memory."""
        self.target.max_size = 1_000_000
        self.serve(memory=2_400_000, wait=30)
        clients = [self.client() for _ in range(4)]
        for client in clients:
            self.begin(client, b"x" * 900_000, declared=False)
        self.clock.advance(30)
        replies = [self.last(client) for client in clients]
        self.assertIn((451, "4.3.2"), [(each.code, each.status) for each in replies])
        for answer in self.target.answers:
            answer.callback(None)
        self.assertEqual(self.handoff.budget.messages, 0)

    def test_stop(self) -> None:
        """The service stops when all messages that are being handed over have a result."""
        self.serve()
        self.handoff.startService()
        self.assertTrue(self.target.running)
        self.begin(self.client())
        stopped = self.handoff.stopService()
        self.assertNoResult(stopped)
        self.assertTrue(self.target.running)
        self.target.answers[0].errback(Failure(ConnectionLost()))
        self.successResultOf(stopped)
        self.assertFalse(self.target.running)
