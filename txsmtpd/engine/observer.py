"""Observers, which are notified of the events of a connection, and interceptors, which can change what it does.

Each line, reply, message and end passes one place in :mod:`txsmtpd.engine.connection` or
:mod:`txsmtpd.engine.dispatcher`, which notifies the observer if there is one. Without an observer this costs only a
comparison with None. Transcripts and metrics are observers; fault injection is an interceptor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import IncrementalNewlineDecoder
from typing import Any, Protocol

from txsmtpd.reply import Reply
from txsmtpd.session import TLSInfo
from txsmtpd.wire.data import DataReader
from txsmtpd.wire.proxy import ProxyData

END_OF_DATA = b".\r\n"


class Observer:
    """Is told what happens in one session. Must not raise. Override what is of interest."""

    def line_received(self, line: bytes | None) -> None:
        """The client has sent a line.

        :param line: without credentials; None: it is an answer within AUTH, which nobody may see.
        """

    def line_refused(self, why: str, begins: bytes | None) -> None:
        """Something has come that is no proper line.

        :param why: see :class:`~txsmtpd.engine.lines.BadLine`.
        :param begins: what it began with; None: that may be secret.
        """

    def reply_sent(self, octets: bytes) -> None:
        """A reply is sent, or a part of one, or several."""

    def data_read(self, octets: int, complete: bool, bare_newlines: bool) -> None:
        """Octets of a message have come: all that followed DATA, or a chunk.

        :param octets: how many, with dots doubled, without the line that ends them.
        :param complete: whether their end has come.
        :param bare_newlines: whether there are CR or LF alone among them.
        """

    def proxy_header(self, data: ProxyData) -> None:
        """A PROXY header has come."""

    def tls_started(self, tls: TLSInfo) -> None:
        """TLS has begun."""

    def failed(self, what: str, error: BaseException) -> None:
        """A command or a hook has raised an exception. The log has its traceback.

        :param what: the verb of the command, or the name of the hook.
        """

    def fault_injected(self, rule: str, effect: str) -> None:
        """A fault was made on purpose.

        :param rule: why.
        :param effect: what it is.
        """

    def closed(self, cause: BaseException) -> None:
        """The connection is gone."""


class Observers(Observer):
    """Several observers of one session."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)

    def line_received(self, line: bytes | None) -> None:
        for each in self._observers:
            each.line_received(line)

    def line_refused(self, why: str, begins: bytes | None) -> None:
        for each in self._observers:
            each.line_refused(why, begins)

    def reply_sent(self, octets: bytes) -> None:
        for each in self._observers:
            each.reply_sent(octets)

    def data_read(self, octets: int, complete: bool, bare_newlines: bool) -> None:
        for each in self._observers:
            each.data_read(octets, complete, bare_newlines)

    def proxy_header(self, data: ProxyData) -> None:
        for each in self._observers:
            each.proxy_header(data)

    def tls_started(self, tls: TLSInfo) -> None:
        for each in self._observers:
            each.tls_started(tls)

    def failed(self, what: str, error: BaseException) -> None:
        for each in self._observers:
            each.failed(what, error)

    def fault_injected(self, rule: str, effect: str) -> None:
        for each in self._observers:
            each.fault_injected(rule, effect)

    def closed(self, cause: BaseException) -> None:
        for each in self._observers:
            each.closed(cause)


def observer_of(server: Any, makers: Iterable[Callable[[Any], Observer]]) -> Observer | None:
    """The observer of a session, made by each of the makers; None: there are none."""
    observers = [make(server) for make in makers]
    if not observers:
        return None
    return observers[0] if len(observers) == 1 else Observers(observers)


class Meter:
    """Counts what happens in one session. Unlike an observer it sees no octets, so that it costs next to nothing.
    Must not raise. Override what is of interest."""

    __slots__ = ()

    def replied(self, verb: bytes, reply: Reply) -> None:
        """A command has its reply, or the greeting is sent.

        :param verb: that of the command, in upper case, or what the client sent in place of one.
        """

    def decided(self, by: str) -> None:
        """Somebody other than the server itself decides about the refusal that follows.

        :param by: who: ``"hook"``, ``"filter"``, or ``"filter_failure"`` for a filter that could not decide. Of several
            that tell, the first is the one.
        """

    def message_complete(self, octets: int) -> None:
        """All of a message has come; its reply follows."""

    def tls_started(self, tls: TLSInfo) -> None:
        """TLS has begun."""

    def closed(self, cause: BaseException) -> None:
        """The connection is gone."""


def tell_decider(server: Any, by: str) -> None:
    """Tell the meter of a session, if there is one, who decides about the refusal that follows."""
    dispatcher = server._dispatcher
    if dispatcher is not None and dispatcher.meter is not None:
        dispatcher.meter.decided(by)


class Interceptor:
    """May act in place of what one session would do. Override what is of interest; the result is that of a turn."""

    def connect(self, go_on: Callable[[], Any]) -> Any:
        """A client has connected, and is going to be greeted, in TLS if that is how connections begin."""
        return go_on()

    def greet(self, go_on: Callable[[], Any]) -> Any:
        """The client is going to be greeted."""
        return go_on()

    def command(self, verb: bytes, arg: str | None, go_on: Callable[[], Any]) -> Any:
        """A command is in order, and is going to be carried out."""
        return go_on()

    async def message(self, octets: int, finish: Callable[[], Any]) -> Any:
        """A message is complete, and is going to be handed over.

        :param finish: does so, and returns a coroutine of the reply.
        """
        return await finish()

    def tls_context(self, context: Any) -> Any:
        """The context for the TLS that begins now, in place of the server's."""
        return context


class Action:
    """The result of a turn that does something to the connection in place of a reply."""

    closes = False  #: whether nothing is answered any more
    answers = False  #: whether it gives the turn a reply by itself

    def act(self, server: Any) -> None:
        """Do it, between two turns."""
        raise NotImplementedError


class Reader(Protocol):
    """What takes octets that are not lines, until it finds their end."""

    def feed(self, data: bytes, start: int) -> int:
        """Take the octets from *start* on; return where what follows them begins, or -1 while there is no end."""


class CountedReader:
    """A reader of a message's octets whose observer is told how many it has read, and whether CR or LF stand alone.

    :param reader: the reader.
    :param observer: the observer.
    """

    __slots__ = ("_newlines", "_observer", "_octets", "reader")

    def __init__(self, reader: Reader, observer: Observer) -> None:
        self.reader = reader
        self._observer = observer
        self._octets = 0
        self._newlines = IncrementalNewlineDecoder(None, translate=False)

    def feed(self, data: bytes, start: int) -> int:
        end = self.reader.feed(data, start)
        stop = end if end >= 0 else len(data)
        self._octets += stop - start
        self._newlines.decode(str(data[start:stop], "latin-1"), end >= 0)
        return end

    @property
    def _bare(self) -> bool:
        return self._newlines.newlines not in (None, "\r\n")

    def finish(self) -> None:
        """The end has come."""
        dot = len(END_OF_DATA) if isinstance(self.reader, DataReader) else 0
        self._observer.data_read(self._octets - dot, True, self._bare)

    def stop(self) -> None:
        """The end will not come."""
        self._observer.data_read(self._octets, False, self._bare)
