"""The store in a file: SQLite, written by one thread and read by two others. Its statements are
in one file, beside the tables that they need.

A message is parsed and stored in the writer's thread; :meth:`SQLiteStore.add` returns once it is committed. The file is
a temporary one, unless it is given.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.inbox import schema
from txsmtpd.inbox.message import Arrival, Message, parse
from txsmtpd.inbox.schema import ROW, select
from txsmtpd.inbox.scope import EVERYTHING, HEADERS, Scope
from txsmtpd.inbox.search import Terms
from txsmtpd.inbox.store import (
    TOLD,
    Counts,
    Page,
    Retention,
    SessionRecord,
    Store,
    StoreError,
    clean_tag,
    new_id,
)
from txsmtpd.inbox.writer import Reader, Writer, shielded

READERS = 2
SESSIONS = 10_000  # that are kept
COUNTED = 10_000  # messages that are counted where the count may stop
TOGETHER = 200  # messages that are indexed at once
CHECKED_EVERY = 60.0  # seconds, for messages that are too old

log = Logger(namespace="txsmtpd.inbox")

Connection = sqlite3.Connection
Row = tuple[int, int, str, str | None]


class SQLiteStore(Store):
    """Mail in a file.

    :param path: the file; made if it is missing. None: a temporary one, which is deleted by :meth:`close`.
    :param retention: how much is kept.
    :param headers: fields of the header whose values messages are filed under.
    :param reactor: whose thread the results come to (IReactorFromThreads, IReactorTime). Default: the global one.
    :raises ValueError: if the file is none of an inbox.
    :raises OSError: if it cannot be opened, or another process has it open.
    """

    def __init__(
        self,
        path: str | None = None,
        retention: Retention | None = None,
        headers: Sequence[str] = HEADERS,
        *,
        reactor: Any = None,
    ) -> None:
        super().__init__(headers)
        self.retention = retention or Retention()
        self._folder: str | None = None  # of a temporary file
        self.path = "" if path is None else os.path.abspath(path)
        self.where = self.path or "a temporary file"
        self._reactor = reactor
        self._lock: int | None = None
        if self.path:
            self._prepare()
        self._writer: Writer | None = None
        self._readers: list[Reader] = []
        self._next_check: Any = None
        self._pruning = False
        self._indexing = False
        self._unindexed = 0  # messages that the index of the search does not have yet
        self._last_number = self._total = self._octets = self._unread = 0

    # Start and stop

    def _prepare(self) -> None:
        self._lock = _lock(self.path)
        try:
            schema.prepare(self.path, self._folder is None)
        except sqlite3.Error as error:
            self._unlock()
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise ValueError("it is no database; give a file of its own") from error
            raise OSError(None, str(error), self.path) from error
        except BaseException:
            self._unlock()
            raise

    async def open(self) -> None:
        """Start the threads, and make the file if it is a temporary one.

        :raises OSError: if it cannot be made.
        """
        if self._writer is not None:
            return
        if not self.path:
            self._folder = tempfile.mkdtemp(prefix="txsmtpd-inbox-")
            self.path = self.where = os.path.join(self._folder, "mail")
            self._prepare()
        if self._reactor is None:
            self._reactor = current_reactor()
        connect = partial(schema.connect, self.path, self._folder is None)
        self._writer = Writer(connect, self._reactor, "txsmtpd inbox writer")
        first = Reader(connect, self._reactor, "txsmtpd inbox reader")
        others = [Reader(connect, self._reactor, "txsmtpd inbox reader", first._entries) for _ in range(READERS - 1)]
        self._readers = [first, *others]
        self._last_number, self._total, self._octets, self._unread = await self._writer.submit(_totals)
        self._in_background(self._index(-1))
        self._check_ages()

    async def close(self) -> None:
        """Finish what was asked for, end the threads, and delete a temporary file."""
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, []
        if writer is not None:
            await writer.stop()
        ends = [reader.stop() for reader in readers]
        for end in ends:
            await end
        self._unlock()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder, self.path = None, ""

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _write(self, job: Callable[[Connection], Any], weight: int = 0) -> Deferred[Any]:
        if self._writer is None:
            raise StoreError("the inbox is closed")
        return self._writer.submit(job, weight)

    def _read(self, job: Callable[[Connection], Any]) -> Deferred[Any]:
        if not self._readers:
            raise StoreError("the inbox is closed")
        return self._readers[0].submit(job)

    # Mail

    @shielded
    async def add(self, arrival: Arrival) -> Message:
        try:
            message: Message = await self._write(partial(_insert, arrival, self.headers), len(arrival.content))
        except sqlite3.Error as error:
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            log.error("{path} takes no mail: {error}", path=self.path, error=str(error))
            raise StoreError(str(error), full) from error
        self._last_number = message.number
        self._total += 1
        self._unread += 1
        self._octets += message.size
        self._unindexed += 1
        self._added(message)
        self._prune()
        if self._unindexed >= TOGETHER and not self._indexing:
            self._in_background(self._index(TOGETHER))
        return message

    async def _catch_up(self, terms: Terms) -> None:
        """Let the index have all messages, if these terms are looked up in it."""
        if self._unindexed and any(term.kind == "words" for term in terms):
            await self._index(-1)

    async def _index(self, most: int) -> None:
        """Let the index of the search have up to so many messages that it does not have yet."""
        self._indexing = True
        try:
            self._unindexed = await self._write(partial(_index, most))
        finally:
            self._indexing = False

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
        await self._catch_up(terms)
        count = None if scope.keys or terms or after else (self._total, self._unread)
        answer: Page = await self._read(partial(_page, scope, terms, start, limit, before, after, exact, count))
        return answer

    async def message(self, message_id: str, scope: Scope = EVERYTHING) -> Message | None:
        found: Message | None = await self._read(partial(_message, message_id, scope))
        return found

    async def content(self, message: Message, start: int = 0, length: int | None = None) -> bytes:
        octets: bytes = await self._read(partial(_content, message.number, start, length))
        return octets

    async def counts(self, scope: Scope = EVERYTHING) -> Counts:
        if not scope.keys:
            return Counts(self._total, self._unread)
        return Counts(*await self._read(partial(_count, scope, (), 0, None)))

    @property
    def last_number(self) -> int:
        return self._last_number

    async def octets(self) -> int:
        return sum(os.path.getsize(path) for path in (self.path, f"{self.path}-wal") if os.path.exists(path))

    # Changes

    @shielded
    async def set_seen(
        self, seen: bool, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()
    ) -> None:
        await self._catch_up(terms)
        count, messages = await self._write(partial(_set_seen, seen, scope, ids, terms))
        self._unread += -count if seen else count
        if count > len(messages):
            self.hub.publish("prune")
        for message in messages:
            self.hub.publish("seen", message)

    @shielded
    async def delete(self, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()) -> None:
        if not scope.keys and ids is None and not terms:
            count = await self._write(_delete_all)
            self._total = self._unread = self._octets = 0
            self._deleted([], count, everything=True)
            return
        await self._catch_up(terms)
        gone, hidden, unread, octets, messages = await self._write(partial(_delete, scope, ids, terms))
        self._total -= gone
        self._unread -= unread
        self._octets -= octets
        if scope.keys and ids is None and not terms:
            self.totals.deleted += gone
            self.hub.publish("truncate", scope=scope)
            self._tell_deleted(gone, messages)
        else:
            self._deleted(messages, gone, everything=False)
        for message in hidden:
            self.hub.publish("delete", message, scope)

    def _tell_deleted(self, gone: int, messages: Sequence[Message]) -> None:
        if gone > len(messages):
            self.hub.publish("prune")
        for message in messages:
            self.hub.publish("delete", message)

    async def tags(self, scope: Scope = EVERYTHING) -> Mapping[str, int]:
        found: Mapping[str, int] = await self._read(partial(_tags, scope))
        return found

    @shielded
    async def set_tags(self, ids: Sequence[str], tags: Sequence[str], scope: Scope = EVERYTHING) -> None:
        clean = list(dict.fromkeys(filter(None, map(clean_tag, tags))))
        for message in await self._write(partial(_set_tags, ids, clean, scope)):
            self.hub.publish("tags", message)

    @shielded
    async def rename_tag(self, old: str, new: str | None, scope: Scope = EVERYTHING) -> None:
        await self._write(partial(_rename_tag, old, new and clean_tag(new), scope))
        self.hub.publish("prune", scope=scope)

    # Retention

    def _prune(self) -> None:
        """Delete the oldest messages if there are too many, or they are too large."""
        kept = self.retention
        too_many = self._total - kept.messages if kept.messages else 0
        too_large = self._octets - kept.octets if kept.octets and self._total > 1 else 0
        if (too_many > 0 or too_large > 0) and not self._pruning:
            self._start_pruning(partial(_oldest, too_many, too_large))

    def _check_ages(self) -> None:
        self._next_check = self._reactor.callLater(CHECKED_EVERY, self._check_ages)
        if self.retention.age and not self._pruning:
            oldest = self._reactor.seconds() - self.retention.age
            self._start_pruning(partial(_older, oldest))

    def _start_pruning(self, choose: Callable[[Connection], list[int]]) -> None:
        self._pruning = True
        self._in_background(self._pruned(choose))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        done = Deferred.fromCoroutine(work)
        done.addErrback(lambda failure: log.failure("work on the inbox failed", failure))

    async def _pruned(self, choose: Callable[[Connection], list[int]]) -> None:
        try:
            gone, _, unread, octets, messages = await self._write(partial(_delete_chosen, choose))
            self._total -= gone
            self._unread -= unread
            self._octets -= octets
            if gone:
                self._deleted(messages, gone, everything=False)
        finally:
            self._pruning = False

    # Sessions

    @shielded
    async def put_session(self, session: SessionRecord) -> None:
        await self._write(partial(_put_session, session), len(session.records))
        self.hub.publish("session")

    async def session(self, session_id: str) -> SessionRecord | None:
        found: SessionRecord | None = await self._read(partial(_session, session_id))
        return found

    async def sessions(self, scope: Scope = EVERYTHING, limit: int = 50) -> list[SessionRecord]:
        found: list[SessionRecord] = await self._read(partial(_sessions, scope, limit))
        return found


def _lock(path: str) -> int | None:
    """A lock that tells other processes that the file is in use. The database's own lock would be lost as soon as this
    process closed any descriptor of it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(error.errno, "another process has it open", path) from None
    return descriptor


