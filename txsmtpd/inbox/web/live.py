"""Sends events to clients: on a WebSocket in Mailpit's format, and as server-sent events in the inbox's own format.

A client that does not keep up is disconnected. It reconnects and is told to reload.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.inbox.events import Event
from txsmtpd.inbox.web import shapes
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import Flow, HTTPError, Response
from txsmtpd.inbox.web.routes import Route, options

HEARD = 4096  # bytes that a client may send on a WebSocket; clients normally send nothing
BEHIND = 1000  # events that may be queued for a client
STATS = 0.25  # seconds between statistics
PING = 30.0  # seconds
SILENCE = 15.0  # seconds without events before a comment is sent as keep-alive

BOOT = secrets.token_hex(4)  # distinguishes the events of this process from those of an earlier one


def mailpit_event(event: Event) -> dict[str, Any] | None:
    """Return an event in Mailpit's format, or None if Mailpit has no such event."""
    message = event.message
    if message is None:
        return {"Type": event.kind, "Data": None} if event.kind in ("truncate", "prune") else None
    if event.kind == "new":
        return {"Type": "new", "Data": shapes.summary(message)}
    if event.kind == "seen":
        return {"Type": "update", "Data": {"ID": message.id, "Read": message.seen}}
    if event.kind == "tags":
        return {"Type": "update", "Data": {"ID": message.id, "Tags": list(message.tags)}}
    return {"Type": "delete", "Data": {"ID": message.id}}


def _admit(call: Call) -> None:
    if len(call.settings.live) >= call.settings.live_limit:
        raise HTTPError(503, "too many clients listen already", {"Retry-After": "5"})


# The WebSocket


class EventSocket:
    """A WebSocket client. Events are sent to it; it sends nothing."""

    def __init__(self, call: Call, clock: Any) -> None:
        self._call = call
        self._clock = clock
        self._flow = Flow()
        self._late = 0
        self._heard = 0
        self._transport: Any = None
        self._subscription: Any = None
        self._stats: Any = None
        self._ping: Any = None

    def negotiationStarted(self, transport: Any) -> None:
        self._transport = transport

    def negotiationFinished(self) -> None:
        self._call.settings.live.add(self)
        self._subscription = self._call.store.hub.subscribe(self._call.scope, self._tell)
        self._ping = self._clock.callLater(PING, self._keep_alive)

    def watch(self, channel: Any) -> None:
        """Start to check how much the client sends, and whether it keeps up."""
        channel.transport.unregisterProducer()
        channel.transport.registerProducer(self._flow, True)
        received = channel.dataReceived

        def count(data: bytes) -> None:
            self._heard += len(data)
            if self._heard > HEARD:
                self._end(1009)
            else:
                received(data)

        channel.dataReceived = count

    def textMessageReceived(self, message: str) -> None:
        self._end(1003)

    def bytesMessageReceived(self, data: bytes | bytearray) -> None:
        self._end(1003)

    def pongReceived(self, payload: bytes) -> None:
        self._heard = max(0, self._heard - 200)

    def connectionLost(self, reason: Any) -> None:
        self._forget()

    def end(self) -> None:
        """The server stops."""
        self._end(1001)

    def _end(self, code: int) -> None:
        transport, self._transport = self._transport, None
        self._forget()
        if transport is not None:
            transport.loseConnection(code)

    def _forget(self) -> None:
        self._transport = None
        self._call.settings.live.discard(self)
        if self._subscription is not None:
            self._subscription.cancel()
        for call in (self._stats, self._ping):
            if call is not None and call.active():
                call.cancel()

    def _keep_alive(self) -> None:
        self._ping = self._clock.callLater(PING, self._keep_alive)
        self._transport.ping()

    def _tell(self, event: Event) -> None:
        told = mailpit_event(event)
        if told is None:
            return
        self._send(told)
        if self._stats is None or not self._stats.active():
            self._stats = self._clock.callLater(STATS, self._tell_stats)

    def _send(self, told: dict[str, Any]) -> None:
        if self._transport is None:
            return
        self._late = self._late + 1 if self._flow.paused else 0
        if self._late > BEHIND:
            wire, self._transport = self._transport, None
            self._forget()
            wire.transport.abortConnection()
            return
        self._transport.sendTextMessage(json.dumps(told, ensure_ascii=False))

    def _tell_stats(self) -> None:
        Deferred.fromCoroutine(self._count()).addErrback(lambda _: None)

    async def _count(self) -> None:
        counts = await self._call.store.counts(self._call.scope)
        self._send(
            {"Type": "stats", "Data": {"Total": counts.total, "Unread": counts.unread, "Version": shapes.VERSION}}
        )


