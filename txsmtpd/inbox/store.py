"""The interface of a store of received mail, which the API and the pages use.

:class:`~txsmtpd.inbox.sqlite.SQLiteStore` keeps mail in a file, :class:`~txsmtpd.inbox.memory.MemoryStore` in memory.
All methods are called in the reactor's thread. Those that may wait are coroutine functions.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from txsmtpd.inbox.events import Hub
from txsmtpd.inbox.message import Arrival, Message, Part, shown_text
from txsmtpd.inbox.scope import EVERYTHING, HEADERS, Scope
from txsmtpd.inbox.search import Terms
from txsmtpd.mime.message import MAX_TEXT, decoded_fields
from txsmtpd.mime.structure import MAX_HEADER, read_header

MESSAGES = 100_000
OCTETS = 2**30
AGE = 7 * 86400.0

TOLD = 1000  # up to this number of deleted messages, an event is published for each; for more, a single event

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_id() -> str:
    """Return a new message id: 22 unguessable characters in base 62."""
    number = secrets.randbits(130)
    characters = []
    for _ in range(22):
        number, digit = divmod(number, 62)
        characters.append(_ALPHABET[digit])
    return "".join(characters)


class StoreError(Exception):
    """The message cannot be stored.

    :ivar full: whether there is no space left.
    """

    def __init__(self, reason: str, full: bool = False) -> None:
        super().__init__(reason)
        self.full = full


@dataclass(frozen=True, slots=True)
class Retention:
    """How much mail to keep. The newest message is always kept."""

    messages: int = MESSAGES  #: maximum number; 0: unlimited
    octets: int = OCTETS  #: maximum total size, in bytes; 0: unlimited
    age: float = AGE  #: maximum age, in seconds; 0: unlimited


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of messages."""

    total: int
    unread: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of matching messages, newest first, and the counts of all that match."""

    messages: list[Message]
    count: int  #: of all matching messages, including those on other pages
    unread: int  #: how many of them are unread
    is_exact: bool = True  #: False if there are more than *count*: counting stopped early


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session: who connected, its outcome, and its transcript if still available."""

    id: str
    began: float  #: seconds since the epoch
    ended: float | None  #: None while it is open
    peer: str
    outcome: str  #: the last negative reply, or ``""``
    records: str = field(repr=False)  #: the transcript as JSON lines; credentials are masked
    messages: tuple[str, ...] = ()  #: the ids of its messages


@dataclass(slots=True)
class Totals:
    """Totals since the store was opened."""

    accepted: int = 0
    accepted_octets: int = 0
    rejected: int = 0
    deleted: int = 0