# What the writer's thread does


def _insert(arrival: Arrival, headers: Sequence[str], connection: Connection) -> Message:
    parsed = parse(arrival, new_id(), headers)
    message = parsed.message
    cursor = connection.execute(
        "INSERT INTO message (id, arrived, size, inline, attachments, session, facts) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            message.id,
            message.arrived,
            message.size,
            len(message.inline),
            len(message.attachments),
            message.envelope.session,
            json.dumps(message.to_json(), ensure_ascii=False).encode("utf-8", "replace").decode("utf-8"),
        ),
    )
    number = int(cursor.lastrowid or 0)
    connection.execute("INSERT INTO content VALUES (?, ?)", (number, arrival.content))
    row = (number, *(_storable(parsed.folded[name]) for name in schema.COLUMNS))
    connection.execute(schema.INSERT_FOLDED, row)
    connection.executemany(
        "INSERT OR IGNORE INTO key VALUES (?, ?, ?)",
        [(name, _storable(value), number) for name, value in message.filed],
    )
    tags = [tag for value in parsed.values("x-tags") for each in value.split(",") if (tag := clean_tag(each))]
    connection.executemany("INSERT OR IGNORE INTO tag VALUES (?, ?)", [(number, tag) for tag in tags])
    return replace(message, number=number, tags=tuple(sorted(set(tags))))


