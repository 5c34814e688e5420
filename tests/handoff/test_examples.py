"""The programs in ``examples`` that receive messages from a hand-off."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.handoff.clients import MESSAGE, HandoffTestCase
from tests.handoff.kafka_cluster import Cluster
from tests.handoff.rabbitmq import free_port, shared_broker
from tests.support.programs import once
from txsmtpd.handoff import AMQPHandoff, DirectoryStore, KafkaHandoff, WebhookHandoff

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 60  # seconds


class ExampleTestCase(HandoffTestCase):
    """Runs an example as a process, and reads its output."""

    def run_example(self, name: str, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self.lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        self.addCleanup(reader.join, PATIENCE)
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.put(line.rstrip("\n"))

    async def line(self) -> str:
        """The next line that the example prints."""
        text: str = await deferToThread(self.lines.get, True, PATIENCE)
        return text


UNUSABLE = b"Subject: unusable\r\n\r\nHello\r\n"
LAST = b"Subject: last\r\n\r\nHello\r\n"


class ConsumerTests(ExampleTestCase):
    """Consumers recognize repeated messages, and set unusable ones aside."""

    async def check_consumer(self, port: int) -> None:
        for message in MESSAGE, MESSAGE, UNUSABLE, LAST:
            self.assertEqual((await self.send(port, message))[0], 250)
        self.assertEqual([await self.line() for _ in range(2)], ["a@x.test b@y.test hello", "a@x.test b@y.test last"])

    async def test_rabbitmq(self) -> None:
        """``rabbitmq_consumer.py``, also with messages that are only references."""
        broker = await deferToThread(shared_broker)
        seen = os.path.abspath(self.mktemp())
        store = DirectoryStore(self.mktemp(), durable=False)
        port = await self.serve(AMQPHandoff(broker.url, queue="example", declare=True, store=store))
        await self.send(port, b"Subject: large\r\n\r\n" + b"x" * 2**20)
        self.run_example("rabbitmq_consumer.py", broker.url, "example", seen)
        self.assertEqual(await self.line(), "a@x.test b@y.test large")
        await self.check_consumer(port)
        dead: list[Any] = []
        while not dead:
            dead = await deferToThread(broker.take_all, "example.dead-letters")
        self.assertIn(b"Subject: unusable", dead[0][1])

    async def test_kafka(self) -> None:
        """``kafka_consumer.py``"""
        once()
        cluster = Cluster("mail")
        self.addCleanup(deferToThread, cluster.close)
        self.run_example("kafka_consumer.py", cluster.brokers, "mail", os.path.abspath(self.mktemp()))
        await self.check_consumer(await self.serve(KafkaHandoff(cluster.brokers, "mail")))
        self.process.kill()


class WebhookReceiverTests(ExampleTestCase):
    """``webhook_receiver.py``."""

    async def test_receiver(self) -> None:
        """It accepts signed messages, has its own refusals, and rejects other requests."""
        number = free_port()
        self.run_example("webhook_receiver.py", str(number), WEBHOOK_SECRET=SECRET)
        url = f"http://127.0.0.1:{number}/"
        handler: Any = WebhookHandoff(url, secrets=["a new secret", SECRET], received=False)
        port = await self.serve(handler)
        code = 451
        while code == 451:  # it starts
            handler.target.breaker.succeeded()
            code, text = await self.send(port)
        self.assertEqual(code, 250, text)
        line = await self.line()
        self.assertEqual(line.split(" ", 1)[1], f"a@x.test b@y.test {len(MESSAGE)} octets")
        self.assertEqual(await self.send(port, to="nobody@y.test"), (550, "5.1.1 No such user"))
        for secrets in ["whsec_d3Jvbmc="], []:
            code, _ = await self.send(await self.serve(WebhookHandoff(url, secrets=secrets)))
            self.assertEqual(code, 451)
