"""PureProxy and MailmanProxy: servers that relay each message while the client waits for the result."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Container, Sequence
from contextvars import ContextVar
from typing import Any, Self

from twisted.internet.defer import CancelledError, Deferred, gatherResults

from txsmtpd.engine.masking import in_one_line
from txsmtpd.factory import SMTPFactory
from txsmtpd.handlers.proxy import Proxy
from txsmtpd.handlers.upstream import Upstream
from txsmtpd.log.sinks import LOGGER as log
from txsmtpd.recipient_replies import Replies, folded
from txsmtpd.reply import OK, Reply, parse_status
from txsmtpd.session import Envelope, Session
from txsmtpd.smtpd.channel import SMTPChannel
from txsmtpd.smtpd.looping import driver
from txsmtpd.smtpd.server import SMTPServer, keywords_of

NOT_TAKEN = Reply(451, "4.3.0", "The next server did not accept the message, try again later")
MAILMAN_MAP = "/var/lib/mailman3/data/postfix_lmtp"
MAILMAN_LMTP = ("localhost", 8024)
# Suffixes of the further addresses of a list in Mailman 3.
LIST_SUFFIXES = ("-bounces", "-confirm", "-join", "-leave", "-owner", "-request", "-subscribe", "-unsubscribe")


class Message:
    """A message while its process_message runs, and its deliveries."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.deliveries: list[Deferred[Reply]] = []

    def stop(self) -> None:
        """Cancel all deliveries."""
        for delivery in self.deliveries:
            delivery.addErrback(lambda failure: failure.trap(CancelledError))
            delivery.cancel()


_current: ContextVar[Message | None] = ContextVar("message", default=None)


