"""A turn that waits: for a hook, for the client's next line, or for a TLS handshake.

Most turns do not wait, and need no Turn. A turn that waits has a deadline while the server works on it, but no deadline
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
    """A turn that waits.

    :param connection: the connection.
    :param result: a Deferred that fires with the turn's result.
    """

    __slots__ = ("_connection", "_deadline", "_expired", "_result", "finished")

    def __init__(self, connection: Connection, result: Deferred[Any]) -> None:
        self._connection = connection
        self._result = result
        self._deadline: IDelayedCall | None = None
        self._expired = False
        self.finished = False  #: whether the Deferred has fired

    def wait(self) -> None:
        """Start to wait for the result."""
        connection = self._connection
        # Not if the turn waits for the client's next line, or for a stage such as a TLS handshake: these have timeouts.
        if connection.line_request is None and connection.stage is None:
            self.start_deadline()
        self._result.addCallbacks(self._done, self._failed)

    def cancel(self) -> None:
        """Cancel the turn."""
        self._result.cancel()

    # Time

    def start_deadline(self) -> None:
        """Start the deadline of the server: the turn waits for a hook, and not for the client."""
        connection = self._connection
        connection.paused = True
        if connection.input_ended and not connection.gets_all_replies:
            self._deadline = connection.call_later(PREMATURE_CLOSE_GRACE, connection.close)
        elif connection.server.settings.hook_timeout is not None:
            self._deadline = connection.call_later(connection.server.settings.hook_timeout, self._took_too_long)

    def stop_deadline(self) -> None:
        """Stop the deadline of the server: the turn waits for the client, or is over."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _took_too_long(self) -> None:
        """Cancel the turn. If it still runs, close the connection, so that there is no second reply."""
        self._expired = True
        self._result.cancel()
        connection = self._connection
        if connection.end_turn(self):
            connection.cancelled_turn = self
            connection.dispatcher.on_result(connection.dispatcher.reply_for_timeout(False))
            connection.close()

    # The end

    def _done(self, result: Any) -> None:
        self.finished = True
        connection = self._connection
        if connection.end_turn(self):
            connection.dispatcher.on_result(result)
            connection.resume()

    def _failed(self, failure: Failure) -> None:
        self.finished = True
        connection = self._connection
        dispatcher = connection.dispatcher
        assert failure.value is not None
        if connection.end_turn(self):
            if self._expired:
                dispatcher.on_result(dispatcher.reply_for_timeout(True))
            else:
                connection.run(dispatcher.reply_for_error, failure.value)
            connection.resume()
        elif not failure.check(CancelledError):
            # The reply is not needed any more, but the exception is logged.
            Deferred.fromCoroutine(dispatcher.reply_for_error(failure.value))
