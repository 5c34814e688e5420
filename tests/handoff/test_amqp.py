"""Hand-off to RabbitMQ with a real broker and real clients, and failures."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from tests.handoff.clients import MESSAGE, Client, HandoffTestCase, message_of, send
from tests.handoff.rabbitmq import Broker, shared_broker
from txsmtpd.controller import Controller
from txsmtpd.handoff import AMQPHandoff, amqp
from txsmtpd.handoff.outcome import UNAVAILABLE
from txsmtpd.service.handlers import make_handler


class AMQPTestCase(HandoffTestCase):
    """A test case with a broker, and an empty queue of its own."""

    async def setUp(self) -> None:
        self.broker: Broker = await deferToThread(shared_broker)
        self.queue = self.id().rpartition(".")[2]
        await deferToThread(self.broker.declare, self.queue)

    async def taken(self) -> list[tuple[Any, bytes]]:
        found: list[tuple[Any, bytes]] = await deferToThread(self.broker.take_all, self.queue)
        return found

    async def served(self, **options: Any) -> int:
        self.handler = AMQPHandoff(self.broker.url, **{"queue": self.queue, **options})
        return await self.serve(self.handler)


class PublishTests(AMQPTestCase):
    """Messages that the broker accepts."""

    async def test_message(self) -> None:
        """250 means that the queue has the message, persistent, with its envelope."""
        port = await self.served()
        code, text = await self.send(port)
        self.assertEqual(code, 250)
        [(properties, body)] = await self.taken()
        self.assertTrue(body.startswith(b"Received: from client.test"), body)
        self.assertTrue(body.endswith(b"\r\n" + MESSAGE.replace(b"\n.dot", b"\n.dot")), body)
        envelope = json.loads(properties.headers["envelope"])
        self.assertEqual((envelope["mail_from"], envelope["rcpt_tos"]), ("a@x.test", ["b@y.test"]))
        self.assertEqual(envelope["size"], len(MESSAGE))
        self.assertIn(envelope["id"], text)
        self.assertEqual(properties.message_id, envelope["id"])
        self.assertEqual(properties.delivery_mode, 2)
        self.assertEqual(properties.content_type, "message/rfc822")
        self.assertEqual(properties.headers["rcpt_domain"], "y.test")

    async def test_repeat(self) -> None:
        """A message that the client sends again has another id and the same fingerprint."""
        port = await self.served()
        await self.send(port)
        await self.send(port)
        await self.send(port, MESSAGE + b"more\r\n")
        found = [json.loads(properties.headers["envelope"]) for properties, _ in await self.taken()]
        self.assertEqual(len({each["id"] for each in found}), 3)
        self.assertEqual(found[0]["fingerprint"], found[1]["fingerprint"])
        self.assertNotEqual(found[0]["fingerprint"], found[2]["fingerprint"])

    async def test_controller(self) -> None:
        """A program without Twisted starts nothing: the first message connects."""
        controller = Controller(AMQPHandoff(self.broker.url, queue=self.queue), hostname="127.0.0.1", port=0)
        await deferToThread(controller.start)
        try:
            for _ in range(2):
                self.assertEqual((await self.send(controller.port))[0], 250)
        finally:
            await deferToThread(controller.stop)
        self.assertEqual(len(await self.taken()), 2)

    async def test_pipelined(self) -> None:
        """Sessions do not wait for each other's confirms: many messages are in flight at the same time."""
        port = await self.served()
        channel = await self._channel()
        most = 0
        publish = channel.publish

        def watched(*arguments: Any) -> Any:
            nonlocal most
            published = publish(*arguments)
            most = max(most, len(channel._unconfirmed))
            return published

        channel.publish = watched
        clients = await gatherResults([deferToThread(Client, port) for _ in range(10)])

        def send_many(client: Client) -> set[int]:
            return {client.send()[0] for _ in range(10)}

        results = await gatherResults([deferToThread(send_many, client) for client in clients])
        for client in clients:
            client.close()
        self.assertEqual(results, [{250}] * 10)
        self.assertGreater(most, 3)
        self.assertEqual(len(await self.taken()), 100)

    async def test_exchange(self) -> None:
        """The routing key for an exchange is the recipient's domain in reverse order."""

        def bind() -> None:
            with self.broker.connection() as connection:
                channel = connection.channel()
                channel.exchange_declare("mails", "topic", durable=True)
                channel.queue_bind(self.queue, "mails", "mail.test.#")

        await deferToThread(bind)
        port = await self.served(queue=None, exchange="mails")
        self.assertEqual((await self.send(port, to="b@mx.y.TEST"))[0], 250)
        code, _ = await self.send(port, to="b@elsewhere.example")
        self.assertEqual(code, 451)
        self.assertIn("NO_ROUTE", str(self.handler.not_ready()))
        self.assertEqual((await self.send(port, to="b@mx.y.test"))[0], 250)
        self.assertIsNone(self.handler.not_ready())
        self.assertEqual(len(await self.taken()), 2)

    async def test_declare(self) -> None:
        """``declare`` creates a quorum queue with dead letters. If it is full, it rejects messages and drops none."""
        port = await self.served(queue=f"{self.queue}-declared", declare=True)
        self.assertEqual((await self.send(port))[0], 250)
        listed = await deferToThread(self.broker.control, "-q", "list_queues", "name", "type", "arguments")
        [line] = [line for line in listed.splitlines() if line.startswith(f"{self.queue}-declared\t")]
        self.assertIn("reject-publish", line)
        self.assertIn("at-least-once", line)
        self.assertIn("quorum", line)

    async def test_full(self) -> None:
        """A full queue rejects: the reply is 451, and nothing is dropped."""
        await deferToThread(self.broker.declare, self.queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})
        port = await self.served()
        codes = [(await self.send(port))[0] for _ in range(5)]
        self.assertEqual(codes[0], 250)
        self.assertEqual(codes[-1], 451)
        self.assertEqual(len(await self.taken()), codes.count(250))

    async def test_tls(self) -> None:
        """With TLS, the broker's certificate is verified, and the client certificate is sent."""
        options = f"queue={self.queue}:ca={self.broker.authority}:certificate={self.broker.certificate('client')}"
        handler: Any = make_handler(f"amqp:amqps://guest:guest@localhost:{self.broker.tls_port}:{options}")
        self.assertEqual((await self.send(await self.serve(handler)))[0], 250)
        self.assertEqual(len(await self.taken()), 1)
        handler = AMQPHandoff(f"amqps://guest:guest@localhost:{self.broker.tls_port}", queue=self.queue)
        self.assertEqual((await self.send(await self.serve(handler)))[0], 451)
        self.assertIn("certificate verify failed", str(handler.not_ready()))

    async def test_size(self) -> None:
        """A message that is too large for the broker is refused with 552. Other sessions are not affected."""
        port = await self.served()
        channel = await self._channel()
        other = await deferToThread(Client, port)
        huge = message_of(20 * 2**20)
        self.assertEqual((await deferToThread(send, port, huge))[0], 552)  # to MAIL with SIZE, before the message
        results = await gatherResults(
            [deferToThread(send, port, huge, declared=False), *(self.send(port) for _ in range(5))]
        )
        self.assertEqual([code for code, _ in results], [552, 250, 250, 250, 250, 250])
        self.assertEqual((await deferToThread(other.send))[0], 250)
        other.close()
        self.assertIs(channel, await self._channel())
        self.assertEqual(len(await self.taken()), 6)

    async def test_sizeOfBroker(self) -> None:
        """If the broker's limit is lower than configured, the reply is 451. Then mail is accepted again, and the next
        such message gets 552."""
        port = await self.served(max_size=30 * 2**20, memory=80 * 2**20)
        huge = message_of(20 * 2**20)
        self.assertEqual((await deferToThread(send, port, huge))[0], 451)
        await self.wait_for(lambda: self.handler.not_ready() is None)
        self.assertEqual((await deferToThread(send, port, huge))[0], 552)
        self.assertEqual((await self.send(port))[0], 250)
        self.assertEqual(len(await self.taken()), 1)

    async def _channel(self) -> Any:
        await self.handler.target.check()
        return self.handler.target._channel


