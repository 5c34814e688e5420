"""A turn that waits: for a hook, for the client's next line, or for a TLS handshake.

Most turns do not wait, and have no object. A turn that waits has a deadline while the server works on it, and none
while it waits for the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from txsmtpd.engine.connection import Connection

PREMATURE_CLOSE_GRACE = 0.5  # seconds; see `Connection.input_closed`


class Turn:
    """The turn of a connection that waits.

    :param connection: whose turn it is.
    :param result: fires with the turn's result.
    """

    __slots__ = ("_connection", "_deadline", "_expired", "_result", "finished")

    def __init__(self, connection: Connection, result: Deferred[Any]) -> None:
        self._connection = connection
        self._result = result
        self._deadline: IDelayedCall | None = None
        self._expired = False
        self.finished = False  #: what the turn waited for has ended

    def wait(self) -> None:
        """Wait for the result. The connection has this turn already."""
        if self._connection.waits_for_server:
            self.start_deadline()
        self._result.addCallbacks(self._done, self._failed)

    def cancel(self) -> None:
        """Cancel what the turn waits for."""
        self._result.cancel()

    # Time

    def start_deadline(self) -> None:
        """The server works at the turn: the client owes nothing, and the server must not take too long."""
        connection = self._connection
        connection.paused = True
        if connection.input_ended and not connection.quit_received:
            self._deadline = connection.call_later(PREMATURE_CLOSE_GRACE, connection.close)
        elif connection.server.settings.hook_timeout is not None:
            self._deadline = connection.call_later(connection.server.settings.hook_timeout, self._took_too_long)

    def stop_deadline(self) -> None:
        """It is the client's turn to act, or the turn is over."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _took_too_long(self) -> None:
        """Cancel it. If it continues anyway, close the connection, so that there is no second reply."""
        self._expired = True
        self._result.cancel()
        connection = self._connection
        if connection.end_turn(self):
            connection.goes_on = not self.finished
            connection.dispatcher.on_result(connection.dispatcher.on_timeout(False))
            connection.close()

    # The end

    def _done(self, result: Any) -> None:
        self.finished = True
        connection = self._connection
        if connection.end_turn(self):
            connection.dispatcher.on_result(result)
            connection.go_on()

    def _failed(self, failure: Failure) -> None:
        self.finished = True
        connection = self._connection
        dispatcher = connection.dispatcher
        assert failure.value is not None
        if connection.end_turn(self):
            if self._expired:
                dispatcher.on_result(dispatcher.on_timeout(True))
            else:
                connection.run(dispatcher.reply_for_error, failure.value)
            connection.go_on()
        elif not failure.check(CancelledError):
            # Nobody waits for it any more, but the log should know.
            Deferred.fromCoroutine(dispatcher.reply_for_error(failure.value))
