"""Run one connection: read command lines one at a time, and send replies in order. Input, turns, output and closing are
in one file, because each of them can pause the input.

This module handles lines, turns, timeouts and the transport. It does not depend on SMTP:
:mod:`txsmtpd.engine.dispatcher` interprets the lines.

A *turn* is the processing of one line. Its work is a function that returns a result, a Deferred or a coroutine. While
a turn waits, input is read into a buffer, because a paused transport does not notice that its peer has disconnected.
The transport is paused only if the buffer exceeds ``buffer_limit``, or if the client does not read the replies.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from time import monotonic
from types import CoroutineType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, ITCPTransport

from txsmtpd.bridges.asyncio_bridge import run_rest
from txsmtpd.engine.batches import BATCH_TIME, FEW, batches_of
from txsmtpd.engine.lines import BadLine, LineBuffer
from txsmtpd.engine.observer import Observer
from txsmtpd.engine.output import FLUSH_SIZE, Output, closes_at_once
from txsmtpd.engine.reader import CountedReader, Reader
from txsmtpd.engine.stage import Stage
from txsmtpd.engine.timeouts import Late, Timeouts
from txsmtpd.engine.tls_input import TLSInput
from txsmtpd.engine.turn import Turn
from txsmtpd.settings import Settings

QUIT = b"QUIT"  # the last command of a client


class Connection:
    """Runs one connection.

    :param server: the protocol that users see.
    :param dispatcher: processes each line and each result.
    """

    __slots__ = (
        "_after_reader",
        "_batch_began",
        "_batch_commands",
        "_held",
        "_in_batch",
        "_in_reading",
        "_output_full",
        "_processing",
        "_reading_paused",
        "_wait_call",
        "_yields",
        "cancelled_turn",
        "cause",
        "clock",
        "closing",
        "dispatcher",
        "input_ended",
        "line_request",
        "lines",
        "lost",
        "observer",
        "output",
        "paused",
        "reader",
        "server",
        "stage",
        "timeouts",
        "tls_input",
        "transport",
        "turn",
    )

    def __init__(self, server: Any, dispatcher: Any) -> None:
        settings: Settings = server.settings
        self.server = server
        self.dispatcher = dispatcher
        self.transport: Any = server.transport
        self.clock = settings.clock()  #: IReactorTime
        self.lines = LineBuffer(settings.longest_line)
        self.output = Output(self.transport)
        self.timeouts: Any = Timeouts(self)  #: the timeouts of this connection
        self.observer: Observer | None = None  #: notified of events, or None
        self.tls_input: TLSInput | None = None  #: the input of TLS, or None
        self.stage: Stage | None = None  #: the stage that runs instead of commands, such as a TLS handshake; or None
        self.turn: Turn | None = None  #: the turn that waits, or None
        self.line_request: Deferred[bytes] | None = None  #: set while a turn waits for the client's next line
        self.reader: Reader | None = None  #: reads octets that are not lines, such as a message; or None
        self.cause: BaseException | None = None  #: why the server closed the connection, or None
        #: Whether input must wait: the server is busy (`server_busy`), or the client does not read the replies. This is
        #: not computed for each line, but updated when one of the two changes.
        self.paused = False
        self.closing = False  #: whether the connection is closing; further input is ignored
        self.lost = False  #: whether the transport is disconnected
        self.cancelled_turn: Turn | None = None  #: a turn that was cancelled; it may ignore that, and still run
        self.input_ended = False  #: whether the client has closed its side
        self._after_reader: Callable[[Any], Any] | None = None
        self._processing = False
        self._output_full = False
        self._reading_paused = False
        self._held = False
        self._yields = False  # whether the connection waits in the queue of its factory; see engine/batches
        self._in_batch = False  # whether next_batch() is running
        self._in_reading = False  # whether read_together() is running
        # These two are 0 unless read_together() is running.
        self._batch_commands = 0  # the number of commands executed in the batch
        self._batch_began = 0.0  # the time of the first check of the clock in the batch; 0.0 before it
        # One timeout for two cases, which exclude each other: the receiver of a message has paused the input, or the
        # connection is closing and the client has not read the last replies.
        self._wait_call: IDelayedCall | None = None

    def start(self, first_turn: Callable[[Any], Any]) -> None:
        """Run the first turn, before any input is read."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        # The transport pauses its producer when the client does not read the replies.
        self.transport.registerProducer(self.server, True)
        self.timeouts.start()
        self._processing = True
        self.run(first_turn, self.server)
        self.process_input()

    # Input

    def data_received(self, data: bytes) -> None:
        """Process received octets, or keep them until input may be processed."""
        if self.closing:
            return
        lines = self.lines
        timeouts = self.timeouts
        timeouts.last_heard = now = self.clock.seconds()
        if lines.data:
            data = lines.data[lines.offset :] + data
        elif self.reader is None and lines.oversize is None:
            timeouts.since = now
        lines.data = data
        lines.offset = 0
        if self._processing:
            return
        if not self.paused:
            self.process_input()
        elif len(data) > self.server.settings.buffer_limit and not self._reading_paused:
            self.pause_reading()

    def pause_reading(self) -> None:
        """Stop reading from the transport."""
        self._reading_paused = True
        self.transport.pauseProducing()

    @property
    def closed_by_command(self) -> bool:
        """Whether a command or a hook has closed the transport itself."""
        return bool(self.transport.disconnecting or getattr(self.transport, "_aborting", False))

    @property
    def may_read(self) -> bool:
        """Whether the buffer has room, and the client reads the replies."""
        return not (self._reading_paused or self._output_full)

    def process_input(self) -> None:
        """Process input until there is none, or until it must wait."""
        lines, server, transport, timeouts = self.lines, self.server, self.transport, self.timeouts
        commands, began = self._batch_commands, self._batch_began
        self._processing = True
        try:
            # Hooks may close the transport themselves.
            while lines.offset < len(lines.data) and not (
                self.paused or self.closing or transport.disconnecting or getattr(transport, "_aborting", False)
            ):
                if commands:
                    limit = server.settings.batch_limit
                    if commands == limit or not commands % FEW:
                        batches = batches_of(server)
                        batches.busy_at = now = monotonic()
                        took_long = commands == limit or (began and now - began > BATCH_TIME)
                        if took_long or (batches and not self._in_batch):
                            self._yields = self.paused = True
                            batches.add(self)
                            break
                        began = began or now
                commands += 1
                reader = self.reader
                if reader is not None:
                    self._feed(reader)
                elif server.line_mode:
                    line = lines.next_line()
                    if line is None:
                        break
                    timeouts.since = timeouts.last_heard
                    if isinstance(line, BadLine):
                        self.refuse_line(line)
                    elif self.line_request is None:
                        server.lineReceived(line)
                    else:
                        self._answer_request(self.line_request, line)
                else:
                    server.rawDataReceived(lines.clear())
        finally:
            self._processing = False
            if self._in_reading:
                self._batch_commands, self._batch_began = commands, began
        if self.output.pending:
            self.output.flush()
        if lines.offset >= len(lines.data):
            lines.data = b""
            lines.offset = 0
        if self.paused or self.closing:
            return
        if self.input_ended:
            self._end_of_input()
        elif self._reading_paused:
            self._reading_paused = False
            transport.resumeProducing()

    def read_together(self, read: Callable[[bytes], object], octets: bytes) -> None:
        """Call *read* with octets from the socket. It may call :meth:`data_received` several times, because TLS
        decrypts one record at a time. The commands of all these calls count as one batch."""
        self._in_reading = True
        try:
            read(octets)
        finally:
            self._in_reading = False
            self._batch_commands, self._batch_began = 0, 0.0

    def next_batch(self) -> None:
        """Process the next batch of the queued input."""
        self._yields = False
        self._await_client()
        self._in_batch = True
        try:
            self.resume()
        finally:
            self._in_batch = False

    def resume(self) -> None:
        """Continue to process input after a pause."""
        if not self._processing and not self.closing:
            if self.paused:
                self.output.flush()
            else:
                self.process_input()

    @property
    def is_busy(self) -> bool:
        """Whether a turn waits, or input is being processed."""
        return self.turn is not None or self._processing

    def _answer_request(self, request: Deferred[bytes], line: bytes) -> None:
        """Pass the requested line to the turn, but not to observers, since it may be a password."""
        if self.observer is not None:
            self.observer.line_received(None)
        self._end_line_request(request)
        request.callback(line)

    def refuse_line(self, bad: BadLine) -> None:
        """Refuse input that is not a valid line."""
        request = self.line_request
        error = self.dispatcher.error_for_line(bad, request is not None)
        if request is None:
            self.run(self.dispatcher.reply_for_error, error)
        else:
            self._end_line_request(request)
            request.errback(error)

    def _end_of_input(self) -> None:
        if self.stage is not None:
            self.stage.input_ended()
        if self.line_request is not None:
            self.refuse_line(BadLine("missing"))
        else:
            self.close()

    # Octets that are not lines

    def read_with(self, reader: Reader, then: Callable[[Any], Any]) -> None:
        """Pass the following input to the reader instead of parsing lines. When the reader has finished, run the turn
        *then*, and pass it the reader."""
        self.reader = reader
        self._after_reader = then

    def read_data(self, reader: Reader, then: Callable[[Any], Any]) -> None:
        """Read the octets of a message, as :meth:`read_with` does, and notify observers of them."""
        self.reader = reader if self.observer is None else CountedReader(reader, self.observer)
        self._after_reader = then

    def stop_reader(self) -> None:
        """Remove the reader before it is finished."""
        reader, self.reader, self._after_reader = self.reader, None, None
        if type(reader) is CountedReader:
            reader.stop()

    def _feed(self, reader: Reader) -> None:
        lines = self.lines
        begin, length = lines.offset, len(lines.data)
        end = reader.feed(lines.data, begin)
        self.timeouts.data_received((end if end >= 0 else length) - begin)
        if self.reader is not reader:  # the receiver of the message has closed the connection
            return
        if end < 0:
            lines.data = b""
            lines.offset = 0
            return
        lines.offset = end
        if type(reader) is CountedReader:
            reader.finish()
            reader = reader.reader
        then, self.reader, self._after_reader = self._after_reader, None, None
        assert then is not None
        self.run(then, reader)

    def hold(self) -> None:
        """Pause the input, because the receiver of the message is not ready. At most ``buffer_limit`` octets are still
        read."""
        already = self._held
        self.hold_untimed()
        if not already and self._held and self.server.settings.hook_timeout is not None:
            self._wait_call = self.call_later(self.server.settings.hook_timeout, self._held_too_long)

    def hold_untimed(self) -> None:
        """Pause the input as :meth:`hold` does, but without a timeout. The caller must have its own."""
        if self._held or self.closing:
            return
        self._held = self.paused = True
        self.timeouts.pause()

    def release(self) -> None:
        """Resume after :meth:`hold`."""
        if not self._held:
            return
        self._held = False
        self._stop_waiting()
        if not self.closing:
            self.timeouts.resume()
            self.paused = self._output_full or self.server_busy
            self.resume()

    def _stop_waiting(self) -> None:
        if self._wait_call is not None:
            if self._wait_call.active():
                self._wait_call.cancel()
            self._wait_call = None

    def _held_too_long(self) -> None:
        self.dispatcher.on_result(self.dispatcher.reply_for_timeout(False))
        self.close()

    # Turns

    def run(self, work: Callable[[Any], Any], subject: Any) -> None:
        """Run one turn. When it has a result, pass that to the dispatcher.

        :param work: the turn, a function.
        :param subject: its argument.
        """
        waiting = None
        try:
            result = work(subject)
            if type(result) is CoroutineType:
                # Most coroutines do not wait. Running the first step here avoids a Deferred for those. If a coroutine
                # waits, `run_rest` runs the rest of it. The context is a copy, so that a ContextVar that the turn sets
                # does not affect other connections.
                turn, context = result, copy_context()
                try:
                    awaited = context.run(turn.send, None)
                except StopIteration as end:
                    result = end.value
                else:
                    waiting = context.run(run_rest, turn, awaited)
            elif isinstance(result, Deferred):
                waiting = result
        except BaseException as error:
            self.run(self.dispatcher.reply_for_error, error)
            return
        if waiting is not None:
            self.turn = Turn(self, waiting)
            self.turn.wait()
        elif not self.lost:
            self.dispatcher.on_result(result)

    def end_turn(self, turn: Turn) -> bool:
        """Mark the turn as ended. Return whether its result is still needed."""
        if self.turn is not turn:
            return False
        self.turn = self.line_request = None
        turn.stop_deadline()
        if self.closing or self.lost:
            return False
        self._await_client()
        return True

    def request_line(self) -> Deferred[bytes]:
        """Return a Deferred that fires with the client's next line, for a turn that has sent a challenge.

        Until the line arrives, the client's timeouts apply, as between turns. If the input is not a valid line, the
        Deferred fails with the exception from the dispatcher's ``error_for_line``.
        """
        request = self.line_request = Deferred(self._end_line_request)
        turn = self.turn
        if turn is not None:
            turn.stop_deadline()
        self._await_client()
        # During the first step of a turn, self.turn is None. Do not resume: the caller of run() processes the input.
        if turn is not None:
            self.resume()
        return request

    def _end_line_request(self, request: Deferred[bytes]) -> None:
        """The turn no longer waits for the client."""
        if self.line_request is request:
            self.line_request = None
            if self.turn is not None:
                self.turn.start_deadline()

    # Time

    def call_later(self, period: float, function: Callable[..., Any], *args: Any) -> IDelayedCall:
        """Call the function after *period* seconds."""
        call: IDelayedCall = self.clock.callLater(period, function, *args)
        return call

    @property
    def server_busy(self) -> bool:
        """Whether the client waits for the server. If not, the server waits for the client."""
        return self._held or self._yields or (self.turn is not None and self.line_request is None)

    def _await_client(self) -> None:
        """Wait for the client: restart its timeouts, and unpause the input unless something else pauses it."""
        self.timeouts.restart()
        self.paused = self._output_full or self.server_busy

    def timed_out(self) -> None:
        """Close the connection with a reply that names the timeout, because the client has taken too long."""
        if self.stage is not None:
            self.stage.timed_out()
            return
        self.cause = late = self.timeouts.expired()
        self.send(late.reply.octets)
        self.close()

    # Output

    def send(self, octets: bytes) -> None:
        """Send the octets after everything that was sent before. Output is collected while input is processed."""
        if self.closing:
            return
        if self.observer is not None and octets and not self.output.muted:
            self.observer.reply_sent(octets)
        output = self.output
        output.pending += octets
        if not self._processing or len(output.pending) >= FLUSH_SIZE:
            output.flush()

    def output_full(self) -> None:
        """The client does not read the replies. Run no turns, and stop reading, until it does."""
        if not self.closing:
            self._output_full = self.paused = True
            self.transport.pauseProducing()

    def output_drained(self) -> None:
        """The client reads again."""
        if self.closing:
            return
        self._output_full = False
        if not self._reading_paused:
            self.transport.resumeProducing()
        self.paused = self.server_busy
        self.resume()

    def end_pauses(self) -> None:
        """End the pauses of the transport, because it has started TLS. Its TLS layer does not know of them."""
        if self._output_full or self._reading_paused:
            self._output_full = self._reading_paused = False
            self.transport.resumeProducing()

    # The end

    @property
    def gets_all_replies(self) -> bool:
        """Whether the client gets all replies even if it has closed its side. True if it has sent QUIT, or if the reply
        does not belong to a command: the greeting, for example."""
        if self.dispatcher.closes_after_reply or not self.dispatcher.verb:
            return True
        last = self.lines.last_line()
        return last is not None and last.upper() == QUIT

    def input_closed(self) -> None:
        """The client has closed its side. Reply to what it sent, then close the connection.

        With TCP, this looks the same as a client that has disconnected. A client that has sent QUIT gets all replies,
        no matter how long they take, and a client that waits for the greeting gets the greeting. A client that closes
        without QUIT violates RFC 5321 4.1.1.10, which requires the server to cancel the open transaction. If a command
        is still running, the server gives it a moment to finish. Then it cancels the command and closes.
        """
        self.input_ended = True
        if self.closing or self._processing:
            return
        if self.turn is not None and self.line_request is None:
            if not self.gets_all_replies:
                self.turn.stop_deadline()
                self.turn.start_deadline()
        elif not self.paused:
            self._end_of_input()

    def drain(self) -> None:
        """Close as soon as no transaction is open, because the server is shutting down (RFC 5321 3.8)."""
        if self.stage is None:
            self.dispatcher.drain()
        else:
            self.stage.cancel()
            self.close()

    def session_over(self, late: Late) -> None:
        """Close as soon as no transaction is open, because the session has lasted too long."""
        if self.stage is None:  # a stage has its own deadline, and no reply may be sent before it ends
            self.cause = late
            self.dispatcher.drain(late.reply)

    def end_now(self) -> None:
        """Close now with 421, or without any reply if the client still waits for the reply to a command."""
        if self.stage is not None:
            self.stage.cancel()
        elif self.turn is None and not self.closing:
            self.output.stop_waiting()
            self.dispatcher.send_shutdown()
            self.close()
            return
        self.output.abort()
        self.abort()

    def close(self) -> None:
        """Send pending replies, ignore further input, and close."""
        if self.closing or not self.output.may_close(self.close):
            return
        self._stop_everything()
        if self.lost:
            return
        self.output.flush()
        self.transport.unregisterProducer()  # with a producer, the transport would not close
        if not closes_at_once(self.transport):  # the client may never read what is still to be sent
            self._wait_call = self.call_later(self.server.settings.linger, self.abort)
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close immediately, without sending the rest of the output."""
        # Standard input and output have no abortConnection.
        getattr(self.transport, "abortConnection", self.transport.loseConnection)()

    def _stop_everything(self) -> None:
        self.closing = True
        self.lines.clear()
        if self.reader is not None:
            self.stop_reader()
        if self._held:
            self.release()
        self.timeouts.stop()
        if self.turn is not None:
            self.turn.cancel()

    def connection_lost(self, reason: BaseException) -> BaseException:
        """Stop everything, because the transport has disconnected. Return why: the server's reason, if it has closed
        the connection, or else the transport's."""
        if self.stage is not None:
            self.stage.connection_lost(reason)
        self.lost = True
        if self.tls_input is not None:
            self.tls_input.stop()
        self.output.abort()
        if self._wait_call is not None:
            self._stop_waiting()
        turn = self.turn
        self._stop_everything()
        if turn is not None:
            self.cancelled_turn = turn
            self.end_turn(turn)  # even if the turn ignores the cancellation and still runs
        return self.cause or reason

    def break_cycles(self) -> None:
        """Break reference cycles, so that the objects are freed now and not by the garbage collector. Called last."""
        turn = self.cancelled_turn
        if not self._processing and (turn is None or turn.finished):
            self.dispatcher.server = self.dispatcher.connection = None
            self.server = self.dispatcher = self.stage = self.timeouts = self.cancelled_turn = None
