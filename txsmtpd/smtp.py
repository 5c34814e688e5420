"""SMTP: the protocol of one connection, with the commands of RFC 5321. Users subclass it. Therefore all names that they
may use or override are in one file.

A command is a method ``smtp_VERB(arg)``. It returns a status or raises :class:`~txsmtpd.reply.Refused`. The
decorator ``@syntax`` declares its syntax and its preconditions. A mail transaction is open while
``envelope.mail_from`` is not None.

:mod:`txsmtpd.engine` reads lines and messages, runs commands, sends replies, and handles TLS and PROXY headers. The
commands of extensions (AUTH, STARTTLS, BDAT, XCLIENT) are in :mod:`txsmtpd.extensions`.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from types import CoroutineType
from typing import Any, ClassVar, Unpack

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IPushProducer
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd._version import __version__
from txsmtpd.auth import MISSING, AuthResult, Exchange, LoginPassword, auth_mechanism
from txsmtpd.auth.exchange import decode_answer
from txsmtpd.auth.login import Login
from txsmtpd.auth.plain import Plain
from txsmtpd.bridges.asyncio_bridge import loop_of_server
from txsmtpd.bridges.asyncio_transport import take_over
from txsmtpd.command import (
    Command,
    Rule,
    authorized,
    greeted,
    no_transaction,
    recipients,
    syntax,
    transaction,
)
from txsmtpd.engine.connection import Connection
from txsmtpd.engine.dispatcher import Dispatcher
from txsmtpd.engine.ending import session_ended
from txsmtpd.engine.greeting import default_greeting, first_turn
from txsmtpd.engine.handshake import Handshake, TLSSetupException, start_tls
from txsmtpd.engine.masking import sanitize
from txsmtpd.engine.message import IncomingMessage
from txsmtpd.engine.notices import give_notice
from txsmtpd.engine.observer import observer_of
from txsmtpd.engine.overrides import Readable, add_missing_attributes, check_overrides
from txsmtpd.engine.protocol_class import ProtocolClass, SizeLimits, setting, with_own_commands
from txsmtpd.engine.proxy_header import ProxyHeaderError
from txsmtpd.extensions import auth, chunking, starttls
from txsmtpd.parameters import NO_PARAMETERS
from txsmtpd.reply import FAILED, GOODBYE, OK, Refused, Reply, is_part, parse_status
from txsmtpd.session import Envelope, Session, place_of
from txsmtpd.settings import CALL_LIMIT_DEFAULT, DATA_SIZE_DEFAULT, ERROR_LIMIT, IDENT, Parameters, Settings
from txsmtpd.typed import Options
from txsmtpd.wire import grammar

__all__ = [
    "BOGUS_LIMIT",
    "CALL_LIMIT_DEFAULT",
    "DATA_SIZE_DEFAULT",
    "MISSING",
    "SMTP",
    "AuthCallbackType",
    "AuthMechanismType",
    "AuthResult",
    "AuthenticatorType",
    "Envelope",
    "LoginPassword",
    "ProxyHeaderError",
    "Rule",
    "Session",
    "TLSSetupException",
    "__version__",
    "auth_mechanism",
    "sanitize",
    "sanitized_log",
    "syntax",
]

# For annotations.
AuthCallbackType = Callable[[str, bytes, bytes], Any]
AuthenticatorType = Callable[["SMTP", Session, Envelope, str, Any], Any]
AuthMechanismType = Callable[["SMTP", list[str]], Any]

# Names that programs import from aiosmtpd.smtp.
__ident__ = IDENT
BOGUS_LIMIT = ERROR_LIMIT
make_loop = asyncio.new_event_loop
_Missing = type(MISSING)

SENDER_OK = Reply(250, "2.1.0", "OK")
RECIPIENT_OK = Reply(250, "2.1.5", "OK")
TRANSACTION_RESET = Reply(250, "2.0.0", "The transaction was reset")
CANNOT_VRFY = Reply(252, "2.0.0", "Cannot VRFY user, but will accept message and attempt delivery")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")  # RFC 5321 4.5.3.1.10
NEED_EHLO = Reply(501, "5.5.4", "Parameters require EHLO")
SENDER_NEEDS_UTF8 = Reply(550, "5.6.7", "A UTF-8 address requires the SMTPUTF8 parameter")  # RFC 6531 3.5
RECIPIENT_NEEDS_UTF8 = Reply(553, "5.6.7", "A UTF-8 address requires SMTPUTF8 in MAIL")

no_chunks = Rule(
    lambda smtp, arg: smtp._message is None,
    Reply(503, "5.5.1", "Command not allowed after BDAT"),
)
lines_only = Rule(
    lambda smtp, arg: smtp.envelope.body != "BINARYMIME",
    Reply(503, "5.5.1", "BINARYMIME requires BDAT"),  # RFC 3030 3
)

_SMTPUTF8_PARAMETER = re.compile(r" +SMTPUTF8 *\Z", re.IGNORECASE)
_greeting_reply = lru_cache(maxsize=64)(partial(Reply, 250, None))


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class SMTP(LineReceiver, metaclass=ProtocolClass):
    """The protocol of one connection.

    :param handler: the object with the hooks; see :mod:`txsmtpd.interfaces`.
    :param settings: the settings of a factory, instead of *handler* and *options*.
    :param loop: ignored; accepted for programs written for aiosmtpd.
    :param options: see :class:`~txsmtpd.settings.Settings`.
    :raises TypeError: if an option is unknown or has a wrong type.
    :raises ValueError: if an option has an invalid value.

    Subclass it to add commands or to change them:

    >>> class MyServer(SMTP):
    ...     @syntax("PING [ignored]")
    ...     async def smtp_PING(self, arg):
    ...         return "259 Pong"
    """

    commands: Mapping[bytes, Command] = {}  #: the commands of the class and of its extensions, by verb
    lmtp = False  #: whether the client speaks LMTP
    transport: Any
    settings: Settings
    session: Session  #: data about the client
    envelope: Envelope  #: the mail transaction

    AuthLoginUsernameChallenge = "User Name\0"  #: the first challenge of LOGIN
    AuthLoginPasswordChallenge = "Password\0"  #: the second challenge of LOGIN

    # The parts of the engine. The class has no defaults for them, because Python finds an attribute faster if only the
    # instance has it.
    _connection: Any
    _dispatcher: Any
    _message: IncomingMessage | None  # the message being received
    # The state of the connection, with the defaults that most connections keep.
    _attempts: auth.Attempts | None = None
    _given: frozenset[str] | None = None  # the names of the options, if the protocol was created without a factory
    _own_size_limits: Mapping[str, int] = {}  # limits of command lines that were set for this connection
    _taken_over = False  # whether an asyncio server has accepted the connection
    _ehlo_lines: list[str] | None = None  # during EHLO, the lines that a hook has pushed
    _at_end: tuple[Callable[[], Any], ...] = ()
    # The classes of the parts.
    _dispatcher_class: ClassVar[type[Dispatcher]] = Dispatcher
    _message_class: ClassVar[type[IncomingMessage]] = IncomingMessage
    _mechanisms: ClassVar[Mapping[str, Any]] = {}  # mechanisms from methods auth_MECHANISM of the class

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_overrides(cls, SMTP)
        cls.find_methods()

    def __init__(
        self,
        handler: object = None,
        *,
        settings: Settings | None = None,
        loop: object = None,
        **options: Unpack[Options],
    ) -> None:
        self.session = self.envelope = None  # type: ignore[assignment]  # until the connection is made
        self.settings = settings or Settings.make(handler, options, type(self))
        if settings is None:
            self._given = frozenset(options)
            give_notice(self.settings)
        self.commands = self.settings.commands_of(type(self))
        if self.settings.lenient_addresses:
            self._choose_parsers()

    def _choose_parsers(self) -> None:
        if self.settings.lenient_addresses:
            if type(self).parse_mail is grammar.parse_mail:
                self.parse_mail = grammar.parse_mail_leniently
            if type(self).parse_rcpt is grammar.parse_rcpt:
                self.parse_rcpt = grammar.parse_rcpt_leniently

    # Attributes

    @property
    def event_handler(self) -> Any:
        """The object with the hooks."""
        return self.settings.handler

    @property
    def loop(self) -> Any:
        """The asyncio loop in which hooks run.

        :raises RuntimeError: if there is none; see the option *asyncio*.
        """
        return loop_of_server(self.settings.asyncio)

    @property
    def clock(self) -> Any:
        """The clock of the connection (IReactorTime)."""
        return self.settings.clock()

    hostname = setting("hostname", "The server's name.")
    data_size_limit = setting("data_size_limit", "Maximum size of a message in octets. None: no limit.")
    local_part_limit = setting("local_part_limit", "Maximum length of a local part in characters. 0: no limit.")
    line_length_limit = setting("line_length_limit", "Maximum length of a message line in octets. None: no limit.")
    command_size_limit = setting(
        "command_size_limit", "Maximum length of a command line in octets; extensions add to it."
    )
    enable_SMTPUTF8 = setting("enable_SMTPUTF8", "True if SMTPUTF8 (RFC 6531) is offered.")
    require_starttls = setting("require_starttls", "True if a client must start TLS before it sends mail.")
    auth_required = setting("auth_required", "True if a client must authenticate before it sends mail.")
    _authenticator = Readable(lambda server: server.settings.authenticator)  # auth_MECHANISM methods call it
    _proxy_timeout = Readable(lambda server: server.settings.proxy_protocol_timeout)  # tests read it
    _call_limit_default = Readable(lambda server: server.settings.call_limit_default)
    _tls_protocol = Readable(lambda server: server.session and server.session.ssl)  # hooks test it
    __ident__ = setting("ident", "The text after the server's name in the greeting.")

    @property
    def command_size_limits(self) -> SizeLimits:
        """Maximum length of a command line in octets by verb, after EHLO. Other verbs have :attr:`command_size_limit`.
        A subclass may increase limits in its ``__init__``."""
        return SizeLimits(self)

    @property
    def max_command_size_limit(self) -> int:
        """Maximum length of any command line in octets. After EHLO it includes what extensions add."""
        if hasattr(self, "_connection") and self.session.extended_smtp:
            return self.settings.longest_line
        limits: list[int] = [self.command_size_limit, *self._own_size_limits.values()]
        return max(limits)

    @property
    def tls_context(self) -> Any:
        """The context for TLS, or None."""
        context = self.settings.tls_context
        interceptor = self._dispatcher.interceptor
        return context if interceptor is None else interceptor.tls_context(context)

    # Called by Twisted

    def connectionMade(self) -> None:
        if type(self).connection_made is SMTP.connection_made or self._taken_over:
            self._start()
        else:  # the override calls SMTP.connection_made, and that calls _start
            self.connection_made(self.transport)

    def _start(self) -> None:
        if hasattr(self, "_connection"):
            raise TypeError(f"{type(self).__name__}._connection is a name that SMTP uses itself; choose another")
        self.session = self._create_session()
        self.session.peer = place_of(self.transport.getPeer()) or ""
        self.envelope = self._create_envelope()
        if type(self).__init__ is not SMTP.__init__:  # an override may have set attributes that are commands
            self.commands = with_own_commands(self)
        factory = self.factory
        self._dispatcher = dispatcher = self._dispatcher_class(self)
        self._message = None
        self._connection = dispatcher.connection = Connection(self, dispatcher)
        observers = getattr(factory, "observers", ())
        if observers:
            self._connection.observer = observer_of(self, observers)
        intercept = getattr(factory, "interceptor", None)
        if intercept is not None:
            dispatcher.interceptor = intercept(self)
        metrics = getattr(factory, "metrics", None)
        if metrics is not None:
            dispatcher.meter = metrics.meter(self)
        connected = getattr(factory, "connected", None)  # our factories track connections
        if connected is not None:
            connected(self)
        self._connection.start(first_turn)

    def dataReceived(self, data: bytes) -> None:
        self._connection.data_received(data)

    def lineReceived(self, line: bytes) -> None:
        """Execute a command line. Responses to challenges of AUTH are not passed to this method."""
        connection, dispatcher = self._connection, self._dispatcher
        if connection.observer is not None:
            connection.observer.line_received(dispatcher.masked(line))
        connection.run(dispatcher.on_line, line)

    def clearLineBuffer(self) -> bytes:
        """Remove the input that has not been processed, and return it."""
        return self._connection.lines.clear()  # type: ignore[no-any-return]

    def sendLine(self, line: bytes) -> None:
        """Send a line after all earlier output."""
        self._connection.send(line + b"\r\n")

    def pauseProducing(self) -> None:
        """The client does not read the replies. Stop reading and executing commands. Called by the transport."""
        self._connection.output_full()

    def resumeProducing(self) -> None:
        """The client reads again. Called by the transport."""
        self._connection.output_drained()

    def stopProducing(self) -> None:
        """The transport is closing; :meth:`connectionLost` follows."""

    def handshakeCompleted(self) -> None:
        """The TLS handshake is complete. Called by the transport."""
        stage = self._connection.stage
        if isinstance(stage, Handshake):
            stage.completed()

    def timeoutConnection(self) -> None:
        """Close the connection, because the client was idle for too long."""
        self._connection.timed_out()

    def readConnectionLost(self) -> None:
        """The client has closed its side. Reply to what it sent, then close the connection."""
        self._connection.input_closed()

    def writeConnectionLost(self) -> None:
        """Part of IHalfCloseableProtocol. Not called: the server always closes both sides."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        connection = self._connection
        cause = connection.connection_lost(reason.value or ConnectionDone())
        session_ended(self, cause)
        connection.break_cycles()

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio for a connection of ``loop.create_server(lambda: SMTP(handler), ...)``.

        If a subclass overrides this method, the override is also called for each connection from Twisted. It then
        receives a Twisted transport.

        :raises TypeError: if asyncio has started TLS. Use *tls_context* and *implicit_tls* instead.
        """
        if transport is self.transport:
            self._start()
            return
        if not self.settings.asyncio:
            self.settings = replace(self.settings, asyncio=True)
        self._taken_over = True
        take_over(transport, self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by asyncio. Does nothing."""

    def eof_received(self) -> bool:
        """Part of asyncio's protocols. Not called.

        :return: False.
        """
        return False

    # For subclasses and handlers

    def _create_session(self) -> Session:
        """Create the session. Override it to use your own class."""
        return Session()

    def _create_envelope(self) -> Envelope:
        """Create the envelope of a transaction. Override it to use your own class."""
        return Envelope()

    def push(self, status: Reply | str | bytes) -> Deferred[None]:
        """Send a reply, or a part of one (``"250-more follows"``), before the command returns.

        A command that has pushed its whole reply returns None.

        :return: a Deferred that has already fired. The reply is sent immediately, whether you await it or not.
        :raises TypeError: if *status* is not a Reply, str or bytes.
        :raises ValueError: if *status* does not start with a reply code.
        """
        reply = parse_status(status)
        if self._ehlo_lines is not None and reply.code == 250 and is_part(status):
            self._ehlo_lines.extend(reply.lines)  # sent later, after the line with the host name
            return succeed(None)
        if self.settings.log_dialogue:
            self._dispatcher.log_reply(reply)
        octets = reply.encode(self.envelope.smtp_utf8)
        if is_part(status):
            last = octets.rfind(b"\r\n", 0, -2) + 2 if len(reply.lines) > 1 else 0
            octets = octets[: last + 3] + b"-" + octets[last + 4 :]
        elif reply.code // 100 != 3:
            self._dispatcher.pushed = True
        self._connection.send(octets)
        return succeed(None)

    async def call_hook(self, name: str, *arguments: Any, default: Callable[..., Reply]) -> Reply:
        """Call the handler's hook and return its status as a reply. If the handler has no such hook, call *default*.

        :param name: the name of the hook without ``handle_``.
        :param arguments: passed to *default*, and to the hook after server, session and envelope.
        """
        hook = self.settings.hooks.get(name)
        if hook is None:
            self._dispatcher.default_reply = reply = default(*arguments)
            return reply
        result = hook(self, self.session, self.envelope, *arguments)
        if type(result) is CoroutineType or (type(result) is not str and isinstance(result, Awaitable)):
            result = await result
        dispatcher: Dispatcher = self._dispatcher
        reply = dispatcher.reply_from_hook(result, name)
        dispatcher.default_reply = reply
        return reply

    async def _call_handler_hook(self, command: str, *arguments: Any) -> Any:
        """Return the result of a hook, or MISSING. Programs written for aiosmtpd call this method in their commands."""
        hook = self.settings.hooks.get(command)
        if hook is None:
            return MISSING
        result = hook(self, self.session, self.envelope, *arguments)
        return await result if isinstance(result, Awaitable) else result

    def handle_exception(self, error: BaseException) -> Any:
        """Return the status to send after an exception. The exception is already logged.

        :return: 451, or the result of the handler's hook: a status, or a coroutine or a Deferred that returns one.
        """
        hook = self.settings.hooks.get("exception")
        return FAILED if hook is None else hook(error)

    def at_end(self, function: Callable[[], Any]) -> None:
        """Call the function when the connection is lost."""
        self._at_end = (*self._at_end, function)

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Send a refusal and return True if the client has not sent HELO or EHLO."""
        return self._push_unless(greeted)

    async def check_auth_needed(self, caller: str) -> bool:
        """Send a refusal and return True if the client must authenticate before the command *caller*."""
        return self._push_unless(authorized)

    def _push_unless(self, rule: Rule) -> bool:
        if rule.holds(self, None):
            return False
        self.push(rule.refusal)
        return True

    # Called by modules that must not import these functions: extensions, mechanisms and parts of the engine

    _greet = default_greeting
    _start_tls = start_tls
    _offered_mechanisms = auth.offered_mechanisms

    def _reset_session(self) -> None:
        """Discard everything that the client has sent (RFC 3207 4.2). Its address and the session id are kept."""
        self.reset_transaction()  # first, so that filters get the session to which the transaction belongs
        before, self.session = self.session, self._create_session()
        self.session.id = before.id
        self.session.peer = before.connection_peer
        self.session.proxy_peer = before.proxy_peer
        self.session.proxy_data = before.proxy_data

    # Greetings (RFC 5321 4.1.1.1)

    @syntax("HELO hostname", argument=True, junk=True)
    async def smtp_HELO(self, arg: str) -> Reply:
        def welcome(hostname: str) -> Reply:
            return _greeting_reply((self.hostname,))

        return await self._apply_greeting(arg, False, self.call_hook("HELO", arg, default=welcome))

    @syntax("EHLO hostname", argument=True, junk=True)
    async def smtp_EHLO(self, arg: str) -> Reply:
        return await self._apply_greeting(arg, True, self._reply_to_ehlo(arg))

    async def _apply_greeting(self, hostname: str, extended: bool, answer: Any) -> Reply:
        before = self.session.extended_smtp
        self.session.extended_smtp = extended
        known = self.session.host_name
        self.session.host_name = None
        accepted = False
        try:
            reply: Reply = await answer
            accepted = reply.positive
        finally:
            if not accepted:  # RFC 5321 4.1.4: a rejected greeting changes nothing
                self.session.extended_smtp = before
                self.session.host_name = known
            else:
                self.reset_transaction()
                if self.session.host_name is None:
                    self.session.host_name = hostname
        self._dispatcher.default_reply = reply
        return reply

    async def _reply_to_ehlo(self, hostname: str) -> Reply:
        lines = [self.hostname]
        for extension in self.settings.offered:
            parameter = extension.parameter(self)
            if parameter is not None:
                lines.append(f"{extension.keyword} {parameter}" if parameter else extension.keyword)
        ehlo_hook = getattr(type(self), "ehlo_hook", None)
        hooks = self.settings.hooks
        if "EHLO" not in hooks and ehlo_hook is None:
            return _greeting_reply(tuple(lines))
        self._ehlo_lines = []
        try:
            if ehlo_hook is not None:
                await _deprecated_hook(self, "ehlo_hook", "handle_EHLO of the handler")
            if "EHLO" in hooks and self.settings.ehlo_takes_responses:
                lines[-1:] = [*self._ehlo_lines, lines[-1]]
                self._ehlo_lines = []
                responses = [*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"]
                status = await self._dispatcher.result_of_hook("EHLO", hostname, responses)
                if isinstance(status, list | tuple) and all(isinstance(line, str) for line in status):
                    status = "\n".join(status)
                return self._dispatcher.reply_from_hook(status, "EHLO")  # type: ignore[no-any-return]  # the dispatcher is Any
            last = Reply(250, None, lines.pop())
            if "EHLO" in hooks:
                last = await self.call_hook("EHLO", hostname, default=_never_called)
            return Reply(250, None, [*lines, *self._ehlo_lines, *last.lines]) if last.code == 250 else last
        finally:
            self._ehlo_lines = None

    # A mail transaction (RFC 5321 3.3)

    parse_mail = staticmethod(grammar.parse_mail)  #: parses the argument of MAIL; subclasses may override it
    parse_rcpt = staticmethod(grammar.parse_rcpt)  #: parses the argument of RCPT

    @syntax(
        "MAIL FROM:<address>",
        extended=" [SP <mail-parameters>]",
        needs=[greeted, authorized, no_transaction],
        rate="messages",
    )
    async def smtp_MAIL(self, arg: str | None) -> Reply:
        path, parameters = self.parse_mail(arg)
        reply = None
        try:
            options = self._apply_parameters(parameters, self.settings.mail_parameters) if parameters else []
            if self.settings.local_part_limit or not path.isascii():
                self._check_address(path, SENDER_NEEDS_UTF8, "5.1.7")
            for check in self.settings.mail_checks:
                check(self, path)
            reply = await self.call_hook("MAIL", path, options, default=self.begin_transaction)
        finally:
            if reply is None or not reply.positive:
                self.reset_transaction()
        if self.envelope.mail_from is None and reply.positive:
            self.envelope.mail_from = path
        return reply

    def begin_transaction(self, reverse_path: str, mail_options: list[str]) -> Reply:
        """Default action of MAIL without a hook."""
        envelope = self.envelope
        envelope.mail_from = reverse_path
        if mail_options:
            envelope.mail_options.extend(mail_options)
        return SENDER_OK

    @syntax(
        "RCPT TO:<address>",
        extended=" [SP <rcpt-parameters>]",
        needs=[greeted, authorized, transaction, no_chunks],
        rate="recipients",
    )
    async def smtp_RCPT(self, arg: str | None) -> Reply:
        path, parameters = self.parse_rcpt(arg)
        envelope = self.envelope
        known, dropped = len(envelope.rcpt_tos), envelope.dropped
        reply = None
        try:
            options = self._apply_parameters(parameters, self.settings.rcpt_parameters) if parameters else []
            if self.settings.local_part_limit or not path.isascii():
                self._check_address(path, RECIPIENT_NEEDS_UTF8, "5.1.3")
            limit = self.settings.recipient_limit
            if limit is not None and known >= limit:
                raise Refused(TOO_MANY_RECIPIENTS)
            for check in self.settings.rcpt_checks:
                check(self, path)
            reply = await self.call_hook("RCPT", path, options, default=self.add_recipient)
        finally:
            if reply is None or not reply.positive:
                del envelope.rcpt_tos[known:]  # a hook may have added recipients before it rejected the command
                envelope.dropped = dropped
            elif len(envelope.rcpt_tos) == known and path not in envelope.dropped:
                self._dispatcher.warn_of_lost_recipient(path)
            if parameters:
                # A hook may have added no recipient, or several. The parameters apply to all of them.
                given, envelope.recipient = envelope.recipient, NO_PARAMETERS
                if envelope.recipient_parameters is None:
                    envelope.recipient_parameters = {}
                for place in range(known, len(envelope.rcpt_tos)):
                    envelope.recipient_parameters[place] = envelope.rcpt_tos[place], given
        return reply

    def add_recipient(self, forward_path: str, rcpt_options: list[str]) -> Reply:
        """Default action of RCPT without a hook."""
        envelope = self.envelope
        envelope.rcpt_tos.append(forward_path)
        if rcpt_options:
            envelope.rcpt_options.extend(rcpt_options)
        return RECIPIENT_OK

    def _apply_parameters(self, parameters: grammar.Parameters, claimed: Parameters) -> list[str]:
        """Pass the parameters to their extensions.

        :return: the parameters for handlers.
        """
        if not self.session.extended_smtp:
            raise Refused(NEED_EHLO)
        options = []
        for keyword, value in parameters.items():
            take = claimed.get(keyword)
            if take is None:
                raise Refused(Reply(555, "5.5.4", f"Parameter {keyword[:40]} not recognized"))
            value = take(self.envelope, value) or value
            options.append(keyword if value is None else f"{keyword}={value}")
        return options

    def _check_address(self, path: str, needs_utf8: Reply, malformed: str) -> None:
        if not path.isascii() and not self.envelope.smtp_utf8:
            raise Refused(needs_utf8)
        limit = self.settings.local_part_limit
        if limit and len(grammar.local_part(path)) > limit:
            raise Refused(Reply(553, malformed, f"The local part is longer than {limit} characters"))

    @syntax("DATA", needs=[greeted, authorized, recipients, no_chunks, lines_only], argument=False)
    async def smtp_DATA(self, arg: None) -> Any:
        self._message = message = self._message_class(self)
        reply = message.read_data()
        return reply if isinstance(reply, Reply) else await reply

    def reset_transaction(self) -> None:
        """End the mail transaction, if one is open, and create a new envelope."""
        message = self._message
        if message is not None:
            self._message = None
            message.abort(Refused(TRANSACTION_RESET))
        if self.settings.filters is not None:
            self.settings.filters.transaction_over(self, self.session, self.envelope)
        self.envelope = self._create_envelope()

    def _has_recipients(self) -> bool:
        """Return True if the message has recipients."""
        return bool(self.envelope.rcpt_tos or self.envelope.dropped)

    def _begin_message(self) -> IncomingMessage:
        """Return the message being received, or a new one."""
        if self._message is None:
            self._message = self._message_class(self)
        return self._message

    def _payload_refused(self, reply: Reply) -> None:
        """Refuse the message of the transaction, because it would be incomplete: a command with a payload, such as
        BDAT, was refused, and its payload is discarded."""
        if self.envelope.mail_from is not None:
            self._begin_message().refuse_chunks(reply)

    @syntax("RSET", argument=False, junk=True)
    async def smtp_RSET(self, arg: None) -> Reply:
        self.reset_transaction()
        if getattr(type(self), "rset_hook", None) is not None:
            await _deprecated_hook(self, "rset_hook", "handle_RSET of the handler")
        return await self.call_hook("RSET", default=_ok)

    # Smaller commands

    @syntax("NOOP [ignored]", junk=True)
    async def smtp_NOOP(self, arg: str | None) -> Reply:
        return await self.call_hook("NOOP", arg, default=_ok)

    @syntax("QUIT", argument=False)
    async def smtp_QUIT(self, arg: None) -> Reply:
        self._dispatcher.closes_after_reply = True
        return await self.call_hook("QUIT", default=lambda: GOODBYE)

    @syntax("VRFY <address>", needs=[authorized], argument=True, junk=True)
    async def smtp_VRFY(self, arg: str) -> Reply:
        if self.settings.enable_SMTPUTF8:
            arg = _SMTPUTF8_PARAMETER.sub("", arg)  # RFC 6531 3.7.4.2
        return await self.call_hook("VRFY", grammar.parse_vrfy(arg), default=lambda address: CANNOT_VRFY)

    async def smtp_EXPN(self, arg: str | None) -> Reply:
        if not authorized.holds(self, arg):
            raise Refused(authorized.refusal)  # a rule would need @syntax, and HELP would then list the command
        return self._as_default(Reply(502, "5.5.1", "EXPN is not implemented"))

    @syntax("HELP [command]", needs=[authorized], junk=True)
    async def smtp_HELP(self, arg: str | None) -> Reply:
        if arg is None:
            return self._as_default(Reply(214, "2.0.0", self._commands_text()))
        command = self.commands.get(arg.encode("utf-8").upper())
        if command is None or command.syntax is None:
            return self._as_default(Reply(504, "5.5.4", self._commands_text()))
        return self._as_default(Reply(214, "2.0.0", f"Syntax: {command.help(self.session.extended_smtp)}"))

    def _as_default(self, reply: Reply) -> Reply:
        """Store a reply and return it. The stored reply is sent if an override of the command returns nothing."""
        self._dispatcher.default_reply = reply
        return reply

    def _commands_text(self) -> str:
        verbs = (command.verb for command in self.commands.values() if command.is_listed(self))
        return f"Supported commands: {' '.join(sorted(verbs))}"

    # Commands of extensions, which subclasses may override. auth_PLAIN and auth_LOGIN are called only if a subclass
    # overrides them. Otherwise `settings.mechanisms` contains Plain() and Login().

    smtp_STARTTLS = starttls.smtp_STARTTLS
    smtp_AUTH = auth.smtp_AUTH
    smtp_BDAT = chunking.smtp_BDAT

    async def auth_PLAIN(self, _: Any, args: list[str]) -> Any:
        """The mechanism PLAIN. Override it to change it. *args* are the words after AUTH."""
        return await _authenticate(Plain(), self, args)

    async def auth_LOGIN(self, _: Any, args: list[str]) -> Any:
        """The mechanism LOGIN. Override it to change it. *args* are the words after AUTH."""
        return await _authenticate(Login(), self, args)

    async def challenge_auth(
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> Any:
        """Send a challenge, and wait for the client's response.

        :param encode_to_b64: whether to encode the challenge as base64. If not, it must not contain CR or LF.
        :param log_client_response: ignored; responses are never logged.
        :return: the decoded response as bytes. ``MISSING`` if the client has cancelled the attempt or sent invalid
            base64; the reply has been sent then.
        """
        if log_client_response:
            warnings.warn("log_client_response has no effect: responses are never logged", stacklevel=2)
        octets = challenge.encode("utf-8") if isinstance(challenge, str) else challenge
        try:
            if encode_to_b64:
                return await Exchange(self, "").challenge(octets)
            return decode_answer(await self._dispatcher.send_challenge(octets))
        except Refused as refused:
            self._auth.gave_up = True
            if refused.reply.code == 421:
                raise
            self.push(refused.reply)
            return MISSING

    @property
    def _auth(self) -> auth.Attempts:
        """The client's login attempts."""
        if self._attempts is None:
            self._attempts = auth.Attempts()
        return self._attempts


SMTP.find_methods()
add_missing_attributes(SMTP)


def sanitized_log(function: Callable[..., object], message: str, *arguments: Any, **more: Any) -> None:
    """Log a message. In arguments that are bytes, the credentials of AUTH are masked.

    :param function: a method of a standard library logger.
    """
    function(message, *(sanitize(each) if isinstance(each, bytes) else each for each in arguments), **more)


async def _authenticate(mechanism: Any, server: SMTP, args: list[str]) -> Any:
    exchange = Exchange(server, mechanism.name, args[1] if len(args) > 1 else None)
    return await exchange.decide(await mechanism.authenticate(exchange))


async def _deprecated_hook(server: SMTP, name: str, instead: str) -> None:
    """Call a deprecated hook, which is a method of a subclass of SMTP."""
    warnings.warn(f"{type(server).__name__}.{name} is deprecated; write {instead}", DeprecationWarning, stacklevel=2)
    result = getattr(server, name)()
    if isinstance(result, Awaitable):
        await result


def _ok(*arguments: Any) -> Reply:
    return OK


def _never_called(hostname: str) -> Reply:
    raise AssertionError("call_hook must not call the default, because the handler has the hook")
