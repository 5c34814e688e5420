"""Web hooks: the effect of an application's response on the client, over real connections."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from tests.handoff.clients import MESSAGE, Client, HandoffTestCase, message_of, send
from txsmtpd.controller import Controller
from txsmtpd.handoff import DirectoryStore, WebhookHandoff

SECRET = "whsec_" + base64.b64encode(b"a key of twenty octets").decode()


class HTTP(Protocol):
    """A server that responds to each request as the test says, or not at all."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.buffer = b""

    def connectionMade(self) -> None:
        self.receiver.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        header, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        line, *fields = header.decode("ascii").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (field.partition(":") for field in fields)]
        length = int(dict(headers)["content-length"])
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        self.receiver.requests.append((line, headers, rest[:length]))
        self.receiver.answer(self)


class Receiver(Factory):
    """Receives requests."""

    noisy = False

    def __init__(self) -> None:
        self.connections: list[HTTP] = []
        self.requests: list[tuple[str, list[tuple[str, str]], bytes]] = []
        self.answer: Any = answer(204)

    def buildProtocol(self, addr: Any) -> HTTP:
        return HTTP(self)


def answer(status: int, *fields: str, body: bytes = b"") -> Any:
    """Responds with this status."""
    lines = [f"HTTP/1.1 {status} Whatever", *fields]
    if status != 204:
        lines.append(f"Content-Length: {len(body)}")
    octets = "\r\n".join([*lines, "", ""]).encode() + body
    return lambda connection: connection.transport.write(octets)


def nothing(connection: HTTP) -> None:
    """Never responds."""


def reset(connection: HTTP) -> None:
    """Closes the connection within a response."""
    connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-")
    connection.transport.abortConnection()


class WebhookTestCase(HandoffTestCase):
    """A test case with a receiver."""

    async def setUp(self) -> None:
        self.receiver = Receiver()
        port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(self.receiver)
        self.addCleanup(port.stopListening)
        self.addCleanup(self._close)
        self.url = f"http://127.0.0.1:{port.getHost().port}/mail"

    def _close(self) -> None:
        for connection in self.receiver.connections:
            connection.transport.abortConnection()

    async def served(self, **options: Any) -> int:
        self.handler = WebhookHandoff(options.pop("url", self.url), **options)
        return await self.serve(self.handler, enable_SMTPUTF8=True)