def _index(most: int, connection: Connection) -> int:
    """Let the index have up to so many messages that it does not have yet; how many are left."""
    (last,) = connection.execute(schema.INDEXED_TO, (most,)).fetchone()
    if last is None:
        return 0
    connection.execute(schema.INDEX_WORDS, (most,))
    connection.execute("UPDATE state SET indexed = ?", (last,))
    (left,) = connection.execute("SELECT count(*) FROM folded WHERE number > ?", (last,)).fetchone()
    return int(left)


def _storable(text: str) -> str:
    """Text without lone surrogates, which SQLite does not take."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _of_row(row: Row) -> Message:
    number, seen, facts, tags = row
    return Message.from_json(json.loads(facts), number, bool(seen), sorted(set(filter(None, (tags or "").split("\n")))))


def _chosen(scope: Scope, ids: Sequence[str] | None, terms: Terms, connection: Connection) -> list[int]:
    """The numbers of the messages that a change is for."""
    selection = select(scope, terms)
    if ids is None:
        return [number for (number,) in connection.execute(selection.sql("m.number"), selection.values)]
    selection.and_where("m.id IN (SELECT value FROM json_each(?))", json.dumps(list(ids)))
    return [number for (number,) in connection.execute(selection.sql("m.number"), selection.values)]


def _messages(numbers: Iterable[int], connection: Connection) -> list[Message]:
    found = connection.execute(
        f"SELECT {ROW} FROM message m WHERE m.number IN (SELECT value FROM json_each(?)) ORDER BY m.number",
        (json.dumps(list(numbers)),),
    )
    return [_of_row(row) for row in found]


def _set_seen(
    seen: bool, scope: Scope, ids: Sequence[str] | None, terms: Terms, connection: Connection
) -> tuple[int, list[Message]]:
    numbers = _chosen(scope, ids, terms, connection)
    cursor = connection.executemany(
        "UPDATE message SET seen = ? WHERE number = ? AND seen <> ?",
        [(int(seen), number, int(seen)) for number in numbers],
    )
    count = max(cursor.rowcount, 0)
    told = _messages(numbers, connection) if len(numbers) <= TOLD else []
    return count, told


def _delete_all(connection: Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM message").fetchone()
    for table in ("message", "content", "folded", "key", "tag", "hidden"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("INSERT INTO words (words) VALUES ('delete-all')")
    connection.execute(
        "UPDATE state SET indexed = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0)"
    )
    return int(count)


Deleted = tuple[int, list[Message], int, int, list[Message]]


def _delete(scope: Scope, ids: Sequence[str] | None, terms: Terms, connection: Connection) -> Deleted:
    numbers = _chosen(scope, ids, terms, connection)
    hidden: list[Message] = []
    if scope.keys:
        shared = [message for message in _messages(numbers, connection) if not scope.alone_has(message)]
        connection.executemany(
            "INSERT OR IGNORE INTO hidden VALUES (?, ?)", [(scope.label, message.number) for message in shared]
        )
        hidden = shared
        kept = {message.number for message in shared}
        numbers = [number for number in numbers if number not in kept]
    gone, _, unread, octets, messages = _remove(numbers, connection)
    return gone, hidden, unread, octets, messages


def _delete_chosen(choose: Callable[[Connection], list[int]], connection: Connection) -> Deleted:
    return _remove(choose(connection), connection)


def _remove(numbers: Sequence[int], connection: Connection) -> Deleted:
    messages = _messages(numbers, connection) if len(numbers) <= TOLD else []
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (number INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM doomed")
    connection.executemany("INSERT OR IGNORE INTO doomed VALUES (?)", [(number,) for number in numbers])
    gone, octets, unread = connection.execute(
        "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(seen = 0), 0) FROM message"
        " WHERE number IN (SELECT number FROM doomed)"
    ).fetchone()
    connection.execute(schema.FORGET_WORDS)
    for table in ("message", "content", "folded", "key", "tag", "hidden"):
        connection.execute(f"DELETE FROM {table} WHERE number IN (SELECT number FROM doomed)")
    return gone, [], unread, octets, messages


def _oldest(too_many: int, too_large: int, connection: Connection) -> list[int]:
    numbers = []
    rows = connection.execute("SELECT number, size FROM message ORDER BY number").fetchall()
    for number, size in rows[:-1]:  # the newest stays
        if too_many <= 0 and too_large <= 0:
            break
        numbers.append(number)
        too_many -= 1
        too_large -= size
    return numbers


def _older(oldest: float, connection: Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT number FROM message WHERE arrived < ?", (oldest,))]


def _set_tags(ids: Sequence[str], tags: Sequence[str], scope: Scope, connection: Connection) -> list[Message]:
    numbers = _chosen(scope, ids, (), connection)
    connection.executemany("DELETE FROM tag WHERE number = ?", [(number,) for number in numbers])
    connection.executemany(
        "INSERT OR IGNORE INTO tag VALUES (?, ?)", [(number, tag) for number in numbers for tag in tags]
    )
    return _messages(numbers[:TOLD], connection)


def _rename_tag(old: str, new: str | None, scope: Scope, connection: Connection) -> None:
    numbers = [
        number
        for (number,) in connection.execute("SELECT number FROM tag WHERE name = ? COLLATE NOCASE", (old,)).fetchall()
    ]
    if scope.keys:
        ours = set(_chosen(scope, None, (), connection))
        numbers = [number for number in numbers if number in ours]
    connection.executemany(
        "DELETE FROM tag WHERE number = ? AND name = ? COLLATE NOCASE", [(number, old) for number in numbers]
    )
    if new:
        connection.executemany("INSERT OR IGNORE INTO tag VALUES (?, ?)", [(number, new) for number in numbers])


def _put_session(session: SessionRecord, connection: Connection) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?)",
        (session.id, session.began, session.ended, session.peer, session.outcome, _storable(session.records)),
    )
    (count,) = connection.execute("SELECT count(*) FROM session").fetchone()
    if count > SESSIONS * 1.1:
        connection.execute(
            "DELETE FROM session WHERE id IN (SELECT id FROM session ORDER BY began LIMIT ?)", (count - SESSIONS,)
        )


# What the readers' threads do


def _totals(connection: Connection) -> tuple[int, int, int, int]:
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
    total, octets, unread = connection.execute(
        "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(seen = 0), 0) FROM message"
    ).fetchone()
    return (last[0] if last else 0), total, octets, unread


def _page(
    scope: Scope,
    terms: Terms,
    start: int,
    limit: int | None,
    before: int | None,
    after: int,
    exact: bool,
    count: tuple[int, int] | None,
    connection: Connection,
) -> Page:
    selection = select(scope, terms)
    if after:
        selection.and_where(f"{selection.order} > ?", after)
    if before is not None:
        selection.and_where(f"{selection.order} < ?", before)
    rest = f"ORDER BY {selection.order} DESC LIMIT ? OFFSET ?"
    values = [*selection.values, -1 if limit is None else limit, start]
    messages = [_of_row(row) for row in connection.execute(selection.sql(ROW, rest), values)]
    if count is None:
        most = None if exact else COUNTED
        count = _count(scope, terms, after, most, connection)
    return Page(messages, *count, is_exact=exact or count[0] <= COUNTED)


def _count(scope: Scope, terms: Terms, after: int, most: int | None, connection: Connection) -> tuple[int, int]:
    selection = select(scope, terms)
    if after:
        selection.and_where(f"{selection.order} > ?", after)
    inner = selection.sql("m.seen = 0 AS unread", "" if most is None else f"LIMIT {most + 1}")
    count, unread = connection.execute(
        f"SELECT count(*), coalesce(sum(unread), 0) FROM ({inner})", selection.values
    ).fetchone()
    return count, unread


def _message(message_id: str, scope: Scope, connection: Connection) -> Message | None:
    selection = select(scope, ())
    selection.and_where("m.id = ?", message_id)
    row = connection.execute(selection.sql(ROW), selection.values).fetchone()
    return None if row is None else _of_row(row)


def _content(number: int, start: int, length: int | None, connection: Connection) -> bytes:
    try:
        with connection.blobopen("content", "octets", number, readonly=True) as blob:
            blob.seek(min(start, len(blob)))
            return blob.read() if length is None else blob.read(length)
    except sqlite3.OperationalError:  # it has been deleted
        return b""


def _tags(scope: Scope, connection: Connection) -> dict[str, int]:
    if not scope.keys:
        return dict(connection.execute("SELECT name, count(*) FROM tag GROUP BY name ORDER BY name").fetchall())
    selection = select(scope, ())
    return dict(
        connection.execute(
            f"SELECT name, count(*) FROM tag WHERE number IN ({selection.sql('m.number')}) GROUP BY name ORDER BY name",
            selection.values,
        ).fetchall()
    )


def _session(session_id: str, connection: Connection) -> SessionRecord | None:
    row = connection.execute("SELECT * FROM session WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else _session_of(row, connection)


def _session_of(row: Any, connection: Connection) -> SessionRecord:
    ids = connection.execute("SELECT id FROM message WHERE session = ? ORDER BY number", (row[0],))
    session_id, began, ended, peer, outcome, records = row
    messages = tuple(message_id for (message_id,) in ids)
    return SessionRecord(session_id, began, ended, peer, outcome, records, messages)


def _sessions(scope: Scope, limit: int, connection: Connection) -> list[SessionRecord]:
    if not scope.keys:
        rows = connection.execute("SELECT * FROM session ORDER BY began DESC LIMIT ?", (limit,)).fetchall()
    else:
        selection = select(scope, ())
        # Sessions in which no mail came are found by what was said in them.
        said = [value for name, value in scope.keys if name in ("to", "domain", "sender") and value]
        named = " AND ".join("instr(lower(records), ?)" for _ in said) or "0"
        rows = connection.execute(
            f"SELECT * FROM session WHERE id IN ({selection.sql('m.session')}) OR ({named})"
            " ORDER BY began DESC LIMIT ?",
            [*selection.values, *said, limit],
        ).fetchall()
    return [_session_of(row, connection) for row in rows]
