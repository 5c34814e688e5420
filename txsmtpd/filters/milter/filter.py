"""The milter filter: uses any milter, such as OpenDKIM, OpenDMARC or clamav-milter, in front of any handler.

There is one connection to the milter for each client, starting with the greeting. The conversation is in
:mod:`txsmtpd.filters.milter.dialogue`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.filters.milter.connection import MilterConnection
from txsmtpd.filters.milter.dialogue import MilterDialogue, Timeouts
from txsmtpd.filters.milter.message import send_message
from txsmtpd.filters.timing import FAILURES, PAUSE
from txsmtpd.filters.verdict import FilterError, StillDownError
from txsmtpd.limits.breaker import Breaker


class Milter:
    """Check mail with a milter.

    :param endpoint: where it listens: a client endpoint description, such as ``unix:/run/opendkim.sock`` or
        ``tcp:127.0.0.1:8891``, or a provider of IStreamClientEndpoint.
    :param name: its name in ``envelope.filters`` and in the log.
    :param on_failure: what to do with mail while it is down: ``"tempfail"`` or ``"accept"``.
    :param macros: values of macros, by name without braces, that override the server's.
    :param connect_timeout: seconds for the connection and the negotiation.
    :param command_timeout: seconds for the response to a command.
    :param content_timeout: seconds for the response to each part of the message, and between progress responses at
        its end.
    :param reactor: connects and provides the time. Default: the global reactor, imported with the first client.
    :raises ValueError: for an invalid endpoint.
    """

    command_timeout = message_timeout = None  # the filter has its own time limits

    def __init__(
        self,
        endpoint: Any,
        *,
        name: str | None = None,
        on_failure: str = "tempfail",
        macros: Mapping[str, str] | None = None,
        connect_timeout: float = 30.0,
        command_timeout: float = 30.0,
        content_timeout: float = 300.0,
        authserv_id: str | None = None,
        reactor: Any = None,
    ) -> None:
        self.name = name or "milter"
        self.on_failure = on_failure
        self.authserv_id = authserv_id
        self.timeouts = Timeouts(connect_timeout, command_timeout, content_timeout)
        self.macros: Mapping[str, str] = dict(macros or {})
        self._endpoint = endpoint
        self._reactor = reactor
        self._breaker = Breaker(FAILURES, PAUSE)
        self._dialogues: dict[Any, MilterDialogue] = {}
        if isinstance(endpoint, str):
            check_client_endpoint(endpoint)

    @property
    def reactor(self) -> Any:
        """The reactor, for connections and timeouts."""
        if self._reactor is None:
            self._reactor = current_reactor()
        return self._reactor

    async def connect(self) -> MilterConnection:
        """Connect, and negotiate.

        :raises FilterError: if the milter is unavailable.
        """
        if not self._breaker.allows(self.reactor.seconds()):
            raise StillDownError("the milter is paused after failures")
        try:
            connection = await self._connected()
        except FilterError:
            self._breaker.failed(self.reactor.seconds())
            raise
        self._breaker.succeeded()
        return connection

    async def _connected(self) -> MilterConnection:
        if isinstance(self._endpoint, str):
            from twisted.internet.endpoints import clientFromString

            self._endpoint = clientFromString(self.reactor, self._endpoint)
        factory = Factory.forProtocol(lambda: MilterConnection(self.reactor))
        factory.noisy = False
        attempt: Deferred[Any] = self._endpoint.connect(factory)
        timed_out = False

        def give_up() -> None:
            nonlocal timed_out
            timed_out = True
            attempt.cancel()

        expiry = self.reactor.callLater(self.timeouts.connect, give_up)
        try:
            connection: MilterConnection = await attempt
        except CancelledError:
            if not timed_out:
                raise
            raise FilterError(f"no connection to the milter within {self.timeouts.connect:g} seconds") from None
        except (ConnectError, OSError) as error:
            raise FilterError(f"no connection to the milter: {error}") from None
        finally:
            if expiry.active():
                expiry.cancel()
        await connection.negotiate(self.timeouts.connect)
        return connection

    def _dialogue(self, server: Any) -> MilterDialogue:
        found = self._dialogues.get(server)
        if found is None:
            found = self._dialogues[server] = MilterDialogue(self, server)
        return found

    # The stages. Plain functions that return Deferreds: if the handler uses asyncio, coroutine functions would be run
    # by the asyncio loop.

    def filter_CONNECT(self, server: Any, session: Any, envelope: Any) -> Deferred[Any]:
        self.filter_DISCONNECT(server, session, envelope, None)  # XCLIENT starts a new session
        return Deferred.fromCoroutine(self._dialogue(server).connected())

    def filter_HELO(self, server: Any, session: Any, envelope: Any, hostname: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._dialogue(server).greeted(hostname))

    def filter_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]
    ) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._dialogue(server).mail(envelope.filters.message_id, address, mail_options))

    def filter_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]
    ) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._dialogue(server).rcpt(address, rcpt_options))

    def filter_DATA(self, server: Any, session: Any, envelope: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._dialogue(server).data())

    def filter_message(self, server: Any, session: Any, envelope: Any, message: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(send_message(self._dialogue(server), message))

    def filter_RSET(self, server: Any, session: Any, envelope: Any) -> None:
        dialogue = self._dialogues.get(server)  # the client may have disconnected
        if dialogue is not None:
            dialogue.abort_message()

    def filter_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: Any) -> None:
        dialogue = self._dialogues.pop(server, None)
        if dialogue is not None:
            dialogue.end()


def check_client_endpoint(description: str) -> None:
    """:raises ValueError: if the description is not a client endpoint."""
    from twisted.internet.endpoints import clientFromString
    from twisted.internet.task import Clock

    try:
        if description in ("unix:", "unix:path="):  # the path is missing
            raise ValueError(description)
        # The endpoint is made again later with the real reactor. Importing that now would install it.
        clientFromString(Clock(), description)
    except Exception as error:
        raise ValueError(
            f"{description!r} is not an endpoint; write unix:/run/milter.sock or tcp:127.0.0.1:8891"
        ) from error