class AnswerTests(WebhookTestCase):
    """The table of responses."""

    async def test_table(self) -> None:
        """Each status has its reply."""
        port = await self.served()
        for status, fields, reply in (
            (200, (), "250 2.0.0"),
            (204, (), "250 2.0.0"),
            (202, ("Smtp-Reply: 250 2.0.0 filed",), "250 2.0.0 filed"),
            (200, ("Smtp-Reply: 550 5.1.1 nobody",), "550 5.1.1 nobody"),
            (200, ("Smtp-Reply: 421 4.3.2 later",), "451 4.3.2 later"),
            *(
                (200, (f"Smtp-Reply: {wrong}",), "451 4.3.5")
                for wrong in ("nonsense", "354 more", "220 hello", "599 no")
            ),
            (422, ("Smtp-Reply: 552 5.2.2 full",), "552 5.2.2 full"),
            (422, ("Smtp-Reply: 250 2.0.0 no",), "550 5.7.1"),
            (406, (), "550 5.7.1"),
            (410, (), "550 5.7.1"),
            (413, (), "552 5.3.4"),
            (301, ("Location: /elsewhere",), "451 4.3.5"),
            (307, ("Location: /elsewhere",), "451 4.3.5"),
            *((status, (), "451 4.3.5") for status in (400, 401, 403, 404, 405, 415)),
            (418, (), "451 4.4.1"),
            (500, (), "451 4.4.1"),
            (503, (), "451 4.4.1"),
        ):
            self.receiver.answer = answer(status, *fields)
            self.handler.target.breaker.succeeded()
            before = len(self.receiver.requests)
            code, text = await self.send(port)
            self.assertTrue(f"{code} {text}".startswith(reply), f"{status} {fields}: {code} {text}")
            self.assertEqual(len(self.receiver.requests), before + 1, status)  # no redirect, no second attempt

    async def test_late(self) -> None:
        """A late response is used. After the timeout, the reply is 451."""
        port = await self.served(timeout=0.5)
        self.receiver.answer = lambda connection: reactor.callLater(0.2, answer(200), connection)
        self.assertEqual((await self.send(port))[0], 250)
        self.receiver.answer = nothing
        with capturedLogs() as events:
            code, text = await self.send(port)
        self.assertEqual((code, text[:5]), (451, "4.4.1"))
        self.assertIn("did not respond within 0.5 seconds", "\n".join(map(formatEvent, events)))

    async def test_reset(self) -> None:
        """If a connection is lost within a response, the reply is 451."""
        port = await self.served()
        self.receiver.answer = reset
        self.assertEqual((await self.send(port))[0], 451)
        self.assertEqual(len(self.receiver.requests), 1)

    async def test_body(self) -> None:
        """The header of a response decides: a body without an end does not delay the reply."""
        port = await self.served()
        self.receiver.answer = lambda connection: connection.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nbegin"
        )
        self.assertEqual((await self.send(port))[0], 250)
        self._close()

    async def test_away(self) -> None:
        """If no server listens, or its TLS is not trusted, the reply is 451."""
        port = await self.served(url="http://127.0.0.1:1/")
        self.assertEqual((await self.send(port))[1][:5], "4.4.1")
        port = await self.served(url=self.url.replace("http:", "https:"), timeout=0.5)
        self.assertEqual((await self.send(port))[1][:5], "4.4.1")

    async def test_keptConnections(self) -> None:
        """Connections are reused. If the receiver has closed one meanwhile, no message is lost."""
        port = await self.served()
        for _ in range(3):
            self.assertEqual((await self.send(port))[0], 250)
        self.assertEqual(len(self.receiver.connections), 1)

        def close_instead(connection: HTTP) -> None:
            self.receiver.answer = answer(200)
            connection.transport.loseConnection()

        self.receiver.answer = close_instead
        self.assertEqual((await self.send(port))[0], 250)
        ids = [dict(headers)["ce-id"] for _, headers, _ in self.receiver.requests]
        self.assertEqual(ids[-1], ids[-2])

    async def test_breaker(self) -> None:
        """After five failures in a row, the receiver is not called for a while. Clients get 451 before they send a
        message."""
        port = await self.served()
        self.receiver.answer = answer(500)
        for _ in range(5):
            self.assertEqual((await self.send(port))[0], 451)
        self.assertIn("HTTP 500", str(self.handler.not_ready()))
        self.assertEqual((await self.send(port))[0], 451)
        self.assertEqual(len(self.receiver.requests), 5)
        self.receiver.answer = answer(200)
        self.handler.target.breaker._closed_until = 0.0  # as if the pause were over
        self.assertEqual((await self.send(port))[0], 250)
        self.assertIsNone(self.handler.not_ready())

    async def test_pause(self) -> None:
        """If a receiver asks for a pause, it gets no requests for that time."""
        port = await self.served()
        self.receiver.answer = answer(429, "Retry-After: 60")
        code, text = await self.send(port)
        self.assertEqual((code, text[:5]), (451, "4.3.2"))
        self.assertEqual((await self.send(port))[0], 451)
        self.assertEqual(len(self.receiver.requests), 1)

    async def test_strangePause(self) -> None:
        """A pause until a time that no calendar has is no pause, and the reply is the same."""
        port = await self.served()
        for until in "never", "-1", "Thu, 01 Jan 2026 00:00:00 +" + "9" * 20:
            self.receiver.answer = answer(429, f"Retry-After: {until}")
            self.assertEqual(((await self.send(port))[1])[:5], "4.3.2")
        self.assertEqual(len(self.receiver.requests), 3)

    async def test_concurrent(self) -> None:
        """The number of concurrent requests is limited. Others wait."""
        port = await self.served(requests=2)
        waiting: list[HTTP] = []
        most = 0

        def later(connection: HTTP) -> None:
            nonlocal most
            waiting.append(connection)
            most = max(most, len(waiting))
            reactor.callLater(0.02, lambda: answer(200)(waiting.pop(0)))

        self.receiver.answer = later
        results = await gatherResults([self.send(port) for _ in range(8)])
        self.assertEqual({code for code, _ in results}, {250})
        self.assertEqual(most, 2)


class ControllerTests(WebhookTestCase):
    """A program without Twisted."""

    async def test_controller(self) -> None:
        """A hand-off works in a controller's thread, and in its thread pool."""
        folder = self.mktemp()
        store = DirectoryStore(folder, durable=False)
        controller = Controller(WebhookHandoff(self.url, format="json", store=store), hostname="127.0.0.1", port=0)
        await deferToThread(controller.start)
        try:
            for message in MESSAGE, message_of(2 * 2**20):
                self.assertEqual((await deferToThread(send, controller.port, message))[0], 250)
        finally:
            await deferToThread(controller.stop)
        self.assertEqual(len(os.listdir(f"{folder}/new")), 1)
        self.assertEqual(len(self.receiver.requests), 2)