class Store(ABC):
    """Received mail.

    :ivar hub: publishes changes.
    :ivar headers: the header fields that can be used as scopes, such as ``X-Test``.
    :ivar totals: totals since the store was opened.
    :ivar where: a name for the store: a file name, or ``memory``.
    """

    where = "memory"

    def __init__(self, headers: Sequence[str] = HEADERS) -> None:
        self.headers = tuple(headers)
        self.hub = Hub()
        self.totals = Totals()

    # Mail

    @abstractmethod
    async def add(self, arrival: Arrival) -> Message:
        """Store a message. When this returns, the message is stored.

        :raises StoreError: if it cannot be stored.
        """

    @abstractmethod
    async def page(
        self,
        scope: Scope = EVERYTHING,
        terms: Terms = (),
        *,
        start: int = 0,
        limit: int | None = 50,
        before: int | None = None,
        after: int = 0,
        exact: bool = True,
    ) -> Page:
        """Find messages, newest first.

        :param start: how many to skip.
        :param limit: how many to return at most. None: all.
        :param before: return only messages with a smaller number. Does not affect the counts.
        :param after: return only messages with a larger number.
        :param exact: whether to count all matching messages. Otherwise counting may stop early.
        """

    @abstractmethod
    async def message(self, message_id: str, scope: Scope = EVERYTHING) -> Message | None:
        """Return the message with this id, or None."""

    @abstractmethod
    async def content(self, message: Message, start: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a message as received, or ``b""`` if it was deleted."""

    async def part(self, message: Message, part: Part) -> bytes:
        """Return a part of a message, decoded."""
        return part.decode(await self.content(message, part.start, part.length))

    async def texts(self, message: Message, kind: str) -> list[str]:
        """Return the parts of a message of this kind: ``text`` or ``html``."""
        return [
            part.text(await self.content(message, part.start, min(part.length, 2 * MAX_TEXT)))
            for part in message.parts
            if part.kind == kind
        ]

    async def html(self, message: Message) -> str:
        """Return the HTML of a message, decoded but otherwise unchanged; ``""`` if it has none."""
        return "\n".join(await self.texts(message, "html"))

    async def text(self, message: Message) -> str:
        """Return the text of a message, or the text of its HTML if it has none."""
        texts = await self.texts(message, "text")
        return shown_text(texts, [] if texts else await self.texts(message, "html"))

    async def fields(self, message: Message) -> list[tuple[str, str]]:
        """Return the header fields, decoded, in order."""
        return decoded_fields(read_header(octets := await self.content(message, 0, MAX_HEADER), 0, len(octets))[0])

    @abstractmethod
    async def counts(self, scope: Scope = EVERYTHING) -> Counts:
        """Count the messages."""

    @property
    @abstractmethod
    def last_number(self) -> int:
        """The number of the newest message ever stored."""

    @abstractmethod
    async def octets(self) -> int:
        """Return the size of the store in bytes."""

    async def latest(self, scope: Scope = EVERYTHING, terms: Terms = ()) -> Message | None:
        """Return the newest message, or None."""
        page = await self.page(scope, terms, limit=1, exact=False)
        return page.messages[0] if page.messages else None

    # Changes. Without ids and terms, they affect all messages of the scope.

    @abstractmethod
    async def set_seen(
        self, seen: bool, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()
    ) -> None:
        """Mark messages as read or unread."""

    @abstractmethod
    async def delete(self, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()) -> None:
        """Delete messages. A message that also belongs to another scope of the same kind is only hidden in this one."""

    @abstractmethod
    async def tags(self, scope: Scope = EVERYTHING) -> Mapping[str, int]:
        """Return the tags in use, with the number of messages that have each."""

    @abstractmethod
    async def set_tags(self, ids: Sequence[str], tags: Sequence[str], scope: Scope = EVERYTHING) -> None:
        """Replace the tags of messages."""

    @abstractmethod
    async def rename_tag(self, old: str, new: str | None, scope: Scope = EVERYTHING) -> None:
        """Rename a tag, or remove it if *new* is None."""

    # Sessions

    @abstractmethod
    async def put_session(self, session: SessionRecord) -> None:
        """Store a session that has ended."""

    @abstractmethod
    async def session(self, session_id: str) -> SessionRecord | None:
        """Return the session with this id, or None."""

    @abstractmethod
    async def sessions(self, scope: Scope = EVERYTHING, limit: int = 50) -> list[SessionRecord]:
        """Return sessions, newest first. With a scope, return only sessions with a message in it."""

    # Start and stop

    async def open(self) -> None:  # noqa: B027
        """Start the store."""

    async def close(self) -> None:  # noqa: B027
        """Finish pending work, and stop."""

    # For implementations

    def _added(self, message: Message) -> None:
        self.totals.accepted += 1
        self.totals.accepted_octets += message.size
        self.hub.publish("new", message)

    def _deleted(self, messages: Sequence[Message], count: int, everything: bool) -> None:
        """Publish events for deleted messages.

        :param count: how many were deleted. If it exceeds the number of *messages*, a single event is published.
        :param everything: whether all messages of the store were deleted.
        """
        self.totals.deleted += count
        if everything:
            self.hub.publish("truncate")
        elif count > len(messages):
            self.hub.publish("prune")
        else:
            for message in messages:
                self.hub.publish("delete", message)


CLEAN_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-. _@")


def clean_tag(tag: Any) -> str:
    """Return a tag without the characters that tags cannot have; ``""`` if nothing is left."""
    return " ".join("".join(c for c in str(tag)[:200] if c in CLEAN_TAG).split())[:100]
