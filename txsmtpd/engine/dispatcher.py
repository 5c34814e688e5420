"""Find the command for a line, and the reply for a result or an exception. All commands, hook results and replies pass
through this module.

The commands are in :mod:`txsmtpd.smtp` and :mod:`txsmtpd.extensions`. :mod:`txsmtpd.engine.connection` reads the lines
and sends the replies.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import CoroutineType
from typing import Any

from twisted.internet.defer import CancelledError

from txsmtpd.bridges.asyncio_bridge import HINT, asks_for_asyncio
from txsmtpd.command import Command
from txsmtpd.engine.admission import require
from txsmtpd.engine.budget import count_call, count_junk, count_refusal, delay_of_refusal, delayed
from txsmtpd.engine.interceptor import Interceptor
from txsmtpd.engine.lines import BadLine
from txsmtpd.engine.masking import (
    SECRET,
    begins_auth,
    described,
    in_one_line,
    mentions_auth,
    path_in,
    printable,
    sanitize,
)
from txsmtpd.engine.meter import Meter
from txsmtpd.engine.refusals import (
    ANSWERS_REFUSED,
    LINE_TOO_LONG,
    LINES_REFUSED,
    NEED_STARTTLS,
    NOT_RECOGNIZED,
    PAYLOAD_UNKNOWN,
    SHUTTING_DOWN,
    STILL_BUSY,
    reply_to_unknown,
)
from txsmtpd.engine.results import ANSWERED_LATER, Action, ClosingReply
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.log.session import SessionLog
from txsmtpd.log.sinks import LOGGER
from txsmtpd.reply import FAILED, FAILED_TWICE, TAKES_TOO_LONG, Refused, Reply, hint_for, parse_status
from txsmtpd.wire import grammar
from txsmtpd.wire.chunk import ChunkReader

ALLOWED_BEFORE_STARTTLS = frozenset(b"NOOP EHLO LHLO STARTTLS QUIT".split())
GREETINGS = frozenset(b"HELO EHLO LHLO".split())
NO_VERB = b"?"  # in place of a verb, for a line that is invalid or empty
_LETTERS = re.compile(rb"[A-Z]*")


class Dispatcher:
    """Runs the commands of one session, and creates the reply to each line.

    :param server: the protocol that users see, with its commands, settings, session and envelope.
    """

    __slots__ = (
        "_log",
        "calls",
        "closes_after_reply",
        "commands",
        "connection",
        "default_reply",
        "draining",
        "ended_message",
        "errors",
        "interceptor",
        "junk",
        "line",
        "messages",
        "meter",
        "payload_due",
        "pushed",
        "refusals",
        "refuse_all",
        "server",
        "verb",
    )

    def __init__(self, server: Any) -> None:
        self.server = server
        self.connection: Any = None  #: the connection; it sets this when it is created
        self.interceptor: Interceptor | None = None  #: may replace what commands do, or None
        self.meter: Meter | None = None  #: updates metrics, or None
        self.commands = server.commands
        #: The verb of the current command, or of the last one. Empty before the first line, NO_VERB after one without a
        #: verb. AUTH after a line that may contain credentials.
        self.verb = b""
        self.line = b""  #: the line of the current command, until its reply is sent
        self.pushed = False  #: whether the current command has pushed a whole reply
        #: The reply of a built-in command. It is sent if an override returns nothing.
        self.default_reply: Reply | None = None
        self.payload_due = 0  #: the octets that follow the current command, such as BDAT, and must still be read
        self.closes_after_reply = False  #: whether the connection closes after the reply to the current command
        #: The reply to all commands but QUIT, after a hook has refused the client or its TLS; or None.
        self.refuse_all: Reply | None = None
        #: The 421 to send as soon as no transaction is open: it is set at shutdown, and by `session_timeout`.
        self.draining: Reply | None = None
        self.messages = 0  #: the number of accepted messages
        self.errors = 0  #: the number of the client's errors; see :mod:`txsmtpd.engine.budget`
        self.refusals = 0  #: the number of other refusals
        self.junk = 0  #: the number of commands outside of mail transactions
        #: The sender and the recipients of the message to which the reply is due, or None. The log of a refusal needs
        #: them, because the server already has the next envelope.
        self.ended_message: tuple[str | None, Sequence[str]] | None = None
        self._log: SessionLog | None = None
        self.calls: dict[bytes, int] | None = None  #: the number of calls by verb, if it is limited

    @property
    def log(self) -> SessionLog:
        """The log of the session."""
        if self._log is None:
            settings = self.server.settings
            self._log = SessionLog(settings.log, self.server.session.id, settings.log_limit)
        return self._log

    # From a line to its command

    def on_line(self, line: bytes) -> Any:
        """Run the command of a line, given without its CRLF. This is the work of a turn."""
        server = self.server
        settings = server.settings
        word, _, rest = line.partition(b" ")
        verb = word.upper()
        command = self.commands.get(verb)
        # Mask the line after a refused AUTH: the client may have sent its response without waiting for the reply. Also
        # mask lines that look like AUTH, and the lines after them.
        hidden = command is None and self._may_be_secret(line)
        part_of_auth = hidden and (self.verb == b"AUTH" or begins_auth(line))
        if hidden:
            verb = b"AUTH"
        self.verb = verb or NO_VERB
        self.pushed = False
        self.default_reply = None
        self.line = line
        self.ended_message = None
        if settings.log_dialogue:
            self.log(events.RECEIVED, line=SECRET if hidden else printable(sanitize(line)))
        if settings.limits_calls:
            count_call(self, verb)
        if command is None:
            if self._announces_payload(line):
                raise Refused(PAYLOAD_UNKNOWN)
            raise Refused(NOT_RECOGNIZED if part_of_auth else self.unknown_command(word.upper(), line))
        if command.payload is not None:
            self.payload_due = _payload_size(command.payload, rest)
        size_limit = settings.command_size_limit
        if len(line) > size_limit and (
            not server.session.extended_smtp or len(line) > settings.line_limits.get(verb, size_limit)
        ):
            raise Refused(LINE_TOO_LONG)
        if command.junk:
            count_junk(self)
        errors = "replace" if command.junk and verb in GREETINGS else "strict"  # some host names are not UTF-8
        arg = grammar.decode(rest.strip(b" \t"), errors) or None if rest else None
        if self.refuse_all is not None and verb != b"QUIT":
            raise Refused(self.refuse_all)
        if settings.require_starttls and server.session.ssl is None and verb not in ALLOWED_BEFORE_STARTTLS:
            raise Refused(NEED_STARTTLS)
        for holds, refusal in command.rules:
            if not holds(server, arg):
                raise Refused(refusal)
        if command.rate is not None:
            answer = settings.admission.admit(command.rate, server.session)
            if answer is not None:
                return self._perform_if_admitted(answer, command, verb, arg)
        if self.interceptor is None:
            return command.method(server, arg)
        return self._perform(command, verb, arg)

    def _perform(self, command: Command, verb: bytes, arg: str | None) -> Any:
        if self.interceptor is None:
            return command.method(self.server, arg)
        return self.interceptor.command(verb, arg, lambda: command.method(self.server, arg))

    async def _perform_if_admitted(self, answer: Any, command: Command, verb: bytes, arg: str | None) -> Any:
        assert command.rate is not None
        await require(self.server.settings.admission, command.rate, answer)
        result = self._perform(command, verb, arg)
        return await result if isinstance(result, Awaitable) else result

    def error_for_line(self, bad: BadLine, requested: bool) -> Exception:
        """Return the exception for input that is not a valid line.

        :param requested: whether a command had requested the line.
        """
        if not requested:
            # If this line looks like AUTH, the next one may be a response to it.
            self.verb = b"AUTH" if self._may_be_secret(bad.begins) else NO_VERB
            self.ended_message = None
        observer = self.connection.observer
        if observer is not None:
            observer.line_refused(bad.why, None if requested or self.verb == b"AUTH" else bad.begins)
        if requested:
            return Refused(ANSWERS_REFUSED[bad.why])
        return Refused(PAYLOAD_UNKNOWN if self._announces_payload(bad.begins) else LINES_REFUSED[bad.why])

    def masked(self, line: bytes) -> bytes:
        """Return the line without credentials, for logs. Call it before :meth:`on_line`."""
        is_command = line.partition(b" ")[0].upper() in self.commands
        return SECRET.encode("ascii") if not is_command and self._may_be_secret(line) else sanitize(line)

    def _may_be_secret(self, line: bytes) -> bool:
        """Whether a line that is not a known command may contain credentials. The line may be incomplete."""
        return self.verb == b"AUTH" or mentions_auth(line)

    def unknown_command(self, verb: bytes, line: bytes) -> Reply:
        """Return the reply to a line with an unknown verb."""
        return reply_to_unknown(verb, line)

    # For commands

    async def send_challenge(self, challenge: bytes) -> bytes:
        """Send a challenge to the client, and wait for its response. Neither is ever logged.

        :param challenge: the text after 334 (RFC 4954 4).
        :return: the response, without its CRLF.
        :raises Refused: if the response is not a valid line.
        :raises ValueError: if the challenge contains CR or LF. The client would take the rest for another reply.
        """
        if b"\r" in challenge or b"\n" in challenge:
            raise ValueError("a challenge is one line, without CR or LF")
        log_dialogue = self.server.settings.log_dialogue
        if log_dialogue:
            self.log(events.SENT, line=f"334 {SECRET}")
        self.connection.send(b"334 " + challenge + b"\r\n")
        line: bytes = await self.connection.request_line()
        if log_dialogue:
            self.log(events.RECEIVED, line=SECRET)
        return line

    def count_junk(self) -> None:
        """Count a command as junk (``junk_command_limit``)."""
        count_junk(self)

    def take_payload(self, write: Callable[[bytes], object], then: Callable[[Any], Any]) -> Any:
        """Read the octets that follow the command, then call *then*. Its result becomes the command's result."""
        size, self.payload_due = self.payload_due, 0
        if not size:
            return then(None)
        self.connection.read_data(ChunkReader(size, write), then)
        return ANSWERED_LATER

    def drop_payload(self, reply: Reply, result: Any) -> None:
        """Discard the payload of a refused command, so that it is not executed as commands.

        :param reply: the refusal.
        :param result: the result of the command, used after its payload was read.
        """
        self.server._payload_refused(reply)
        self.take_payload(_drop, lambda reader: result)

    def _announces_payload(self, line: bytes) -> bool:
        """Whether a malformed line is a command with a payload, such as BDAT. The size of the payload is unknown."""
        letters = _LETTERS.match(line.upper())
        command = self.commands.get(letters[0])  # type: ignore[index]  # the pattern also matches an empty string
        return command is not None and command.payload is not None

    # From hooks to replies

    async def result_of_hook(self, name: str, *arguments: Any) -> Any:
        """Call the handler's hook of this name, and return its result unchecked."""
        server = self.server
        result = server.settings.hooks[name](server, server.session, server.envelope, *arguments)
        return await result if type(result) is CoroutineType or isinstance(result, Awaitable) else result

    def reply_from_hook(self, status: Any, hook: str) -> Reply:
        """Convert a hook's status to a reply. If it cannot be the final reply of a command, log it and return 451."""
        try:
            reply = parse_status(status)
            if reply.code // 100 != 3:
                return reply
        except (TypeError, ValueError):
            pass
        return self.reply_for_no_status(status, f"handle_{hook}")

    def reply_for_no_status(self, what: object, source: str) -> Reply:
        """Log that *source* has returned something that is not a status. Return the reply to send instead."""
        hint = hint_for(what)
        self.log(events.NO_REPLY, source=source, value=described(what), hint=f" ({hint})" if hint else "")
        return FAILED

    def warn_of_lost_recipient(self, path: str) -> None:
        """Log, once, that a hook has accepted a recipient without appending it, which is usually a mistake."""
        settings = self.server.settings
        if "recipient" in settings.warned:
            return
        settings.warned.add("recipient")
        self.log(events.RECIPIENT_LOST, handler=type(settings.handler).__name__, recipient=path)

    # From exceptions to replies

    async def reply_for_error(self, error: BaseException) -> Reply:
        """Return the reply for an exception that a turn has raised. Does not raise."""
        try:
            return await self._reply_for_error(error)
        except BaseException as another:  # do not raise it: Connection.run would call this method again, without end
            LOGGER.error(
                "{session} logging raised {type}", session=self.server.session.id, type=type(another).__qualname__
            )
            return FAILED_TWICE

    async def _reply_for_error(self, error: BaseException) -> Reply:
        if isinstance(error, Refused):
            if error.reply.code // 100 == 3:
                return self.reply_for_no_status(error.reply, "Refused")
            return error.reply
        self.log_failure(printable(self.verb), error)
        if isinstance(error, CancelledError):
            return FAILED
        try:
            status = self.server.handle_exception(error)
            if isinstance(status, Awaitable):
                status = await status
        except GeneratorExit:  # the coroutine was closed, because its result is not needed any more
            return FAILED_TWICE
        except BaseException as another:
            self.log_failure("handle_exception", another)
            return FAILED_TWICE
        return self.reply_from_hook(status, "exception")

    def log_failure(self, what: str, error: BaseException) -> None:
        """Log an exception. During AUTH, the text of the exception is left out, since it may quote a password.

        :param what: the verb of the command, or the name of the hook.
        """
        if self.connection.observer is not None:
            self.connection.observer.failed(what, error)
        why = f": {HINT}" if asks_for_asyncio(error) else ""
        # The traceback is logged in any case: source lines do not contain passwords.
        self.log.failure(events.FAILED, error, secret=self.verb == b"AUTH", where=what, why=why)

    def reply_for_timeout(self, cancelled: bool) -> Reply:
        """Return the reply to a command that took too long.

        :param cancelled: whether the cancellation has ended the command. If not, the reply is 421, and the connection
            closes before the command can send a second reply.
        """
        self.log(events.TIMED_OUT, where=printable(self.verb))
        return TAKES_TOO_LONG if cancelled else STILL_BUSY

    # From replies to the client

    def on_result(self, result: Any) -> None:
        """Process the result of a turn: convert it to a reply, and send it."""
        if result is ANSWERED_LATER:
            return
        if result is None:
            # If the command has pushed its reply, or closed the connection, nothing is left to send.
            if self.pushed or (self.default_reply is None and self.connection.closed_by_command):
                if self.payload_due:
                    self.drop_payload(FAILED, ANSWERED_LATER)
                self.after_reply(self.closes_after_reply)
                return
            result = self.default_reply  # an override has returned nothing: send the built-in reply
        if type(result) is Reply:
            reply = result
        elif isinstance(result, Action):
            self._act(result)
            return
        else:
            reply = self.reply_from_command(result)
        if self.payload_due and reply.code != 421:
            self.drop_payload(reply, reply)
            return
        if reply.code >= 400:
            reply = self.refusal(reply)
            delay = delay_of_refusal(self)
            if delay and reply.code != 421:
                self.connection.run(partial(delayed, self.connection.clock, delay), reply)
                return
        self.send_reply(reply)

    def send_reply(self, reply: Reply) -> None:
        """Send the final reply of a turn."""
        server = self.server
        if self.meter is not None:
            self.meter.replied(self.verb, reply)
        if server.settings.log_dialogue:
            self.log_reply(reply)
        self.connection.send(reply.encode(True) if server.envelope.smtp_utf8 else reply.octets)
        self.line = b""
        self.ended_message = None
        if self.closes_after_reply or self.draining or reply.code == 421:
            self.after_reply(self.closes_after_reply or reply.code == 421)

    def _act(self, action: Action) -> None:
        if self.payload_due and not action.closes:
            self.drop_payload(FAILED, action)
            return
        action.act(self.server)
        if not (action.closes or action.answers):
            self.after_reply(self.closes_after_reply)

    def after_reply(self, closes: bool) -> None:
        """The reply to the current command was sent. Close the connection if the session is over."""
        if closes:
            self.connection.close()
        elif self.draining:
            self._close_if_drained()

    def reply_from_command(self, result: Any) -> Reply:
        """Convert the result of a command to a reply. If it is not a status, log it and return 451."""
        try:
            return parse_status(result)
        except (TypeError, ValueError):
            # The reply tells the client that the command failed. If the command has started a transaction, end it.
            self.server.reset_transaction()
            source = f"the command {printable(self.verb)} (it must return a reply, or push one)"
            return self.reply_for_no_status(result, source)

    def refusal(self, reply: Reply, whom: Sequence[str] | None = None) -> Reply:
        """Log and count a refusal.

        :param whom: the refused recipients, if the refusal does not apply to all of them.
        :return: the refusal, or 421 if there were too many.
        """
        if type(reply) is ClosingReply:
            self.closes_after_reply = True
        else:
            reply = count_refusal(self, reply)
        self._log_refusal(reply, whom)
        return reply

    def _log_refusal(self, reply: Reply, whom: Sequence[str] | None) -> None:
        envelope = self.server.envelope
        sender, recipients = envelope.mail_from, envelope.rcpt_tos
        if self.ended_message is not None:
            sender, recipients = self.ended_message
        elif self.verb == b"MAIL":
            sender = path_in(self.line)
        elif self.verb == b"RCPT":
            recipients = [path_in(self.line)]
        if whom is not None:
            recipients = whom
        fields = {
            "command": "connection" if self.verb in (b"", NO_VERB) else printable(self.verb[:40]),
            "client": client_text(self.server.session.peer),
            "reply": in_one_line(reply),
        }
        if sender is None:
            self.log(events.REFUSED, **fields)
        elif recipients:
            self.log(events.REFUSED_RECIPIENTS, sender=sender, recipients=events.Recipients.of(recipients), **fields)
        else:
            self.log(events.REFUSED_SENDER, sender=sender, **fields)

    def log_ended(self) -> None:
        """End the log of the session. If the log left out lines, it states how many."""
        if self._log is not None:
            self._log.close(self.server.session.peer)

    def log_reply(self, reply: Reply) -> None:
        """Log a reply that is sent."""
        self.log(events.SENT, line=in_one_line(reply))

    # The end

    def send_shutdown(self) -> None:
        """Send 421, because the server shuts down or the session has lasted too long."""
        self.connection.send((self.draining or SHUTTING_DOWN).octets)

    def drain(self, reply: Reply = SHUTTING_DOWN) -> None:
        """Close with 421 as soon as no transaction is open (RFC 5321 3.8).

        :param reply: the reply to send, with code 421.
        """
        self.draining = reply
        if not self.connection.is_busy:
            self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self.server.envelope.mail_from is None and not self.connection.closing:
            self.send_shutdown()
            self.connection.close()


def _payload_size(size_of: Callable[[bytes], int], argument: bytes) -> int:
    try:
        return size_of(argument)
    except Refused:
        raise
    except Exception:
        raise Refused(PAYLOAD_UNKNOWN) from None


def _drop(octets: bytes) -> None:
    """Discard octets."""
