"""SMTPServer, which listens and receives messages, and DebuggingServer, which prints them."""

from __future__ import annotations

import inspect
import itertools
import re
import socket
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from txsmtpd.factory import SMTPFactory
from txsmtpd.log.sinks import LOGGER as log
from txsmtpd.service.listening import SMTPService
from txsmtpd.smtpd.channel import DATA_SIZE_DEFAULT, SMTPChannel
from txsmtpd.smtpd.connection import ChannelFactory, ChannelProtocol, debug
from txsmtpd.smtpd.looping import ReactorThreadError, driver, socket_map

BACKLOG = 50  # connections that may wait to be accepted
TURNS = 100  # iterations of a reactor that is not running, to close a port; one or two are enough

_numbers = itertools.count(1)
# Control characters that could manipulate a terminal. Tabs are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class SMTPServer:
    """A server that passes each message to :meth:`process_message`, which subclasses override.

    It listens as soon as it is created. It serves while :func:`~txsmtpd.smtpd.loop` or the program's own reactor runs.

    :param localaddr: the address or host name, and the port to listen on. None: do not listen; pass :attr:`factory` to
        an endpoint instead.
    :param remoteaddr: the address or host name, and the port of the remote server, for servers that relay mail.
    :param data_size_limit: the maximum size of a message, in bytes. 0 or None: no limit.
    :param map: the dictionary that contains the server while it is open, for ``loop(map=...)``. Default: a global
        one.
    :param enable_SMTPUTF8: allow UTF-8 in addresses and header fields (RFC 6531).
    :param decode_data: pass messages as str, decoded as UTF-8, instead of bytes.
    :param reactor: listens, and provides the time. Default: the global reactor.
    :param options: other options of :class:`~txsmtpd.factory.SMTPFactory`, such as ``tls_context`` or ``hostname``.
    :raises OSError: if it cannot listen on the address.
    :raises TypeError: for an unknown option, or a value of a wrong type.
    :raises ValueError: for an invalid value, and for two options that exclude each other.
    """

    channel_class: ClassVar[Any] = SMTPChannel  #: makes the channel of each connection

    factory: SMTPFactory  #: makes the connections
    socket: Any  #: the listening socket; ``server.socket.getsockname()`` returns the port chosen for port 0

    def __init__(
        self,
        localaddr: tuple[str | None, int] | None,
        remoteaddr: Any,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        map: dict[int, Any] | None = None,
        enable_SMTPUTF8: bool = False,
        decode_data: bool = False,
        *,
        reactor: Any = None,
        **options: Any,
    ) -> None:
        self._localaddr = localaddr
        self._remoteaddr = remoteaddr
        self._map = socket_map if map is None else map
        self._number = next(_numbers)
        self._reactor = reactor
        self._service: SMTPService | None = None
        self._free: Deferred[None] | None = None  # while closing: fires when the port is free
        self._closed: Deferred[None] | None = None
        self._arrived: tuple[ChannelProtocol, tuple[str, int]] | None = None
        self.socket = None
        self._options = {
            "data_size_limit": data_size_limit,
            "enable_SMTPUTF8": enable_SMTPUTF8,
            "decode_data": decode_data,
            "reactor": reactor,
            **options,
        }
        self.factory = self.make_factory()
        if localaddr is not None:
            self._call(lambda reactor: self._listen(reactor, localaddr))

    def make_factory(self, **options: Any) -> SMTPFactory:
        """Make the factory for the server's connections.

        :param options: override those that the server was made with.
        """
        options = {**self._options, **options}
        if options["enable_SMTPUTF8"] and options["decode_data"]:
            raise ValueError("decode_data and enable_SMTPUTF8 cannot be set to True at the same time")
        self.data_size_limit: int | None = options["data_size_limit"]
        self.enable_SMTPUTF8: bool = options["enable_SMTPUTF8"]
        self._decode_data: bool = options["decode_data"]
        return ChannelFactory(self, **options)

    # Listening

    def _call(self, function: Callable[[Any], Any]) -> Any:
        return driver.call(function) if self._reactor is None else function(self._reactor)

    def _listen(self, reactor: Any, address: tuple[str | None, int]) -> None:
        family, *_, (host, port, *_) = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        make = TCP6ServerEndpoint if family == socket.AF_INET6 else TCP4ServerEndpoint
        service = SMTPService(make(reactor, port, BACKLOG, host), self.factory, reactor=reactor)
        try:
            service.startService()
        except CannotListenError as error:
            raise error.socketError from None
        self._service = service
        self.socket = getattr(service.port, "socket", None)
        self._map[self._number] = self
        where = f"Local addr: {address}\n\tRemote addr:{self._remoteaddr}"
        debug(f"{type(self).__name__} started at {time.ctime()}\n\t{where}")

    def close(self, *, abort: bool = False) -> Deferred[None] | None:
        """Stop listening, and close the connections: idle ones get 421, the others have 30 seconds for their message.

        The port is free when this returns. If the code of the server calls it, the port is free a moment later.

        :param abort: close all connections at once instead.
        :return: in the thread of the loop or reactor, a Deferred that fires when all connections are closed.
        """

        def begin(reactor: Any) -> Deferred[None]:
            if self._free is None:
                self._free = Deferred()
                self._closed = Deferred.fromCoroutine(self._close(self._free, abort)).addErrback(self._not_closed)
            elif abort:
                self.factory.abort()
            return self._turn_until(reactor, self._free)

        try:
            result = self._call(begin)
        except ReactorThreadError:  # the thread has just stopped running the reactor
            result = self._call(begin)
        return None if result is None else self._closed

    async def _close(self, free: Deferred[None], abort: bool) -> None:
        try:
            if self._service is not None:
                await self._service.stop_listening()
            free.callback(None)
            if abort:
                self.factory.abort()
            await (self.factory.drain() if self._service is None else self._service.stopService())
            await self.ended()
        finally:
            driver.forget(self._map, self._number)

    def _not_closed(self, failure: Failure) -> None:
        log.failure("{server} was not closed cleanly", failure, server=type(self).__name__)

    def _turn_until(self, reactor: Any, free: Deferred[None]) -> Deferred[None]:
        """Run iterations of a reactor that is not running, until it has freed the port."""
        for _ in range(TURNS):
            if free.called or reactor.running or self._reactor is not None:
                break
            reactor.iterate()
        return free

    async def ended(self) -> None:
        """Called when no connection is left, before the server is closed."""

    # Connections

    def connected_by(self, conn: ChannelProtocol) -> None:
        """Handle a new connection."""
        self._arrived = conn, conn.getpeername()
        self.handle_accept()

    def handle_accept(self) -> None:
        """Called for each connection; servers older than :meth:`handle_accepted` override this."""
        pair = self.accept()
        if pair is not None:
            self.handle_accepted(*pair)

    def accept(self) -> tuple[Any, tuple[str, int]] | None:
        """Return the new connection and the client's address, or None."""
        arrived, self._arrived = self._arrived, None
        return arrived

    def handle_accepted(self, conn: Any, addr: tuple[str, int]) -> None:
        """Make the channel of a connection. A connection without a channel is closed."""
        debug("Incoming connection from", addr)
        self.channel_class(self, conn, addr, self.data_size_limit, self._map, self.enable_SMTPUTF8, self._decode_data)

    # Messages

    def take_message(self, channel: Any) -> Any:
        """Call :meth:`process_message` with the message of a channel, and return the result."""
        keywords = {}
        if not self._decode_data:
            given = {"mail_options": channel.mail_options, "rcpt_options": channel.rcpt_options}
            taken = keywords_of(getattr(self.process_message, "__func__", self.process_message))
            keywords = given if taken is None else {name: given[name] for name in given.keys() & taken}
        return self.process_message(channel.peer, channel.mailfrom, channel.rcpttos, channel.received_data, **keywords)

    def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
        """Called with each message. Override it.

        It runs in the thread of the loop or of the program's reactor, and blocks all other connections until it
        returns. It may be a coroutine function or return a Deferred; then it does not block them.

        :param peer: the client's address and port.
        :param mailfrom: the reverse-path, ``<>`` if it is null.
        :param rcpttos: the recipients.
        :param data: the message: bytes, or str with *decode_data*. Lines are separated by LF; the last has none.
        :param kwargs: ``mail_options`` and ``rcpt_options``, the parameters of MAIL and RCPT in upper case; without
            *decode_data*, and if the method accepts them.
        :return: None for 250, or another reply, such as ``"550 5.7.1 No spam"``.
        """
        raise NotImplementedError(f"{type(self).__name__} must override process_message")


@lru_cache(maxsize=256)
def keywords_of(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names of the arguments that a function accepts by keyword, or None if it accepts all."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    return frozenset(parameters)


class DebuggingServer(SMTPServer):
    """Prints each message to standard output."""

    def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
        lines = ["---------- MESSAGE FOLLOWS ----------"]
        if kwargs.get("mail_options"):
            lines.append(f"mail options: {kwargs['mail_options']}")
        if kwargs.get("rcpt_options"):
            lines.append(f"rcpt options: {kwargs['rcpt_options']}\n")
        lines += _shown(data, f"X-Peer: {peer[0]}")
        lines.append("------------ END MESSAGE ------------")
        print("\n".join(lines), flush=True)


def _shown(data: bytes | str, last_field: str) -> list[str]:
    """Return the lines of a message for printing, with another field at the end of its header."""
    if isinstance(data, str):
        lines = data.splitlines()
        shown = [_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line) for line in lines]
        field = last_field
    else:
        lines = data.splitlines()  # type: ignore[assignment]
        shown = [repr(line) for line in lines]
        field = repr(last_field.encode("utf-8"))
    for place, line in enumerate(lines):
        if not line:
            shown.insert(place, field)
            break
    return shown
