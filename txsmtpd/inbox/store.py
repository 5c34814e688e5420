"""What a store of received mail does, whatever it stands on: the interface that the API and the pages use.

:class:`~txsmtpd.inbox.sqlite.SQLiteStore` keeps mail in a file, :class:`~txsmtpd.inbox.memory.MemoryStore` in memory.
All methods are called in the reactor's thread; those that may have to wait are coroutine functions.
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

TOLD = 1000  # deleted messages that are told one by one; of more, only that there were many

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_id() -> str:
    """A name for a message: 22 characters of base 62, which nobody guesses."""
    number = secrets.randbits(130)
    characters = []
    for _ in range(22):
        number, digit = divmod(number, 62)
        characters.append(_ALPHABET[digit])
    return "".join(characters)


class StoreError(Exception):
    """Mail cannot be stored.

    :ivar full: whether there is no room left for it.
    """

    def __init__(self, reason: str, full: bool = False) -> None:
        super().__init__(reason)
        self.full = full


@dataclass(frozen=True, slots=True)
class Retention:
    """How much mail is kept. The newest message is kept whatever its size."""

    messages: int = MESSAGES  #: how many; 0: any number
    octets: int = OCTETS  #: of all together; 0: any number
    age: float = AGE  #: seconds; 0: for ever


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages there are."""

    total: int
    unread: int


@dataclass(frozen=True, slots=True)
class Page:
    """Messages that were found, newest first, and how many there are besides."""

    messages: list[Message]
    count: int  #: how many were found, those on other pages included
    unread: int  #: how many of these are unread
    is_exact: bool = True  #: False: there are more than *count*; counting took too long


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session: who connected, what came of it, and what was said, if it is still known."""

    id: str
    began: float  #: seconds since the epoch
    ended: float | None  #: None while it goes on
    peer: str
    outcome: str  #: the last reply that refused something, or ``""``
    records: str = field(repr=False)  #: what was said, as JSON lines; credentials masked
    messages: tuple[str, ...] = ()  #: the ids of its messages


@dataclass(slots=True)
class Totals:
    """What has happened since the store was opened."""

    accepted: int = 0
    accepted_octets: int = 0
    rejected: int = 0
    deleted: int = 0


class Store(ABC):
    """Received mail.

    :ivar hub: tells of what changes.
    :ivar headers: the fields whose values messages are filed under.
    :ivar totals: what has happened since the store was opened.
    :ivar where: what the store is called: a file's name, or ``memory``.
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

        :param start: how many to leave out.
        :param limit: how many to return, at most; None: all.
        :param before: only messages with a smaller number; the counts are of all.
        :param after: only messages with a larger number.
        :param exact: whether to count to the end; otherwise it may stop after some time.
        """

    @abstractmethod
    async def message(self, message_id: str, scope: Scope = EVERYTHING) -> Message | None:
        """The message with this id, or None."""

    @abstractmethod
    async def content(self, message: Message, start: int = 0, length: int | None = None) -> bytes:
        """Octets of a message, as they came; ``b""`` if it is gone."""

    async def part(self, message: Message, part: Part) -> bytes:
        """A part of a message, decoded."""
        return part.decode(await self.content(message, part.start, part.length))

    async def texts(self, message: Message, kind: str) -> list[str]:
        """The parts of a message that are ``text`` or ``html``."""
        return [
            part.text(await self.content(message, part.start, min(part.length, 2 * MAX_TEXT)))
            for part in message.parts
            if part.kind == kind
        ]

    async def html(self, message: Message) -> str:
        """The HTML of a message, as it was sent, charset aside; ``""`` without any."""
        return "\n".join(await self.texts(message, "html"))

    async def text(self, message: Message) -> str:
        """The text of a message, or what its HTML says if there is none."""
        texts = await self.texts(message, "text")
        return shown_text(texts, [] if texts else await self.texts(message, "html"))

    async def fields(self, message: Message) -> list[tuple[str, str]]:
        """The fields of the header, decoded, in their order."""
        return decoded_fields(read_header(octets := await self.content(message, 0, MAX_HEADER), 0, len(octets))[0])

    @abstractmethod
    async def counts(self, scope: Scope = EVERYTHING) -> Counts: ...

    @property
    @abstractmethod
    def last_number(self) -> int:
        """The number of the newest message there ever was."""

    @abstractmethod
    async def octets(self) -> int:
        """What the store takes, in octets."""

    async def latest(self, scope: Scope = EVERYTHING, terms: Terms = ()) -> Message | None:
        """The newest message, or None."""
        page = await self.page(scope, terms, limit=1, exact=False)
        return page.messages[0] if page.messages else None

    # Changes. Without ids and terms, they are for all messages of the scope.

    @abstractmethod
    async def set_seen(
        self, seen: bool, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()
    ) -> None:
        """Mark messages as read or unread."""

    @abstractmethod
    async def delete(self, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()) -> None:
        """Delete messages. In a scope, those that others of its kind share are only hidden there."""

    @abstractmethod
    async def tags(self, scope: Scope = EVERYTHING) -> Mapping[str, int]:
        """The tags that are in use, with how many messages have them."""

    @abstractmethod
    async def set_tags(self, ids: Sequence[str], tags: Sequence[str], scope: Scope = EVERYTHING) -> None:
        """Give messages these tags, and no others."""

    @abstractmethod
    async def rename_tag(self, old: str, new: str | None, scope: Scope = EVERYTHING) -> None:
        """Rename a tag, or remove it if *new* is None."""

    # Sessions

    @abstractmethod
    async def put_session(self, session: SessionRecord) -> None:
        """Store a session that has ended."""

    @abstractmethod
    async def session(self, session_id: str) -> SessionRecord | None: ...

    @abstractmethod
    async def sessions(self, scope: Scope = EVERYTHING, limit: int = 50) -> list[SessionRecord]:
        """Sessions, newest first. In a scope: those in which mail of the scope came."""

    # Start and stop

    async def open(self) -> None:  # noqa: B027
        """Start to work."""

    async def close(self) -> None:  # noqa: B027
        """Finish what is being done, and stop."""

    # For stores

    def _added(self, message: Message) -> None:
        self.totals.accepted += 1
        self.totals.accepted_octets += message.size
        self.hub.publish("new", message)

    def _deleted(self, messages: Sequence[Message], count: int, everything: bool) -> None:
        """Tell that messages of all scopes are gone: one by one, or that there were many."""
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
    """A tag without the characters that no tag has; ``""`` if nothing is left."""
    return " ".join("".join(c for c in str(tag)[:200] if c in CLEAN_TAG).split())[:100]
