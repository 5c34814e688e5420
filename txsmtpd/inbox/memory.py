"""A store in memory, for tests with few, short-lived messages. A search looks at every message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from txsmtpd.inbox.message import Arrival, Message, parse
from txsmtpd.inbox.scope import EVERYTHING, HEADERS, Scope, named_in
from txsmtpd.inbox.search import Terms, holds
from txsmtpd.inbox.store import (
    TOLD,
    Counts,
    Page,
    Retention,
    SessionRecord,
    Store,
    clean_tag,
    new_id,
)

SESSIONS = 1000  # kept at most


@dataclass(slots=True)
class _Held:
    """A message in memory."""

    message: Message
    content: bytes
    folded: Mapping[str, str]
    hidden: set[str]  # labels of the scopes that do not show it


class MemoryStore(Store):
    """Keep mail in memory.

    :param retention: how much to keep. Its ``age`` is ignored.
    :param headers: the header fields that can be used as scopes, such as ``X-Test``.
    """

    def __init__(self, retention: Retention | None = None, headers: Sequence[str] = HEADERS) -> None:
        super().__init__(headers)
        self.retention = retention or Retention()
        self._held: dict[int, _Held] = {}  # by number, oldest first
        self._numbers: dict[str, int] = {}  # by id
        self._number = 0
        self._octets = 0
        self._sessions: dict[str, SessionRecord] = {}

    # Mail

    async def add(self, arrival: Arrival) -> Message:
        message = self.hold(arrival)
        self._prune()
        return message

    def hold(self, arrival: Arrival, number: int | None = None, tags: Sequence[str] = ()) -> Message:
        """Store a message.

        :param number: its number, larger than all others. Default: the next one.
        """
        parsed = parse(arrival, new_id(), self.headers)
        self._number = self._number + 1 if number is None else number
        named = [tag for value in parsed.values("x-tags") for each in value.split(",") if (tag := clean_tag(each))]
        message = replace(parsed.message, number=self._number, tags=tuple(sorted({*named, *tags})))
        self._held[self._number] = _Held(message, arrival.content, parsed.folded, set())
        self._numbers[message.id] = self._number
        self._octets += message.size
        self._added(message)
        return message

    def drop(self, numbers: Iterable[int]) -> None:
        """Remove messages."""
        gone = [held.message for number in numbers if (held := self._held.pop(number, None)) is not None]
        for message in gone:
            del self._numbers[message.id]
            self._octets -= message.size
        if gone:
            self._deleted(gone[:TOLD], len(gone), everything=not self._held)

    def _prune(self) -> None:
        kept = self.retention
        too_many = len(self._held) - kept.messages if kept.messages else 0
        too_large = self._octets - kept.octets if kept.octets else 0
        oldest: list[int] = []
        for number, held in list(self._held.items())[:-1]:  # always keep the newest
            if too_many <= 0 and too_large <= 0:
                break
            oldest.append(number)
            too_many -= 1
            too_large -= held.message.size
        self.drop(oldest)

    def _found(self, scope: Scope, terms: Terms = ()) -> Iterable[_Held]:
        """Return the messages of a scope that match all terms, newest first."""
        labels = set(scope.labels)
        for held in reversed(list(self._held.values())):
            if (
                scope.has(held.message)
                and labels.isdisjoint(held.hidden)
                and all(holds(term, held.message, held.folded) for term in terms)
            ):
                yield held

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
        found = [held.message for held in self._found(scope, terms) if held.message.number > after]
        shown = [message for message in found if before is None or message.number < before]
        return Page(
            shown[start : None if limit is None else start + limit],
            len(found),
            sum(not message.seen for message in found),
        )

    async def message(self, message_id: str, scope: Scope = EVERYTHING) -> Message | None:
        held = self._held.get(self._numbers.get(message_id, 0))
        if held is None or not scope.has(held.message) or not held.hidden.isdisjoint(scope.labels):
            return None
        return held.message

    async def content(self, message: Message, start: int = 0, length: int | None = None) -> bytes:
        held = self._held.get(message.number)
        if held is None:
            return b""
        return held.content[start : None if length is None else start + length]

    async def counts(self, scope: Scope = EVERYTHING) -> Counts:
        found = [held.message.seen for held in self._found(scope)]
        return Counts(len(found), found.count(False))

    @property
    def last_number(self) -> int:
        return self._number

    async def octets(self) -> int:
        return self._octets

    # Changes

    def _change(self, held: _Held, kind: str, change: Callable[[Message], Message]) -> None:
        held.message = change(held.message)
        self.hub.publish(kind, held.message)

    def _chosen(self, scope: Scope, ids: Sequence[str] | None, terms: Terms) -> list[_Held]:
        found = list(self._found(scope, terms))
        return found if ids is None else [held for held in found if held.message.id in set(ids)]

    async def set_seen(
        self, seen: bool, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()
    ) -> None:
        for held in self._chosen(scope, ids, terms):
            self._change(held, "seen", lambda message: replace(message, seen=seen))

    async def delete(self, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()) -> None:
        gone: list[int] = []
        for held in self._chosen(scope, ids, terms):
            if scope.keys and not scope.alone_has(held.message):
                held.hidden.add(scope.label)
                self.hub.publish("delete", held.message, scope)
            else:
                gone.append(held.message.number)
        self.drop(gone)
        if ids is None and not terms and (scope.keys or not gone):
            self.hub.publish("truncate", scope=scope)

    async def tags(self, scope: Scope = EVERYTHING) -> Mapping[str, int]:
        return dict(sorted(Counter(tag for held in self._found(scope) for tag in held.message.tags).items()))

    async def set_tags(self, ids: Sequence[str], tags: Sequence[str], scope: Scope = EVERYTHING) -> None:
        clean = tuple(sorted({tag for each in tags if (tag := clean_tag(each))}))
        for held in self._chosen(scope, ids, ()):
            self._change(held, "tags", lambda message: replace(message, tags=clean))

    async def rename_tag(self, old: str, new: str | None, scope: Scope = EVERYTHING) -> None:
        clean = clean_tag(new) if new else ""
        for held in self._found(scope):
            others = {tag for tag in held.message.tags if tag.casefold() != old.casefold()}
            if len(others) < len(held.message.tags):
                tags = tuple(sorted(others | ({clean} if clean else set())))
                held.message = replace(held.message, tags=tags)
        self.hub.publish("prune", scope=scope)

    # Sessions

    async def put_session(self, session: SessionRecord) -> None:
        self._sessions[session.id] = session
        while len(self._sessions) > SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self.hub.publish("session")

    async def session(self, session_id: str) -> SessionRecord | None:
        found = self._sessions.get(session_id)
        return None if found is None else self._with_messages(found)

    async def sessions(self, scope: Scope = EVERYTHING, limit: int = 50) -> list[SessionRecord]:
        found = sorted(self._sessions.values(), key=lambda session: session.began, reverse=True)
        return [self._with_messages(session, scope) for session in found if self._is_of(session, scope)][:limit]

    def _with_messages(self, session: SessionRecord, scope: Scope = EVERYTHING) -> SessionRecord:
        messages = [each.message for each in self._found(scope) if each.message.envelope.session == session.id]
        return replace(session, messages=tuple(message.id for message in messages))

    def _is_of(self, session: SessionRecord, scope: Scope) -> bool:
        if not scope.keys or any(held.message.envelope.session == session.id for held in self._found(scope)):
            return True
        return set(scope.keys) <= named_in(session.records)
