"""Sinks for the octets of a message: memory, for ``handle_DATA``, or a receiver that processes them while they arrive.

A sink is created for each message. It gets all octets, and then exactly one call of either :meth:`finish`, which
returns the status, or :meth:`abort`. This module guarantees that. It does not parse the octets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from txsmtpd.limits.memory import Share
from txsmtpd.reply import FAILED, OK, Refused, Reply

RECEIVER_METHODS = ("registerProducer", "unregisterProducer", "write", "finish", "abort")
PIECES = 1000  # the maximum number of separate pieces of a message in memory
MEMORY_TIMEOUT = 60.0  # seconds that a message waits for memory
NO_MEMORY = Reply(452, "4.3.1", "Insufficient memory, try again later")


class Source(Protocol):
    """The source of the octets of a message."""

    def hold_untimed(self) -> None:
        """Pause."""

    def release(self) -> None:
        """Resume."""


class Owner(Protocol):
    """The message that a :class:`Buffered` collects."""

    def deliver(self, octets: bytes) -> Any:
        """Pass the complete message to the handler. Return its status, or an awaitable of it."""

    def call_later(self, period: float, function: Callable[[], object]) -> Any:
        """Call a function after *period* seconds."""


class Buffered:
    """Collects the message in memory.

    Its octets count as used memory until :meth:`close`. If the memory limit is reached, the source is paused for up to
    :data:`MEMORY_TIMEOUT`. Then the message is refused, and the rest is discarded.

    :param owner: the message.
    :param share: its share of the memory.
    :param source: the source of the octets.
    """

    __slots__ = ("_delivered", "_joined", "_octets", "_owner", "_refused", "_share", "_source", "_waiting")

    def __init__(self, owner: Owner, share: Share, source: Source) -> None:
        self._octets: list[bytes] = []
        self._joined: list[bytes] | None = None  # octets that were joined to larger pieces
        self._owner = owner
        self._share = share
        self._source = source
        self._waiting: Any = None  # the call that ends the wait for memory
        self._refused = False
        self._delivered = False

    def write(self, octets: bytes) -> None:
        """A piece of the message was received."""
        if self._refused:
            return
        self._octets.append(octets)
        if len(self._octets) >= PIECES:
            # Join small pieces, because each object takes much more memory than a few octets.
            if self._joined is None:
                self._joined = []
            self._joined.append(b"".join(self._octets))
            self._octets.clear()
        if not self._share.add(len(octets)) and self._waiting is None:
            self._waiting = self._owner.call_later(MEMORY_TIMEOUT, self._no_memory)
            self._share.wait(self._stop_waiting)
            self._source.hold_untimed()

    def _stop_waiting(self) -> None:
        """Stop waiting for memory."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if waiting.active():
                waiting.cancel()
            self._share.stop_waiting()
            self._source.release()

    def _no_memory(self) -> None:
        self._refused = True
        self._share.count_refusal()
        self._forget()

    def _forget(self) -> None:
        self._joined = None
        self._octets.clear()
        self._stop_waiting()
        self._share.release()

    def finish(self) -> Any:
        """The message is complete. Return its status, or an awaitable of it."""
        if self._refused:
            raise Refused(NO_MEMORY)
        if self._waiting is not None:
            self._stop_waiting()
        octets, joined = self._octets, self._joined
        message = octets[0] if len(octets) == 1 and joined is None else b"".join([*(joined or ()), *octets])
        self._joined = None
        octets.clear()
        self._delivered = True
        return self._owner.deliver(message)

    def abort(self, reason: BaseException) -> None:
        """The message is incomplete, and no more of it will arrive."""
        if not self._delivered:  # otherwise the handler may still use it
            self._forget()

    def close(self) -> None:
        """The handler has finished, and the message is no longer in memory."""
        self._share.release()


class Discarded:
    """Discards the message, because it has no recipients or the handler discards all mail."""

    def write(self, octets: bytes) -> None:
        """A piece of the message was received."""

    async def finish(self) -> Reply:
        """The message is complete. Return 250."""
        return OK

    def abort(self, reason: BaseException) -> None:
        """The message is incomplete, and no more of it will arrive."""

    def close(self) -> None:
        """Called last, after :meth:`finish`."""


@implementer(IPushProducer)
class Streamed:
    """Passes the message on to an :class:`~txsmtpd.interfaces.IMessageReceiver` while it arrives.

    If a method of the receiver raises an exception, the receiver gets no more octets, its ``abort`` is called, and the
    reply to the message is the one for the exception.

    :param receiver: the receiver that the handler has opened.
    :param hold: called when the receiver pauses.
    :param release: called when it resumes.
    :param complain: called with an exception for which no reply is sent, to log it.
    :param finish: called instead of the receiver's ``finish``.
    :raises TypeError: if the receiver lacks a method.
    """

    def __init__(
        self,
        receiver: Any,
        hold: Callable[[], object],
        release: Callable[[], object],
        complain: Callable[[BaseException], object],
        finish: Callable[[], Any] | None = None,
    ) -> None:
        for name in RECEIVER_METHODS:
            if not callable(getattr(receiver, name, None)):
                raise TypeError(f"open_message must return a receiver of messages; {receiver!r} has no {name}")
        self._receiver = receiver
        self._hold = hold
        self._release = release
        self._complain = complain
        self._finish = finish or receiver.finish
        self._over = False
        self._error: BaseException | None = None
        try:
            receiver.registerProducer(self, True)
        except BaseException as error:
            self._fail(error)

    def write(self, octets: bytes) -> None:
        """A piece of the message was received."""
        if self._over:
            return
        try:
            self._receiver.write(octets)
        except BaseException as error:
            self._fail(error)

    async def finish(self) -> Any:
        """The message is complete. Return the receiver's status."""
        if self._over and self._error is None:
            raise Refused(FAILED)  # it was aborted, because the client has disconnected
        if self._error is None:
            try:
                self._receiver.unregisterProducer()
            except BaseException as error:
                self._fail(error)
        if self._error is not None:
            known, self._error = self._error, None
            raise known
        self._over = True
        self._release()
        status = self._finish()
        return await status if isinstance(status, Awaitable) else status

    def abort(self, reason: BaseException) -> None:
        """The message is incomplete, and no more of it will arrive."""
        if self._over:
            self._tell_of_error()
            return
        self._over = True
        for tell in (self._receiver.unregisterProducer, lambda: self._receiver.abort(reason)):
            try:
                tell()
            except BaseException as error:
                self._complain(error)
        self._release()

    def close(self) -> None:
        """Called last, after :meth:`finish`."""

    def _tell_of_error(self) -> None:
        """Report an error of the receiver for which no reply is sent, because the message was aborted afterwards."""
        error, self._error = self._error, None
        if error is not None and not isinstance(error, Refused):
            self._complain(error)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self.abort(error)

    # Called by the receiver. This object is its producer

    def pauseProducing(self) -> None:
        """Pause the source."""
        if not self._over:
            self._hold()

    def resumeProducing(self) -> None:
        """Resume the source."""
        if not self._over:  # the connection may be busy with another message
            self._release()

    def stopProducing(self) -> None:
        """Refuse the message, and abort the receiver."""
        if not self._over:
            self._fail(Refused(Reply(451, "4.3.0", "The message was not processed, try again later")))


MessageSink = Buffered | Discarded | Streamed
