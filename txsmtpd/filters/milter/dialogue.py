"""The commands that are sent to a milter about one client, in the same order as by Postfix.

Their encoding is in :mod:`txsmtpd.wire.milter`, the connection in :mod:`txsmtpd.filters.milter.connection`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from twisted.logger import Logger

from txsmtpd.filters.milter.connection import MilterConnection
from txsmtpd.filters.milter.macros import DEFAULTS, Known, values_of
from txsmtpd.filters.verdict import ACCEPT, DISCARD, FilterError, Verdict
from txsmtpd.reply import Refused, Reply
from txsmtpd.wire import milter
from txsmtpd.wire.milter import Response, Stage, Steps

log = Logger(namespace="txsmtpd.filters")

COMMAND_REJECTED = Reply(550, "5.7.1", "Command rejected")
CLIENT_REJECTED = Reply(554, "5.7.1", "Connection rejected")
TRY_LATER = Reply(451, "4.7.1", "Service unavailable, try again later")
CLOSING = Reply(421, "4.7.0", "Service unavailable, closing connection")
MACROS_OF = {
    milter.CONNECT: Stage.CONNECT,
    milter.HELO: Stage.HELO,
    milter.MAIL: Stage.MAIL,
    milter.RCPT: Stage.RCPT,
    milter.DATA: Stage.DATA,
    milter.HEADER: Stage.END_OF_HEADERS,
    milter.END_OF_HEADERS: Stage.END_OF_HEADERS,
    milter.BODY: Stage.END_OF_MESSAGE,
    milter.END_OF_MESSAGE: Stage.END_OF_MESSAGE,
}
# The protocol flags by which a milter says that it does not want a command, and that it does not reply to it.
STEPS_OF = {
    milter.CONNECT: (Steps.NO_CONNECT, Steps.SILENT_CONNECT),
    milter.HELO: (Steps.NO_HELO, Steps.SILENT_HELO),
    milter.MAIL: (Steps.NO_MAIL, Steps.SILENT_MAIL),
    milter.RCPT: (Steps.NO_RCPT, Steps.SILENT_RCPT),
    milter.DATA: (Steps.NO_DATA, Steps.SILENT_DATA),
    milter.HEADER: (Steps.NO_HEADERS, Steps.SILENT_HEADER),
    milter.END_OF_HEADERS: (Steps.NO_END_OF_HEADERS, Steps.SILENT_END_OF_HEADERS),
    milter.BODY: (Steps.NO_BODY, Steps.SILENT_BODY),
    milter.END_OF_MESSAGE: (Steps(0), Steps(0)),
}
TIME_LIMIT = 600.0  # seconds for all responses to one command, to limit how long a client waits
OF_CONNECTION = (milter.CONNECT, milter.HELO)


class Timeouts(NamedTuple):
    """Time limits for a milter, in seconds."""

    connect: float  #: to connect and to negotiate
    command: float  #: to respond to a command
    content: float  #: to respond to a part of a message, and between progress responses at its end


class Asks(Protocol):
    """The interface of the filter that a dialogue uses."""

    name: str
    timeouts: Timeouts
    macros: Mapping[str, str]

    @property
    def reactor(self) -> Any:
        """The reactor, for timeouts."""

    async def connect(self) -> MilterConnection:
        """Connect, and negotiate."""


class MilterDialogue:
    """The conversation with a milter about one client.

    :param filter: the filter.
    :param server: the client's protocol.
    """

    def __init__(self, filter: Asks, server: Any) -> None:
        self.filter = filter
        self.server = server
        self.connection: MilterConnection | None = None
        self.quarantine: str | None = None  # the reason, if the message is to be quarantined
        self._final: Verdict | Reply | None = None  # for the whole connection
        self._greeted_as: str | None = None
        self._in_message = False
        self._skipped = b""  # the command that the milter does not want again
        self._known = Known(server, server.session)

    # One command

    @property
    def agreed(self) -> milter.Negotiation:
        """The options that were negotiated with the milter."""
        assert self.connection is not None
        return self.connection.agreed

    def wants(self, command: bytes) -> bool:
        """Return True if the milter wants this command, or more of this kind."""
        return command != self._skipped and not STEPS_OF[command][0] & self.agreed.steps

    async def say(
        self,
        command: bytes,
        octets: bytes,
        changes: Callable[[Response], Awaitable[None]] | None = None,
        timeout: float = 0,
    ) -> Verdict | None:
        """Send a command with its macros. Return the milter's decision, or None to continue.

        :param changes: called with each change that the milter makes. None: changes are not allowed now.
        :param timeout: seconds to wait for the response. Default: the timeout for commands.
        :raises Refused: if the milter rejects.
        :raises FilterError: if there is no valid response.
        """
        if self._final is not None:
            return self._verdict()
        connection = self.connection
        if connection is None:
            raise FilterError("there is no connection to the milter")
        unwanted, silent = STEPS_OF[command]
        if unwanted & ~milter.STEPS_OF_VERSION[self.agreed.version]:
            return None  # the milter does not support the command
        if command == self._skipped:
            return None
        self._skipped = b""
        timeout = timeout or self.filter.timeouts.command
        # Macros are sent even if the command is not, because the milter may use them later.
        wanted = not unwanted & self.agreed.steps
        connection.send(self._macros(command) + (octets if wanted else b""))
        if not wanted or silent & self.agreed.steps:
            await connection.drain(timeout)
            return None
        latest = self.filter.reactor.seconds() + TIME_LIMIT
        while True:
            left = latest - self.filter.reactor.seconds()
            if left <= 0:
                connection.abort()
                raise FilterError(f"the milter did not decide within {TIME_LIMIT:g} seconds")
            response = await connection.response(min(timeout, left))
            if response is milter.PROGRESS:
                continue
            if isinstance(response, milter.Quarantine):
                self.quarantine = response.reason or "no reason was given"
            elif not milter.is_change(response):
                return self._decide(command, response)
            elif changes is None:
                connection.abort()
                raise FilterError(f"the milter violated the protocol: {response!r} before the end of the message")
            else:
                await changes(response)

    def _macros(self, command: bytes) -> bytes:
        stage = MACROS_OF[command]
        names: Iterable[str] = self.agreed.macros.get(stage, DEFAULTS[stage])
        values = values_of(names, self._known, self.filter.macros)
        return milter.macros(command, values)

    def _decide(self, command: bytes, response: Response) -> Verdict | None:
        of_connection = command in OF_CONNECTION
        if response is milter.CONTINUE:
            return None
        if response is milter.SKIP:
            self._skipped = command
            return None
        if response is milter.ACCEPT:
            if of_connection:
                self._settle(ACCEPT)
            return ACCEPT
        if response is milter.DISCARD:
            return None if of_connection else DISCARD
        reply = self._refusal(command, response)
        if of_connection or response is milter.SHUTDOWN:
            self._settle(reply)
        raise Refused(reply)

    def _refusal(self, command: bytes, response: Response) -> Reply:
        if isinstance(response, milter.ReplyCode):
            return response.reply
        if response is milter.REJECT:
            return CLIENT_REJECTED if command == milter.CONNECT else COMMAND_REJECTED
        if response is milter.TEMPFAIL:
            return TRY_LATER
        if response is milter.SHUTDOWN:
            return CLOSING
        assert self.connection is not None
        self.connection.abort()
        raise FilterError(f"the milter responded {response!r}")

    def _settle(self, decision: Verdict | Reply) -> None:
        """Store a decision about the whole connection. The milter closes its side then."""
        self._final = decision
        self._drop()

    # The stages

    async def connected(self) -> Verdict | None:
        """Tell the milter that the client has connected."""
        self._known = Known(self.server, self.server.session)
        await self._open()
        return self._verdict()

    async def _open(self) -> None:
        """Connect, and send the milter the commands that it missed."""
        if self.connection is not None and self.connection.usable:
            return
        self._drop()
        self.connection = await self.filter.connect()
        host, port = self._known.client
        address = None if host is None else host.partition("%")[0]
        await self.say(milter.CONNECT, milter.connect(self._known.client_name, address, port))

    async def greeted(self, hostname: str) -> Verdict | None:
        """Tell the milter about HELO, EHLO or LHLO."""
        if self._final is None and self.connection is not None and self.connection.usable:
            self._known = Known(self.server, self.server.session)
            self.abort_message()
            await self._greet(hostname)
        return self._verdict()  # if the milter is unavailable, it is tried again with MAIL

    async def _greet(self, hostname: str) -> None:
        self._greeted_as = None
        await self.say(milter.HELO, milter.helo(hostname))
        self._greeted_as = hostname

    def _verdict(self) -> Verdict | None:
        if isinstance(self._final, Reply):
            raise Refused(self._final)
        return self._final

    async def mail(self, message_id: str, address: str, options: list[str]) -> Verdict | None:
        """Tell the milter that a transaction begins.

        :param message_id: the server's id of the message.
        """
        self.abort_message()
        self.quarantine = None
        session = self.server.session
        self._known = Known(self.server, session, message_id, address)
        if self._final is None:
            await self._open_again(session.host_name)
        if self._final is not None:
            return self._verdict()
        self._in_message = True
        return await self.say(milter.MAIL, milter.mail(address, options))

    async def _open_again(self, hostname: str | None) -> None:
        if self.connection is None or not self.connection.usable:
            self._greeted_as = None
        await self._open()
        if self._final is None and hostname is not None and self._greeted_as is None:
            await self._greet(hostname)

    async def rcpt(self, address: str, options: list[str]) -> Verdict | None:
        """Tell the milter about a recipient that the server accepted."""
        self._known = Known(self.server, self.server.session, self._known.message_id, self._known.sender, address)
        return await self.say(milter.RCPT, milter.rcpt(address, options))

    async def data(self) -> Verdict | None:
        """Tell the milter that the message follows."""
        self._known = Known(self.server, self.server.session, self._known.message_id, self._known.sender)
        return await self.say(milter.DATA, milter.packet(milter.DATA))

    def abort_message(self) -> None:
        """End the transaction, if there is one."""
        if self._in_message:
            self._in_message = False
            self._skipped = b""
            if self.connection is not None and self.connection.usable:
                try:
                    self.connection.send(milter.packet(milter.ABORT))
                except FilterError as error:
                    log.info("{name}: {error}", name=self.filter.name, error=str(error))

    def _drop(self) -> None:
        connection, self.connection = self.connection, None
        self._in_message = False
        self._skipped = b""
        if connection is not None:
            connection.quit()

    def end(self) -> None:
        """End the conversation after the client has disconnected."""
        self.abort_message()
        self._drop()
