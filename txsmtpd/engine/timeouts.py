"""Timeouts of clients: for the next octet, for a whole command line, and for the data of a message.

Received octets only update a timestamp. When the timer of the connection fires, it checks the timestamp. The timer is
rarely set, so timeouts cost almost nothing for an active client. The connection handles clients that take too long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.error import TimeoutError
from twisted.internet.interfaces import IDelayedCall

from txsmtpd.engine.timers import NEVER, Entry, timers_of
from txsmtpd.limits.pace import heard_at
from txsmtpd.reply import Reply

if TYPE_CHECKING:
    from txsmtpd.engine.connection import Connection

LAST_TRANSACTION = 300.0  # seconds that an open transaction may still take after session_timeout
STRESSED_TIMEOUT = 10.0  # seconds, in stress mode


class Late(TimeoutError):
    """A client took too long. Base class of the timeouts."""

    reply: Reply
    text = ""

    def __init__(self) -> None:
        super().__init__(self.text)


class Idle(Late):
    """The client was idle for too long (``timeout``)."""

    reply = Reply(421, "4.4.2", "Idle timeout, closing connection")
    text = "the client sent nothing for too long"


class CommandTooSlow(Late):
    """A command line was not complete in time (``command_timeout``)."""

    reply = Reply(421, "4.4.2", "Command took too long, closing connection")
    text = "a command line was not complete in time"


class DataTooSlow(Late):
    """The data of a message came too slowly (``data_rate_minimum``)."""

    reply = Reply(421, "4.4.2", "Message data came too slowly, closing connection")
    text = "the data of a message came too slowly"


class SessionTooLong(Late):
    """The session lasted too long (``session_timeout``)."""

    reply = Reply(421, "4.4.2", "Session time limit exceeded, closing connection")
    text = "the session lasted too long"


class Timeouts:
    """The timeouts of a connection.

    :param connection: the connection.
    """

    __slots__ = (
        "_connection",
        "_is_second_check",
        "_paused_at",
        "_session_call",
        "_session_end",
        "_timer",
        "_timers",
        "_waits_since",
        "last_heard",
        "since",
        "stressed",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.last_heard = 0.0  #: the time of the last octet, or the time since which the server waits for the client
        #: the start of the current command line, or of the message data; received data moves it forward
        self.since = 0.0
        self.stressed = False  #: whether the server is in stress mode
        self._waits_since = 0.0  # the time since which the server waits for the client
        self._paused_at: float | None = None  # the time at which the receiver of the data paused
        self._timers = timers_of(connection.clock)
        self._timer: Entry | None = None
        self._is_second_check = False  # whether the next check is the second one in a row
        self._session_end: float | None = None  # the time at which the session has lasted too long
        self._session_call: IDelayedCall | None = None  # the timeout of a transaction that is open at that time

    def start(self) -> None:
        """Start the timeouts, at the beginning of the connection."""
        self.last_heard = self._waits_since = self.since = now = self._connection.clock.seconds()
        lifetime = self._connection.server.settings.session_timeout
        if lifetime is not None:
            self._session_end = now + lifetime
        self._schedule(now)

    def stop(self) -> None:
        """Stop all timeouts."""
        if self._timer is not None:
            self._timers.cancel(self._timer)
            self._timer = None
        if self._session_call is not None:
            if self._session_call.active():
                self._session_call.cancel()
            self._session_call = None

    def restart(self) -> None:
        """The server waits for the client from now on: for a command, or for a response to a challenge."""
        self.last_heard = self._waits_since = self.since = self._connection.clock.seconds()
        if self._paused_at is not None:
            self._paused_at = self.since

    def _session_over(self) -> None:
        self._session_end = None
        connection = self._connection
        self._session_call = connection.call_later(LAST_TRANSACTION, connection.end_now)
        connection.session_over(SessionTooLong())

    # Data

    def data_received(self, octets: int) -> None:
        """Octets of a message were received."""
        rate = self._connection.server.settings.data_rate_minimum
        self.since = self.last_heard if rate is None else heard_at(self.since, self.last_heard, octets, rate)

    def next_chunk(self, used: float) -> None:
        """Another chunk of a message starts.

        :param used: the value of :attr:`time_used` at the end of the previous chunk.
        :raises DataTooSlow: if the time for the message's data is used up.
        """
        waited = self.last_heard - self._waits_since
        self._waits_since = self.last_heard  # several chunks may have been received together
        self.since -= used + waited
        settings = self._connection.server.settings
        timeout = self._shortened(settings.timeout)
        if timeout is not None and self.time_used >= timeout and settings.data_rate_minimum is not None:
            raise DataTooSlow()

    @property
    def time_used(self) -> float:
        """The used part of the time for a message's data, in seconds."""
        return max(0.0, self.last_heard - self.since)

    def pause(self) -> None:
        """The receiver of the data has paused. Stop the timeouts until it resumes."""
        if self._paused_at is None:
            self._paused_at = self._connection.clock.seconds()

    def resume(self) -> None:
        """The receiver of the data has resumed."""
        self.last_heard = now = self._connection.clock.seconds()
        if self._paused_at is not None:
            self.since += now - self._paused_at
            self._paused_at = None
        self._schedule(now)

    # The timer

    def set_stressed(self, stressed: bool) -> None:
        """The server has entered or left stress mode."""
        self.stressed = stressed
        if stressed:
            self._schedule(self._connection.clock.seconds())

    def _schedule(self, now: float) -> None:
        """Set the timer for the next time at which the client may be late."""
        moment = self._deadline(now)
        if self._session_end is not None and self._session_end < moment:
            moment = self._session_end
        self._is_second_check = False
        if moment != NEVER:
            self._check_at(moment)

    def _check_at(self, moment: float) -> None:
        """Set the timer to a new time."""
        if self._timer is not None:
            self._timers.cancel(self._timer)
        self._timer = self._timers.add(moment, self)

    def on_timer(self) -> None:
        """Check whether the client is late. Called when the timer fires."""
        connection = self._connection
        second, self._is_second_check, self._timer = self._is_second_check, False, None
        now = connection.clock.seconds()
        if self._session_end is not None and self._session_end <= now:
            self._session_over()
            if connection.closing:
                return
        if connection.server_busy:
            # The client cannot be late now. Check again after the shortest timeout.
            left = self._shortest if self._session_end is None else min(self._shortest, self._session_end - now)
            self._check_at(now + left)
        elif self._deadline() > now:
            self._schedule(now)
        elif second:
            connection.server.timeoutConnection()
        else:
            # The reactor may have been blocked: read pending data from the socket first.
            self._is_second_check = True
            self._check_at(now)

    @property
    def _shortest(self) -> float:
        """The shortest timeout, in seconds, that applies when the server waits for the client."""
        settings = self._connection.server.settings
        allowed = [self._shortened(each) for each in (settings.timeout, settings.command_timeout)]
        return min((each for each in allowed if each is not None), default=STRESSED_TIMEOUT)

    def _deadline(self, line_begins: float | None = None) -> float:
        """Return the time at which the client is late if nothing arrives before that, or :data:`NEVER`.

        :param line_begins: if no line has begun, the earliest time at which one may begin. None: none begins.
        """
        connection = self._connection
        settings = connection.server.settings
        timeout = self._shortened(settings.timeout)
        found = NEVER if timeout is None else self.last_heard + timeout
        if connection.reader is not None:
            return found if timeout is None else min(found, self.since + timeout)
        begins = self.since if connection.lines.has_part else line_begins
        if begins is not None:
            allowed = self._shortened(settings.command_timeout)
            if allowed is not None:
                return min(found, begins + allowed)
        return found

    def _shortened(self, seconds: float | None) -> float | None:
        if not self.stressed:
            return seconds
        return STRESSED_TIMEOUT if seconds is None else min(seconds, STRESSED_TIMEOUT)

    def expired(self) -> Late:
        """Return which timeout has expired."""
        timeout = self._shortened(self._connection.server.settings.timeout)
        if timeout is not None and self._connection.clock.seconds() - self.last_heard >= timeout:
            return Idle()
        return DataTooSlow() if self._connection.reader is not None else CommandTooSlow()
