"""Shared by the tests of relaying: a scripted server in memory, and a client of a Proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support import Answer, Client, answers
from txsmtpd.handlers import Proxy

CLOSE = object()  #: closes the connection
SILENT = object()  #: says nothing

OFFERS = ("SIZE 1000000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", "CHUNKING", "BINARYMIME")


class Wire(StringTransport):
    """The relay's side of a connection to the scripted server."""

    def __init__(self, server: Script) -> None:
        super().__init__()
        self.server = server
        self.lost = False
        self.protocol: Any = None
        self.takes = True  #: whether the server reads
        self._input = b""
        self._data: list[bytes] | None = None
        self._chunk: int | None = None

    def write(self, data: bytes) -> None:
        if self.lost:
            return
        self._input += data
        self.server.clock.callLater(0, self._read)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        self._pull()

    def _pull(self) -> None:
        if self.producer is not None and self.takes and not self.lost:
            self.producer.resumeProducing()
            self.server.clock.callLater(0, self._pull)

    def loseConnection(self) -> None:
        self.server.clock.callLater(0, self.end, ConnectionDone())

    def abortConnection(self) -> None:
        self.server.aborted += 1
        self.end(ConnectionAborted())

    def end(self, why: Exception) -> None:
        """The connection is lost, in the next iteration."""
        if not self.lost:
            self.lost = True
            self.server.open.remove(self)
            self.server.clock.callLater(0, self.protocol.connectionLost, Failure(why))

    def say(self, octets: bytes) -> None:
        """Send octets to the relay."""
        if not self.lost:
            self.protocol.dataReceived(octets)

    def _read(self) -> None:
        while not self.lost:
            if self._chunk is not None:
                if len(self._input) < self._chunk:
                    return
                message, self._input = self._input[: self._chunk], self._input[self._chunk :]
                self._chunk = None
                self.server.messages.append(message)
                self._act(".")
                continue
            line, end, rest = self._input.partition(b"\r\n")
            if not end:
                return
            self._input = rest
            if self._data is None:
                self._command(line.decode("utf-8"))
            elif line == b".":
                self.server.messages.append(b"".join(each + b"\r\n" for each in self._data))
                self._data = None
                self._act(".")
            else:
                self._data.append(line)

    def _command(self, line: str) -> None:
        self.server.lines.append(line)
        verb = line.partition(" ")[0].upper()
        if verb == "BDAT":
            self._chunk = int(line.split(" ")[1])
            return
        if self._act(verb) == 354:
            self._data = []
        if verb == "QUIT":
            self.end(ConnectionDone())

    def _act(self, verb: str) -> int:
        answer = self.server.answer(verb)
        for each in answer if isinstance(answer, tuple) else (answer,):
            if each is CLOSE:
                self.end(ConnectionLost())
            elif each is not SILENT:
                assert isinstance(each, bytes)
                self.say(each)
        first = answer[0] if isinstance(answer, tuple) else answer
        return int(first[:3]) if isinstance(first, bytes) and first[:3].isdigit() else 0


