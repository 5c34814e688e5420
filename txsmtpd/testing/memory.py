"""Connections in memory, without ports or threads. A test sends octets and advances the clock. Both ends of a
connection are in one file, because they are instances of one class.

In a :class:`MemorySession` the test is the client, and sends and receives octets. In a :class:`MemoryConnection` the
client is any Twisted protocol. Both ends behave like sockets in these points: while an end is paused, it does not read.
Data that the other end does not read is buffered, and the producer is paused. A connection closes in a later iteration.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    ITLSTransport,
)
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.policies import TimeoutMixin
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.factory import SMTPFactory
from txsmtpd.faults.replies import read_replies
from txsmtpd.reply import Reply

PEER = IPv4Address("TCP", "192.0.2.7", 4321)  # reserved for documentation (RFC 5737)
HOST = IPv4Address("TCP", "192.0.2.25", 25)
HIGH_WATER = 65536  # unread octets above which a transport pauses its producer
STEP = 0.25  # seconds; the clock advances in steps, so that delayed calls happen in order


@implementer(IOpenSSLServerConnectionCreator)
class PretendedTLS:
    """A fake ``tls_context`` for connections in memory. The handshake only reports a result, and nothing is encrypted.

    :param protocol: the TLS version to report.
    :param cipher: the cipher to report.
    :param peer_certificate: the client's certificate.
    :param server_name: the server name that the client sent.
    :param stalled: whether the handshake never ends.
    :param failing: whether the handshake fails.
    """

    def __init__(
        self,
        *,
        protocol: str = "TLSv1.3",
        cipher: str = "TLS_AES_256_GCM_SHA384",
        peer_certificate: Any = None,
        server_name: str | None = None,
        stalled: bool = False,
        failing: bool = False,
    ) -> None:
        self.protocol = protocol
        self.cipher = cipher
        self.peer_certificate = peer_certificate
        self.server_name = server_name
        self.stalled = stalled
        self.failing = failing

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """Part of the interface of a ``tls_context``. A real transport would call it.

        :raises RuntimeError: always.
        """
        raise RuntimeError("this context only pretends TLS; use a real certificate with a real port")

    # Methods of an OpenSSL connection that servers call

    def get_protocol_version_name(self) -> str:
        return self.protocol

    def get_cipher_name(self) -> str:
        return self.cipher

    def get_servername(self) -> bytes | None:
        return None if self.server_name is None else self.server_name.encode("ascii")

    def get_peer_certificate(self, *, as_cryptography: bool = False) -> Any:
        return self.peer_certificate


class Wire:
    """One end of a connection, without TLS."""

    other: Any  # the other end

    def __init__(self, host: Any, peer: Any) -> None:
        self.host = host
        self.peer = peer
        self.protocol: Any = None
        self.inbound: deque[bytes | Exception | None] = deque()  #: unread data; None: the other end closed
        self.writes: list[bytes] = []  #: all data written
        self.producer: Any = None
        self.streaming = True
        self.wants = True  #: whether the protocol wants to read
        self.disconnecting = False
        self.disconnected = False
        self.aborted = False
        self.pauses = 0
        self._producer_paused = False

    def getPeer(self) -> Any:
        return self.peer

    def getHost(self) -> Any:
        return self.host

    def write(self, data: bytes) -> None:
        if self.disconnected or not data:
            return
        self.writes.append(data)
        self.other.inbound.append(data)
        if not self.other.reading and self.producer is not None and self.unread > HIGH_WATER:
            self._pause_producer()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    @property
    def reading(self) -> bool:
        """True if this end reads."""
        return self.wants and not self.disconnecting

    @property
    def unread(self) -> int:
        """The number of octets that the other end has not read."""
        return sum(len(each) for each in self.other.inbound if isinstance(each, bytes))

    @property
    def taken(self) -> bytes:
        """The written data that the other end has read. All data, if the other end is not paused."""
        written = b"".join(self.writes)
        return written if self.other.reading else written[: len(written) - self.unread]

    def _pause_producer(self) -> None:
        if self.streaming and not self._producer_paused:
            self._producer_paused = True
            self.producer.pauseProducing()

    def was_read(self) -> None:
        """The other end has read everything."""
        if self._producer_paused:
            self._producer_paused = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError(f"{producer!r} cannot be the producer: {self.producer!r} is")
        self.producer = producer
        self.streaming = streaming

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.pauses += 1
        self.wants = False

    def resumeProducing(self) -> None:
        self.wants = True

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class _Bypass:
    """An end as seen by its TLS layer: writes are not encrypted again."""

    def __init__(self, end: End) -> None:
        self._end = end

    def __getattr__(self, name: str) -> Any:
        inherited = getattr(Wire, name, None)
        return inherited.__get__(self._end) if callable(inherited) else getattr(self._end, name)


@implementer(ITLSTransport)
class End(Wire):
    """One end of a connection in memory: the transport of its protocol.

    :param client: whether it is the client's end.
    """

    TLS = False
    pretended: PretendedTLS | None = None
    connector: MemoryConnection | None = None  # notified when the connection is lost
    _handshake_due = False
    _pulled: Any = None  # a pull producer; TLS would call it through the reactor

    def __init__(self, host: IAddress, peer: IAddress, clock: Clock, *, client: bool) -> None:
        super().__init__(host, peer)
        self._clock = clock
        self._client = client

    # Methods that use TLS if it is on

    def write(self, data: bytes) -> None:
        self.protocol.write(data) if self.TLS else super().write(data)

    def loseConnection(self) -> None:
        self.protocol.loseConnection() if self.TLS and not self.disconnected else super().loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.disconnected:
            producer.stopProducing()
        elif not streaming:
            self._pulled = producer
        elif self.TLS:
            self.protocol.registerProducer(producer, streaming)
        else:
            super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self._pulled is not None:
            self._pulled = None
        elif self.TLS:
            self.protocol.unregisterProducer()
        else:
            super().unregisterProducer()

    def startTLS(self, context: Any, normal: bool = True) -> None:
        """Start TLS, or fake it if the context or the other end does."""
        if isinstance(context, PretendedTLS) or self.other.pretended is not None:
            self.pretended = context if isinstance(context, PretendedTLS) else self.other.pretended
            self._handshake_due = True
            return
        factory = TLSMemoryBIOFactory(context, self._client == normal, Factory(), self._clock)
        producer, streaming = self.producer, self.streaming
        if producer is not None:
            self.unregisterProducer()
        # Not the factory's own protocol, which would collect writes until the next iteration of a reactor.
        self.protocol = TLSMemoryBIOProtocol(factory, self.protocol, False)
        self.TLS = True
        self.protocol.makeConnection(_Bypass(self))
        if producer is not None:
            self.registerProducer(producer, streaming)

    def getHandle(self) -> Any:
        """Return the OpenSSL connection, or the fake one."""
        return self.pretended if self.pretended is not None else self.protocol.getHandle()

    def getPeerCertificate(self) -> Any:
        return self.getHandle().get_peer_certificate()

    # Methods of sockets that have no effect in memory

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return False

    def loseWriteConnection(self) -> None:
        """Close this side: the other end reads what was sent, and then end of file."""
        self.other.inbound.append(None)

    # What a reactor does

    def step(self) -> bool:
        """Do the pending work of this end. Return True if there was any."""
        moved = self._read()
        if self._handshake_due:
            self._handshake_due = False
            moved = self._complete_handshake() or moved
        if self._pulled is not None and self.other.reading and not self.disconnected:
            self._pulled.resumeProducing()
            moved = True
        return self._close_if_due() or moved

    def _read(self) -> bool:
        moved = False
        while self.inbound and self.reading and not self.disconnected:
            event = self.inbound.popleft()
            moved = True
            if isinstance(event, Exception):
                self._lost(event)
                self.other.inbound.append(ConnectionLost())
            elif event is not None:
                self.protocol.dataReceived(event)
            elif IHalfCloseableProtocol.providedBy(self.protocol):
                self.protocol.readConnectionLost()
            else:
                self._lost(ConnectionDone())
        if moved and not self.inbound:
            self.other.was_read()
        return moved

    def _complete_handshake(self) -> bool:
        assert self.pretended is not None
        if self.disconnected or self.pretended.stalled:
            return False
        if self.pretended.failing:
            self._lost(SSL.Error([("SSL routines", "", "pretended failure")]))
            self.other.inbound.append(None)
        elif IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        return True

    def _close_if_due(self) -> bool:
        if self.disconnected or not self.disconnecting:
            return False
        if self.aborted:
            self.other.inbound.append(ConnectionLost())
            self._lost(ConnectionAborted())
        elif not self._producer_paused and self._pulled is None and (self.other.disconnected or not self.unread):
            self.other.inbound.append(None)
            self._lost(ConnectionDone())
        else:
            return False
        return True

    def _lost(self, why: Exception) -> None:
        self.disconnected = True
        self.protocol.connectionLost(Failure(why))
        if self.connector is not None:
            self.connector.connection_lost(why)


class MemoryConnection:
    """A client and a server with a connection between them, in memory.

    :param client: any protocol of Twisted, or a ``ClientFactory`` such as an ``ESMTPSenderFactory``, which is notified
        when the connection is lost and may connect again. Timeouts of Twisted's ``TimeoutMixin`` use the clock of the
        connection.
    :param server: the server's handler, or its factory.
    :param peer: the client's address.
    :param options: options of the factory if *server* is a handler; see :class:`~txsmtpd.settings.Settings`.

    The constructor delivers data until both sides wait. Call :meth:`advance` to let time pass. If a side has waited for
    something else, such as a Deferred of the test, call :meth:`settle` to continue.
    """

    server: Any  #: the server's protocol
    client: Any  #: the client's protocol
    transport: End  #: the server's transport
    client_transport: End  #: the client's transport

    def __init__(
        self, client: IProtocol | ClientFactory, server: object = None, *, peer: IAddress = PEER, **options: Any
    ) -> None:
        self.factory = _factory(server, options)
        self.clock: Clock = self.factory.settings.reactor  #: the time of the server, and of the client's timeouts
        self.peer = peer
        self._connects = client
        self._settling = False
        self._ends: list[End] = []
        self.connect()
        self.settle()

    def connect(self) -> None:
        """Connect, for the first time or again."""
        connects = self._connects
        self.client = connects.buildProtocol(HOST) if isinstance(connects, ClientFactory) else connects
        self.server = self.factory.buildProtocol(self.peer)
        self.transport = End(HOST, self.peer, self.clock, client=False)
        self.client_transport = End(self.peer, HOST, self.clock, client=True)
        self.transport.other, self.client_transport.other = self.client_transport, self.transport
        if isinstance(connects, ClientFactory):
            self.client_transport.connector = self
        if isinstance(self.client, TimeoutMixin):
            self.client.callLater = self.clock.callLater  # type: ignore[assignment, method-assign]
        for end, protocol in ((self.transport, self.server), (self.client_transport, self.client)):
            end.protocol = protocol
            self._ends.append(end)
            protocol.makeConnection(end)

    def connection_lost(self, why: Exception) -> None:
        """The client's connection is lost: notify its factory."""
        if isinstance(self._connects, ClientFactory):
            self._connects.clientConnectionLost(self, Failure(why))  # type: ignore[arg-type]

    @property
    def closed(self) -> bool:
        """True if the connection is closed."""
        return self.transport.disconnected

    def settle(self) -> None:
        """Deliver data in both directions until nothing is pending."""
        if self._settling:
            return
        self._settling = True
        try:
            while any(end.step() for end in self._ends) or self.factory.batches.step():
                self._ends = [end for end in self._ends if not end.disconnected]
        finally:
            self._settling = False

    def advance(self, seconds: float, step: float = STEP) -> None:
        """Advance the clock by this time. The call returns immediately."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step, left))
            left -= step
            self.settle()

    def vanish(self, why: Exception | None = None) -> None:
        """Lose the client's connection without closing it. The server notices when it next reads."""
        self.transport.inbound.append(why or ConnectionLost())
        self.settle()


