"""One mail transaction with the next server: its recipients, and the message, whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from txsmtpd.handlers.client import DROPPED, GARBLED, Connection, reply_for_client
from txsmtpd.handlers.relay_parameters import NEEDS_8BITMIME, with_parameters
from txsmtpd.reply import Refused, Reply
from txsmtpd.wire import grammar
from txsmtpd.wire.outgoing import Stuffer, stuffed, with_crlf

if TYPE_CHECKING:
    from txsmtpd.handlers.upstream import Upstream

TOO_LARGE = Reply(552, "5.3.4", "Message size exceeds the limit of the next server")
NO_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")


class Transaction:
    """A mail transaction (RFC 5321 3.3). No other transaction uses its connection. Made by :meth:`Upstream.begin`.

    :ivar mail_from: the reverse-path.
    :ivar reply: the reply to MAIL.
    :ivar accepted: the recipients that the server has accepted, in order.
    :ivar options: the requested parameters of each of them.
    """

    def __init__(
        self, upstream: Upstream, connection: Connection, reply: Reply, mail_from: str, utf8: bool, binary: bool
    ) -> None:
        self._upstream = upstream
        self._connection: Connection | None = connection
        self._utf8 = utf8
        self._binary = binary
        self.reply = reply
        self.mail_from = mail_from
        self._stuffer = Stuffer()
        self._size = 0  # size of the parts already sent
        self._sending = False  # whether the server waits for the rest of a message
        self.accepted: list[str] = []
        self.options: dict[str, list[str]] = {}

    @property
    def lost(self) -> bool:
        """True if the connection is lost, so that nothing more can be sent."""
        return self._connection is None or self._connection.gone is not None

    async def rcpt(self, forward_path: str, options: Iterable[str] = ()) -> Reply:
        """Send RCPT and return the server's reply.

        :raises Refused: if there is none, or if the server does not support a required parameter.
        """
        check_path(forward_path, grammar.parse_rcpt, "TO", "5.1.3")
        connection = self._the_connection()
        options = list(options)
        reply = await connection.ask(with_parameters(f"RCPT TO:<{forward_path}>", options, connection, self._utf8))
        if reply.positive:
            self.accepted.append(forward_path)
            self.options[forward_path] = options
        return reply

    async def data(self, content: bytes) -> list[Reply]:
        """Send the message and return the server's reply for each of *accepted*. This ends the transaction."""
        connection = self._the_connection()
        try:
            parts, command = self._prepared(content, connection)
        except Refused as refused:
            self.end()
            return [refused.reply] * len(self.accepted)
        try:
            if command:
                await self._ask_for_data(connection)
            return await self._send_last(connection, parts)
        except Refused as refused:
            return [refused.reply] * len(self.accepted)

    async def deliver(self, content: bytes, refusals: Iterable[Reply | None]) -> list[Reply]:
        """Send the message to those recipients that were accepted, and end the transaction.

        :param refusals: for each recipient the refusal, or None if it was accepted.
        :return: the reply for each recipient.
        """
        try:
            verdicts = iter(await self.data(content) if self.accepted else ())
            return [reply or next(verdicts) for reply in refusals]
        finally:
            self.end()

    async def _ask_for_data(self, connection: Connection) -> None:
        reply = await connection.command("DATA")
        if reply.code != 354:
            if reply.code < 400:
                connection.fail(GARBLED)
            self.end()
            raise Refused(connection.gone or reply_for_client(reply))

    async def _send_last(self, connection: Connection, parts: Iterable[bytes]) -> list[Reply]:
        """Send the rest of the message, and its end."""
        each = self._upstream.lmtp
        replies = await connection.send(parts, len(self.accepted) if each else 1, self._upstream.final_timeout)
        if self._binary and not all(reply.positive for reply in replies):
            self.end()  # RFC 3030 2: RSET is required after a failed BDAT
        else:
            self._connection = None
            self._upstream.give_back(connection)
        verdicts = [reply_for_client(reply) for reply in replies]
        return verdicts if each else verdicts * len(self.accepted)

    def _prepared(self, content: bytes, connection: Connection) -> tuple[tuple[bytes, ...], str]:
        """Return the parts to send, and the command before them if it has its own reply."""
        if not self.accepted:
            raise Refused(NO_RECIPIENTS)
        self._check(len(content), content, connection)
        if self._binary:
            return (b"BDAT %d LAST\r\n" % len(content), content), ""
        return stuffed(with_crlf(content)), "DATA"

    def _check(self, size: int, octets: bytes, connection: Connection) -> None:
        """Raise Refused if the server does not accept a message of this size, or these octets."""
        limit = connection.extensions.get("SIZE", "")
        if limit.isdecimal() and size > int(limit) > 0:
            raise Refused(TOO_LARGE)
        if not (self._binary or "8BITMIME" in connection.extensions or octets.isascii()):
            raise Refused(NEEDS_8BITMIME)

    # A message in parts

    async def start_data(self) -> None:
        """Start to send the message in parts.

        :raises Refused: with the server's reply, if it rejects the message.
        """
        connection = self._the_connection()
        if not self.accepted:
            raise Refused(NO_RECIPIENTS)
        if not self._binary:
            await self._ask_for_data(connection)
            self._sending = True

    async def write(self, octets: bytes) -> None:
        """Send a part of the message. Returns when it is written; for BINARYMIME, when the server has accepted it.

        :param octets: with CRLF line ends, except for BINARYMIME.
        :raises Refused: if that fails.
        """
        connection = self._the_connection()
        self._size += len(octets)
        self._check(self._size, octets, connection)
        if not self._binary:
            await connection.write(self._stuffer.feed(octets))
            return
        chunk = (b"BDAT %d\r\n" % len(octets), octets)
        (reply,) = await connection.send(chunk, 1, self._upstream.final_timeout)
        if not reply.positive:
            raise Refused(reply_for_client(reply))

    async def finish(self) -> list[Reply]:
        """End a message that was sent in parts, and return the server's reply for each of *accepted*.

        :raises Refused: if there is none.
        """
        connection = self._the_connection()
        self._sending = False
        return await self._send_last(connection, [b"BDAT 0 LAST\r\n" if self._binary else self._stuffer.end()])

    def _the_connection(self) -> Connection:
        if self._connection is None:
            raise Refused(DROPPED)
        return self._connection

    def end(self) -> Deferred[None]:
        """End the transaction. A message that was not completely sent is discarded.

        :return: a Deferred that fires when the connection is ready for the next message, or lost.
        """
        connection, self._connection = self._connection, None
        if connection is not None and self._sending:
            connection.fail(DROPPED)  # the only way to abort an unfinished message
        return Deferred.fromCoroutine(self._reset(connection))

    async def _reset(self, connection: Connection | None) -> None:
        if connection is None:
            return
        try:
            reply = await connection.command("RSET")
        except Refused:
            return
        if reply.positive:
            self._upstream.give_back(connection)
        else:
            connection.quit()


def one_if_equal(replies: Sequence[Reply]) -> Any:
    """Return a single reply if all are the same."""
    return replies[0] if len(set(replies)) == 1 else replies


def check_path(path: str, parse: Callable[[str], tuple[str, Any]], keyword: str, status: str) -> None:
    """Raise Refused if the path is not exactly one path, so that no text can escape from its angle brackets."""
    if parse(f"{keyword}:<{path}>") != (path, {}):
        raise Refused(Reply(553, status, "The address is malformed"))
