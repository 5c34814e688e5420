"""The one place that every command, hook result and reply passes.

From a line to its command, from a command or a hook to its reply, from an exception to what the client may know of
it; with the budgets that end a session which gets nowhere. What the commands do is in :mod:`txsmtpd.smtp`.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from types import CoroutineType
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from txsmtpd.bridges.asyncio_bridge import HINT, asks_for_asyncio
from txsmtpd.command import Command, commands_of
from txsmtpd.engine.conversation import Conversation
from txsmtpd.reply import FAILED, FAILED_TWICE, TAKES_TOO_LONG, Refused, Reply, parse_status
from txsmtpd.session import Envelope, Session
from txsmtpd.wire import grammar
from txsmtpd.wire.chunk import ChunkReader

log = Logger(namespace="txsmtpd")

NEED_STARTTLS = Reply(530, "5.7.0", "Must issue a STARTTLS command first")  # RFC 3207 4
ALLOWED_BEFORE_STARTTLS = frozenset(b"NOOP EHLO LHLO STARTTLS QUIT".split())
IDLE = Reply(421, "4.4.2", "Nothing was heard for too long, goodbye")
SHUTTING_DOWN = Reply(421, "4.3.2", "The server is shutting down")
STILL_BUSY = Reply(421, "4.3.0", "The server took too long to do this; try again later")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, goodbye")
TOO_MUCH_JUNK = Reply(421, "4.7.0", "Too many commands without a message, goodbye")
FOREIGN_PROTOCOL = Reply(554, "5.5.1", "This is an SMTP server, goodbye")
ERRORS = frozenset([500, 501, 502, 503, 504, 553, 555])  # what a client has to say otherwise
LINE_TOO_LONG = Reply(500, "5.5.2", "Command line too long")
LINES_REFUSED = {
    "long": LINE_TOO_LONG,
    "endless": Reply(421, "4.7.0", "A line without end, goodbye"),
    "bare LF": Reply(500, "5.5.2", "Lines end with CR LF; this one ended with LF alone"),
    "foreign": FOREIGN_PROTOCOL,
}
PAYLOAD_UNKNOWN = Reply(421, "4.5.4", "Nobody knows how many octets follow this line, goodbye")
# LINES_REFUSED, for lines that answer what a command has asked (RFC 4954 4).
ANSWERS_REFUSED = LINES_REFUSED | {
    "long": Reply(500, "5.5.6", "Authentication exchange line is too long"),
    "missing": Reply(501, "5.7.0", "The connection ended where an answer was needed"),
}
NOT_RECOGNIZED = Reply(500, "5.5.2", "Command not recognized")

SECRET = "********"
# AUTH with a mechanism, if that is what follows: a word of small and great letters is rather a password in base64.
_AUTH = re.compile(rb"\s*(?i:AUTH)(?:\s+(?:[A-Z0-9_-]{1,20}|[a-z0-9_-]{1,20})(?!\S))?")

# AUTH behind what does not belong there: a NUL, the mark that some editors put before a text, another letter.
_MENTIONS_AUTH = re.compile(rb"(?i:AUTH)(?!\S)")

# Whoever speaks these, or header fields, is a web browser or worse, made to send mail by somebody else.
FOREIGN_VERBS = frozenset(b"CONNECT DELETE GET HEAD OPTIONS PATCH POST PRI PUT TRACE".split())
_LETTERS = re.compile(rb"[A-Z]*")
_HEADER_FIELD = re.compile(rb"(?!MAIL|RCPT)[A-Z][A-Z0-9-]*:")  # "MAILFROM:" is only a slip


#: The result of a command whose reply is given when what follows it has been read.
ANSWERED_LATER: Final = object()


class Dispatcher(Conversation):
    """Commands by their verb, hooks by their name, and a reply to each line."""

    commands: Mapping[bytes, Command] = {}  #: of the class, and of the extensions
    session: Session  #: what is known of the client
    envelope: Envelope  #: the mail transaction
    _verb = b""  # of the command whose turn it is
    _pushed = False  # whether that command has pushed a whole reply
    _said: Reply | None = None  # what a command of ours has said, which an override may have awaited and not passed on
    _payload_due = 0  # octets that follow that command and have not been taken
    _errors = 0
    _junk = 0
    _calls: dict[bytes, int] | None = None
    _last_turn = False  # the connection closes after this reply
    _turned_away: Reply | None = None  # the answer to all but QUIT
    _leaving = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.commands = commands_of(cls)

    @classmethod
    def with_commands(cls, brought: Mapping[bytes, Command]) -> Mapping[bytes, Command]:
        """The commands of the class, and those that extensions bring."""
        return {**cls.commands, **brought}

    def connectionMade(self) -> None:
        self._verb = b""
        self._pushed = False
        self._said = None
        self._junk = 0
        super().connectionMade()

    # From a line to its command

    def take_turn(self, line: bytes) -> Any:
        word, _, rest = line.partition(b" ")
        verb = word.upper()
        command = self.commands.get(verb)
        # What follows an AUTH that was refused may be the answer to it, from a client that did not wait. It is kept
        # as secret as if it were; so is what looks like AUTH, and what follows that.
        hidden = command is None and self._may_be_secret(line)
        stray = hidden and (self._verb == b"AUTH" or _begins_auth(line))
        if hidden:
            verb = b"AUTH"
        self._verb = verb
        self._pushed = False
        self._said = None
        settings = self.settings
        if settings.log_dialogue:
            shown = SECRET if hidden else _shown(sanitize(line))
            log.debug("{session} C: {line}", session=self.session.id, line=shown)
        if settings.limits_calls:
            self._count_call(verb)
        if command is None:
            if self._announces_payload(line):
                raise Refused(PAYLOAD_UNKNOWN)
            raise Refused(NOT_RECOGNIZED if stray else self.unknown_command(word.upper(), line))
        if command.payload is not None:
            self._payload_due = _payload_of(command.payload, rest)
        size_limit = settings.command_size_limit
        if len(line) > size_limit and len(line) > settings.line_limits.get(verb, size_limit):
            raise Refused(LINE_TOO_LONG)
        if command.junk:
            self.count_junk()
        arg = grammar.decode(rest.strip(b" \t")) or None if rest else None
        if self._turned_away and verb != b"QUIT":
            raise Refused(self._turned_away)
        if settings.require_starttls and self.session.ssl is None and verb not in ALLOWED_BEFORE_STARTTLS:
            raise Refused(NEED_STARTTLS)
        for holds, refusal in command.rules:
            if not holds(self, arg):
                raise Refused(refusal)
        return command.method(self, arg)

    def masked(self, line: bytes) -> bytes:
        """The line without credentials, for whoever writes it down. To be asked before the line's turn is taken."""
        is_command = line.partition(b" ")[0].upper() in self.commands
        return SECRET.encode("ascii") if not is_command and self._may_be_secret(line) else sanitize(line)

    def _may_be_secret(self, line: bytes) -> bool:
        """Whether a line that is no command, or what it begins with, has to do with AUTH."""
        return self._verb == b"AUTH" or _begins_auth(line) or _MENTIONS_AUTH.search(line) is not None

    def unknown_command(self, verb: bytes, line: bytes) -> Reply:
        """The reply to a line that begins with the verb of no command."""
        return _unknown(verb, line)

    async def ask(self, challenge: bytes) -> bytes:
        """Ask the client something within a command.

        :param challenge: what stands behind 334 (RFC 4954 4).
        :return: the line that the client answers, without its CRLF. Neither is ever logged.
        :raises Refused: if it is no line.
        :raises ValueError: if the challenge has a line end: what follows it would be a reply of its own.
        """
        if b"\r" in challenge or b"\n" in challenge:
            raise ValueError("a challenge is one line, without CR or LF")
        if self.settings.log_dialogue:
            log.debug("{session} S: 334 {secret}", session=self.session.id, secret=SECRET)
        self.send(b"334 " + challenge + b"\r\n")
        line = await self.next_line()
        if self.settings.log_dialogue:
            log.debug("{session} C: {secret}", session=self.session.id, secret=SECRET)
        return line

    def take_payload(self, write: Callable[[bytes], object], then: Callable[[], Any]) -> Any:
        """Read the octets that follow the command, then take the turn *then*: its result is the command's."""
        size, self._payload_due = self._payload_due, 0
        if not size:
            return then()
        self.read_with(ChunkReader(size, write), then)
        return ANSWERED_LATER

    def _drop_payload(self, reply: Reply, then: Any) -> None:
        # The command was refused, but what follows it is none of the next one.
        self.payload_refused(reply)
        self.take_payload(_drop, lambda: then)

    def payload_refused(self, reply: Reply) -> None:
        """The octets that follow a command are going to be dropped, because it was refused with this reply."""

    def line_refused(self, why: str, begins: bytes) -> Exception:
        if self._asked is not None:
            return Refused(ANSWERS_REFUSED[why])
        # Whatever was wrong with this line, what comes next may still be an answer to AUTH.
        self._verb = b"AUTH" if self._may_be_secret(begins) else b""
        return Refused(PAYLOAD_UNKNOWN if self._announces_payload(begins) else LINES_REFUSED[why])

    def _announces_payload(self, line: bytes) -> bool:
        """Whether octets of an unknown number follow a line that is refused as a whole."""
        command = self.commands.get(_LETTERS.match(line.upper())[0])  # type: ignore[index]  # it matches nothing, too
        return command is not None and command.payload is not None

    def _count_call(self, verb: bytes) -> None:
        name = verb.decode("ascii", "replace")
        limit = self.settings.call_limits.get(name, self.settings.call_limit_default)
        if self._calls is None:
            self._calls = {}
        count = self._calls[verb] = self._calls.get(verb, 0) + 1
        if limit is not None and count > limit:
            raise Refused(Reply(421, "4.7.0", f"{name[:20]} sent too many times"))

    def count_junk(self) -> None:
        """Count a command that brings no message nearer.

        :raises Refused: 421, if it is one too many.
        """
        self._junk += 1
        limit = self.settings.junk_command_limit
        if limit is not None and self._junk > limit:
            raise Refused(TOO_MUCH_JUNK)

    # From hooks to replies

    async def call_hook(self, name: str, *arguments: Any, default: Callable[..., Reply]) -> Reply:
        """The status of the handler's hook of this name, as a reply; without the hook, what *default* returns.

        :param arguments: what the default is given, and the hook after server, session and envelope.
        """
        hook = self.settings.hooks.get(name)
        if hook is None:
            self._said = reply = default(*arguments)
            return reply
        result = hook(self, self.session, self.envelope, *arguments)
        if type(result) is CoroutineType or (type(result) is not str and isinstance(result, Awaitable)):
            result = await result
        self._said = reply = self.final(result, name)
        return reply

    async def ask_hook(self, name: str, *arguments: Any) -> Any:
        """What the handler's hook of this name gives, whatever it is."""
        result = self.settings.hooks[name](self, self.session, self.envelope, *arguments)
        return await result if type(result) is CoroutineType or isinstance(result, Awaitable) else result

    def final(self, status: Any, hook: str) -> Reply:
        """The reply that a hook's status means, if it may end a command; 451 otherwise, and a line in the log."""
        try:
            reply = parse_status(status)
            if reply.code // 100 != 3:
                return reply
        except (TypeError, ValueError):
            pass
        return self.no_status(status, f"the hook {hook}")

    def no_status(self, what: object, source: str) -> Reply:
        """Log that the source has given something that is no status, and return the reply in its place."""
        log.error(
            "{session} {source} gave no status but {what}",
            session=self.session.id,
            source=source,
            what=_described(what),
        )
        return FAILED

    async def explain(self, error: BaseException) -> Reply:
        if isinstance(error, Refused):
            if error.reply.code // 100 == 3:
                return self.no_status(error.reply, "Refused")
            return error.reply
        self._log_failure(_shown(self._verb), error)
        if isinstance(error, CancelledError):
            return FAILED
        try:
            status = self.handle_exception(error)
            if isinstance(status, Awaitable):
                status = await status
        except Exception as another:
            self._log_failure("handle_exception", another)
            return FAILED_TWICE
        return self.final(status, "exception")

    def handle_exception(self, error: BaseException) -> Any:
        """The status in place of the one that was not given because of the error; it is in the log already.

        :return: what the handler's hook says, or else 451. A coroutine or a Deferred of it will do.
        """
        hook = self.settings.hooks.get("exception")
        return FAILED if hook is None else hook(error)

    def _log_failure(self, what: str, error: BaseException) -> None:
        why = f": {HINT}" if asks_for_asyncio(error) else ""
        if self._verb == b"AUTH":
            # The text of an exception may quote a password; the lines of code that raised it do not.
            log.error(
                "{session} {what} failed{why}: {type}, whose text may hold a secret, in\n{traceback}",
                session=self.session.id,
                what=what,
                why=why,
                type=type(error).__qualname__,
                traceback="".join(traceback.format_tb(error.__traceback__)),
            )
            return
        failure = Failure(error, type(error), error.__traceback__)
        log.failure("{session} {what} failed{why}", failure, session=self.session.id, what=what, why=why)

    def took_too_long(self, obedient: bool) -> Reply:
        log.error("{session} {verb} took too long", session=self.session.id, verb=_shown(self._verb))
        return TAKES_TOO_LONG if obedient else STILL_BUSY

    # The end

    def leave(self) -> None:
        """Close with 421 as soon as no transaction is open: the server is shutting down (RFC 5321 3.8)."""
        self._leaving = True
        if self._turn is None and not self._proceeding:
            self._leave_if_done()

    def expel(self) -> None:
        """Close now: with 421 if the server owes no other reply."""
        if self._turn is None and not self.closing:
            self.send(SHUTTING_DOWN.octets)
            self.close()
        else:
            self.abort()

    def _leave_if_done(self) -> None:
        if self.envelope.mail_from is None and not self.closing:
            self.send(SHUTTING_DOWN.octets)
            self.close()

    def has_said_farewell(self) -> bool:
        return self._last_turn or super().has_said_farewell()

    # From replies to the client

    def answer(self, result: Any) -> None:
        if result is ANSWERED_LATER:
            return
        if result is None:
            if self._pushed:
                if self._payload_due:
                    self._drop_payload(FAILED, ANSWERED_LATER)
                self._end_turn(self._last_turn)
                return
            result = self._said
        reply = result if type(result) is Reply else self._status_of_command(result)
        if self._payload_due and reply.code != 421:
            self._drop_payload(reply, reply)
            return
        if reply.code >= 400:
            reply = self._refusal(reply)
        if self.settings.log_dialogue:
            self._log_reply(reply)
        self.send(reply.encode(True) if self.envelope.smtp_utf8 else reply.octets)
        if self._last_turn or self._leaving or reply.code == 421:
            self._end_turn(self._last_turn or reply.code == 421)

    def _end_turn(self, closes: bool) -> None:
        if closes:
            self.close()
        elif self._leaving:
            self._leave_if_done()

    def _status_of_command(self, result: Any) -> Reply:
        try:
            return parse_status(result)
        except (TypeError, ValueError):
            self.lost_track()
            return self.no_status(result, f"the command {_shown(self._verb)} (it must return a reply, or push one)")

    def lost_track(self) -> None:
        """A command has given no reply: nobody knows what it has done, and the client is told that it failed."""

    def _refusal(self, reply: Reply, whom: str | None = None) -> Reply:
        """Log and count a refusal; the one that is too many is answered 421 instead.

        :param whom: the recipients that it is for, if it is not for the command as a whole.
        """
        if reply is FOREIGN_PROTOCOL:
            self._last_turn = True
        elif (
            500 <= reply.code <= 504 or reply.code in (553, 555) or reply is self._turned_away or reply is NEED_STARTTLS
        ):
            self._errors += 1
            limit = self.settings.error_limit
            if limit is not None and self._errors >= limit:
                reply = TOO_MANY_ERRORS
        log.info(
            "{session} {what} refused: {reply}",
            session=self.session.id,
            what=_shown(self._verb) if whom is None else f"{_shown(self._verb)} for {whom}",
            reply=in_one_line(reply),
        )
        return reply

    def _log_reply(self, reply: Reply) -> None:
        log.debug("{session} S: {reply}", session=self.session.id, reply=in_one_line(reply))

    def push(self, status: Reply | str | bytes) -> Deferred[None]:
        """Send a reply, or a part of one (``"250-more follows"``), before the command returns.

        It is sent at once; awaiting the result is allowed and changes nothing. A command that has pushed its whole
        reply returns None.

        :raises TypeError: if it is neither a Reply, a string nor bytes.
        :raises ValueError: if it does not begin with a reply code.
        """
        reply = parse_status(status)
        if self.settings.log_dialogue:
            self._log_reply(reply)
        octets = reply.encode(self.envelope.smtp_utf8)
        if is_part(status):
            last = octets.rfind(b"\r\n", 0, -2) + 2 if len(reply.lines) > 1 else 0
            octets = octets[: last + 3] + b"-" + octets[last + 4 :]
        elif reply.code // 100 != 3:
            self._pushed = True
        self.send(octets)
        return succeed(None)