class PureProxy(SMTPServer):
    """Relays each message to the remote server, whose reply is sent to the client.

    A subclass may examine the message in its own ``process_message``, and call this one with the message to relay.
    Whatever it returns, the client gets 250 only if the remote server has accepted the message.

    :param localaddr: where to listen.
    :param remoteaddr: host and port of the remote server.
    :param proxy: the handler that relays mail. Default: one for *remoteaddr* without further options.
    :param options: see :class:`SMTPServer`.
    :raises ValueError: if there is neither a remote server nor a proxy.
    """

    descriptors = 2  #: per client: its connection, and the one to the remote server

    def __init__(self, localaddr: Any, remoteaddr: Any, *args: Any, proxy: Proxy | None = None, **options: Any) -> None:
        if proxy is None:
            if remoteaddr is None:
                raise ValueError(f"{type(self).__name__} needs a remoteaddr, or a proxy")
            proxy = Proxy(remoteaddr[0], remoteaddr[1], reactor=options.get("reactor"))
        self.proxy = proxy
        super().__init__(localaddr, remoteaddr, *args, **options)

    def make_factory(self, **options: Any) -> SMTPFactory:
        factory = super().make_factory(**options)
        for upstream in self.upstreams():
            upstream.hello = upstream.hello or factory.settings.hostname
        return factory

    def upstreams(self) -> list[Upstream]:
        """Return the servers to which mail is relayed."""
        return [self.proxy.upstream]

    async def ended(self) -> None:
        for upstream in self.upstreams():
            await upstream.close()

    def handle_accepted(self, conn: Any, addr: Any) -> None:
        if getattr(self.channel_class, "smtp_RCPT", None) is SMTPChannel.smtp_RCPT:
            self.proxy.warn_if_open(conn)
        super().handle_accepted(conn, addr)

    # A message

    def take_message(self, channel: Any) -> Any:
        message = Message(channel)
        _current.set(message)
        try:
            status = super().take_message(channel)
        except BaseException:
            message.stop()
            raise
        return self._verdict(message, status)

    async def _verdict(self, message: Message, status: Any) -> Any:
        """Return the reply to a message: that of the remote server if it refuses the message or process_message returns
        nothing, else the result of process_message."""
        if isinstance(status, Awaitable):
            try:
                status = await status
            except BaseException:
                message.stop()
                raise
        if not message.deliveries:
            return status
        reply = folded(await gatherResults(message.deliveries, consumeErrors=True))
        if not status or not reply.positive:
            return reply
        return status

    def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
        """Relay a message.

        :return: None while the server processes a message, whose reply waits for the remote server. If called at
            another time, a Deferred of the reply.
        """
        content = self.prepared(peer, mailfrom, rcpttos, data)
        return self._begin(rcpttos, self._passed_on(self._deliver, mailfrom, rcpttos, content, **kwargs))

    def prepared(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any) -> bytes:
        """Return the message to relay: with a Received field, and X-Peer with the client's address."""
        message = _current.get()
        envelope = Envelope()
        envelope.mail_from = mailfrom
        envelope.rcpt_tos = list(rcpttos)
        envelope.content = data
        if message is None:
            session, conn = Session(), None
            session.peer = peer
        else:
            session, conn = message.channel.session, message.channel.conn
            envelope.smtp_utf8 = message.channel.require_SMTPUTF8
        return self.proxy.prepare_content(conn, session, envelope)

    def _begin(self, rcpttos: Sequence[str], delivery: Any) -> Any:
        """Begin a delivery.

        :param delivery: a coroutine that returns the replies of the recipients.
        :raises RuntimeError: in another thread than the reactor's, where the reply could not be waited for.
        """
        if driver.is_elsewhere():
            delivery.close()
            raise RuntimeError("pass mail on in the reactor's thread, by callFromThread or blockingCallFromThread")

        async def verdict() -> Reply:
            replies = await delivery
            if len(set(replies)) > 1:
                what = in_one_line(Replies(rcpttos, replies))
                log.info("the client gets one reply for different results: {what}", what=what)
            return folded(replies)

        begun = Deferred.fromCoroutine(verdict())
        message = _current.get()
        if message is None:
            return begun
        message.deliveries.append(begun)
        return None

    async def _passed_on(
        self, deliver: Any, mailfrom: Any, rcpttos: Sequence[str], content: bytes, mail_options: Any = (), **kwargs: Any
    ) -> list[Reply]:
        taken = keywords_of(getattr(deliver, "__func__", deliver))
        keywords = {"mail_options": mail_options} if taken is None or "mail_options" in taken else {}
        outcome = deliver(mailfrom, rcpttos, content, **keywords)
        if isinstance(outcome, Awaitable):
            outcome = await outcome
        if isinstance(outcome, list):
            return outcome
        return [_refusal((outcome or {}).get(each)) for each in rcpttos]

    def _deliver(self, mailfrom: Any, rcpttos: Any, data: Any, mail_options: Any = ()) -> Any:
        """Send the message. Subclasses may override it.

        :return: a list with a reply for each recipient; or the refused recipients in a dictionary of pairs of code and
            text, like the result of ``smtplib.SMTP.sendmail``. Or a Deferred or coroutine of one of these.
        """
        return send(self.proxy.upstream, mailfrom, rcpttos, data, mail_options)


async def send(
    upstream: Upstream, mailfrom: str, rcpttos: Sequence[str], data: bytes, mail_options: Sequence[str]
) -> list[Reply]:
    """Relay a message, and return the reply for each recipient."""
    if not rcpttos:
        return []
    # The client's SIZE is too small for the message with its new fields.
    options = [each for each in mail_options if not each.upper().startswith("SIZE")]
    return await upstream.send("" if mailfrom == "<>" else mailfrom, rcpttos, data, options)


def _refusal(refused: Any) -> Reply:
    """Convert a refusal of smtplib to a reply; None means 250."""
    if refused is None:
        return OK
    try:
        code, text = refused
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        reply = parse_status(f"{code} {text}")
    except (TypeError, ValueError):
        return NOT_TAKEN
    return reply if reply.code >= 400 and reply.code != 421 else NOT_TAKEN


