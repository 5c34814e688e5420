"""The connection under a channel: an :class:`~txsmtpd.smtp.SMTP` protocol whose commands are those of the channel.

Lines, ordering, limits, mail data, TLS and AUTH work as in the rest of txsmtpd. The channel implements the commands and
their replies; this module has the old texts of replies that the protocol itself sends.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any

from twisted.internet.defer import Deferred

import txsmtpd.smtpd
from txsmtpd.command import PREFIX, Command, authorized
from txsmtpd.engine.dispatcher import Dispatcher
from txsmtpd.engine.message import IncomingMessage
from txsmtpd.engine.refusals import FOREIGN_PROTOCOL, LINE_TOO_LONG, NOT_RECOGNIZED
from txsmtpd.engine.results import CLOSE, Close
from txsmtpd.extensions.base import Extension
from txsmtpd.extensions.eightbitmime import EightBitMIME
from txsmtpd.extensions.size import TOO_LARGE
from txsmtpd.factory import SMTPFactory
from txsmtpd.log.sinks import LOGGER as log
from txsmtpd.reply import FAILED, Refused, Reply, is_part, parse_status
from txsmtpd.smtp import SMTP
from txsmtpd.smtpd.looping import driver
from txsmtpd.wire import grammar

# Control characters that could manipulate a terminal; the old module printed them unchanged.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

OK = Reply(250, None, "OK")
NOT_UTF8 = Reply(554, "5.6.1", "The message must be UTF-8")
OLD_WORDS = {
    LINE_TOO_LONG: Reply(500, None, "Error: line too long"),
    NOT_RECOGNIZED: Reply(500, None, 'Error: command "AUTH" not recognized'),  # also the text for unknown commands
    TOO_LARGE: Reply(552, None, "Error: Too much mail data"),
}


class Withdrawn(Extension):
    """Replaces an extension that is not offered."""

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def parameter(self, server: Any) -> None:
        return None


class NoBinaryMIME(EightBitMIME):
    """Replaces BINARYMIME, which needs BDAT."""

    keyword = "BINARYMIME"
    mail_growth = 0

    def parameter(self, server: Any) -> None:
        return None


class ChannelFactory(SMTPFactory):
    """Makes connections for an ``smtpd`` server.

    :param server: a :class:`~txsmtpd.smtpd.SMTPServer`.
    :param options: see :class:`~txsmtpd.factory.SMTPFactory`. The maximum length of a command line is that of the
        channel class.
    """

    def __init__(self, server: Any, *, extensions: Iterable[Extension] = (), **options: Any) -> None:
        if options.get("filters"):
            raise ValueError("servers of the smtpd module do not support filters")
        withdrawn: list[Extension] = [Withdrawn(each) for each in ("CHUNKING", "PIPELINING", "ENHANCEDSTATUSCODES")]
        if not options.get("decode_data"):
            withdrawn.append(NoBinaryMIME())
        options.setdefault("ident", txsmtpd.smtpd.__version__)
        options.setdefault("command_size_limit", server.channel_class.command_size_limit)
        super().__init__(None, protocol=ChannelProtocol, extensions=[*withdrawn, *extensions], **options)
        self.server = server


class ChannelDispatcher(Dispatcher):
    """Sends rejections with the old texts."""

    __slots__ = ()

    def on_line(self, line: bytes) -> Any:
        debug("Data:", line, of=self.masked)
        return super().on_line(line)

    def unknown_command(self, verb: bytes, line: bytes) -> Reply:
        reply = super().unknown_command(verb, line)
        if reply is FOREIGN_PROTOCOL:
            return reply
        if not line:
            return Reply(500, None, "Error: bad syntax")
        return Reply(500, None, f'Error: command "{verb.decode("utf-8", "replace")}" not recognized')

    async def reply_for_error(self, error: BaseException) -> Reply:
        reply = await super().reply_for_error(error)
        return OLD_WORDS.get(reply, reply)


class ChannelMessage(IncomingMessage):
    """A message that is passed to a server's ``process_message``."""

    __slots__ = ()

    def deliver(self, message: bytes) -> Awaitable[Any]:
        return self._hand_over(message)

    async def _hand_over(self, message: bytes) -> Any:
        server = self._server
        channel = server.channel
        # As in the old module: lines are separated by LF, and the last line has no line end.
        octets = message.removesuffix(b"\r\n").replace(b"\r\n", b"\n")
        channel.received_data = self.decoded(octets) if server.settings.decode_data else octets
        debug("Data:", channel.received_data)
        status = server.call(server.factory.server.take_message, channel)
        if isinstance(status, Awaitable):
            status = await status
        return status or OK

    def decoded(self, content: bytes) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(NOT_UTF8) from None


