"""Events, immediately after changes."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater

from tests.inbox.support import SiteTestCase, mail


class Client(Protocol):
    """A client that keeps the data that it receives."""

    def __init__(self) -> None:
        self.octets = b""
        self.lost = False
        self._waiting: list[tuple[bytes, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.octets += data
        self._look()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        self._look()

    def _look(self) -> None:
        for wanted, done in list(self._waiting):
            if wanted in self.octets or self.lost:
                self._waiting.remove((wanted, done))
                done.callback(None)

    async def until(self, wanted: bytes) -> bytes:
        """All received data, once it contains these octets, or the connection is lost."""
        if wanted not in self.octets and not self.lost:
            done: Deferred[None] = Deferred()
            self._waiting.append((wanted, done))
            await done
        return self.octets

    async def end(self) -> bytes:
        """All received data, once the connection is lost."""
        return await self.until(b"no such octets")


class LiveTestCase(SiteTestCase):
    async def connect(self, path: str, *headers: str) -> Client:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        client = await connectProtocol(endpoint, Client())
        fields = "".join(f"{header}\r\n" for header in headers)
        client.transport.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n{fields}\r\n".encode())
        self.addCleanup(client.transport.abortConnection)
        return client

    async def setUp(self) -> None:
        await super().setUp()
        self.addCleanup(self.nobody_listens)

    async def nobody_listens(self) -> None:
        """Return when the server has noticed that all clients have disconnected."""
        while self.web.live:
            await deferLater(reactor, 0.005)

    async def check_dropped(self, client: Any) -> None:
        """A client that does not read is disconnected, and nothing more is kept for it."""
        client.transport.pauseProducing()
        (message,) = await self.add(mail("x" * 900))
        for _ in range(200):
            for _ in range(100):
                self.store.hub.publish("new", message)
            await deferLater(reactor, 0)
            if not len(self.store.hub):
                break
        self.assertEqual(len(self.store.hub), 0)
        await self.nobody_listens()


class StreamTests(LiveTestCase):
    """Server-sent events."""

    path = "/api/inbox/v1/events"

    async def test_events(self) -> None:
        """A client gets each change, with a number."""
        client = await self.connect(self.path)
        await client.until(b"event: hello")
        self.assertIn(b"content-type: text/event-stream", client.octets.lower())
        (message,) = await self.add(mail("one"))
        said = await client.until(b"event: new\ndata: ")
        self.assertIn(f'"ID": "{message.id}"'.encode(), said)
        await self.store.delete(ids=[message.id])
        await client.until(b'event: delete\ndata: {"ID": "' + message.id.encode())

    async def test_scope(self) -> None:
        """Below /in/, a client gets only the events of that mail."""
        client = await self.connect(f"/in/domain=w3.test{self.path}")
        await client.until(b"event: hello")
        await self.add(mail("theirs", to="a@w4.test"), mail("mine", to="a@w3.test"))
        self.assertNotIn(b"theirs", await client.until(b"mine"))

    async def test_comesBack(self) -> None:
        """A client that reconnects gets the events that it missed. If they are too many, it is told to reload."""
        client = await self.connect(self.path)
        await client.until(b"event: hello")
        await self.add(mail("one"))
        said = await client.until(b"event: new")
        last = said.rpartition(b"id: ")[2].split(b"\n")[0].decode()
        await self.add(mail("two"))
        client = await self.connect(self.path, f"Last-Event-ID: {last}")
        said = await client.until(b"two")
        self.assertNotIn(b'"one"', said)
        boot = last.partition("-")[0]
        for lost in ("00000000-1", f"{boot}-99", "x", f"{boot}-{'9' * 5000}", f"{boot}-\u0663"):
            client = await self.connect(self.path, f"Last-Event-ID: {lost}")
            await client.until(b"event: reload")

    async def test_tooMany(self) -> None:
        """Clients above the limit are refused. When one disconnects, there is room again."""
        self.web.live_limit = 1
        client = await self.connect(self.path)
        await client.until(b"event: hello")
        self.assertEqual((await self.get(self.path)).status, 503)
        client.transport.abortConnection()
        await self.nobody_listens()
        client = await self.connect(self.path)
        await client.until(b"event: hello")

    async def test_slow(self) -> None:
        """A client that does not read is disconnected, and nothing is kept for it."""
        client = await self.connect(self.path)
        await client.until(b"event: hello")
        await self.check_dropped(client)

    async def test_end(self) -> None:
        """When the server stops, clients are disconnected."""
        client = await self.connect(self.path)
        await client.until(b"event: hello")
        for each in list(self.web.live):
            each.end()
        await client.until(b"\r\n0\r\n\r\n")


class SocketTests(LiveTestCase):
    """Mailpit's events, on a WebSocket."""

    async def open(self, *headers: str, path: str = "/api/events") -> Client:
        return await self.connect(
            path,
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
            *headers,
        )

    async def test_events(self) -> None:
        """A new message is sent with its summary, and then the counts."""
        client = await self.open()
        await client.until(b"101 ")
        (message,) = await self.add(mail("one"))
        said = await client.until(b'"stats"')
        start = said.index(b'{"Type": "new"')
        told = json.JSONDecoder().raw_decode(said[start:].decode("utf-8", "replace"))[0]
        self.assertEqual((told["Data"]["ID"], told["Data"]["Subject"]), (message.id, "one"))
        self.assertIn(b'"Total": 1, "Unread": 1', await client.until(b"Unread"))

    async def test_foreign(self) -> None:
        """A page of another site is refused."""
        client = await self.open("Origin: http://evil.example")
        self.assertIn(b" 403 ", (await client.until(b"another site")).split(b"\r\n")[0])

    async def test_own(self) -> None:
        """A page of the inbox is accepted."""
        client = await self.open(f"Origin: http://{self.host}", "Sec-Fetch-Site: same-origin")
        await client.until(b"101 ")

    async def test_talkative(self) -> None:
        """A client that sends anything is disconnected with an error (1003)."""
        client = await self.open()
        await client.until(b"\r\n\r\n")
        client.transport.write(frame(b"hello", 0x81))
        self.assertIn(b"\x03\xeb", (await client.end()).partition(b"\r\n\r\n")[2])

    async def test_endless(self) -> None:
        """A client that sends a message without an end is disconnected (1009), long before memory is full."""
        client = await self.open()
        await client.until(b"\r\n\r\n")
        for number in range(9):
            client.transport.write(frame(bytes(1000), 0x01 if number == 0 else 0x00))
        self.assertIn(b"\x03\xf1", (await client.end()).partition(b"\r\n\r\n")[2])

    async def test_slow(self) -> None:
        """A client that does not read is disconnected, and nothing more is kept for it."""
        client = await self.open()
        await client.until(b"101 ")
        await self.check_dropped(client)

    async def test_noSocket(self) -> None:
        """A request that is not for a WebSocket gets an explanation."""
        answer = await self.get("/api/events")
        self.assertEqual(answer.status, 426)


def frame(payload: bytes, first: int) -> bytes:
    """A frame of a client (RFC 6455 5.2), with a mask that changes nothing."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload
