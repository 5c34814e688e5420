"""Observers are notified of the events of a session. Transcripts are observers.

For each kind of event there is one place in :mod:`txsmtpd.engine.connection` or :mod:`txsmtpd.engine.dispatcher` that
notifies the observer. Without an observer, this costs one comparison with None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from txsmtpd.session import TLSInfo
from txsmtpd.wire.proxy import ProxyData


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