class _Sockets:
    def __init__(self, call: Call) -> None:
        self._call = call
        self.made: EventSocket | None = None

    def buildProtocol(self, request: Any) -> EventSocket:
        self.made = EventSocket(self._call, current_reactor())
        return self.made


async def events(call: Call) -> Response | None:
    if "websocket" not in (call.header("Upgrade") or "").lower():
        raise HTTPError(426, "this address requires WebSocket", {"Upgrade": "websocket"})
    _admit(call)
    # Import it only when the first client needs it. At the start, the import would take a tenth of the command's time.
    from twisted.web.websocket import WebSocketResource

    sockets = _Sockets(call)
    channel = call.request.channel
    answer = WebSocketResource(sockets).render(call.request)
    if answer is not NOT_DONE_YET or sockets.made is None:
        raise HTTPError(400, "the request is not a WebSocket handshake")
    sockets.made.watch(channel)
    return None


# Server-sent events


class Stream:
    """A client of server-sent events."""

    def __init__(self, call: Call, clock: Any) -> None:
        self._call = call
        self._clock = clock
        self._pending: deque[bytes] = deque()
        self._waiting: Deferred[None] | None = None
        self._subscription: Any = None
        self._ended = False

    def end(self) -> None:
        """The server stops."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def _tell(self, event: Event) -> None:
        self._pending.append(as_sent(event))
        if len(self._pending) > BEHIND:
            # The client does not read, so do not send it the rest.
            self._pending.clear()
            self._subscription.cancel()
            self._call.request.channel.forceAbortClient()
        self._wake()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what is sent, until the client disconnects."""
        call = self._call
        hub = call.store.hub
        self._subscription = hub.subscribe(call.scope, self._tell)
        call.settings.live.add(self)
        try:
            yield self._welcome()
            while not self._ended:
                while self._pending:
                    yield self._pending.popleft()
                waiting: Deferred[None] = Deferred()
                self._waiting = waiting
                alive = self._clock.callLater(SILENCE, self._beat)
                try:
                    await waiting
                finally:
                    self._waiting = None
                    if alive.active():
                        alive.cancel()
        finally:
            self._subscription.cancel()
            call.settings.live.discard(self)

    def _beat(self) -> None:
        self._pending.append(b": alive\n\n")
        self._wake()

    def _welcome(self) -> bytes:
        """Return the events since the client was last connected."""
        hub = self._call.store.hub
        last = self._call.header("Last-Event-ID") or self._call.query.get("last-event-id", "")
        here = b"retry: 1000\nid: %b-%d\n" % (BOOT.encode(), hub.last_number)
        if not last:
            return here + b"event: hello\ndata: {}\n\n"
        match = re.fullmatch(f"{BOOT}-([0-9]{{1,18}})", last)
        missed = None if match is None else hub.since(int(match[1]), self._call.scope)
        if missed is None:
            return here + b"event: reload\ndata: {}\n\n"
        return here + b"event: hello\ndata: {}\n\n" + b"".join(map(as_sent, missed))


def as_sent(event: Event) -> bytes:
    """Return an event in the format of server-sent events."""
    told = mailpit_event(event)
    data = {} if told is None or told["Data"] is None else told["Data"]
    lines = f"id: {BOOT}-{event.number}\nevent: {event.kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
    return lines.encode("utf-8", "replace")


async def stream(call: Call) -> Response:
    _admit(call)
    pieces = Stream(call, current_reactor()).pieces()
    return Response(pieces, "text/event-stream; charset=utf-8", headers={"X-Accel-Buffering": "no"})


ROUTES = [
    Route("GET", "/api/events", events, "Receive events over a WebSocket.", live=True),
    Route(
        "GET",
        "/api/inbox/v1/events",
        stream,
        "Receive events as server-sent events (supports Last-Event-ID).",
        live=True,
        parameters=options(last_event_id="as the header field Last-Event-ID"),
    ),
]