class _Listener(Protocol):
    """The client of a :class:`MemorySession`: it only receives."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)


class MemorySession(MemoryConnection):
    """A session with a server in memory. The test is the client.

    :param server: the server's handler, or its factory.
    :param client_tls: the client's TLS options if the server has implicit TLS; see
        :meth:`~txsmtpd.tls.authority.Authority.client_options`. Not needed with :class:`PretendedTLS`.
    :param peer: the client's address.
    :param options: options of the factory if *server* is a handler; see :class:`~txsmtpd.settings.Settings`.

    >>> session = MemorySession(hostname="mx.test")
    >>> session.welcome
    b'220 mx.test ESMTP txsmtpd\\r\\n'
    >>> session.talk(b"NOOP\\r\\nVRFY somebody\\r\\n")
    b'250 2.0.0 OK\\r\\n252 2.0.0 Cannot VRFY user, but will accept message and attempt delivery\\r\\n'
    >>> session.command("MAIL FROM:<a@example.com>")
    Reply(503, '5.5.1', 'Send HELO or EHLO first')
    >>> session.wait(300)
    b'421 4.4.2 Idle timeout, closing connection\\r\\n'
    >>> session.closed
    True
    """

    def __init__(self, server: object = None, *, peer: IAddress = PEER, client_tls: Any = None, **options: Any) -> None:
        super().__init__(_Listener(), server, peer=peer, **options)
        if client_tls is not None:
            self.client_transport.startTLS(client_tls)
            self.settle()
        self.welcome = self.heard()  #: the server's greeting

    # Send and receive

    def say(self, octets: bytes, cuts: Iterable[int] = ()) -> None:
        """Send the octets.

        :param cuts: positions at which to split the octets into segments.
        :raises TypeError: if *octets* is a string.
        """
        if not isinstance(octets, bytes):
            raise TypeError(f"talk() takes bytes, as in b'NOOP\\r\\n', not {octets!r}; command() takes a string")
        start = 0
        for cut in [*sorted(cuts), len(octets)]:
            if cut > start:
                self.client_transport.write(octets[start:cut])
                self.settle()
                start = cut

    def heard(self) -> bytes:
        """Return what the server has sent since the last call."""
        self.settle()
        new = b"".join(self.client.heard)
        self.client.heard.clear()
        return new

    def talk(self, octets: bytes, cuts: Iterable[int] = ()) -> bytes:
        """Send the octets, and return what the server has sent since the last call."""
        self.say(octets, cuts)
        return self.heard()

    def replies(self, octets: bytes) -> list[Reply]:
        """Send the octets, and return the replies that the server has sent since the last call."""
        return read_replies(self.talk(octets))

    def codes(self, octets: bytes) -> list[int]:
        """Send the octets, and return the codes of the replies."""
        return [reply.code for reply in self.replies(octets)]

    def command(self, line: str) -> Reply:
        """Send one line, and return its reply.

        :raises AssertionError: if there is not exactly one reply.
        """
        if not isinstance(line, str):
            raise TypeError(f"a command is a string without a line end, not {line!r}; talk() takes octets")
        return self._the_reply(repr(line), line.encode("utf-8") + b"\r\n")

    def _the_reply(self, what: str, octets: bytes) -> Reply:
        found = self.replies(octets)
        if not found:
            raise AssertionError(f"{what} got no reply; if a hook waits, advance the clock or fire what it waits for")
        if len(found) != 1:
            raise AssertionError(f"{what} got {len(found)} replies: {found!r}")
        return found[0]

    def send(
        self,
        message: bytes = b"Subject: test\r\n\r\nHello\r\n",
        mail_from: str = "sender@example.com",
        rcpt_tos: Iterable[str] | str = ("recipient@example.com",),
    ) -> Reply:
        """Send a message. If the client has not sent EHLO yet, send it first.

        :param message: the message with CRLF line ends. The method applies dot-stuffing (RFC 5321 4.5.2).
        :param rcpt_tos: the recipients. A string is one recipient.
        :return: the first refusal, or the reply to the message.
        :raises AssertionError: if a command, or the message, gets no reply.
        """
        if not isinstance(message, bytes):
            raise TypeError(f"a message must be bytes, not {message!r}")
        rcpt_tos = [rcpt_tos] if isinstance(rcpt_tos, str) else rcpt_tos
        lines = [] if self.server.session.host_name else ["EHLO client.test"]
        lines += [f"MAIL FROM:<{mail_from}>", *(f"RCPT TO:<{each}>" for each in rcpt_tos), "DATA"]
        for line in lines:
            reply = self.command(line)
            if reply.code >= 400:
                return reply
        stuffed = (b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:]
        end = b".\r\n" if message.endswith(b"\r\n") or not message else b"\r\n.\r\n"
        return self._the_reply("the message", stuffed + end)

    def start_tls(self, client_tls: Any = None) -> None:
        """Send STARTTLS and start TLS.

        :param client_tls: the client's TLS options; not needed with :class:`PretendedTLS`.
        :raises AssertionError: if the server refuses, or the handshake fails.
        """
        reply = self.command("STARTTLS")
        if reply.code != 220:
            raise AssertionError(f"STARTTLS got {reply!r}")
        self.client_transport.startTLS(client_tls)
        self.settle()
        if self.closed:
            raise AssertionError("the handshake failed, and the connection is closed")

    # Other actions of the client

    def half_close(self) -> None:
        """Close the client's side of the connection."""
        self.client_transport.loseWriteConnection()
        self.settle()

    def stop_reading(self) -> None:
        """Stop reading what the server sends."""
        self.client_transport.pauseProducing()

    def read_again(self) -> None:
        """Start reading again."""
        self.client_transport.resumeProducing()
        self.settle()

    def wait(self, seconds: float, step: float = STEP) -> bytes:
        """Advance the clock by this time, and return what the server has sent since the last call."""
        self.advance(seconds, step)
        return self.heard()

    # State of the connection

    @property
    def reading(self) -> bool:
        """True if the server reads from the connection."""
        return self.transport.reading

    @property
    def undelivered(self) -> int:
        """The number of octets that the server has not read from the connection."""
        return self.client_transport.unread


def _factory(server: object, options: dict[str, Any]) -> SMTPFactory:
    """Return the factory of a server in memory, with a fake clock.

    :raises TypeError: if options are passed together with a factory, or if the server is a client.
    """
    if not isinstance(server, SMTPFactory):
        if isinstance(server, Protocol | Factory):
            raise TypeError(f"the server must be a handler or an SMTPFactory, not {server!r}; is it the client?")
        options.setdefault("hostname", "mx.test")
        options.setdefault("reactor", Clock())
        return SMTPFactory(server, **options)
    if options:
        raise TypeError(f"pass {', '.join(options)} to the factory, not to the connection")
    if server.settings.reactor is None:
        # Settings are shared and immutable, so this factory gets a copy.
        server.settings = copy.copy(server.settings)
        object.__setattr__(server.settings, "reactor", Clock())
    return server
