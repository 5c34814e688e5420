"""The client side of an SMTP connection: sends one command at a time and waits for its reply.

Twisted's own SMTP client sends a whole message and reports the final result. A relay needs the replies for the sender,
for each recipient and for the message, so here each reply is a Deferred. :mod:`txsmtpd.handlers.upstream` decides which
commands to send.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IPullProducer, ITCPTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.log.reasons import reason_of
from txsmtpd.reply import Refused, Reply
from txsmtpd.wire.outgoing import LONGEST_LINE, NoReply, ReplyReader

log = Logger(namespace="txsmtpd.relay")

PIECE = 65536  # octets written at a time
FAREWELL = 10  # seconds to wait for the server to close after QUIT

UNREACHABLE = Reply(451, "4.4.1", "The next server cannot be reached, try again later")
DROPPED = Reply(451, "4.4.2", "The next server closed the connection, try again later")
TOO_SLOW = Reply(451, "4.4.2", "The next server timed out, try again later")
GARBLED = Reply(451, "4.5.0", "The next server violated the protocol, try again later")
NOT_SECURE = Reply(451, "4.7.5", "The next server cannot be reached securely, try again later")
NOT_LET_IN = Reply(451, "4.7.0", "The next server rejected the login, try again later")
NOT_READY = Reply(451, "4.3.2", "The next server does not accept mail now, try again later")


def reply_for_client(reply: Reply) -> Reply:
    """Convert a reply of the next server to one for our client: 421 becomes 451, and a missing status code is added."""
    code = 451 if reply.code == 421 else reply.code
    if reply.code // 100 == 3:
        return GARBLED
    return (
        reply if code == reply.code and reply.status else Reply(code, reply.status or f"{code // 100}.0.0", reply.lines)
    )


async def reply_of(asking: Awaitable[Reply]) -> Reply:
    """Return the reply that the awaitable returns, or that it raises with Refused."""
    try:
        return await asking
    except Refused as refused:
        return refused.reply


@implementer(IHandshakeListener)
class Connection(LineReceiver):
    """A connection to a server. Each command is sent after the reply to the previous one.

    If something fails or takes too long, the method raises :class:`~txsmtpd.reply.Refused` with 4yz and the connection
    is aborted. It is also aborted if the wait for a reply is cancelled.

    :param timeout: seconds to wait for a reply, or for the server to read a piece of a message.
    :param lost: called with the connection when it is lost.
    """

    transport: Any
    delimiter = b"\n"  # some servers end lines with LF alone
    MAX_LENGTH = LONGEST_LINE

    def __init__(self, call_later: Callable[..., Any], timeout: float, lost: Callable[[Connection], object]) -> None:
        self.call_later = call_later
        self.timeout = timeout
        self._lost = lost
        self.extensions: dict[str, str] = {}  #: offered in the reply to EHLO: parameters by keyword
        self.secure = False  #: whether TLS is used
        self.verified = False  #: whether the server's identity was verified
        self.messages = 0  #: MAIL commands so far
        self.gone: Reply | None = None  #: why the connection can no longer be used, or None
        self._reader = ReplyReader()
        self._owed = 0  # replies that the server has not sent yet
        self._replies: deque[Reply] = deque()
        self._waiting: Deferred[Any] | None = None
        self._timer: Any = None
        self._handshake = False
        self._sending = False

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._owed = 1  # the greeting

    # Input

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        # Read everything first: replies sent too early must not be taken for replies to the next command.
        if self._replies and self._waiting is not None:
            self._done(self._replies.popleft())

    def lineReceived(self, line: bytes) -> None:
        if self.gone is not None:
            return
        try:
            reply = self._reader.feed(line.removesuffix(b"\r"))
        except NoReply as error:
            log.warn("the next server has sent {what}", what=str(error))
            self.fail(GARBLED)
            return
        if reply is None:
            return
        if not self._owed:
            if reply.code >= 400 and self._replies and self._waiting is not None:
                self._done(self._replies.popleft())  # a final 421 does not change the reply before it
            self.fail(self._unasked(reply))
            return
        self._owed -= 1
        self._replies.append(reply)

    def _unasked(self, reply: Reply) -> Reply:
        """Convert a reply without a command, usually 421 before the server closes, to one for our client."""
        if reply.code < 400:
            return GARBLED
        # Before MAIL, the reply does not concern a message, so do not pass it on: a third party may have injected it.
        return reply_for_client(reply) if self.messages else NOT_READY

    def lineLengthExceeded(self, line: bytes) -> None:
        log.warn("the next server has sent a line that is too long")
        self.fail(GARBLED)

    def handshakeCompleted(self) -> None:
        if self._handshake:
            self._handshake = False
            self.secure = True
            self._done(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._handshake:
            log.warn("TLS with the next server failed: {reason}", reason=reason_of(reason).removeprefix("TLS: "))
        self.fail(NOT_SECURE if self._handshake else DROPPED)
        self._lost(self)

    # Waiting for replies

    def _wait(self, seconds: float | None = None) -> Deferred[Any]:
        if self.gone is not None:
            raise Refused(self.gone)
        waiting = self._waiting = Deferred(self._nobody_waits)
        self._watch(self.timeout if seconds is None else seconds)
        return waiting

    def _nobody_waits(self, waiting: Deferred[Any]) -> None:
        # A reply that arrives later would be taken for the reply to the next command.
        self._waiting = None
        self.fail(DROPPED)

    def _watch(self, seconds: float) -> None:
        self._unwatch()
        self._timer = self.call_later(seconds, self.fail, TOO_SLOW)

    def _unwatch(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _done(self, result: Any) -> None:
        waiting, self._waiting = self._waiting, None
        self._unwatch()
        if waiting is not None:
            waiting.callback(result)

    def fail(self, why: Reply) -> None:
        """Abort the connection. A pending wait raises Refused with *why*."""
        if self.gone is None:
            self.gone = why
            self._replies.clear()
            if self._sending:
                self._sending = False
                self.transport.unregisterProducer()
            self.transport.abortConnection()
        waiting, self._waiting = self._waiting, None
        self._unwatch()
        if waiting is not None:
            waiting.errback(Refused(self.gone))

    # Commands

    async def reply(self, seconds: float | None = None) -> Reply:
        """Return the server's next reply."""
        if self._replies:
            return self._replies.popleft()
        reply: Reply = await self._wait(seconds)
        return reply

    async def command(self, line: str) -> Reply:
        """Send a command line and return the reply."""
        if self.gone is not None:
            raise Refused(self.gone)
        self._owed += 1
        self.transport.write(line.encode("utf-8") + b"\r\n")
        return await self.reply()

    async def ask(self, line: str) -> Reply:
        """Send a command line and return the reply, converted by :func:`reply_for_client`. If the reply is 3yz or 421,
        abort the connection."""
        reply = await self.command(line)
        if reply.code // 100 == 3:
            self.fail(GARBLED)
        elif reply.code == 421:
            self.quit(reply_for_client(reply))
        return reply_for_client(reply)

    async def begin(self, hello: str, lmtp: bool) -> None:
        """Wait for the greeting and send EHLO, HELO or LHLO.

        :param hello: the client's name.
        """
        greeting = await self.reply()
        if greeting.code != 220:
            raise self._given_up(NOT_READY, greeting)
        await self.greet(hello, lmtp)

    async def greet(self, hello: str, lmtp: bool) -> None:
        """Send EHLO, HELO or LHLO, and note the extensions that the server offers."""
        reply = await self.command(f"{'LHLO' if lmtp else 'EHLO'} {hello}")
        self.extensions = {}
        if reply.positive:
            for line in reply.lines[1:]:
                keyword, _, parameter = line.partition(" ")
                self.extensions[keyword.upper()] = parameter
        elif lmtp or reply.code < 500 or not (reply := await self.command(f"HELO {hello}")).positive:
            raise self._given_up(NOT_READY, reply)

    def _given_up(self, why: Reply, said: Reply) -> Refused:
        log.warn("the next server replied {said}: {why}", said=" / ".join(str(said).splitlines()), why=why.text)
        self.fail(why)
        return Refused(why)

    async def start_tls(self, context: Any, verified: bool, greeted: bool = True) -> None:
        """Start TLS.

        :param context: the context for Twisted's TLS.
        :param verified: whether the context verifies the server's identity.
        :param greeted: whether the server has already sent its greeting. If not, the greeting follows the handshake.
        """
        if self.clearLineBuffer() or self._reader.begun or self._replies:
            # This input came without TLS, perhaps from an attacker. It must not be taken for a reply in TLS.
            self.fail(GARBLED)
        waiting = self._wait()
        self._handshake = True
        self._owed = 0 if greeted else 1
        try:
            self.transport.startTLS(context)
        except BaseException:
            self._waiting = None
            raise
        await waiting
        self.verified = verified

    async def authenticate(self, username: bytes, password: bytes) -> None:
        """Log in."""
        from twisted.mail.smtp import CramMD5ClientAuthenticator, LOGINAuthenticator, PLAINAuthenticator

        makers: list[Any] = [PLAINAuthenticator, LOGINAuthenticator, CramMD5ClientAuthenticator]
        offered = self.extensions.get("AUTH", "").upper().split()
        for make in makers if self.secure else reversed(makers):
            mechanism = make(username)
            name = mechanism.getName().decode("ascii")
            if name in offered:
                break
        else:
            raise self._given_up(NOT_LET_IN, Reply(504, "5.5.4", "no supported AUTH mechanism"))
        initial = f" {_base64(mechanism.challengeResponse(password, 2))}" if name == "PLAIN" else ""
        reply = await self.command(f"AUTH {name}{initial}")
        steps = 0
        while reply.code == 334 and steps < 3:
            steps += 1
            try:
                challenge = base64.b64decode(reply.lines[0].encode("ascii", "replace"), validate=True)
            except ValueError:
                break
            reply = await self.command(_base64(mechanism.challengeResponse(password, challenge)))
        if reply.code != 235:
            raise self._given_up(NOT_LET_IN, reply)

    async def send(self, parts: Iterable[bytes], replies: int, seconds: float) -> list[Reply]:
        """Send a message and its end, as fast as the server reads it, and return the replies.

        :param replies: the number of replies to wait for.
        :param seconds: how long to wait for each of them.
        """
        waiting = self._wait()
        self._sending = True
        self.transport.registerProducer(_Pieces(self, parts, replies), False)
        await waiting
        return [await reply_of(self.reply(seconds)) for _ in range(replies)]

    async def write(self, octets: bytes) -> None:
        """Send a part of a message. Returns when it is written."""
        waiting = self._wait()
        self._sending = True
        self.transport.registerProducer(_Part(self, octets), False)
        await waiting

    def wrote(self) -> None:
        """A piece of a message was written. Called by the producer of the message."""
        self._watch(self.timeout)

    def wrote_all(self, replies: int) -> None:
        """The whole message was written, and *replies* replies are expected."""
        self._sending = False
        self.transport.unregisterProducer()
        self._owed += replies
        self._done(None)

    def quit(self, why: Reply = DROPPED) -> None:
        """Send QUIT."""
        if self.gone is None:
            self.gone = why
            self.transport.write(b"QUIT\r\n")
            self.transport.loseConnection()
            self._timer = self.call_later(FAREWELL, self.transport.abortConnection)