class FaultTests(AMQPTestCase):
    """Failures of the broker: never 250 for a message that no queue has."""

    async def test_queueDeleted(self) -> None:
        """If a queue is deleted, all messages in flight get 451, never 250. The server is not ready until the queue
        exists again."""
        port = await self.served()
        self.assertEqual((await self.send(port))[0], 250)
        await deferToThread(self._delete)
        clients = await gatherResults([deferToThread(Client, port) for _ in range(8)])
        results = await gatherResults([deferToThread(client.send) for client in clients])
        self.assertEqual({code for code, _ in results}, {451})
        self.assertIn("NO_ROUTE", str(self.handler.not_ready()))
        for client in clients:
            client.close()
        await deferToThread(self.broker.declare, self.queue)
        await self.wait_for(lambda: self.handler.not_ready() is None)
        self.assertEqual((await self.send(port))[0], 250)

    async def test_alarm(self) -> None:
        """If the broker is short of memory, the reply is 451 immediately. Mail is accepted when it has recovered."""
        port = await self.served()
        self.assertEqual((await self.send(port))[0], 250)
        await deferToThread(self.broker.control, "set_vm_memory_high_watermark", "0.0000001")
        try:
            # The broker notifies only clients that publish. It may read only the beginning of this message.
            self.assertIn((await deferToThread(send, port, message_of(5 * 2**20)))[0], (250, 451))
            await self.wait_for(lambda: self.handler.not_ready() is not None)
            results = await gatherResults([self.send(port, message_of(2**20)) for _ in range(20)])
            self.assertEqual({f"{code} {text}" for code, text in results}, {str(UNAVAILABLE)})  # none has waited
            self.assertEqual(self.handler.budget.octets, 0)
        finally:
            await deferToThread(self.broker.control, "set_vm_memory_high_watermark", "absolute", "1GB")
        await self.wait_for(lambda: self.handler.not_ready() is None)
        self.assertEqual((await self.send(port))[0], 250)

    async def test_noQueue(self) -> None:
        """A server whose queue is missing starts, is not ready, names the queue, and accepts mail once it exists."""
        await deferToThread(self._delete)
        port = await self.served()
        self.assertEqual((await self.send(port))[0], 451)
        self.assertIn(f"no queue '{self.queue}'", str(self.handler.not_ready()))
        await deferToThread(self.broker.declare, self.queue)
        await self.wait_for(lambda: self.handler.not_ready() is None)
        self.assertEqual((await self.send(port))[0], 250)

    async def test_login(self) -> None:
        """A refused login is reported as such, without the password."""
        handler = AMQPHandoff(self.broker.url.replace("guest:guest", "guest:canary"), queue=self.queue)
        port = await self.serve(handler)
        self.assertEqual((await self.send(port))[0], 451)
        self.assertIn("login of 'guest' was refused", str(handler.not_ready()))
        self.assertNotIn("canary", str(handler.not_ready()))

    async def test_stoppedUnderLoad(self) -> None:
        """If the broker stops under load, all replies are 451. Mail is accepted after its return, which the server
        checks more than once a second."""
        port = await self.served()
        codes: list[int] = []
        end = threading.Event()

        def load() -> None:
            client = Client(port)
            while not end.is_set():
                codes.append(client.send()[0])
                if codes[-1] != 250:
                    client.close()
                    time.sleep(0.02)
                    client = Client(port)
            client.close()

        clients = [deferToThread(load) for _ in range(4)]
        await self.wait_for(lambda: codes.count(250) > 50)
        await deferToThread(self.broker.kill, signal.SIGTERM)
        await self.wait_for(lambda: codes[-1] == 451)
        await deferToThread(self.broker.start)
        await self.wait_for(lambda: codes[-1] == 250)
        end.set()
        await gatherResults(clients)
        self.assertEqual(set(codes), {250, 451})
        self.assertLess(1.2 * amqp.RETRY, 1)
        self.assertGreaterEqual(len(await self.taken()), codes.count(250))

    def _delete(self) -> None:
        with self.broker.connection() as connection:
            connection.channel().queue_delete(self.queue)