class MailmanProxy(PureProxy):
    """Relays messages for mailing lists to a Mailman 3 core, by LMTP, and all others to the remote server.

    :param lists: the path of the file of lists that Mailman writes for Postfix, which is reread when it changes; or a
        container of posting addresses in lower case, such as a set. Default: the path in Debian's packages.
    :param lmtp: host and port of Mailman's LMTP server.
    :param options: see :class:`PureProxy`.
    :raises OSError: if the file cannot be read.
    """

    def __init__(
        self,
        localaddr: Any,
        remoteaddr: Any,
        *args: Any,
        lists: str | os.PathLike[str] | Container[str] = MAILMAN_MAP,
        lmtp: tuple[str, int] | Upstream = MAILMAN_LMTP,
        **options: Any,
    ) -> None:
        self.lists: Container[str] = MailmanMap(lists) if isinstance(lists, str | os.PathLike) else lists
        self.mailman = (
            lmtp
            if isinstance(lmtp, Upstream)
            else Upstream(lmtp[0], lmtp[1], lmtp=True, tls="never", reactor=options.get("reactor"))
        )
        super().__init__(localaddr, remoteaddr, *args, **options)

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make it from arguments of the command line: the host and the port of the remote server, the file of lists,
        and the host and the port of Mailman's LMTP server."""
        defaults = ("localhost", "25", MAILMAN_MAP, MAILMAN_LMTP[0], str(MAILMAN_LMTP[1]))
        if len(args) > len(defaults):
            parser.error(f"too many arguments; there are {cls.__name__}:HOST:PORT:LISTS:LMTP-HOST:LMTP-PORT")
        host, port, lists, lmtp_host, lmtp_port = (*args, *defaults[len(args) :])
        for number in port, lmtp_port:
            if not (number.isascii() and number.isdecimal() and 0 < int(number) < 65536):
                parser.error(f"invalid port {number!r}")
        return cls(None, (host, int(port)), lists=lists, lmtp=(lmtp_host, int(lmtp_port)))

    def upstreams(self) -> list[Upstream]:
        return [*super().upstreams(), self.mailman]

    def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
        content = self.prepared(peer, mailfrom, rcpttos, data)
        lists = [each for each in rcpttos if self.is_list(each)]
        others = [each for each in rcpttos if each not in lists]
        begun = [
            self._begin(paths, self._passed_on(deliver, mailfrom, paths, content, **kwargs))
            for deliver, paths in ((self._deliver_to_mailman, lists), (self._deliver, others))
            if paths
        ]
        if _current.get() is not None:
            return None
        return gatherResults(begun, consumeErrors=True).addCallback(folded)

    def _deliver_to_mailman(self, mailfrom: Any, rcpttos: Any, data: Any, mail_options: Any = ()) -> Any:
        return send(self.mailman, mailfrom, rcpttos, data, mail_options)

    def is_list(self, address: str) -> bool:
        """Return True if an address belongs to a list: its posting address, or one for its owners or for commands."""
        local, at, domain = address.lower().rpartition("@")
        names = {local, local.partition("+")[0]}  # a plus precedes the bounced recipient or a token
        names |= {name.removesuffix(suffix) for name in list(names) for suffix in LIST_SUFFIXES}
        return any(f"{name}{at}{domain}" in self.lists for name in names)


class MailmanMap(Container[str]):
    """The posting addresses in Mailman's transport map for Postfix, which Mailman updates when lists change.

    :param path: of ``postfix_lmtp`` in Mailman's data directory; its type may be hash or regex.
    :raises OSError: if it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._addresses: frozenset[str] = frozenset()
        self._look()

    def __contains__(self, address: object) -> bool:
        self._look()
        return address in self._addresses

    def _look(self) -> None:
        status = os.stat(self.path)
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        if stamp != self._stamp:
            with open(self.path, encoding="utf-8") as file:
                lines = file.read().splitlines()
            self._addresses = frozenset(_address(line.split()[0]) for line in lines if line[:1].strip(" \t#"))
            self._stamp = stamp


def _address(key: str) -> str:
    """Return the address in a key of the map."""
    if key.startswith("/^"):
        key = key.removeprefix("/^").removesuffix("$/").replace(r"(\+.*)?", "").replace("\\.", ".")
    return key.lower()