class RequestTests(WebhookTestCase):
    """The requests."""

    async def test_raw(self) -> None:
        """The octets, with the envelope in header fields, and a signature that a receiver can verify."""
        port = await self.served(
            url=self.url.replace("//", "//actionmailbox:pass%2Fword@"), secrets=[SECRET, "another"], received=False
        )
        self.assertEqual((await self.send(port))[0], 250)
        [(line, headers, body)] = self.receiver.requests
        self.assertEqual(line, "POST /mail HTTP/1.1")
        self.assertEqual(body, MESSAGE)
        fields = dict(headers)
        self.assertEqual(fields["content-type"], "message/rfc822")
        self.assertEqual((fields["mail-from"], fields["mail-rcpt"]), ("a@x.test", "b@y.test"))
        self.assertEqual(base64.b64decode(fields["authorization"].split()[1]), b"actionmailbox:pass/word")
        self.assertEqual(fields["webhook-id"], fields["ce-id"])
        signed = f"{fields['webhook-id']}.{fields['webhook-timestamp']}.".encode() + body
        digest = hmac.new(b"a key of twenty octets", signed, hashlib.sha256).digest()
        self.assertIn(f"v1,{base64.b64encode(digest).decode()}", fields["webhook-signature"].split(" "))
        self.assertEqual(len(fields["webhook-signature"].split(" ")), 2)

    async def test_json(self) -> None:
        """One document."""
        port = await self.served(format="json", received=False)
        await self.send(port)
        document = json.loads(self.receiver.requests[0][2])
        self.assertEqual(base64.b64decode(document["message"]), MESSAGE)
        self.assertEqual(document["envelope"]["rcpt_tos"], ["b@y.test"])

    async def test_eachRecipient(self) -> None:
        """``mailgun`` sends one request for each recipient. The sender gets a refusal if one is rejected."""
        port = await self.served(format="mailgun")

        def by_recipient(connection: HTTP) -> None:
            body = self.receiver.requests[-1][2]
            answer(200 if b"good@y.test" in body else 406)(connection)

        self.receiver.answer = by_recipient
        client = await deferToThread(Client, port)

        def send_to_both() -> tuple[int, bytes]:
            client.smtp.mail("a@x.test")
            client.smtp.rcpt("good@y.test")
            client.smtp.rcpt("bad@y.test")
            client.smtp.putcmd("data")
            client.smtp.getreply()
            client.smtp.send(MESSAGE.replace(b"\n.", b"\n..") + b".\r\n")
            return client.smtp.getreply()

        code, _ = await deferToThread(send_to_both)
        client.close()
        self.assertEqual(code, 550)
        self.assertEqual(len(self.receiver.requests), 2)

    async def test_recipients(self) -> None:
        """``rcpt`` is called before a recipient is accepted. Its response is the reply."""
        port = await self.served(rcpt=self.url + "/rcpt")
        for status, code in (204, 250), (410, 550), (500, 451), (404, 451):
            self.receiver.answer = answer(status)
            self.assertEqual((await deferToThread(_rcpt, port))[0], code)
        self.receiver.answer = answer(200, "Smtp-Reply: 452 4.2.2 full")
        self.assertEqual(await deferToThread(_rcpt, port), (452, b"4.2.2 full"))
        line, _, body = self.receiver.requests[0]
        self.assertEqual(line, "POST /mail/rcpt HTTP/1.1")
        self.assertEqual(json.loads(body)["rcpt_to"], "b@y.test")

    async def test_manyRecipients(self) -> None:
        """With the envelope in header fields, a message has at most 50 recipients. The client sends the others in
        another one."""
        port = await self.served()

        def ask() -> list[int]:
            client = Client(port)
            client.smtp.mail("a@x.test")
            codes = [client.smtp.rcpt(f"b{number}@y.test")[0] for number in range(51)]
            client.close()
            return codes

        self.assertEqual(await deferToThread(ask), [250] * 50 + [452])


def _rcpt(port: int) -> tuple[int, bytes]:
    client = Client(port)
    client.smtp.mail("a@x.test")
    reply = client.smtp.rcpt("b@y.test")
    client.close()
    return reply
