"""Shared by the tests of the inbox: a store with its site on a port, and requests to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from txsmtpd.inbox.message import Arrival, Message
from txsmtpd.inbox.sqlite import SQLiteStore
from txsmtpd.inbox.store import Store
from txsmtpd.inbox.web.site import WebSettings, make_site

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")  # the beginning of an image


@implementer(IBodyProducer)
class Body:
    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.length = len(octets)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self.octets)
        return succeed(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


@dataclass
class Answer:
    """The response of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def mail(
    subject: str = "hello",
    text: str = "Hello!",
    *,
    to: str | tuple[str, ...] = "bob@example.com",
    sender: str = "ann@example.org",
    header: str = "",
    **facts: Any,
) -> Arrival:
    """A plain message."""
    recipients = (to,) if isinstance(to, str) else to
    content = (
        f"From: Ann <{sender}>\r\nTo: {', '.join(recipients)}\r\nSubject: {subject}\r\n{header}\r\n{text}\r\n"
    ).encode()
    return Arrival(content, sender, recipients, **facts)


def multipart(html: str = "<p>Hello</p>", *parts: str, text: str = "Hello", subtype: str = "mixed") -> Arrival:
    """A message with text, HTML and other parts. Each of these starts with its header."""
    alternative = (
        "Content-Type: multipart/alternative; boundary=inner\r\n\r\n"
        f"--inner\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
        f"--inner\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}\r\n--inner--"
    )
    bodies = "".join(f"--outer\r\n{part}\r\n" for part in (alternative, *parts))
    content = (
        "From: ann@example.org\r\nTo: bob@example.com\r\nSubject: parts\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: multipart/{subtype}; boundary=outer\r\n\r\n{bodies}--outer--\r\n"
    ).encode()
    return Arrival(content, "ann@example.org", ("bob@example.com",))


class StoreTestCase(TestCase):
    """A store that is open during the test."""

    def make_store(self) -> Store:
        return SQLiteStore()

    async def setUp(self) -> None:
        self.store = self.make_store()
        await self.store.open()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.store.close()))

    async def add(self, *arrivals: Arrival) -> list[Message]:
        return [await self.store.add(arrival) for arrival in arrivals]


class SiteTestCase(StoreTestCase):
    """The site of a store on a loopback port, during the test."""

    settings: dict[str, Any] = {}

    async def setUp(self) -> None:
        await super().setUp()
        self.web = WebSettings(**self.settings)
        self.port = reactor.listenTCP(0, make_site(self.store, self.web), interface="127.0.0.1")
        self.pool = HTTPConnectionPool(reactor, persistent=False)
        self.agent = Agent(reactor, pool=self.pool)
        self.addCleanup(self.port.stopListening)
        self.addCleanup(self.pool.closeCachedConnections)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port.getHost().port}"

    async def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send a request; a body that is not bytes is sent as JSON."""
        fields = {name: [value] for name, value in (headers or {}).items()}
        producer = None
        if body is not None:
            octets = body if isinstance(body, bytes) else json.dumps(body).encode()
            producer = Body(octets)
            fields.setdefault("Content-Type", ["application/json"])
        response = await self.agent.request(
            method.encode(), f"http://{self.host}{path}".encode(), Headers(fields), producer
        )
        found = {
            name.decode().lower(): b", ".join(values).decode() for name, values in response.headers.getAllRawHeaders()
        }
        return Answer(response.code, found, await readBody(response))

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    async def subjects(self, path: str = "/api/v1/messages") -> list[str]:
        """The subjects of the messages in a list."""
        return [message["Subject"] for message in (await self.get(path)).json["messages"]]
