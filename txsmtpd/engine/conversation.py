"""Take turns over a connection: one line in, one answer out, in order, whatever the timing.

What lives here knows lines, turns, time and the transport, and nothing of SMTP: how input is cut into lines and handed
on, how input waits while a turn does, how answers leave, and how a connection ends. The commands are in
:mod:`txsmtpd.smtp`.

A *turn* is the work for one line: a coroutine, a Deferred or a plain result. While it waits, reading goes on into a
buffer, because a transport that is not read does not notice that its peer is gone; only above ``buffer_limit``, or
when the client does not read the answers, is the transport paused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from types import CoroutineType
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd.bridges.asyncio_bridge import go_on
from txsmtpd.engine.output import Way, closes_at_once, is_closing, way_to
from txsmtpd.settings import Settings

ENDLESS_LINE = 65536  # octets after which a line is no mistake any more
BEGINNING = 16  # octets of a line that tell what it was going to be
PREMATURE_CLOSE_GRACE = 0.5  # seconds; see `readConnectionLost`
GATHERED_ANSWERS = 64  # at most; then the transport can say that the client does not read them
CR = 0x0D
FOREIGN_OCTETS = b"\x16\x80"  # that TLS and SSL 2 begin with: no line will ever end


class Reader(Protocol):
    """What takes octets that are not lines, until it finds their end."""

    def feed(self, data: bytes, start: int) -> int:
        """Take the octets from *start* on; return where what follows them begins, or -1 while there is no end."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Conversation(LineReceiver):
    """A :class:`~twisted.protocols.basic.LineReceiver` that takes one turn at a time.

    Subclasses say what a turn is (:meth:`greet`, :meth:`take_turn`), what its result means (:meth:`answer`) and what
    an exception does (:meth:`explain`).
    """

    settings: Settings
    transport: Any
    clock: Any  #: what keeps the time
    farewell = b"QUIT"  #: the line after which a client has nothing more to say

    # As class attributes, these cost an idle connection nothing.
    closing = False  #: nothing that still comes is looked at
    lost = False  #: the transport is gone
    cause: BaseException | None = None  #: why this side ended the connection, if it did
    _buffer = b""
    _offset = 0  # what stands before it in the buffer is done with
    _discarded = 0  # octets dropped of a line that is too long
    _line_begins = b""  # what that line began with
    _proceeding = False
    _turn: Deferred[Any] | None = None  # what waits
    _asked: Deferred[bytes] | None = None  # what waits for the client's next line, within a turn
    _expired = False
    _deadline: IDelayedCall | None = None
    _handshake: Deferred[None] | None = None  # what a turn waits for that has a deadline of its own
    _heard = 0.0  # when the client last said something, or its silence began to count
    _idle_call: IDelayedCall | None = None
    _output_full = False
    _held = False
    _hold_call: IDelayedCall | None = None
    _reading_paused = False
    _no_more_input = False
    _reader: Reader | None = None
    _after_reader: Callable[[], Any] | None = None
    _abort_call: IDelayedCall | None = None
    _write: Way

    # What subclasses supply

    def greet(self) -> Any:
        """The first turn, before anything was read."""
        raise NotImplementedError

    def take_turn(self, line: bytes) -> Any:
        """The turn for a line, without its CRLF."""
        raise NotImplementedError

    def answer(self, result: Any) -> None:
        """A turn has ended with this result."""
        raise NotImplementedError

    async def explain(self, error: BaseException) -> Any:
        """The result in place of the one that a turn did not give because it raised. Must not raise."""
        raise NotImplementedError

    def line_refused(self, why: str, begins: bytes) -> Exception:
        """What to raise for a line that is none.

        :param why: ``"long"``, ``"endless"``, ``"bare LF"`` or ``"foreign"``; for one that was asked for and will never
            come, ``"missing"``.
        :param begins: what the line began with.
        """
        raise NotImplementedError

    def took_too_long(self, obedient: bool) -> Any:
        """The result of a turn that was cancelled because it took too long; *obedient* unless it still goes on."""
        raise NotImplementedError

    def idle_for_too_long(self) -> None:
        """The client has said nothing for the time allowed; the connection closes after this."""

    def ended(self, cause: BaseException) -> None:
        """The connection is gone; called once."""

    # The beginning

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        # The transport tells the conversation, as its producer, when answers pile up unread.
        self.transport.registerProducer(self, True)
        # What each turn looks at is found sooner in the instance than in its classes. And it is set before all else:
        # Python has compact room for the first thirty attributes that a class's instances get, and an idle
        # connection should have no others.
        self.paused = self.closing = self._no_more_input = self._reading_paused = self._proceeding = False
        self._reader = None
        self._buffer = b""
        self._offset = self._discarded = 0
        self._write = way_to(self.transport)
        self._out: list[bytes] = []
        self.clock = self.settings.clock()
        self._watch_for_silence()
        self._perform(self.greet)
        self._proceed()

    # Time

    def callLater(self, period: float, function: Callable[..., Any], *args: Any) -> IDelayedCall:
        """Call the function after so many seconds."""
        call: IDelayedCall = self.clock.callLater(period, function, *args)
        return call

    def _watch_for_silence(self) -> None:
        # Octets only note when they came. The timer looks at that when it goes off, and is rarely set.
        self._heard = self.clock.seconds()
        if self.settings.timeout is not None:
            self._idle_call = self.callLater(self.settings.timeout, self._look_for_silence)

    def _look_for_silence(self) -> None:
        assert self.settings.timeout is not None
        if self._owes_nothing():
            self._heard = self.clock.seconds()
        left = self._heard + self.settings.timeout - self.clock.seconds()
        if left > 0:
            self._idle_call = self.callLater(left, self._look_for_silence)
        else:
            self._idle_call = None
            self.timeoutConnection()

    def _owes_nothing(self) -> bool:
        """Whether it is the server's turn to act, not the client's."""
        return self._held or (self._turn is not None and self._asked is None)

    def _await_client(self) -> None:
        """It is the client's turn to act, as far as a turn, or who takes its octets, is concerned."""
        self._heard = self.clock.seconds()
        self.paused = self._output_full or self._owes_nothing()

    # Input

    def dataReceived(self, data: bytes) -> None:
        if self.closing:
            return
        self._heard = self.clock.seconds()
        if self._buffer:
            data = self._buffer[self._offset :] + data
        self._buffer = data
        self._offset = 0
        if self._proceeding:
            return
        if not self.paused:
            self._proceed()
        elif len(self._buffer) > self.settings.buffer_limit and not self._reading_paused:
            self._reading_paused = True
            self.transport.pauseProducing()

    def clearLineBuffer(self) -> bytes:
        """Forget the input that has not been looked at; return it."""
        left = self._buffer[self._offset :]
        self._buffer = b""
        self._offset = self._discarded = 0
        return left

    def read_with(self, reader: Reader, then: Callable[[], Any]) -> None:
        """Hand what follows to the reader instead of taking it for lines; its end begins the turn *then*."""
        self._reader = reader
        self._after_reader = then

    def stop_reading_with(self) -> None:
        """Forget the reader: what it reads will not be finished."""
        self._reader = self._after_reader = None

    def hold(self) -> None:
        """Who takes the octets wants no more for now: look at none, and read none above ``buffer_limit``."""
        if self._held or self.closing:
            return
        self._held = self.paused = True
        if self.settings.hook_timeout is not None:
            self._hold_call = self.callLater(self.settings.hook_timeout, self._held_too_long)

    def release(self) -> None:
        """Octets are wanted again."""
        if not self._held:
            return
        self._held = False
        if self._hold_call is not None and self._hold_call.active():
            self._hold_call.cancel()
        if not self.closing:
            self._await_client()
            self._go_on()

    def _held_too_long(self) -> None:
        self.answer(self.took_too_long(False))
        self.close()

    def _proceed(self) -> None:
        """Go through the input until it is used up, or something must be waited for."""
        self._proceeding = True
        try:
            # Hooks may close the transport themselves.
            while self._offset < len(self._buffer) and not (self.paused or self.closing or is_closing(self.transport)):
                reader = self._reader
                if reader is not None:
                    self._read_on(reader)
                elif not self.line_mode:
                    self.rawDataReceived(self.clearLineBuffer())
                elif not self._next_line():
                    break
        finally:
            self._proceeding = False
        if self._out:
            self.flush()
        if self._offset >= len(self._buffer):
            self._buffer = b""
            self._offset = 0
        if self.paused or self.closing:
            return
        if self._no_more_input:
            self._end_of_input()
        elif self._reading_paused:
            self._reading_paused = False
            self.transport.resumeProducing()

    def _end_of_input(self) -> None:
        if self._asked is not None:
            self._refuse_line("missing")
        else:
            self.close()

    def _read_on(self, reader: Reader) -> None:
        end = reader.feed(self._buffer, self._offset)
        if self._reader is not reader:  # whoever took the octets has closed the connection
            return
        if end < 0:
            self._buffer = b""
            self._offset = 0
            return
        self._offset = end
        then, self._reader, self._after_reader = self._after_reader, None, None
        assert then is not None
        self._perform(then)

    def _next_line(self) -> bool:
        """Take the turn for the next line, if it is there.

        LF is looked for, not CRLF: a line that ends in LF alone gets its answer at once, instead of silence. It is
        never carried out. What follows it is a line of its own, so each LF costs a refusal: nobody can slip more
        than one command past a client that guards itself against CRLF only.
        """
        buffer, start = self._buffer, self._offset
        end = buffer.find(b"\n", start)
        if (
            start < end <= start + self.settings.longest_line + 1  # the CR counted
            and buffer[end - 1] == CR
            and buffer[start] not in FOREIGN_OCTETS
            and not self._discarded
        ):
            self._offset = end + 1
            self.lineReceived(buffer[start : end - 1])
            return True
        return self._next_odd_line(buffer, start, end)

    def _next_odd_line(self, buffer: bytes, start: int, end: int) -> bool:
        """The same for what is no proper line, or not a whole one."""
        if not self._discarded and buffer[start] in FOREIGN_OCTETS:
            self._offset = len(buffer)
            self._refuse_line("foreign")
            return True
        if end < 0:
            return self._await_end_of_line(len(buffer) - start)
        self._offset = end + 1
        length = self._discarded + end - start
        if length > self.settings.longest_line + 1:
            begins = self._line_begins if self._discarded else buffer[start : start + BEGINNING]
            self._discarded = 0
            self._refuse_line("long" if length <= ENDLESS_LINE else "endless", begins)
        else:
            self._refuse_line("bare LF", buffer[start : min(start + BEGINNING, end)])
        return True

    def _await_end_of_line(self, length: int) -> bool:
        if self._discarded or length > self.settings.longest_line + 1:
            if not self._discarded:
                self._line_begins = self._buffer[self._offset : self._offset + BEGINNING]
            self._discarded += length
            self._offset = len(self._buffer)
            if self._discarded > ENDLESS_LINE:
                self._refuse_line("endless")
        return False

    def _refuse_line(self, why: str, begins: bytes = b"") -> None:
        error = self.line_refused(why, begins)
        asked = self._asked
        if asked is not None:
            self._unask(asked)
            asked.errback(error)
        else:
            self._perform(self.explain, error)

    def lineReceived(self, line: bytes) -> None:
        """A line has come, and it is its turn, or what the turn has asked for."""
        asked = self._asked
        if asked is not None:
            self._unask(asked)
            asked.callback(line)
        else:
            self._perform(self.take_turn, line)

    # Lines within a turn

    def next_line(self) -> Deferred[bytes]:
        """The client's next line, for a turn that has asked the client something.

        Until it is there the server listens as between turns: it is the client who may take too long. A line that is
        none fails with what :meth:`line_refused` makes of it.
        """
        asked = self._asked = Deferred(self._unask)
        self._cancel_deadline()
        self._await_client()
        if self._turn is not None:  # else the turn has only begun, and whoever let it begin goes on
            self._go_on()
        return asked

    def _unask(self, asked: Deferred[bytes]) -> None:
        """The turn waits for the client no more: it works again."""
        if self._asked is asked:
            self._asked = None
            if self._turn is not None:
                self._work(self._turn)

    # Turns

    def _perform(self, work: Callable[..., Any], *args: Any) -> None:
        """Take one turn: at once, or later if it must wait."""
        waiting = None
        try:
            result = work(*args)
            if type(result) is CoroutineType:
                # Most turns do not wait. Stepped by hand, those cost no Deferred; one that does wait goes on where it
                # stands.
                # In a context of its own, so that what it keeps in a ContextVar reaches no other connection.
                turn, context = result, copy_context()
                try:
                    awaited = context.run(turn.send, None)
                except StopIteration as end:
                    result = end.value
                else:
                    waiting = context.run(go_on, turn, awaited)
            elif isinstance(result, Deferred):
                waiting = result
        except Exception as error:
            self._perform(self.explain, error)
            return
        if waiting is None:
            self.answer(result)
        else:
            self._wait_for(waiting)

    def _wait_for(self, turn: Deferred[Any]) -> None:
        self._turn = turn
        self._expired = False
        if self._asked is None and self._handshake is None:
            self._work(turn)
        turn.addCallbacks(self._turn_done, self._turn_failed, callbackArgs=(turn,), errbackArgs=(turn,))

    def _work(self, turn: Deferred[Any]) -> None:
        """The server works at the turn: the client owes nothing, and the server must not take too long."""
        self.paused = True
        if self._no_more_input and not self.has_said_farewell():
            self._deadline = self.callLater(PREMATURE_CLOSE_GRACE, self.close)
        elif self.settings.hook_timeout is not None:
            self._deadline = self.callLater(self.settings.hook_timeout, self._give_up, turn)

    def _turn_done(self, result: Any, turn: Deferred[Any]) -> None:
        if self._turn_over(turn):
            self.answer(result)
            self._go_on()

    def _turn_failed(self, failure: Failure, turn: Deferred[Any]) -> None:
        assert failure.value is not None
        expired = self._expired
        if self._turn_over(turn):
            if expired:
                self.answer(self.took_too_long(True))
            else:
                self._perform(self.explain, failure.value)
            self._go_on()
        elif not failure.check(CancelledError):
            # Nobody waits for it any more, but the log should know.
            Deferred.fromCoroutine(self.explain(failure.value))

    def _turn_over(self, turn: Deferred[Any]) -> bool:
        """Whether somebody still waits for the end of this turn; if so, nobody does now."""
        if self._turn is not turn:
            return False
        self._turn = self._asked = None
        self._cancel_deadline()
        if self.closing or self.lost:
            return False
        self._await_client()
        return True

    def _cancel_deadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _go_on(self) -> None:
        if not self._proceeding and not self.closing:
            if self.paused:
                self.flush()
            else:
                self._proceed()

    def _give_up(self, turn: Deferred[Any]) -> None:
        """The turn takes too long: cancel it; if it goes on regardless, end the connection, lest it answers twice."""
        self._expired = True
        turn.cancel()
        if self._turn_over(turn):
            self.answer(self.took_too_long(False))
            self.close()

    # Output

    def send(self, octets: bytes) -> None:
        """Send the octets, after all that was sent before, and together with all that is sent in the same turn."""
        if self.closing:
            return
        self._out.append(octets)
        if not self._proceeding or len(self._out) >= GATHERED_ANSWERS:
            self.flush()

    def flush(self) -> None:
        """Give the transport what was sent."""
        if self._out:
            octets = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._write(self.transport, octets)

    def pauseProducing(self) -> None:
        """The client does not read: take no turns and read nothing, until it does. Called by the transport."""
        if not self.closing:
            self._output_full = self.paused = True
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client reads again. Called by the transport."""
        if self.closing:
            return
        self._output_full = False
        if not self._reading_paused:
            self.transport.resumeProducing()
        self.paused = self._owes_nothing()
        self._go_on()

    def stopProducing(self) -> None:
        """The transport wants no more; :meth:`connectionLost` follows."""

    # The end

    def close(self) -> None:
        """Send what is to be sent, look at nothing more, and close."""
        if self.closing:
            return
        self.closing = True
        self.clearLineBuffer()
        self.stop_reading_with()
        self.release()
        self._stop_watching()
        if self._turn is not None:
            self._turn.cancel()
        if self.lost:
            return
        self.flush()
        # A transport with a producer would not close; one whose peer does not read would not either.
        self.transport.unregisterProducer()
        if not closes_at_once(self.transport):
            self._abort_call = self.callLater(self.settings.linger, self.abort)
        self.transport.loseConnection()

    def sendLine(self, line: bytes) -> None:
        """Send a line, after all that was sent before."""
        self.send(line + self.delimiter)

    def abort(self) -> None:
        """Close at once, whatever was not sent."""
        # Standard input and output cannot be aborted.
        getattr(self.transport, "abortConnection", self.transport.loseConnection)()

    def _stop_watching(self) -> None:
        if self._idle_call is not None and self._idle_call.active():
            self._idle_call.cancel()
        self._idle_call = None

    def timeoutConnection(self) -> None:
        """The client has said nothing for too long."""
        self.cause = TimeoutError("the client said nothing for too long")
        self.idle_for_too_long()
        self.close()

    def readConnectionLost(self) -> None:
        """The client has closed its side. What it sent is answered, then the connection closes.

        That a client which is gone altogether looks the same, TCP does not let us see. A client that has said its
        farewell is owed all answers, however long they take. One that has not breaks RFC 5321 4.1.1.10, which wants
        a premature close to cancel what is pending: it gets the answers that are there within a moment.
        """
        self._no_more_input = True
        if self.closing or self._proceeding:
            return
        if self._turn is not None and self._asked is None:
            if not self.has_said_farewell():
                self._cancel_deadline()
                self._deadline = self.callLater(PREMATURE_CLOSE_GRACE, self.close)
        elif not self.paused:
            self._end_of_input()

    def has_said_farewell(self) -> bool:
        """Whether the last line that has come is the farewell."""
        lines = self._buffer[self._offset :].rsplit(b"\n", 2)
        return len(lines) > 1 and not lines[-1] and lines[-2].strip().upper() == self.farewell

    def writeConnectionLost(self) -> None:
        """Part of IHalfCloseableProtocol; this side is never closed alone."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = True
        self._stop_watching()
        if self._abort_call is not None and self._abort_call.active():
            self._abort_call.cancel()
        self.closing = True
        self.clearLineBuffer()
        self.stop_reading_with()
        self.release()
        self._out.clear()
        turn = self._turn
        if turn is not None:
            turn.cancel()
            self._turn_over(turn)  # even if it goes on regardless
        self.ended(self.cause or reason.value or ConnectionDone())
