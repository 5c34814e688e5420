"""The events of the log: their names, levels, fields and texts. No output.

Names and fields are stable, because programs read them; ``docs/log.rst`` lists them. Texts may change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from txsmtpd.recipient_replies import named

DEBUG, INFO, WARN, ERROR, CRITICAL = 10, 20, 30, 40, 50
LEVELS = {"debug": DEBUG, "info": INFO, "warn": WARN, "error": ERROR, "critical": CRITICAL}
LEVEL_NAMES = {level: name for name, level in LEVELS.items()}

LISTED = 100  # recipients in a field


@dataclass(frozen=True, eq=False)
class Event:
    """A kind of log event."""

    name: str
    level: int
    text: str
    """A template for :meth:`str.format`, with the names of the fields."""

    always: bool = False
    """True if it is logged even if the session has exceeded its limit."""

    fields: tuple[str, ...] = field(init=False)
    template: str = field(init=False)
    """The text as a template for the operator ``%``, which takes half the time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(dict.fromkeys(re.findall(r"\{(\w+)", self.text))))
        object.__setattr__(self, "template", re.sub(r"\{(\w+)\}", r"%(\1)s", self.text.replace("%", "%%")))


class Recipients(tuple[str, ...]):
    """Forward-paths: a list in structured logs; only the first few in text."""

    total: int | None = None  #: their number, if there are more than are listed

    @classmethod
    def of(cls, paths: Sequence[str]) -> Recipients:
        """Make the field, with as many of the paths as are listed."""
        if len(paths) <= LISTED:
            return cls(paths)
        self = cls(paths[:LISTED])
        self.total = len(paths)
        return self

    def __str__(self) -> str:
        return f"<{self[0]}>" if len(self) == 1 else named(self, self.total)

    def __format__(self, spec: str) -> str:
        return str(self)


def client_text(peer: object) -> str:
    """Format a client's address: ``192.0.2.7:4321``, ``[2001:db8::1]:4321``."""
    if isinstance(peer, tuple) and len(peer) >= 2:
        host, port = str(peer[0]), peer[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(peer) if peer else "this host"


CAUSES = {  # why a connection ended, by the name of the exception
    "ConnectionDone": "connection closed",
    "ConnectionLost": "connection lost",
    "ConnectionAborted": "connection aborted",
    "TimeoutError": "idle for too long",
    "Idle": "idle for too long",
    "CommandTooSlow": "a command took too long",
    "DataTooSlow": "message data came too slowly",
    "SessionTooLong": "the session lasted too long",
}


def cause_text(cause: BaseException) -> str:
    """Describe why a connection ended."""
    name = type(cause).__name__
    return CAUSES.get(name, name)


MESSAGE = Event(
    "message",
    INFO,
    "message from <{sender}> to {recipients}, {octets} octets, client {client}: {reply}",
    always=True,
)
# Rejections outside a transaction, of MAIL or before RCPT, and of a recipient or a message.
REFUSED = Event("refused", INFO, "{command} refused, client {client}: {reply}")
REFUSED_SENDER = Event("refused", INFO, "{command} refused, client {client}, from <{sender}>: {reply}")
REFUSED_RECIPIENTS = Event(
    "refused", INFO, "{command} refused, client {client}, from <{sender}> to {recipients}: {reply}"
)
ENDED = Event("ended", INFO, "session ended, client {client}: {cause}; messages: {messages}", always=True)
# A client without limits (see Settings.unlimited_networks) that connected and left, typically a health check.
PROBED = Event("probed", DEBUG, ENDED.text, always=True)
FAILED = Event("failed", CRITICAL, "{where} failed{why}")
NO_REPLY = Event("no-reply", ERROR, '{source} returned {value}, not a reply such as "250 OK"{hint}')
RECIPIENT_LOST = Event(
    "recipient-lost",
    WARN,
    "handle_RCPT of {handler} has accepted <{recipient}> without appending it to envelope.rcpt_tos, so this"
    " recipient does not get the message. If this is intended, call envelope.drop(address)",
)
TIMED_OUT = Event("timed-out", ERROR, "{where} took too long")
AUTHENTICATED = Event("authenticated", INFO, "authenticated by {mechanism} as {login}, client {client}")
AUTH_FAILED = Event("auth-failed", INFO, "authentication by {mechanism} failed for {login}, client {client}")
AUTH_NEEDS_TLS = Event(
    "auth-needs-tls",
    WARN,
    "AUTH is not offered, because auth_require_tls is on, and there is no TLS: give tls_context, or"
    " auth_require_tls=False if passwords may be sent without TLS",
)
FOLDED = Event("folded", INFO, "the client gets one reply for different results: {replies}")
PROXY_REFUSED = Event("proxy-refused", WARN, "PROXY header from {proxy} refused: {reason}")
TLS_FAILED = Event("tls-failed", INFO, "client {client}: {reason}")
TLS_STARTED = Event("tls-started", DEBUG, "{protocol} with {cipher}")
RECEIVED = Event("received", DEBUG, "C: {line}", always=True)
SENT = Event("sent", DEBUG, "S: {line}", always=True)
# These have no session.
CONNECTION_REFUSED = Event("connection-refused", INFO, "connection refused, client {client}: {reply}; {reason}")
STRESS = Event("stress", WARN, "stress mode {change}: {reason}")
BLOCKED = Event(
    "blocked",
    WARN,
    "{hook} ({place}) has blocked the server for more than {seconds} seconds, and all clients had to wait: use a thread"
    " or await",
)
LEFT_OUT = Event(
    "left-out", WARN, "{count} more log lines of this session were suppressed, client {client}", always=True
)

EVENTS = tuple(value for value in list(globals().values()) if isinstance(value, Event))
