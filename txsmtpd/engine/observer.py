"""Observers are notified of the events of a connection. Interceptors can change its behavior.

For each kind of event there is one place in :mod:`txsmtpd.engine.connection` or :mod:`txsmtpd.engine.dispatcher` that
notifies the observer. Without an observer, this costs one comparison with None. Transcripts are observers, metrics are
meters, and fault injection is an interceptor.
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
    """Receives the events of one session. Override the methods that you need. They must not raise exceptions."""

    def line_received(self, line: bytes | None) -> None:
        """The client has sent a line.

        :param line: the line without credentials. None for a response within AUTH, which is secret.
        """

    def line_refused(self, why: str, begins: bytes | None) -> None:
        """The client has sent something that is not a valid line.

        :param why: see :class:`~txsmtpd.engine.lines.BadLine`.
        :param begins: its first octets. None if they may be secret.
        """

    def reply_sent(self, octets: bytes) -> None:
        """The server sends a reply, a part of one, or several."""

    def data_read(self, octets: int, complete: bool, bare_newlines: bool) -> None:
        """The client has sent a message after DATA, or a chunk after BDAT.

        :param octets: the size, including dot-stuffing, but without the line that ends the message.
        :param complete: whether the message or chunk is complete.
        :param bare_newlines: whether it contains a CR without LF, or an LF without CR.
        """

    def proxy_header(self, data: ProxyData) -> None:
        """A PROXY header was received."""

    def tls_started(self, tls: TLSInfo) -> None:
        """A TLS handshake is complete."""

    def failed(self, what: str, error: BaseException) -> None:
        """A command or a hook has raised an exception. The log has its traceback.

        :param what: the verb of the command, or the name of the hook.
        """

    def fault_injected(self, rule: str, effect: str) -> None:
        """A fault was injected.

        :param rule: the rule, as text.
        :param effect: the effect, as text.
        """

    def closed(self, cause: BaseException) -> None:
        """The connection is closed."""


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
    """Create the observer of a session from those of all makers. Return None if there are no makers."""
    observers = [make(server) for make in makers]
    if not observers:
        return None
    return observers[0] if len(observers) == 1 else Observers(observers)


class Meter:
    """Counts events of one session. Unlike an observer, it does not receive lines and data, so it costs little.
    Override the methods that you need. They must not raise exceptions."""

    __slots__ = ()

    def replied(self, verb: bytes, reply: Reply) -> None:
        """The reply to a command, or the greeting, was sent.

        :param verb: the verb in upper case, even if the command does not exist.
        """

    def decided(self, by: str) -> None:
        """A hook or a filter, and not the server, has decided on the refusal that follows.

        :param by: ``"hook"``, ``"filter"``, or ``"filter_failure"`` for a filter that has failed. If this is called
            several times for one refusal, the first call counts.
        """

    def message_complete(self, octets: int) -> None:
        """A message was received completely. Its reply follows."""

    def tls_started(self, tls: TLSInfo) -> None:
        """A TLS handshake is complete."""

    def closed(self, cause: BaseException) -> None:
        """The connection is closed."""


def tell_decider(server: Any, by: str) -> None:
    """Call :meth:`Meter.decided`, if the session has a meter."""
    dispatcher = server._dispatcher
    if dispatcher is not None and dispatcher.meter is not None:
        dispatcher.meter.decided(by)


class Interceptor:
    """Can replace the actions of one session. Override the methods that you need.

    Each is called before an action. It calls *proceed* to perform the action, and returns the result of the turn.
    """

    def connect(self, proceed: Callable[[], Any]) -> Any:
        """A client has connected. Then it is greeted, after the handshake if TLS is implicit."""
        return proceed()

    def greet(self, proceed: Callable[[], Any]) -> Any:
        """The greeting is due."""
        return proceed()

    def command(self, verb: bytes, arg: str | None, proceed: Callable[[], Any]) -> Any:
        """A valid command was received. Then it is executed."""
        return proceed()

    async def message(self, octets: int, finish: Callable[[], Any]) -> Any:
        """A message was received completely. Then it is passed to the handler.

        :param finish: passes the message on, and returns a coroutine of the reply.
        """
        return await finish()

    def tls_context(self, context: Any) -> Any:
        """Return the context for a TLS handshake that starts now. By default it is the server's."""
        return context


class Action:
    """The result of a turn that performs an action on the connection instead of returning a reply."""

    closes = False  #: whether the action ends the session, so that no reply follows
    answers = False  #: whether the action sends the reply of the turn itself

    def act(self, server: Any) -> None:
        """Perform the action."""
        raise NotImplementedError


class Reader(Protocol):
    """Reads octets that are not lines, until it finds their end."""

    def feed(self, data: bytes, start: int) -> int:
        """Read the octets from the position *start*.

        :return: the position after the end; -1 if the end is not in the data.
        """


class CountedReader:
    """Wraps the reader of a message. At the end, it calls :meth:`Observer.data_read`.

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
        """The reader has found the end."""
        dot = len(END_OF_DATA) if isinstance(self.reader, DataReader) else 0
        self._observer.data_read(self._octets - dot, True, self._bare)

    def stop(self) -> None:
        """The reader is removed before the end."""
        self._observer.data_read(self._octets, False, self._bare)
