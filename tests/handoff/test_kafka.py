"""Hand-off to Kafka: librdkafka's mock cluster of three brokers, and failures."""

from __future__ import annotations

import json

from confluent_kafka import KafkaError
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from tests.handoff.clients import MESSAGE, HandoffTestCase, message_of, send
from tests.handoff.kafka_cluster import Cluster
from tests.support.programs import once
from txsmtpd.handoff import KafkaHandoff

QUICK = {"reconnect.backoff.max.ms": 200, "topic.metadata.refresh.fast.interval.ms": 50}


class KafkaTests(HandoffTestCase):
    """A cluster, and a hand-off to it."""

    def setUp(self) -> None:
        once()
        self.cluster = Cluster("mail")
        self.addCleanup(deferToThread, self.cluster.close)

    async def served(self, **options: object) -> int:
        self.handler = KafkaHandoff(self.cluster.brokers, "mail", config=QUICK, **options)  # type: ignore[arg-type]
        return await self.serve(self.handler)

    async def test_message(self) -> None:
        """250 means that the topic has the message, with its envelope in the headers and the domain as its key."""
        port = await self.served()
        code, text = await self.send(port)
        self.assertEqual(code, 250, text)
        [message] = await deferToThread(self.cluster.take_all, 1)
        headers = dict(message.headers())
        self.assertTrue(message.value().endswith(b"\r\n" + MESSAGE))
        self.assertEqual((message.key(), headers["content-type"]), (b"y.test", b"message/rfc822"))
        envelope = json.loads(headers["envelope"])
        self.assertEqual(envelope["rcpt_tos"], ["b@y.test"])
        self.assertEqual(headers["ce_id"].decode(), envelope["id"])
        self.assertIn(envelope["id"], text)

    async def test_leaders(self) -> None:
        """If the leader changes while messages are in flight, each gets 250, and the topic has each once."""
        port = await self.served()
        self.assertEqual((await self.send(port))[0], 250)
        self.cluster.delay(20)
        sending = [self.send(port) for _ in range(60)]
        for broker, answered in (2, 10), (3, 25), (1, 40):
            await self.wait_for(lambda answered=answered: sum(bool(each.called) for each in sending) >= answered)
            # The old leader refuses all requests that are in flight. (A broker does not refuse a single request of
            # an idempotent producer. The producer would take the confirmation of a later request for its own.)
            self.cluster.lead(broker)
        results = await gatherResults(sending)
        self.assertEqual({code for code, _ in results}, {250})
        found = await deferToThread(self.cluster.take_all, 61)
        ids = [dict(message.headers())["ce_id"] for message in found]
        self.assertEqual((len(ids), len(set(ids))), (61, 61))

    async def test_size(self) -> None:
        """A message that is too large for the hand-off or the brokers gets 552. Others are not affected."""
        port = await self.served()
        for declared in True, False:
            code, _ = await deferToThread(send, port, message_of(2 * 10**6), declared=declared)
            self.assertEqual(code, 552)
        self.assertEqual((await deferToThread(send, port, message_of(900_000)))[0], 250)
        self.cluster.fail_produce(KafkaError.MSG_SIZE_TOO_LARGE)
        self.assertEqual((await self.send(port))[0], 552)
        self.assertEqual((await self.send(port))[0], 250)

    async def test_noAnswer(self) -> None:
        """If brokers do not acknowledge in time, the reply is 451, never 250."""
        port = await self.served(confirm_timeout=5)
        self.assertEqual((await self.send(port))[0], 250)
        self.cluster.delay(30_000)
        code, text = await self.send(port)
        self.assertEqual((code, text[:5]), (451, "4.4.2"))
        self.cluster.delay(0)

    async def test_down(self) -> None:
        """If all brokers are lost, the server is not ready, and replies 451 before a message is sent. When they are
        back, mail is accepted."""
        port = await self.served(confirm_timeout=10)
        self.assertEqual((await self.send(port))[0], 250)
        await deferToThread(self.cluster.down)
        await self.wait_for(lambda: self.handler.not_ready() is not None)
        self.assertEqual((await self.send(port))[0], 451)
        await deferToThread(self.cluster.up)
        await self.wait_for(lambda: self.handler.not_ready() is None)
        self.assertEqual((await self.send(port))[0], 250)

    async def test_noTopic(self) -> None:
        """If a topic is missing, the reply is 451 and the server is not ready, until the topic exists."""
        self.cluster.fail_topic(KafkaError.UNKNOWN_TOPIC_OR_PART)
        port = await self.served()
        self.assertEqual((await self.send(port))[0], 451)
        self.assertIn("Unknown topic", str(self.handler.not_ready()))
        self.cluster.fail_topic(0)
        await self.wait_for(lambda: self.handler.not_ready() is None)
        self.assertEqual((await self.send(port))[0], 250)

    def test_promise(self) -> None:
        """Configuration on which safe delivery depends cannot be changed."""
        for name in "acks", "enable.idempotence":
            error = self.assertRaises(ValueError, KafkaHandoff, "b:9092", "mail", config={name: "0"})
            self.assertIn(f"{name} cannot be configured", str(error))
