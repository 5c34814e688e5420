"""What the tests share: a client in memory, readers of replies, and a collector of log events.

A :class:`Client` holds both ends of one connection: a server made by a real factory, on a transport that behaves as a
socket's does where it matters. It reads only while it is told to, queues what the client does not read, tells its
producer so, and closes in a later turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd import SMTPFactory

GREETING = b"EHLO client.test\r\n"
TRANSACTION = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
MESSAGE = b"Subject: test\r\n\r\nHello\r\n"

PEER = IPv4Address("TCP", "192.0.2.7", 4321)
HIGH_WATER = 65536  # unread octets above which a transport tells its producer


@dataclass(frozen=True)
class Answer:
    """One complete reply, as a client sees it."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as one string."""
        return "\n".join(self.lines)

    @property
    def status(self) -> str | None:
        """The enhanced status code of the last line, if it has one."""
        found = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)", self.lines[-1])
        return found[0] if found else None


def answers(octets: bytes) -> list[Answer]:
    """The replies that the octets are made of.

    :raises AssertionError: if they are anything but complete replies as RFC 5321 4.2 has them.
    """
    found: list[Answer] = []
    lines: list[str] = []
    code = 0
    if octets and not octets.endswith(b"\r\n"):
        raise AssertionError(f"an unfinished reply: {octets[-80:]!r}")
    for line in octets.split(b"\r\n")[:-1]:
        parts = re.fullmatch(rb"([2-5][0-5][0-9])(?:([ -])([^\x00-\x08\x0a-\x1f\x7f]*))?", line)
        if parts is None or len(line) > 510:
            raise AssertionError(f"no line of a reply: {line!r}")
        if lines and int(parts[1]) != code:
            raise AssertionError(f"a reply with two codes, at {line!r}")
        code = int(parts[1])
        lines.append((parts[3] or b"").decode("utf-8"))
        if parts[2] != b"-":
            found.append(Answer(code, tuple(lines)))
            lines = []
    if lines:
        raise AssertionError(f"a reply without its last line: {lines!r}")
    return found


def codes(octets: bytes) -> list[int]:
    """The reply codes of the replies that the octets are made of."""
    return [answer.code for answer in answers(octets)]


def handler(**hooks: Any) -> Any:
    """A handler with these hooks: ``handler(RCPT=function)`` has a ``handle_RCPT``, without a ``self``."""
    return SimpleNamespace(
        **{name if name == "process_message" else f"handle_{name}": hook for name, hook in hooks.items()}
    )


