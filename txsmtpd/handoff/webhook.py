"""Web hooks: posts messages over HTTP; the response decides about the message.

Request bodies are in :mod:`txsmtpd.handoff.webhook_formats`, the meaning of responses is in
:mod:`txsmtpd.handoff.webhook_answers`. Redirects are not followed, proxies from the environment are not used, and
certificates are verified.
"""

from __future__ import annotations

import base64
import json
import time
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from txsmtpd._version import __version__
from txsmtpd.bridges.reactors import call_in_pool, current_reactor
from txsmtpd.handoff.breaker import Breaker
from txsmtpd.handoff.interfaces import IHandoff
from txsmtpd.handoff.message import HandoffMessage, new_id
from txsmtpd.handoff.outcome import UNAVAILABLE, NotTaken, OutcomeUnknown, Unroutable
from txsmtpd.handoff.signature import Secrets
from txsmtpd.handoff.webhook_answers import NO_RECIPIENT, REFUSED, Answer, is_failure, pause_of, reply_to
from txsmtpd.handoff.webhook_formats import FORMATS, Request
from txsmtpd.interfaces import IReadiness
from txsmtpd.log.reasons import reason_of
from txsmtpd.log.trouble import Trouble
from txsmtpd.mime.parsing import TooComplex
from txsmtpd.reply import Refused, Reply

TIMEOUT = 30.0  # seconds for a complete request
CONNECT_TIMEOUT = 10.0  # seconds
REQUESTS = 50  # concurrent requests
MAX_SIZE = 2**25  # octets
LONGEST_ANSWER = 2**16  # bytes of a response body, which is ignored
BODY_TIMEOUT = 5.0  # seconds to wait for that body
SHORT = 2**13  # bytes; larger messages are encoded in a thread, except in the format raw

log = Logger(namespace="txsmtpd.handoff")