class ChannelProtocol(SMTP):
    """One connection, and the ``conn`` of its channel."""

    factory: Any
    channel: Any = None
    _dispatcher_class = ChannelDispatcher
    _message_class = ChannelMessage

    # Methods of a socket

    def getpeername(self) -> tuple[str, int]:
        """Return the address and port of the client."""
        return self.session.peer or ("", 0)

    def getsockname(self) -> tuple[str, int]:
        """Return the local address and port."""
        host = self.transport.getHost()
        return getattr(host, "host", ""), getattr(host, "port", 0)

    # The channel

    async def _greet(self) -> Close | None:
        try:
            self.call(self.factory.server.connected_by, self)
        except BaseException:
            self._dispatcher.closes_after_reply = True
            raise
        return CLOSE if self.channel is None else None  # the channel has pushed the greeting

    def attach(self, channel: Any) -> None:
        """Use this channel for the connection."""
        if self.channel is None:
            self.at_end(self._close_channel)
        self.channel = channel
        offered = tuple(
            verb
            for verb, there in ((b"STARTTLS", self.settings.tls_context), (b"AUTH", self.settings.mechanisms))
            if there
        )
        self.commands = self._dispatcher.commands = commands_of_channel(type(channel), offered)  # type: ignore[arg-type]  # the channel's class

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call code of the program.

        :raises Refused: with 451, if it raises an exception that would end the program, such as SystemExit.
        """
        try:
            with driver.server_code():
                return function(*args, **kwargs)
        except Exception:
            raise
        except BaseException as error:
            log.error(
                "{session} {type} was raised in the code of the server",
                session=self.session.id,
                type=type(error).__qualname__,
            )
            raise Refused(FAILED) from None

    # Commands

    def parse_mail(self, arg: str | None) -> tuple[str, grammar.Parameters]:
        return parse_path(grammar.parse_mail, "FROM", arg)

    def parse_rcpt(self, arg: str | None) -> tuple[str, grammar.Parameters]:
        return parse_path(grammar.parse_rcpt, "TO", arg)

    def begin_mail(self, arg: str | None) -> Reply:
        """Execute MAIL without pushing a reply."""
        return _settled(SMTP.smtp_MAIL(self, arg))

    def add_rcpt(self, arg: str | None) -> Reply:
        """Execute RCPT without pushing a reply."""
        return _settled(SMTP.smtp_RCPT(self, arg))

    def extension_lines(self) -> list[str]:
        """Return the lines of the EHLO reply for extensions."""
        offered = ((each.keyword, each.parameter(self)) for each in self.settings.offered)
        return [f"{keyword} {parameter}".rstrip() for keyword, parameter in offered if parameter is not None]

    def push(self, status: Reply | str | bytes) -> Deferred[None]:
        reply = parse_status(status)
        if is_part(status):
            return super().push(status)
        if reply.code >= 400:
            reply = self._dispatcher.refusal(reply)
        if reply.code == 421:
            self._dispatcher.closes_after_reply = True
        pushed = super().push(reply)
        self._dispatcher.pushed = True  # also after 3yz: the code that pushed it reads the response
        return pushed

    # The message

    @property
    def reads_data(self) -> bool:
        """True while a message is being received or processed."""
        return self._message is not None

    @property
    def octets_read(self) -> int:
        """The number of octets of the message so far."""
        return getattr(self._connection.reader, "size", 0)

    def read_message(self) -> None:
        """Read a message instead of the next command."""
        message = self._begin_message()
        message.read_into(message.memory_sink())

    # The end

    def close_when_done(self) -> None:
        """Close the connection after the reply to the current command."""
        self._dispatcher.closes_after_reply = True
        if not self._connection.is_busy:
            self._connection.close()

    def close(self) -> None:
        """Close the connection. Replies that were written before are still sent."""
        self._connection.close()

    def _close_channel(self) -> None:
        try:
            self.call(self.channel.handle_close)
        except Exception:
            log.failure("{session} handle_close failed", session=self.session.id)


def debug(*words: Any, of: Callable[[Any], Any] | None = None) -> None:
    """Print to the current ``DEBUGSTREAM``.

    :param of: called with the last word; returns the bytes to print instead.
    """
    stream = txsmtpd.smtpd.DEBUGSTREAM
    if isinstance(stream, txsmtpd.smtpd.Devnull):
        return
    *labels, last = words
    if of is not None:
        last = repr(of(last).decode("utf-8", "replace"))
    elif not isinstance(last, str):
        last = repr(last)
    print(*labels, _CONTROL.sub(lambda found: repr(found[0])[1:-1], last), file=stream)


def parse_path(
    parse: Callable[[str | None], tuple[str, grammar.Parameters]], keyword: str, arg: str | None
) -> tuple[str, grammar.Parameters]:
    """Parse the argument of MAIL or RCPT. As in the old module, an address may be without a domain."""
    try:
        return parse(arg)
    except Refused:
        head, _, rest = (arg or "").partition(":")
        path, _, parameters = rest.lstrip(" ").partition(" ")
        if head.upper() != keyword or not path or "@" in path:
            raise
        try:
            user = grammar.parse_vrfy(path)
        except Refused:
            pass
        else:
            return user, grammar.parse_parameters(parameters)
        raise


@lru_cache(maxsize=256)
def commands_of_channel(cls: type, offered: tuple[bytes, ...]) -> dict[bytes, Command]:
    """Return the commands of a channel class: its methods ``smtp_VERB``.

    The methods check the order of commands themselves. Only the rule of ``auth_required`` is checked before them.

    :param offered: further commands, of :class:`~txsmtpd.smtp.SMTP`, unless the channel defines them.
    """
    commands = {verb: SMTP.commands[verb] for verb in offered}
    for name in dir(cls):
        verb = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and verb.isascii() and verb == verb.upper() and callable(getattr(cls, name)):
            key = verb.encode("ascii")
            ours = SMTP.commands.get(key)
            rules = tuple(rule for rule in ours.rules if rule is authorized) if ours is not None else ()
            junk = ours.junk if ours is not None else False
            commands[key] = Command(verb, _caller(name), rules, None, junk, None)
    return commands


def _caller(name: str) -> Callable[[ChannelProtocol, str | None], Any]:
    def call(connection: ChannelProtocol, arg: str | None) -> Any:
        return connection.call(getattr(connection.channel, name), arg)

    return call


def _settled(work: Any) -> Reply:
    """Return the result of a coroutine that does not wait for anything."""
    try:
        work.send(None)
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    raise AssertionError("without hooks there is nothing to wait for")