class Connections(Factory):
    """Makes a connection's protocol.

    :param arguments: of :class:`Connection`.
    """

    noisy = False

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def buildProtocol(self, addr: Any) -> Connection:
        return Connection(*self._arguments)


@implementer(IPullProducer)
class _Pieces:
    """Writes a message piece by piece, as the transport asks for them."""

    def __init__(self, connection: Connection, parts: Iterable[bytes], replies: int) -> None:
        self._connection = connection
        self._pieces = (part[start : start + PIECE] for part in parts for start in range(0, len(part), PIECE))
        self._next = next(self._pieces)
        self._replies = replies

    def resumeProducing(self) -> None:
        self._connection.transport.write(self._next)
        # Whether this is the last piece must be known before a reply can arrive.
        self._next = next(self._pieces, b"")
        if self._next:
            self._connection.wrote()
        else:
            self._connection.wrote_all(self._replies)

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and handles that itself."""


@implementer(IPullProducer)
class _Part:
    """Writes a part of a message, and waits until the transport asks for more."""

    def __init__(self, connection: Connection, octets: bytes) -> None:
        self._connection = connection
        self._octets = octets
        self._written = 0

    def resumeProducing(self) -> None:
        piece = self._octets[self._written : self._written + PIECE]
        if piece:
            self._written += len(piece)
            self._connection.transport.write(piece)
            self._connection.wrote()
        else:
            self._connection.wrote_all(0)

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and handles that itself."""


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def endpoint_to(reactor: Any, host: str, port: int, timeout: float) -> Any:
    """Return the endpoint of a server.

    :param host: a name, an address, or the path of a Unix socket.
    """
    from twisted.internet import endpoints

    from txsmtpd.bridges.host_endpoint import HostEndpoint

    if host.startswith("/"):
        return endpoints.UNIXClientEndpoint(reactor, host, timeout)
    if isIPAddress(host):
        return endpoints.TCP4ClientEndpoint(reactor, host, port, timeout)
    if isIPv6Address(host):
        return endpoints.TCP6ClientEndpoint(reactor, host, port, timeout)
    return HostEndpoint(reactor, host, port, timeout)