class Url:
    """A URL to post to, with credentials. Its text does not contain the password.

    :raises ValueError: if it is not a URL. The message does not contain the password.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or " " in url:
            raise ValueError("not a URL such as https://app.example.com/mail (in ASCII)")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        netloc = host if port is None else f"{host}:{port}"
        self.bare = urlunsplit((parts.scheme, netloc, parts.path or "/", parts.query, ""))
        self._shown = urlunsplit((parts.scheme, netloc, parts.path, "", ""))  # a query may contain a secret
        self.authorization: str | None = None
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.authorization = f"Basic {base64.b64encode(credentials).decode('ascii')}"

    def __str__(self) -> str:
        return self._shown


@implementer(IHandoff, IReadiness)
class WebhookTarget(Service):
    """Posts messages. See :class:`~txsmtpd.handoff.WebhookHandoff` for the parameters."""

    def __init__(
        self,
        url: str,
        *,
        format: str = "raw",
        secrets: Secrets | None = None,
        rcpt: str | None = None,
        timeout: float = TIMEOUT,
        requests: int = REQUESTS,
        max_size: int = MAX_SIZE,
        tls_context: IOpenSSLClientConnectionCreator | None = None,
        reactor: Any = None,
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
        self.url = Url(url)
        self.rcpt = None if rcpt is None else Url(rcpt)
        self.format = format
        self.secrets = secrets
        self.timeout = timeout
        self.max_size = max_size
        self.tls_context = tls_context
        self.reactor = reactor
        self.breaker = Breaker()
        self._semaphore = DeferredSemaphore(requests)
        self._agent: Any = None
        self._pool: Any = None
        self._connections = 0  # connections made so far
        self._misconfigured: str | None = None
        self._trouble = Trouble()  # why recipients could not be checked
        self._why = "the receiver does not respond"

    def __str__(self) -> str:
        return f"web hook {self.url}"

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        pool, self._pool, self._agent = self._pool, None, None
        return None if pool is None else pool.closeCachedConnections()

    # IReadiness, IHandoff

    def not_ready(self) -> str | None:
        if self._misconfigured is not None:
            return self._misconfigured
        return self._why if self.breaker.is_open(self._now()) else None

    def check(self) -> None:
        """Reject messages before they are read while the breaker is open."""
        if not self.breaker.allows(self._now()):
            raise NotTaken(self._why, UNAVAILABLE)
        # This method makes no request. If the breaker allows only one, leave it to the message.
        self.breaker.gave_up()

    async def hand_off(self, message: HandoffMessage) -> Any:
        requests = await self._requests(message)
        if len(requests) == 1:
            return self._status_of(await self._posted(self.url, requests[0]))
        # One decision for each recipient.
        return await gatherResults([Deferred.fromCoroutine(self._verdict(each)) for each in requests])

    async def ask_recipient(self, document: dict[str, Any]) -> Reply:
        """Check a recipient with the URL for recipients.

        :raises Refused: if it is rejected, or the check fails.
        """
        assert self.rcpt is not None
        request = Request(new_id(), json.dumps(document).encode("ascii"), [("Content-Type", "application/json")])
        try:
            reply = await self._posted(self.rcpt, request, NO_RECIPIENT)
        except (NotTaken, OutcomeUnknown) as error:
            self._note_recipients(str(error))
            raise Refused(error.reply) from error
        self._note_recipients(None)
        return reply

    def _note_recipients(self, trouble: str | None) -> None:
        """Log why recipients cannot be checked, once for each reason. Failures to hand off messages are logged by
        :class:`~txsmtpd.handoff.Handoff`."""
        now = time.monotonic()
        if trouble is None:
            self._trouble.worked(now)
        elif self._trouble.seen(trouble, now):
            log.error("{url}: cannot check recipients: {trouble}", url=str(self.rcpt), trouble=trouble)

    # Requests

    async def _requests(self, message: HandoffMessage) -> list[Request]:
        key = None if self.secrets is None else self.secrets.first
        make = partial(FORMATS[self.format], message, key, self._seconds())
        if self.format == "raw" or len(message.content) < SHORT:
            return make()
        try:
            requests: list[Request] = await call_in_pool(make)
            return requests
        except TooComplex as error:
            raise Refused(Reply(554, "5.6.0", str(error))) from error

    async def _verdict(self, request: Request) -> Reply:
        try:
            return await self._posted(self.url, request)
        except (Refused, OutcomeUnknown) as error:
            return error.reply

    def _status_of(self, reply: Reply) -> Reply | None:
        """Return the reply, or None for a plain OK. For None, the server sends a reply that contains the id."""
        return None if reply.positive and reply.text == "OK" else reply

    async def _posted(self, url: Url, request: Request, refused: Reply = REFUSED) -> Reply:
        if not self.breaker.allows(self._now()):
            raise NotTaken(self._why, UNAVAILABLE)
        try:
            answer = await self._semaphore.run(self._answer, url, request)
        except CancelledError:
            self.breaker.gave_up()
            raise
        except OutcomeUnknown as error:
            self._why = str(error)
            self.breaker.failed(self._now())
            raise
        except NotTaken as error:
            self._why = str(error)
            self.breaker.failed(self._now())
            raise
        self._note(answer)
        try:
            reply = reply_to(answer, refused)
        except Unroutable as error:
            self._misconfigured = str(error)
            raise
        self._misconfigured = None
        return reply

    def _note(self, answer: Answer) -> None:
        now = self._now()
        pause = pause_of(answer, self._seconds())
        if pause is not None:
            self._why = "the receiver has asked for a pause"
            self.breaker.pause(now, pause)
        elif is_failure(answer):
            self._why = f"the receiver fails (HTTP {answer.status})"
            self.breaker.failed(now)
        else:
            self.breaker.succeeded()

    def _answer(self, url: Url, request: Request) -> Deferred[Answer]:
        asking = Deferred.fromCoroutine(self._asked(url, request))
        return asking.addTimeout(self.timeout, self.reactor, self._timed_out)

    def _timed_out(self, result: Any, seconds: float) -> Any:
        if isinstance(result, Failure):
            raise OutcomeUnknown(f"the receiver did not respond within {seconds:g} seconds", UNAVAILABLE)
        return result

    async def _asked(self, url: Url, request: Request) -> Answer:
        kept, result = await self._once(url, request)
        if isinstance(result, Failure) and kept:
            # The server has closed a persistent connection, perhaps before it saw the request. Send the same request
            # again: it has the same id.
            _, result = await self._once(url, request)
        if isinstance(result, Answer):
            return result
        raise _outcome(result)

    async def _once(self, url: Url, request: Request) -> tuple[bool, Answer | Failure]:
        """Make one attempt. Return True if it used a persistent connection, and the response or the failure."""
        from twisted.web.http_headers import Headers

        agent = self._the_agent()
        headers = Headers({"User-Agent": [f"txsmtpd/{__version__}"]})
        for name, value in request.headers:
            headers.addRawHeader(name, value)
        if url.authorization is not None:
            headers.addRawHeader("Authorization", url.authorization)
        if self.secrets is not None:
            for name, value in self.secrets.headers(request.id, self._seconds(), request.body):
                headers.addRawHeader(name, value)
        before = self._connections
        asking = agent.request(b"POST", url.bare.encode("ascii"), headers, _body(request.body))
        kept = self._connections == before
        try:
            response = await asking
        except Exception as error:
            if any(each.check(CancelledError) for each in [Failure(), *getattr(error, "reasons", ())]):
                raise CancelledError from error
            return kept, Failure()
        # The status line and header are the decision; the body is ignored.
        response.deliverBody(_Ignored(self.reactor))
        return kept, _answer_of(response)

    def _the_agent(self) -> Any:
        if self._agent is None:
            from twisted.web.client import Agent, HTTPConnectionPool

            self._now()
            self._pool = HTTPConnectionPool(self.reactor)
            self._pool.maxPersistentPerHost = self._semaphore.limit
            self._pool.retryAutomatically = False
            self._agent = Agent.usingEndpointFactory(self.reactor, _Endpoints(self), self._pool)
        return self._agent

    def _now(self) -> float:
        if self.reactor is None:
            self.reactor = current_reactor()
        now: float = self.reactor.seconds()
        return now

    def _seconds(self) -> int:
        """Seconds since the epoch, for signatures."""
        return int(time.time())


class _Endpoints:
    """Makes endpoints for an Agent, and counts its connections."""

    def __init__(self, target: WebhookTarget) -> None:
        self._target = target

    def endpointForURI(self, uri: Any) -> Any:
        from txsmtpd.bridges.host_endpoint import endpoint_of_uri

        # Called for each request, even on a persistent connection. So count when it connects.
        target = self._target
        return _Counted(endpoint_of_uri(target.reactor, uri, CONNECT_TIMEOUT, target.tls_context), target)


class _Counted:
    """An endpoint that counts when it connects."""

    def __init__(self, endpoint: Any, target: WebhookTarget) -> None:
        self._endpoint = endpoint
        self._target = target

    def connect(self, factory: Any) -> Any:
        self._target._connections += 1
        return self._endpoint.connect(factory)


def _body(octets: bytes) -> Any:
    from twisted.web.iweb import IBodyProducer

    @implementer(IBodyProducer)
    class Body:
        """Writes the whole body at once, because it is in memory anyway. An early response cannot interrupt it."""

        length = len(octets)

        def startProducing(self, consumer: Any) -> Deferred[None]:
            consumer.write(octets)
            return succeed(None)

        def pauseProducing(self) -> None:
            """Do nothing: everything was written."""

        resumeProducing = stopProducing = pauseProducing

    return Body()


class _Ignored(Protocol):
    """Reads and ignores a response body so that the connection can be reused, with limits for size and time."""

    def __init__(self, reactor: Any) -> None:
        self._octets = 0
        self._deadline = reactor.callLater(BODY_TIMEOUT, self._end)

    def dataReceived(self, data: bytes) -> None:
        self._octets += len(data)
        if self._octets > LONGEST_ANSWER:
            self._end()

    def connectionLost(self, reason: Any = None) -> None:
        if self._deadline.active():
            self._deadline.cancel()

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _answer_of(response: Any) -> Answer:
    def header(name: str) -> str | None:
        values = response.headers.getRawHeaders(name)
        return str(values[-1]) if values else None

    return Answer(response.code, header("smtp-reply"), header("retry-after"), header("location"))


def _outcome(failure: Failure) -> Exception:
    """Return the exception for a request without a response: NotTaken if the request was not sent, else
    OutcomeUnknown."""
    from twisted.internet.error import ConnectError, DNSLookupError
    from twisted.web._newclient import RequestNotSent

    why = reason_of(failure)
    if failure.check(ConnectError, DNSLookupError, RequestNotSent, DeferredTimeout):
        return NotTaken(why, UNAVAILABLE)
    return OutcomeUnknown(why, UNAVAILABLE)
