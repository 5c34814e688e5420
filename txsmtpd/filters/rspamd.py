"""The rspamd filter: checks each message with rspamd over HTTP, and applies rspamd's action.

It sends ``POST /checkv2`` with everything known about the client and the envelope; the response is JSON. rspamd
provides SPF, DKIM, DMARC, ARC, DNS lists, virus scanners and signing. Header changes are in the ``milter`` block of its
response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from txsmtpd.bridges.host_endpoint import endpoint_of_uri
from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.filters.message import FilteredMessage
from txsmtpd.filters.timing import FAILURES, PAUSE, within
from txsmtpd.filters.verdict import DISCARD, FilterError, StillDownError, Verdict
from txsmtpd.limits.breaker import Breaker
from txsmtpd.log.reasons import reason_of
from txsmtpd.reply import Refused, Reply

DEFAULT_URL = "http://127.0.0.1:11333"
ANSWER_LIMIT = 2**22  # octets
CONNECTIONS_KEPT = 16
LAST = 2**31  # a position after the last header field
SPAM_HEADER = "X-Spam"
SPAM = Reply(554, "5.7.1", "Spam message rejected")
LATER = Reply(451, "4.7.1", "Try again later")

# The errors of a persistent connection that the server has closed meanwhile.
_STALE = (RequestTransmissionFailed, ResponseNeverReceived, ConnectionClosed)


class Rspamd:
    """Check mail with rspamd.

    :param url: the URL of its normal worker or proxy.
    :param name: its name in ``envelope.filters`` and in the log.
    :param on_failure: what to do with mail while it is down: ``"tempfail"`` or ``"accept"``.
    :param timeout: seconds for the response to a message.
    :param connect_timeout: seconds for a connection.
    :param password: rspamd's password, if it requires one.
    :param authserv_id: the authserv-id of its Authentication-Results. Default: the server's name, which is sent to it.
    :param reactor: connects and provides the time. Default: the global reactor, imported with the first message.
    :raises ValueError: for an invalid URL.
    """

    message_timeout = None  # the filter has its own time limit

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        name: str = "rspamd",
        on_failure: str = "tempfail",
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        password: str | None = None,
        authserv_id: str | None = None,
        reactor: Any = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
            raise ValueError(f"{url!r} is not a URL of rspamd; write {DEFAULT_URL}")
        path = parts.path.rstrip("/")
        self.url = parts._replace(path=path if path.endswith("/checkv2") else f"{path}/checkv2").geturl()
        self.name = name
        self.on_failure = on_failure
        self._timeout = timeout
        self.authserv_id = authserv_id
        self._connect_timeout = connect_timeout
        self._password = password
        self._reactor = reactor
        self._pool: Any = None
        self._agent: Any = None
        self._breaker: Any = None

    # A plain function: if the handler uses asyncio, coroutine functions would be run by the asyncio loop.
    def filter_message(self, server: Any, session: Any, envelope: Any, message: FilteredMessage) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._check(server, session, envelope, message))

    async def _check(self, server: Any, session: Any, envelope: Any, message: FilteredMessage) -> Verdict:
        if self._agent is None:
            self._start()
        if not self._breaker.allows(self._reactor.seconds()):
            raise StillDownError("rspamd is paused after failures")
        try:
            question = self._ask(self._headers(server, session, envelope), message)
            answer = await within(self._reactor, self._timeout, question)
        except FilterError:
            self._breaker.failed(self._reactor.seconds())
            raise
        self._breaker.succeeded()
        return Answer(answer).apply(message)

    def _start(self) -> None:
        if self._reactor is None:
            self._reactor = current_reactor()
        self._pool = HTTPConnectionPool(self._reactor)
        self._pool.maxPersistentPerHost = CONNECTIONS_KEPT
        self._pool._factory.noisy = False
        self._agent = Agent.usingEndpointFactory(self._reactor, self, self._pool)
        self._breaker = Breaker(FAILURES, PAUSE)

    def endpointForURI(self, uri: Any) -> Any:
        """Return the endpoint to connect with. Called by the Agent."""
        return endpoint_of_uri(self._reactor, uri, self._connect_timeout)

    def close(self) -> Deferred[Any]:
        """Close persistent connections. The next message opens new ones.

        :return: a Deferred that fires when they are closed.
        """
        return succeed(None) if self._pool is None else self._pool.closeCachedConnections()

    def _headers(self, server: Any, session: Any, envelope: Any) -> Headers:
        peer = session.peer
        values: dict[str, Any] = {
            "From": envelope.mail_from,
            "IP": peer[0] if isinstance(peer, tuple | list) else None,
            "Hostname": getattr(session.xclient, "name", None),
            "Helo": session.host_name,
            "User": session.login_data if session.authenticated else None,
            "TLS-Version": getattr(session.ssl, "protocol", None),
            "TLS-Cipher": getattr(session.ssl, "cipher", None),
            "Queue-Id": envelope.filters.message_id,
            "MTA-Name": server.hostname,
            "Password": self._password,
        }
        headers = Headers()
        for name, value in values.items():
            if value:
                headers.addRawHeader(name, _octets(value))
        for path in envelope.rcpt_tos:
            headers.addRawHeader("Rcpt", _octets(path))
        return headers

    async def _ask(self, headers: Headers, message: FilteredMessage) -> dict[str, Any]:
        try:
            try:
                response = await self._request(headers, message)
            except _STALE as error:
                if _is_cancelled(error):
                    raise
                # The server may have closed an idle connection. Checking a message twice is harmless.
                self._pool.closeCachedConnections()
                response = await self._request(headers, message)
            octets = await _read(response)
        except (*_STALE, ResponseFailed, ConnectError, OSError, AttributeError) as error:
            if _is_cancelled(error):
                raise CancelledError from error
            # Twisted's client raises AttributeError if the response comes before the request was sent.
            raise FilterError(f"no response from rspamd: {reason_of(error)}") from error
        if response.code != 200:
            raise FilterError(f"rspamd responded {response.code} {octets[:200]!r}")
        try:
            # rspamd repeats parts of the message, which may not be UTF-8, in symbols.
            answer = json.loads(octets.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise FilterError(f"rspamd responded with invalid JSON: {octets[:200]!r}") from error
        if not isinstance(answer, dict) or not isinstance(answer.get("action"), str):
            raise FilterError(f"rspamd responded without an action: {octets[:200]!r}")
        return answer

    async def _request(self, headers: Headers, message: FilteredMessage) -> Any:
        return await self._agent.request(b"POST", self.url.encode("ascii"), headers, MessageProducer(message))


class Answer:
    """rspamd's result for a message. Unexpected values are ignored, because the message has been checked.

    :param answer: the JSON.
    """

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.answer = answer
        milter = answer.get("milter")
        self.milter: Mapping[str, Any] = milter if isinstance(milter, dict) else {}

    def apply(self, message: FilteredMessage) -> Verdict:
        """Apply rspamd's action to the message.

        :raises Refused: if the action is to reject it.
        """
        action = self.answer["action"]
        if self.milter.get("no_action"):
            action = "no action"
        if action == "reject" and self.milter.get("reject") in ("discard", "quarantine"):
            action = self.milter["reject"]
        if action == "discard":
            return DISCARD
        if action in ("soft reject", "greylist"):
            raise Refused(self._reply(LATER))
        if action == "reject":
            raise Refused(self._reply(SPAM))
        self._change_headers(message)
        self._change_envelope(message)
        if action == "quarantine":
            message.quarantine(self._text() or "rspamd")
        elif action == "add header":
            message.remove_header(SPAM_HEADER)
            message.append_header(SPAM_HEADER, "Yes")
        elif action == "rewrite subject" and (subject := _string(self.answer.get("subject"))) is not None:
            message.change_header("Subject", subject)
        return self._verdict()

    def _verdict(self) -> Verdict:
        symbols = self.answer.get("symbols")
        scores = {
            name: _number(symbol.get("score"))
            for name, symbol in (symbols.items() if isinstance(symbols, dict) else ())
            if isinstance(symbol, dict)
        }
        return Verdict(
            score=_number(self.answer.get("score")),
            symbols={name: score for name, score in scores.items() if score is not None},
            details=self.answer,
        )

    def _text(self) -> str | None:
        messages = self.answer.get("messages")
        text = messages.get("smtp_message") if isinstance(messages, dict) else None
        return _string(text) or None

    def _reply(self, usual: Reply) -> Reply:
        text = self._text()
        return usual if text is None else Reply(usual.code, usual.status, text)

    def _change_headers(self, message: FilteredMessage) -> None:
        signatures = self.answer.get("dkim-signature")
        for signature in signatures if isinstance(signatures, list) else [signatures]:
            if (value := _string(signature)) is not None:
                message.add_header("DKIM-Signature", value)
        for name, which in _items(self.milter.get("remove_headers")):
            for occurrence in sorted(which if isinstance(which, list) else [which], key=_from_the_end):
                if occurrence == 0:
                    message.remove_header(name)
                elif isinstance(occurrence, int):
                    message.change_header(name, None, occurrence)
        for name, values in _items(self.milter.get("add_headers")):
            for value in values if isinstance(values, list) else [values]:
                _add_header(message, name, value)

    def _change_envelope(self, message: FilteredMessage) -> None:
        sender = self.milter.get("change_from")
        if isinstance(sender, str):
            with suppress(ValueError):
                message.change_sender(_without_brackets(sender))
        for key, change in ("del_rcpt", message.remove_recipient), ("add_rcpt", message.add_recipient):
            recipients = self.milter.get(key)
            for recipient in recipients if isinstance(recipients, list) else [recipients]:
                if isinstance(recipient, str):
                    with suppress(ValueError):
                        change(_without_brackets(recipient))


def _items(found: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names of header fields, and their changes."""
    for name, value in found.items() if isinstance(found, dict) else ():
        if name.isascii() and name.isprintable() and not set(name) & {":", " "} and name:
            yield name, value