@implementer(IStreamClientEndpoint)
class Script:
    """A server that follows a script, and the endpoint that leads to it.

    :param script: replies by verb, with ``"."`` for the end of a message and ``"CONNECT"`` for the greeting. The
        replies of a list are used once each, and then the usual reply. A reply is octets, `CLOSE`, `SILENT`, or a tuple
        of them.
    """

    def __init__(self, *, offers: tuple[str, ...] = OFFERS, down: bool = False, **script: Any) -> None:
        self.clock = Clock()
        self.script = {verb.replace("DOT", "."): answer for verb, answer in script.items()}
        self.usual = {
            "CONNECT": b"220 upstream.test ESMTP\r\n",
            "EHLO": "".join(f"250-{line}\r\n" for line in ("upstream.test", *offers)).encode() + b"250 HELP\r\n",
            "HELO": b"250 upstream.test\r\n",
            "MAIL": b"250 2.1.0 sender fine\r\n",
            "RCPT": b"250 2.1.5 recipient fine\r\n",
            "DATA": b"354 go on\r\n",
            ".": b"250 2.6.0 queued as 42\r\n",
            "RSET": b"250 2.0.0 reset\r\n",
            "QUIT": b"221 2.0.0 bye\r\n",
        }
        self.usual["LHLO"] = self.usual["EHLO"]
        self.down: Any = down
        self.connections = 0
        self.aborted = 0
        self.open: list[Wire] = []
        self.lines: list[str] = []
        self.messages: list[bytes] = []

    def answer(self, verb: str) -> Any:
        answer = self.script.get(verb)
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else None
        return self.usual.get(verb, b"500 5.5.1 what?\r\n") if answer is None else answer

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.down:
            return Deferred() if self.down is SILENT else fail(Failure(ConnectionRefusedError()))
        self.connections += 1
        wire = Wire(self)
        self.open.append(wire)
        wire.protocol = factory.buildProtocol(None)
        wire.protocol.makeConnection(wire)
        self.clock.callLater(0, wire._act, "CONNECT")
        return succeed(wire.protocol)

    def said(self, verb: str) -> list[str]:
        """The received lines with this verb."""
        return [line for line in self.lines if line.split(" ")[0] == verb]


class Relayed:
    """A client of a server with a Proxy, in front of a scripted server.

    :param options: of the Proxy.
    :param server: of the client's own server.
    """

    def __init__(
        self,
        script: Script,
        *,
        make: Callable[..., Proxy] = Proxy,
        server: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.script = script
        self.clock = script.clock
        options.setdefault("hello", "relay.test")
        self.proxy = make("upstream.test", 25, endpoint=script, reactor=self.clock, **options)
        self.server = {"enable_SMTPUTF8": True, **(server or {})}
        self.client = self.connect()
        self.ask("EHLO client.test")

    def connect(self) -> Client:
        """Another client."""
        return Client(self.proxy, reactor=self.clock, **self.server)

    def turn(self, seconds: float = 0) -> None:
        """Run what is due, advance the clock, and run what is due then."""
        for period in (0, seconds):
            self.clock.advance(period)
            for _ in range(100):
                self.clock.advance(0)

    def hear(self, octets: bytes, seconds: float = 0) -> list[Answer]:
        """Send octets. Return the replies that arrive."""
        self.client.say(octets)
        self.turn(seconds)
        return answers(self.client.wait(0.001, 0.001))

    def ask(self, line: str, seconds: float = 0, patience: float = 0) -> str:
        """Send a line. Return its reply, with a slash between its lines.

        :param patience: seconds to wait for the reply, if it is not sent immediately.
        """
        found = self.hear(line.encode() + b"\r\n", seconds)
        if not found and patience:
            self.turn(patience)
            found = answers(self.client.wait(0.001, 0.001))
        assert len(found) == 1, (line, found)
        return f"{found[0].code} {' / '.join(found[0].lines)}"

    def begin(self, *recipients: str) -> list[str]:
        """Send MAIL, and RCPT for each recipient. Return all replies."""
        return [self.ask("MAIL FROM:<a@client.test>"), *(self.ask(f"RCPT TO:<{each}>") for each in recipients)]

    def send(self, message: bytes = b"Subject: test\r\n\r\nHello\r\n", seconds: float = 0) -> str:
        """A whole transaction, with one recipient. Return the reply to the message."""
        self.begin("b@upstream.test")
        return self.send_data(message, seconds)

    def send_data(self, message: bytes = b"Subject: test\r\n\r\nHello\r\n", seconds: float = 0) -> str:
        """Send DATA and the message. Return the reply to the message."""
        begun = self.ask("DATA")
        assert begun.startswith("354"), begun
        found = self.hear(message + b".\r\n", seconds)
        assert len(found) == 1, found
        return f"{found[0].code} {' / '.join(found[0].lines)}"
