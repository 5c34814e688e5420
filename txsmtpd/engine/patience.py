"""How long a client may take: for its next octet, for a whole command line, for the data of a message.

Octets only note when they came. One timer looks at that when it goes off, and is rarely set: time costs nothing while a
client talks. What becomes of a client that takes too long is the connection's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import TimeoutError
from twisted.internet.interfaces import IDelayedCall

from txsmtpd.limits.pace import heard_at
from txsmtpd.reply import Reply

LAST_TRANSACTION = 300.0  # seconds that a transaction may take that is open when a session has lasted too long
STRESSED_TIMEOUT = 10.0  # seconds, in stress mode


class Late(TimeoutError):
    """A client took too long. A subclass tells for what."""

    reply: Reply
    said = ""

    def __init__(self) -> None:
        super().__init__(self.said)


class Idle(Late):
    """The client said nothing for too long (``timeout``)."""

    reply = Reply(421, "4.4.2", "Idle timeout, closing connection")
    said = "the client said nothing for too long"


class CommandTooSlow(Late):
    """A command line was not complete in time (``command_timeout``)."""

    reply = Reply(421, "4.4.2", "Command took too long, closing connection")
    said = "a command line was not complete in time"


class DataTooSlow(Late):
    """The data of a message came too slowly (``data_rate_minimum``)."""

    reply = Reply(421, "4.4.2", "Message data came too slowly, closing connection")
    said = "the data of a message came too slowly"


class SessionTooLong(Late):
    """The session lasted too long (``session_timeout``)."""

    reply = Reply(421, "4.4.2", "The session lasts too long, closing connection")
    said = "the session lasted too long"


class Patience:
    """The part of a connection that keeps its time. The connection has what else it needs: ``clock``, ``lines``,
    ``reader``, ``server``, ``server_busy`` and ``call_later``.
    """

    __slots__ = (
        "_paused_at",
        "_session_call",
        "_session_end",
        "_timer",
        "_turn_began",
        "hurried",
        "last_heard",
        "since",
    )

    clock: Any
    lines: Any
    reader: Any
    server: Any
    call_later: Callable[..., IDelayedCall]
    end_now: Callable[[], None]
    closing: bool

    def __init__(self) -> None:
        self.last_heard = 0.0  #: when the last octet came, or it became the client's turn
        #: when the line began that is coming, or the data; what octets of data earn is added
        self.since = 0.0
        self.hurried = False  #: the server is in stress mode
        self._turn_began = 0.0  # when it became the client's turn
        self._paused_at: float | None = None  # when whoever takes the data had enough
        # For a client that is late; once this side closes, for its last replies.
        self._timer: IDelayedCall | None = None
        self._session_end: float | None = None  # when the session has lasted too long
        self._session_call: IDelayedCall | None = None  # for the end of a transaction that is open then

    @property
    def server_busy(self) -> bool:
        """Whether it is the server's turn to act, not the client's."""
        raise NotImplementedError

    def session_over(self, late: Late) -> None:
        """The session has lasted too long: end it as soon as no transaction is open."""
        raise NotImplementedError

    def start_time(self) -> None:
        """It is the client's turn, for the first time."""
        self.clients_turn()
        lifetime = self.server.settings.session_timeout
        if lifetime is not None:
            self._session_end = self.last_heard + lifetime
        self._schedule()

    def stop_time(self) -> None:
        """Watch no more."""
        _cancel(self._timer)
        _cancel(self._session_call)
        self._timer = self._session_call = None

    def clients_turn(self) -> None:
        """It has become the client's turn: for a command, or for what a command has asked."""
        self.last_heard = self._turn_began = self.since = self.clock.seconds()
        if self._paused_at is not None:
            self._paused_at = self.since

    def _session_over(self) -> None:
        self._session_end = None
        self._session_call = self.call_later(LAST_TRANSACTION, self.end_now)
        self.session_over(SessionTooLong())

    # Data

    def data_came(self, octets: int) -> None:
        """Octets of a message have come."""
        rate = self.server.settings.data_rate_minimum
        self.since = self.last_heard if rate is None else heard_at(self.since, self.last_heard, octets, rate)

    def data_goes_on(self, used: float) -> None:
        """Another chunk of a message begins.

        :param used: what :attr:`time_used` was when the one before it ended.
        :raises DataTooSlow: if the time for the message's data is used up.
        """
        waited = self.last_heard - self._turn_began
        self._turn_began = self.last_heard  # other chunks may have come together with this one
        self.since -= used + waited
        settings = self.server.settings
        timeout = self._hurried(settings.timeout)
        if timeout is not None and self.time_used >= timeout and settings.data_rate_minimum is not None:
            raise DataTooSlow()

    @property
    def time_used(self) -> float:
        """Seconds that are used up of the time for a message's data."""
        return max(0.0, self.last_heard - self.since)

    def pause_data(self) -> None:
        """Whoever takes the data wants no more for now: until it does, no time passes."""
        if self._paused_at is None:
            self._paused_at = self.clock.seconds()

    def resume_data(self) -> None:
        """Data is wanted again."""
        self.last_heard = self.clock.seconds()
        if self._paused_at is not None:
            self.since += self.last_heard - self._paused_at
            self._paused_at = None
        _cancel(self._timer)
        self._schedule()

    # The timer

    def hurry(self, hurried: bool) -> None:
        """The server has entered or left stress mode."""
        self.hurried = hurried
        if hurried:
            _cancel(self._timer)
            self._schedule()

    def _schedule(self) -> None:
        """Look again when the client may be late."""
        now = self.clock.seconds()
        moments = self._deadlines()
        if self.reader is None and not self.lines.has_part:
            # A line may begin at any time from now on.
            allowed = self._hurried(self.server.settings.command_timeout)
            if allowed is not None:
                moments.append(now + allowed)
        if self._session_end is not None:
            moments.append(self._session_end)
        self._timer = self.call_later(max(min(moments) - now, 0.0), self._look) if moments else None

    def _look(self, again: bool = False) -> None:
        self._timer = None
        now = self.clock.seconds()
        if self._session_end is not None and self._session_end <= now:
            self._session_over()
            if self.closing:
                return
        if self.server_busy:
            # Its time begins anew when it is the client's turn, or stands still until then.
            left = self._least if self._session_end is None else min(self._least, self._session_end - now)
            self._timer = self.call_later(left, self._look)
        elif not any(moment <= now for moment in self._deadlines()):
            self._schedule()
        elif again:
            self.server.timeoutConnection()
        else:
            # The reactor may have been blocked: what lies in the socket is read before the client is called late.
            self._timer = self.call_later(0, self._look, True)

    @property
    def _least(self) -> float:
        """Seconds that the client has at least, once it is its turn."""
        settings = self.server.settings
        allowed = [self._hurried(each) for each in (settings.timeout, settings.command_timeout)]
        return min((each for each in allowed if each is not None), default=STRESSED_TIMEOUT)

    def _deadlines(self) -> list[float]:
        """The moments at which the client is late, if nothing comes before."""
        settings = self.server.settings
        timeout = self._hurried(settings.timeout)
        found = [] if timeout is None else [self.last_heard + timeout]
        if self.reader is not None:
            if timeout is not None:
                found.append(self.since + timeout)
        elif self.lines.has_part:
            allowed = self._hurried(settings.command_timeout)
            if allowed is not None:
                found.append(self.since + allowed)
        return found

    def _hurried(self, seconds: float | None) -> float | None:
        if not self.hurried:
            return seconds
        return STRESSED_TIMEOUT if seconds is None else min(seconds, STRESSED_TIMEOUT)

    def late(self) -> Late:
        """For what the client took too long."""
        timeout = self._hurried(self.server.settings.timeout)
        if timeout is not None and self.clock.seconds() - self.last_heard >= timeout:
            return Idle()
        return DataTooSlow() if self.reader is not None else CommandTooSlow()


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()