def _from_the_end(occurrence: Any) -> int:
    """Sort key for occurrences, so that removing one does not renumber the others."""
    return -occurrence if isinstance(occurrence, int) else 0


def _add_header(message: FilteredMessage, name: str, value: Any) -> None:
    order: Any = None
    if isinstance(value, dict):
        value, order = value.get("value"), value.get("order")
    if not isinstance(value, str | int | float):
        return
    text = _string(str(value)) or ""
    if isinstance(order, int) and order >= 0:
        message.insert_header(min(order, LAST), name, text)
    else:
        message.append_header(name, text)


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def _string(value: Any) -> str | None:
    """Return a string that can be encoded: in JSON, a surrogate can stand alone."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else None


def _without_brackets(path: str) -> str:
    return path.strip().removeprefix("<").removesuffix(">")


def _octets(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def _is_cancelled(error: BaseException) -> bool:
    return any(each.check(CancelledError) for each in getattr(error, "reasons", ()))


@implementer(IBodyProducer)
class MessageProducer:
    """Sends a message as the body of a request, from its spool."""

    def __init__(self, message: FilteredMessage) -> None:
        self.length = message.size
        self._message = message
        self._gate: Deferred[None] | None = None
        self._work: Deferred[None] | None = None

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self._work = Deferred.fromCoroutine(self._produce(consumer))
        return self._work

    async def _produce(self, consumer: Any) -> None:
        async for piece in self._message.content():
            consumer.write(piece)
            if self._gate is not None:
                await self._gate

    def pauseProducing(self) -> None:
        if self._gate is None:
            self._gate = Deferred()

    def resumeProducing(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None and not gate.called:
            gate.callback(None)

    def stopProducing(self) -> None:
        work, self._work = self._work, None
        if work is not None and not work.called:
            work.addErrback(lambda failure: failure.trap(CancelledError) and None)
            work.cancel()


class _Collector(Protocol):
    """Collects a response, up to a limit."""

    def __init__(self, done: Deferred[bytes]) -> None:
        self._done = done
        self._octets = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._octets += data
        if len(self._octets) > ANSWER_LIMIT and not self._done.called:
            self._done.errback(FilterError("rspamd's response is too long"))
            self.transport.loseConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self._done.callback(bytes(self._octets))
        else:
            self._done.errback(reason)


def _read(response: Any) -> Deferred[bytes]:
    done: Deferred[bytes] = Deferred()
    response.deliverBody(_Collector(done))
    return done