class Transport(StringTransport):
    """A transport in memory, whose client may stop reading."""

    def __init__(self, peer: IAddress) -> None:
        super().__init__(peerAddress=peer)
        self.taken = b""  #: what the client has read
        self.queued: list[bytes] = []  #: what it has not
        self.client_reads = True
        self.aborted = False
        self.writes: list[bytes] = []
        self.pauses = 0
        self._producer_paused = False

    def write(self, data: bytes) -> None:
        if self.disconnected:
            return
        self.writes.append(data)
        self.queued.append(data)
        if self.client_reads:
            self.drain()
        elif self.producer is not None and self.unread > HIGH_WATER and not self._producer_paused:
            self._producer_paused = True
            self.producer.pauseProducing()

    @property
    def unread(self) -> int:
        """Octets that wait for the client to read them."""
        return sum(map(len, self.queued))

    def drain(self) -> None:
        """The client reads all that is there."""
        self.taken += b"".join(self.queued)
        self.queued.clear()
        if self._producer_paused:
            self._producer_paused = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def pauseProducing(self) -> None:
        self.pauses += 1
        super().pauseProducing()

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class Client:
    """A client and its connection to a server in memory.

    :param handler: the server's handler.
    :param peer: the client's address.
    :param factory: the server's factory, if it is to have several clients; otherwise one is made of *options*.
    """

    def __init__(
        self, handler: object = None, *, peer: IAddress = PEER, factory: SMTPFactory | None = None, **options: Any
    ) -> None:
        if factory is None:
            options.setdefault("hostname", "mx.test")
            options.setdefault("reactor", Clock())
            factory = SMTPFactory(handler, **options)
        self.factory = factory
        self.clock: Clock = factory.settings.reactor
        self.transport = Transport(peer)
        self.server: Any = factory.buildProtocol(peer)
        self.closed = False
        self._inbound: list[bytes | Exception | None] = []  # None: the client has closed its side
        self._seen = 0
        self.server.makeConnection(self.transport)
        self._settle()
        self.welcome = self.heard()

    # What the client does

    def say(self, octets: bytes, cuts: Iterable[int] = ()) -> None:
        """Send the octets, in segments that end at the cuts."""
        start = 0
        for cut in [*sorted(cuts), len(octets)]:
            if cut > start:
                self._inbound.append(octets[start:cut])
                self._settle()
                start = cut

    def talk(self, octets: bytes) -> bytes:
        """Send the octets; return what the server has said since the last look."""
        self.say(octets)
        return self.heard()

    def codes(self, octets: bytes) -> list[int]:
        """Send the octets; return the codes of the replies."""
        return codes(self.talk(octets))

    def ask(self, line: bytes) -> Answer:
        """Send one line; return its one reply."""
        found = answers(self.talk(line + b"\r\n"))
        if len(found) != 1:
            raise AssertionError(f"{line!r} got {len(found)} replies: {found!r}")
        return found[0]

    def send_message(self, message: bytes = MESSAGE) -> Answer:
        """Send a message in a transaction of its own; return the reply to it."""
        *before, last = answers(self.talk(TRANSACTION + b"DATA\r\n"))
        if last.code != 354:
            raise AssertionError(f"DATA got {last!r} after {before!r}")
        return self.ask(message + b".")

    def heard(self) -> bytes:
        """What the server has said since the last look."""
        new = self.transport.taken[self._seen :]
        self._seen += len(new)
        return new

    def half_close(self) -> None:
        """Close the client's side of the connection."""
        self._inbound.append(None)
        self._settle()

    def vanish(self, why: Exception | None = None) -> None:
        """Be gone, without a word."""
        self._inbound.append(why or ConnectionLost())
        self._settle()

    def stop_reading(self) -> None:
        """Leave unread what the server says from now on."""
        self.transport.client_reads = False

    def read_again(self) -> None:
        """Read all, now and from now on."""
        self.transport.client_reads = True
        self.transport.drain()
        self._settle()

    def wait(self, seconds: float, step: float = 0.25) -> bytes:
        """Let time pass; return what the server has said since the last look."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step, left))
            left -= step
            self._settle()
        return self.heard()

    # What a reactor does

    @property
    def reading(self) -> bool:
        """Whether the server reads from the connection."""
        return self.transport.producerState == "producing" and not self.transport.disconnecting

    @property
    def undelivered(self) -> int:
        """Octets that the server has not taken from the connection."""
        return sum(len(each) for each in self._inbound if isinstance(each, bytes))

    def _settle(self) -> None:
        while self._inbound and self.reading and not self.closed:
            event = self._inbound.pop(0)
            if isinstance(event, Exception):
                self._lost(event)
            elif event is not None:
                self.server.dataReceived(event)
            elif IHalfCloseableProtocol.providedBy(self.server):
                self.server.readConnectionLost()
            else:
                self._lost(ConnectionDone())
        transport = self.transport
        if self.closed or not transport.disconnecting:
            return
        if transport.aborted:
            self._lost(ConnectionAborted())
        elif not transport.queued and transport.producer is None:
            self._lost(ConnectionDone())

    def _lost(self, why: Exception) -> None:
        self.closed = True
        self.transport.disconnected = True
        self.server.connectionLost(Failure(why))


def conversation(
    octets: bytes, cuts: Iterable[int] = (), handler: object = None, wait: float = 0, **options: Any
) -> tuple[bytes, bool]:
    """Send the octets, cut into segments, and let time pass.

    :return: all that the server said, and whether it closed the connection.
    """
    client = Client(handler, **options)
    client.say(octets, cuts)
    client.wait(wait, step=1)
    said = client.transport.taken
    closed = client.closed
    if not closed:
        client.vanish(ConnectionDone())
    return said, closed


class Waiting:
    """A hook that waits until the test fires it.

    :param result: what it returns then.
    :param obedient: whether it ends when it is cancelled.
    """

    def __init__(self, result: object = "250 2.0.0 OK", obedient: bool = True) -> None:
        self.result = result
        self.obedient = obedient
        self.calls: list[tuple[Any, ...]] = []
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0

    async def __call__(self, *arguments: Any) -> object:
        self.calls.append(arguments)
        while True:
            waits: Deferred[Any] = Deferred(self._cancel)
            self.waiting.append(waits)
            try:
                return await waits
            except Exception:
                if self.obedient:
                    raise

    def _cancel(self, waits: Deferred[Any]) -> None:
        self.cancelled += 1
        self.waiting.remove(waits)

    def fire(self) -> None:
        """Let the call that has waited longest go on."""
        self.waiting.pop(0).callback(self.result)


def in_three_forms(result: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A hook with this result, as a coroutine function, as one that returns a Deferred, and as a plain function."""

    async def coroutine(*arguments: Any) -> object:
        return result

    def deferred(*arguments: Any) -> Deferred[object]:
        later: Deferred[object] = Deferred()
        later.callback(result)
        return later

    def plain(*arguments: Any) -> object:
        return result

    yield from [("async", coroutine), ("Deferred", deferred), ("plain", plain)]


class LoggingTestCase(SynchronousTestCase):
    """A test case that sees the server's log events in ``self.events``."""

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self._collect)
        self.addCleanup(globalLogPublisher.removeObserver, self._collect)

    def _collect(self, event: Any) -> None:
        if str(event.get("log_namespace", "")).startswith("txsmtpd"):
            self.events.append(event)

    def logged(self, level: str | None = None) -> list[str]:
        """The log's lines, of one level or all."""
        return [formatEvent(event) for event in self.events if level in (None, event["log_level"].name)]

    def errors_logged(self) -> int:
        """How many errors without a traceback the log holds."""
        return sum(event["log_level"].name == "error" and "log_failure" not in event for event in self.events)