def _payload_of(tell: Callable[[bytes], int], argument: bytes) -> int:
    try:
        return tell(argument)
    except Refused:
        raise
    except Exception:
        raise Refused(PAYLOAD_UNKNOWN) from None


def _drop(octets: bytes) -> None:
    """Where octets go that nobody wants."""


def is_part(status: Reply | str | bytes) -> bool:
    """Whether a pushed status is a line with another to follow: its last line has a hyphen behind the code."""
    if isinstance(status, Reply):
        return False
    text = status if isinstance(status, str) else status.decode("latin-1")
    return text.rstrip("\r\n").rpartition("\n")[2][3:4] == "-"


def _begins_auth(line: bytes) -> bool:
    return line.lstrip()[:4].upper() == b"AUTH"


def _unknown(verb: bytes, line: bytes) -> Reply:
    if verb in FOREIGN_VERBS or _HEADER_FIELD.match(verb) or verb.startswith(b"SSH-"):
        return FOREIGN_PROTOCOL
    if not line:
        return Reply(500, "5.5.2", "An empty line is no command")
    if verb.isalnum() and len(verb) <= 20:
        return Reply(500, "5.5.1", f"Command {verb.decode('ascii')} not recognized")
    return NOT_RECOGNIZED


def sanitize(line: bytes) -> bytes:
    """The line of a command as a log may show it: without the credentials of AUTH.

    >>> sanitize(b"AUTH PLAIN AHVzZXIAcGFzcw==")
    b'AUTH PLAIN ********'
    """
    found = _AUTH.match(line)
    if found is None or not line[found.end() :].strip():
        return line
    return found[0] + b" " + SECRET.encode("ascii")


def _described(what: object) -> str:
    try:
        return ascii(what)[:200]
    except Exception:
        return f"a {type(what).__name__} that cannot be shown"


def in_one_line(reply: object) -> str:
    """A reply, or several, fit for a log."""
    return str(reply).replace("\n", " / ")


def _shown(octets: bytes) -> str:
    """What the client sent, fit for a log."""
    return ascii(octets[:1000])[2:-1]