class Confused(Protocol):
    """Something that is not a broker: it sends an invalid frame, or closes the connection."""

    def connectionMade(self) -> None:
        factory: Any = self.factory
        factory.connections += 1
        if factory.connections % 2:
            self.transport.write(b"\1\0\0\0\0\0\4\0\xff\0\xff\xce")  # type: ignore[union-attr]  # connected
        else:
            self.transport.loseConnection()  # type: ignore[union-attr]  # connected


class StopTests(HandoffTestCase):
    """A server without its broker."""

    async def test_stops(self) -> None:
        """It can stop at any time: while it connects, before the next attempt, or before its start."""
        for turns in 0, 1, 5, 50:
            handler = AMQPHandoff("amqp://127.0.0.1:1", queue="mail")
            handler.startService()
            for _ in range(turns):
                await deferToThread(lambda: None)
            await handler.stopService()
            self.assertFalse(handler.running)

    async def test_silent(self) -> None:
        """A broker that accepts connections and sends nothing is disconnected."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            handler = AMQPHandoff(f"amqp://127.0.0.1:{listening.getsockname()[1]}", queue="mail")
            self.patch(amqp, "CONNECT_TIMEOUT", 0.2)
            self.assertEqual((await self.send(await self.serve(handler)))[0], 451)
            self.assertIn("no answer within 0.2 seconds", str(handler.not_ready()))

    async def test_confused(self) -> None:
        """What is not a broker is one line in the log for each way in which it fails, and no traceback."""
        factory: Any = Factory.forProtocol(Confused)
        factory.noisy = False
        factory.connections = 0
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        self.patch(amqp, "RETRY", 0.01)
        handler = AMQPHandoff(f"amqp://127.0.0.1:{port.getHost().port}", queue="mail")
        with capturedLogs() as events:
            handler.startService()
            await self.wait_for(lambda: factory.connections >= 10)
            await handler.stopService()
        logged = [str(formatEvent(each)) for each in events if each["log_namespace"] == "txsmtpd.handoff"]
        self.assertIn("cannot connect: invalid data from the broker", " ".join(logged))
        self.assertEqual(len(logged), len(set(logged)))
        self.assertLess(len(logged), 5)
        self.assertEqual(self.flushLoggedErrors(), [])
