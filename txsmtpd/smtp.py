"""SMTP: the commands of RFC 5321, as methods that return their reply.

A command is a method ``smtp_VERB(arg)``; it returns a status or raises :class:`~txsmtpd.reply.Refused`. What must hold
before it runs is declared beside its syntax. A mail transaction is open while ``envelope.mail_from`` is not None.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from txsmtpd._version import __version__
from txsmtpd.auth import MISSING, AuthResult, LoginPassword, auth_mechanism
from txsmtpd.bridges.asyncio_bridge import loop_of_server
from txsmtpd.command import Rule, commands_of, syntax
from txsmtpd.engine.authentication import Authentication, authorized
from txsmtpd.engine.dispatcher import IDLE, in_one_line, log, sanitize
from txsmtpd.engine.message_sink import Buffered, Intake, Streamed
from txsmtpd.engine.proxy_header import Proxied, ProxyHeaderError
from txsmtpd.engine.starttls import TLS, TLSSetupException
from txsmtpd.extensions.size import TOO_LARGE
from txsmtpd.parameters import NOTHING_SAID
from txsmtpd.recipient_replies import FOR_EACH, Replies, folded, named, replies_for
from txsmtpd.reply import BAD_SEQUENCE, FAILED, GOODBYE, OK, Refused, Reply
from txsmtpd.session import Envelope, Session, place_of
from txsmtpd.settings import CALL_LIMIT_DEFAULT, DATA_SIZE_DEFAULT, Parameters, Settings
from txsmtpd.wire import grammar
from txsmtpd.wire.chunk import Chunk, parse_bdat
from txsmtpd.wire.data import DataReader, Fault

__all__ = [
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

SENDER_OK = Reply(250, "2.1.0", "OK")
RECIPIENT_OK = Reply(250, "2.1.5", "OK")
START_MAIL_INPUT = Reply(354, None, "End data with <CR><LF>.<CR><LF>")
CANNOT_VRFY = Reply(252, "2.0.0", "Cannot VRFY user, but will accept message and attempt delivery")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")  # RFC 5321 4.5.3.1.10
CHUNK_OK = Reply(250, "2.0.0", "Chunk received")
TRANSACTION_RESET = Reply(250, "2.0.0", "The transaction was reset")
FAR_TOO_LARGE = Reply(421, "4.3.4", "The message is far larger than this server takes, goodbye")
NEED_EHLO = Reply(501, "5.5.4", "Parameters need EHLO instead of HELO")
SENDER_NEEDS_UTF8 = Reply(550, "5.6.7", "A UTF-8 address needs the SMTPUTF8 parameter")  # RFC 6531 3.5
RECIPIENT_NEEDS_UTF8 = Reply(553, "5.6.7", "A UTF-8 address needs SMTPUTF8 with MAIL")
NOT_ASCII = Reply(500, "5.6.1", "The message must be ASCII")
FAULTS = {
    Fault.TOO_LARGE: TOO_LARGE,
    Fault.BARE_NEWLINE: Reply(550, "5.6.0", "A CR or LF in the message is not part of a CR LF"),
    Fault.LINE_TOO_LONG: Reply(500, "5.6.0", "A line of the message is too long"),
}

# Methods of a server's class that other frameworks call.
FORMER_HOOKS = {
    "ehlo_hook": "an Extension, or the handler's handle_EHLO with responses",
    "rset_hook": "smtp_RSET, or the handler's handle_RSET",
    "connection_made": "connectionMade",
    "connection_lost": "connectionLost",
    "data_received": "dataReceived",
}

greeted = Rule(
    lambda smtp, arg: smtp.session.host_name is not None,
    Reply(503, "5.5.1", "Send HELO or EHLO first"),
)
no_transaction = Rule(lambda smtp, arg: smtp.envelope.mail_from is None, Reply(503, "5.5.1", "Nested MAIL command"))
transaction = Rule(lambda smtp, arg: smtp.envelope.mail_from is not None, Reply(503, "5.5.1", "Need MAIL command"))
recipients = Rule(lambda smtp, arg: bool(smtp.envelope.rcpt_tos), Reply(503, "5.5.1", "Need RCPT command"))

no_chunks = Rule(
    lambda smtp, arg: smtp._intake is None and smtp._chunks_refused is None,
    Reply(503, "5.5.1", "The message has begun with BDAT and must go on so"),
)
lines_only = Rule(
    lambda smtp, arg: smtp.envelope.body != "BINARYMIME",
    Reply(503, "5.5.1", "A BINARYMIME message must come by BDAT"),  # RFC 3030 3
)

_greeting_reply = lru_cache(maxsize=64)(partial(Reply, 250, None))


class SMTP(TLS, Authentication, Proxied):
    """The protocol of one connection.

    :param handler: the object whose hooks decide; see :mod:`txsmtpd.interfaces`.
    :param settings: what a factory made of its options, in place of *handler* and *options*.
    :param loop: of no effect; programs that were written for asyncio may give one.
    :param options: see :class:`~txsmtpd.settings.Settings`.
    :raises TypeError: for an unknown option, or one of a wrong type.
    :raises ValueError: for an option whose value will not do.

    Subclass it to add commands or to change them:

    >>> class MyServer(SMTP):
    ...     @syntax("PING [ignored]")
    ...     async def smtp_PING(self, arg):
    ...         return "259 Pong"
    """

    lmtp = False  #: whether the client speaks LMTP
    _messages = 0
    _intake: Intake | None = None  # of the message that is coming
    _message_octets = 0  # of its chunks so far
    _chunks_refused: Reply | None = None  # the answer to each chunk that still comes

    def __init__(
        self, handler: object = None, *, settings: Settings | None = None, loop: object = None, **options: Any
    ) -> None:
        self.settings = settings or Settings.make(handler, options, type(self))
        if self.settings.commands:
            self.commands = self.settings.commands_of(type(self))

    def _create_session(self) -> Session:
        """Make the session; override it to use a class of your own."""
        return Session()

    def _create_envelope(self) -> Envelope:
        """Make the envelope of a transaction; override it to use a class of your own."""
        return Envelope()

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio alone, whose transports are none for this.

        :raises TypeError: always.
        """
        transport.abort()
        raise TypeError("this protocol is not asyncio's; listen with txsmtpd.controller.UnthreadedController")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by asyncio behind :meth:`connection_made`."""

    @property
    def event_handler(self) -> Any:
        """The object whose hooks decide."""
        return self.settings.handler

    @property
    def loop(self) -> Any:
        """The asyncio loop in which hooks run.

        :raises RuntimeError: if they run in none; see the option *asyncio*.
        """
        return loop_of_server(self.settings.asyncio)

    @property
    def hostname(self) -> str:
        """The server's name."""
        return self.settings.hostname or ""

    @property
    def data_size_limit(self) -> int | None:
        """Octets that a message may have; None: no limit."""
        return self.settings.data_size_limit

    @property
    def enable_SMTPUTF8(self) -> bool:
        """Whether SMTPUTF8 (RFC 6531) is offered."""
        return self.settings.enable_SMTPUTF8

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name, instead in FORMER_HOOKS.items():
            if getattr(cls, name, None) is not getattr(SMTP, name, None):
                raise TypeError(f"{cls.__name__}.{name} would never be called; write {instead}")

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Whether a client must still greet; it has been told so then."""
        if greeted.holds(self, None):
            return False
        self.push(greeted.refusal)
        return True

    # The beginning and the end

    def connectionMade(self) -> None:
        self.session = self._create_session()
        self.session.peer = place_of(self.transport.getPeer()) or ""
        self.envelope = self._create_envelope()
        self._message_octets = 0
        self._chunks_refused = None
        connected = getattr(self.factory, "connected", None)  # a factory of ours wants to know
        if connected is not None:
            connected(self)
        super().connectionMade()

    def greet(self) -> Any:
        if self.settings.proxies is not None and self.expects_header():
            return self.await_header()
        return self.greet_client()

    def check_client(self) -> Reply | None:
        proxied = getattr(self.factory, "proxied", None)
        refusal: Reply | None = None if proxied is None else proxied(self)
        return refusal

    def greet_client(self) -> Any:
        return self.greet_in_tls() if self.settings.implicit_tls or self.wrapped_in_tls else self.greet_at_once()

    def greet_at_once(self) -> Any:
        return self._ask_first() if "CONNECT" in self.settings.hooks else self.settings.greeting

    async def _ask_first(self) -> Reply:
        self._last_turn = True  # unless the hook lets the client in, whatever becomes of the hook
        try:
            status = await self.ask_hook("CONNECT")
            reply = self.settings.greeting if status is None else self.final(status, "CONNECT")
        except Refused as refused:
            reply = refused.reply
        if reply.positive:
            self._last_turn = False
            return reply if reply.code == 220 else self.settings.greeting
        if reply.code >= 500:
            self._last_turn = False
            self._turned_away = BAD_SEQUENCE  # RFC 5321 3.1: wait for QUIT, answer 503 to all else
        return reply

    def idle_for_too_long(self) -> None:
        self.send(IDLE.octets)

    def ended(self, cause: BaseException) -> None:
        disconnected = getattr(self.factory, "disconnected", None)
        if disconnected is not None:
            disconnected(self)
        self._abort_intake(cause)
        if self.settings.log_messages:
            self._log_end(cause)
        if isinstance(cause, TLSSetupException):
            log.info("{session} {error}", session=self.session.id, error=str(cause))
            self._tell("exception", cause)
        self._tell("DISCONNECT", self, self.session, self.envelope, cause)
        super().ended(cause)

    def _log_end(self, cause: BaseException) -> None:
        log.info(
            "{session} from {peer} ended after {messages} messages: {cause}",
            session=self.session.id,
            peer=str(self.session.peer) or "this host",
            messages=self._messages,
            cause=type(cause).__name__,
        )

    def _tell(self, name: str, *arguments: Any) -> None:
        """Let a hook know; nobody waits for what it says."""
        if name in self.settings.hooks:
            Deferred.fromCoroutine(self._told(name, *arguments))

    async def _told(self, name: str, *arguments: Any) -> None:
        try:
            result = self.settings.hooks[name](*arguments)
            if isinstance(result, Awaitable):
                await result
        except Exception:
            log.failure("{session} handle_{name} failed", session=self.session.id, name=name)

    # Greetings (RFC 5321 4.1.1.1)

    @syntax("HELO hostname", argument=True, junk=True)
    async def smtp_HELO(self, arg: str) -> Reply:
        def welcome(hostname: str) -> Reply:
            return _greeting_reply((self.hostname,))

        return await self._greeted(arg, False, self.call_hook("HELO", arg, default=welcome))

    @syntax("EHLO hostname", argument=True, junk=True)
    async def smtp_EHLO(self, arg: str) -> Reply:
        return await self._greeted(arg, True, self._answer_to_ehlo(arg))

    async def _greeted(self, hostname: str, extended: bool, answer: Any) -> Reply:
        before = self.session.extended_smtp
        self.session.extended_smtp = extended
        known = self.session.host_name
        self.session.host_name = None
        accepted = False
        try:
            reply: Reply = await answer
            accepted = reply.positive
        finally:
            if not accepted:  # RFC 5321 4.1.4: as if it had not been sent
                self.session.extended_smtp = before
                self.session.host_name = known
            else:
                self.reset_transaction()
                if self.session.host_name is None:
                    self.session.host_name = hostname
        self._said = reply
        return reply

    async def _answer_to_ehlo(self, hostname: str) -> Reply:
        lines = [self.hostname]
        for extension in self.settings.offered:
            parameter = extension.parameter(self)
            if parameter is not None:
                lines.append(f"{extension.keyword} {parameter}" if parameter else extension.keyword)
        if "EHLO" not in self.settings.hooks:
            return _greeting_reply(tuple(lines))
        if not self.settings.ehlo_takes_responses:
            last = await self.call_hook("EHLO", hostname, default=_not_asked)
            return Reply(250, None, [*lines[:-1], *last.lines]) if last.code == 250 else last
        responses = [*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"]
        status = await self.ask_hook("EHLO", hostname, responses)
        if isinstance(status, list | tuple) and all(isinstance(line, str) for line in status):
            status = "\n".join(status)
        return self.final(status, "EHLO")

    # A mail transaction (RFC 5321 3.3)

    parse_mail = staticmethod(grammar.parse_mail)  #: reads the argument of MAIL; a subclass may read it otherwise
    parse_rcpt = staticmethod(grammar.parse_rcpt)  #: reads the argument of RCPT

    @syntax(
        "MAIL FROM:<address>",
        extended=" [SP <mail-parameters>]",
        needs=[greeted, authorized, no_transaction],
    )
    async def smtp_MAIL(self, arg: str | None) -> Reply:
        path, parameters = self.parse_mail(arg)
        reply = None
        try:
            options = self._claim(parameters, self.settings.mail_parameters) if parameters else []
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
        """What MAIL does without a hook."""
        self.envelope.mail_from = reverse_path
        self.envelope.mail_options.extend(mail_options)
        return SENDER_OK

    @syntax(
        "RCPT TO:<address>",
        extended=" [SP <rcpt-parameters>]",
        needs=[greeted, authorized, transaction, no_chunks],
    )
    async def smtp_RCPT(self, arg: str | None) -> Reply:
        path, parameters = self.parse_rcpt(arg)
        envelope = self.envelope
        known = len(envelope.rcpt_tos)
        reply = None
        try:
            options = self._claim(parameters, self.settings.rcpt_parameters) if parameters else []
            self._check_address(path, RECIPIENT_NEEDS_UTF8, "5.1.3")
            limit = self.settings.recipient_limit
            if limit is not None and known >= limit:
                raise Refused(TOO_MANY_RECIPIENTS)
            for check in self.settings.rcpt_checks:
                check(self, path)
            reply = await self.call_hook("RCPT", path, options, default=self.add_recipient)
        finally:
            if reply is None or not reply.positive:
                del envelope.rcpt_tos[known:]  # whom the client was told of, and nobody else
            if parameters:
                # A hook may have added several, or none; what was said is said of each.
                said, envelope.recipient = envelope.recipient, NOTHING_SAID
                if envelope.said_of is None:
                    envelope.said_of = {}
                for place in range(known, len(envelope.rcpt_tos)):
                    envelope.said_of[place] = envelope.rcpt_tos[place], said
        return reply

    def add_recipient(self, forward_path: str, rcpt_options: list[str]) -> Reply:
        """What RCPT does without a hook."""
        self.envelope.rcpt_tos.append(forward_path)
        self.envelope.rcpt_options.extend(rcpt_options)
        return RECIPIENT_OK

    def _claim(self, parameters: grammar.Parameters, claimed: Parameters) -> list[str]:
        """Let the extensions have their parameters.

        :return: the parameters as handlers see them.
        """
        if not self.session.extended_smtp:
            raise Refused(NEED_EHLO)
        options = []
        for keyword, value in parameters.items():
            take = claimed.get(keyword)
            if take is None:
                raise Refused(Reply(555, "5.5.4", f"The parameter {keyword[:40]} is not known here"))
            value = take(self.envelope, value) or value
            options.append(keyword if value is None else f"{keyword}={value}")
        return options

    def _check_address(self, path: str, needs_utf8: Reply, malformed: str) -> None:
        if not path.isascii() and not self.envelope.smtp_utf8:
            raise Refused(needs_utf8)
        limit = self.settings.local_part_limit
        if limit and len(grammar.local_part(path)) > limit:
            raise Refused(Reply(553, malformed, f"The part before the @ is longer than {limit} characters"))

    def lost_track(self) -> None:
        self.reset_transaction()

    def reset_transaction(self) -> None:
        """End the mail transaction, if there is one: begin anew with an empty envelope."""
        if self._intake is not None:
            self._abort_intake(Refused(TRANSACTION_RESET))
        self._message_octets = 0
        self._chunks_refused = None
        self.envelope = self._create_envelope()

    # The message (RFC 5321 4.1.1.4, RFC 3030 2)

    @syntax("DATA", needs=[greeted, authorized, recipients, no_chunks, lines_only], argument=False)
    async def smtp_DATA(self, arg: None) -> Any:
        if self.settings.streams:
            return await self._open_then_read()
        return self._read_data(Buffered(self._deliver))

    async def _open_then_read(self) -> Reply:
        return self._read_data(await self._open_intake())

    def _read_data(self, intake: Intake) -> Reply:
        settings = self.settings
        self._intake = intake
        reader = DataReader(
            intake.write,
            settings.data_size_limit,
            settings.line_length_limit,
            settings.bare_newlines,
            self._far_too_large,
        )
        self.read_with(reader, partial(self._end_of_data, reader))
        self._said = START_MAIL_INPUT
        return START_MAIL_INPUT

    def _far_too_large(self) -> None:
        """More than is worth reading just to be polite."""
        self.answer(FAR_TOO_LARGE)

    def _end_of_data(self, reader: DataReader) -> Any:
        if reader.fault is not None:
            raise self._refuse_message(FAULTS[reader.fault])
        return self._end_of_message(reader.size)

    @syntax("BDAT size [LAST]", needs=[greeted, authorized, recipients], payload=lambda arg: parse_bdat(arg).size)
    async def smtp_BDAT(self, arg: str) -> Any:
        chunk = parse_bdat(arg.encode("ascii"))
        if not chunk.size and not chunk.last:
            self.count_junk()
        try:
            intake = await self._intake_for(chunk)
        except BaseException as error:
            self._refuse_chunks(error.reply if isinstance(error, Refused) else FAILED)
            if chunk.last:
                self.reset_transaction()
            raise
        self._message_octets += chunk.size
        reply = self.take_payload(intake.write, partial(self._end_of_chunk, chunk))
        return await reply if isinstance(reply, Awaitable) else reply

    def payload_refused(self, reply: Reply) -> None:
        # A message must not go on without a part of it.
        if self.envelope.mail_from is not None and self._chunks_refused is None:
            self._refuse_chunks(reply)

    def _refuse_chunks(self, reply: Reply) -> None:
        self._chunks_refused = reply
        self._abort_intake(Refused(reply))

    async def _intake_for(self, chunk: Chunk) -> Intake:
        if self._chunks_refused is not None:
            raise Refused(self._chunks_refused)
        limit = self.settings.data_size_limit
        if limit is not None and self._message_octets + chunk.size > limit:
            # More than is worth reading just to be polite: the connection ends instead.
            raise Refused(TOO_LARGE if chunk.size <= 2 * limit else FAR_TOO_LARGE)
        if self._intake is None:
            self._intake = await self._open_intake()
        return self._intake

    def _end_of_chunk(self, chunk: Chunk) -> Any:
        if chunk.last:
            return self._end_of_message(self._message_octets)
        return CHUNK_OK

    async def _open_intake(self) -> Intake:
        open_message = self.settings.open_message
        if open_message is None:
            return Buffered(self._deliver)
        receiver = open_message(self, self.session, self.envelope)
        if isinstance(receiver, Awaitable):
            receiver = await receiver
        intake = Streamed(receiver, self.hold, self.release, self._complain)
        if self.closing:  # it took too long, and somebody must tell the receiver
            intake.abort(ConnectionDone())
            raise Refused(FAILED)
        return intake

    def _complain(self, error: BaseException) -> None:
        failure = Failure(error, type(error), error.__traceback__)
        log.failure("{session} the receiver of a message failed", failure, session=self.session.id)

    async def _end_of_message(self, octets: int) -> Any:
        """The message is complete: its reply. The transaction is over, whatever it is."""
        envelope, intake = self.envelope, self._intake
        assert intake is not None
        try:
            reply = self._reply_to_message(await intake.finish(), envelope)
            if reply.positive:
                self._messages += 1
                self._junk = 0
                if self.settings.log_messages:
                    self._log_message(envelope, octets, reply)
            return reply
        finally:
            self._intake = None
            self.reset_transaction()

    def _reply_to_message(self, status: Any, envelope: Envelope) -> Any:
        """What a status of the whole message, or one for each of its recipients, means to the client."""
        if isinstance(status, str | Reply) or not isinstance(status, FOR_EACH):
            return self.final(status, "DATA")
        paths = self._recipients_of(envelope)
        replies, missing = replies_for(status, paths)
        if missing:
            self.no_status(status, f"the hook DATA, for {named(missing)},")
        return self._gathered(paths, replies)

    def _recipients_of(self, envelope: Envelope) -> Sequence[str]:
        """For whom a result for each recipient has statuses."""
        return envelope.rcpt_tos

    def _gathered(self, paths: Sequence[str], replies: Sequence[Reply]) -> Any:
        """The answer to a message that fared differently with each recipient."""
        if len(set(replies)) > 1:
            what = in_one_line(Replies(paths, replies))
            log.info("{session} one reply must do for all of this: {what}", session=self.session.id, what=what)
        return folded(replies)

    def _refuse_message(self, reply: Reply) -> Refused:
        refused = Refused(reply)
        self._abort_intake(refused)
        self.reset_transaction()
        return refused

    def _abort_intake(self, reason: BaseException) -> None:
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.abort(reason)

    def _deliver(self, message: bytes) -> Awaitable[Any]:
        """Hand the whole message to the handler."""
        self.envelope.original_content = message
        self.envelope.content = self._decoded(message)
        if "process_message" in self.settings.hooks:
            return self._process_message(self.envelope)
        return self.ask_hook("DATA") if "DATA" in self.settings.hooks else self.call_hook("DATA", default=_ok)

    def _decoded(self, content: bytes) -> bytes | str:
        if not self.settings.decode_data:
            return content
        if self.settings.enable_SMTPUTF8:
            return content.decode("utf-8", "surrogateescape")
        try:
            return content.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(NOT_ASCII) from None

    async def _process_message(self, envelope: Envelope) -> Any:
        """The hook of the old days, which may return None for 250."""
        process = self.settings.hooks["process_message"]
        status = process(self.session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content)
        if isinstance(status, Awaitable):
            status = await status
        return OK if status is None else status

    def _log_message(self, envelope: Envelope, octets: int, reply: Reply | Replies) -> None:
        log.info(
            "{session} message from <{sender}> to {recipients}, {octets} octets: {reply}",
            session=self.session.id,
            sender=envelope.mail_from,
            recipients=named(envelope.rcpt_tos),
            octets=octets,
            reply=in_one_line(reply),
        )

    # Smaller commands

    @syntax("RSET", argument=False, junk=True)
    async def smtp_RSET(self, arg: None) -> Reply:
        self.reset_transaction()
        return await self.call_hook("RSET", default=_ok)

    @syntax("NOOP [ignored]", junk=True)
    async def smtp_NOOP(self, arg: str | None) -> Reply:
        return await self.call_hook("NOOP", arg, default=_ok)

    @syntax("QUIT", argument=False)
    async def smtp_QUIT(self, arg: None) -> Reply:
        self._last_turn = True
        return await self.call_hook("QUIT", default=lambda: GOODBYE)

    @syntax("VRFY <address>", needs=[authorized], argument=True, junk=True)
    async def smtp_VRFY(self, arg: str) -> Reply:
        return await self.call_hook("VRFY", grammar.parse_vrfy(arg), default=lambda address: CANNOT_VRFY)

    async def smtp_EXPN(self, arg: str | None) -> Reply:
        if not authorized.holds(self, arg):
            raise Refused(authorized.refusal)  # as a declared rule it would need a syntax, and show in HELP
        return Reply(502, "5.5.1", "EXPN is not implemented")

    @syntax("HELP [command]", needs=[authorized], junk=True)
    async def smtp_HELP(self, arg: str | None) -> Reply:
        if arg is None:
            return Reply(214, "2.0.0", self._commands_text())
        command = self.commands.get(arg.encode("utf-8").upper())
        if command is None or command.syntax is None:
            return Reply(504, "5.5.4", self._commands_text())
        return Reply(214, "2.0.0", f"Syntax: {command.help(self.session.extended_smtp)}")

    def _commands_text(self) -> str:
        verbs = (command.verb for command in self.commands.values() if command.is_listed(self))
        return f"Supported commands: {' '.join(sorted(verbs))}"


SMTP.commands = commands_of(SMTP)


def sanitized_log(function: Callable[..., object], message: str, *arguments: Any, **more: Any) -> None:
    """Log with the credentials of AUTH hidden in all arguments that are octets.

    :param function: a method of a logger of the standard library's.
    """
    function(message, *(sanitize(each) if isinstance(each, bytes) else each for each in arguments), **more)


def _ok(*arguments: Any) -> Reply:
    return OK


def _not_asked(hostname: str) -> Reply:
    raise AssertionError("the hook is there")
