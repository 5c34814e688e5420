"""Shared by the tests of filters: a milter in memory, and handlers that keep what they receive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler
from txsmtpd.wire import milter
from txsmtpd.wire.milter import PacketReader

Answer = Callable[[bytes, bytes], bytes]

CONTINUE = milter.packet(b"c")
AGREED = milter.packet(b"O", milter.NEGOTIATION.pack(6, milter.ALL_ACTIONS, 0))
UNANSWERED = (milter.MACROS, milter.ABORT, milter.QUIT)


class MilterTransport(StringTransport):
    """The connection to a milter in memory."""

    def __init__(self, owner: MilterInMemory) -> None:
        super().__init__()
        self.owner = owner
        self.reader = PacketReader()
        self.gone = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        for command, octets in self.reader.feed(data):
            self.owner.said.append((command, octets))
            answer = self.owner.answer(command, octets)
            if answer is None:
                self.lose()
            elif answer and not self.gone:
                self.protocol.dataReceived(answer)

    def lose(self) -> None:
        """The milter closes the connection."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    loseConnection = abortConnection = lose


@implementer(IStreamClientEndpoint)
class MilterInMemory:
    """A milter, and the endpoint that leads to it.

    :param answers: its response to a command, instead of "continue": octets, None to close the connection, or a
        function of the command's data.
    """

    def __init__(self, answers: dict[bytes, Any] | None = None) -> None:
        self.answers = {milter.NEGOTIATE: AGREED, **dict.fromkeys(UNANSWERED, b""), **(answers or {})}
        self.said: list[tuple[bytes, bytes]] = []
        self.down = False
        self.silent = False
        self.attempts = 0
        self.transports: list[MilterTransport] = []

    def answer(self, command: bytes, data: bytes) -> bytes | None:
        """The response of the milter."""
        answer = self.answers.get(command, CONTINUE)
        return answer(data) if callable(answer) else answer

    def connect(self, factory: Any) -> Deferred[Any]:
        self.attempts += 1
        if self.silent:
            return Deferred()
        if self.down:
            return fail(ConnectionRefusedError())
        transport = MilterTransport(self)
        self.transports.append(transport)
        transport.protocol = factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return succeed(transport.protocol)

    @property
    def commands(self) -> str:
        """The letters of the commands that the milter has received, without macros."""
        return b"".join(command for command, _ in self.said if command != milter.MACROS).decode("ascii")

    def data_of(self, command: bytes) -> list[bytes]:
        """The data of each command with this letter."""
        return [data for each, data in self.said if each == command]


class Keeper:
    """A handler that keeps whole messages."""

    def __init__(self) -> None:
        self.content: list[bytes] = []
        self.envelopes: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.content.append(envelope.content)
        self.envelopes.append(envelope)
        return "250 2.0.0 kept"


@implementer(IMessageReceiver)
class Receiver:
    """Keeps a message as it arrives."""

    def __init__(self, owner: StreamingKeeper) -> None:
        self.owner = owner
        self.octets = b""
        self.aborted: list[BaseException] = []
        self.finished = 0
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.octets += data
        if self.owner.pauses:
            self.producer.pauseProducing()

    def finish(self) -> Any:
        self.finished += 1
        return self.owner.status

    def abort(self, reason: BaseException) -> None:
        self.aborted.append(reason)


@implementer(IStreamingHandler)
class StreamingKeeper:
    """A handler that receives messages in pieces."""

    def __init__(self, status: Any = "250 2.0.0 streamed") -> None:
        self.receivers: list[Receiver] = []
        self.status = status
        self.pauses = False

    def open_message(self, server: Any, session: Any, envelope: Any) -> Receiver:
        self.receivers.append(Receiver(self))
        return self.receivers[-1]
