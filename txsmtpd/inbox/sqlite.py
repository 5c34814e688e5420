"""A store in an SQLite file, written by one thread and read by two others.

A message is parsed and stored in the writer's thread; :meth:`SQLiteStore.add` returns once it is committed. Without a
path, the file is temporary. The tables are in :mod:`~txsmtpd.inbox.schema`, the statements in
:mod:`~txsmtpd.inbox.jobs`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.inbox import jobs, schema
from txsmtpd.inbox.message import Arrival, Message
from txsmtpd.inbox.scope import EVERYTHING, HEADERS, Scope
from txsmtpd.inbox.search import Terms
from txsmtpd.inbox.store import (
    Counts,
    Page,
    Retention,
    SessionRecord,
    Store,
    StoreError,
    clean_tag,
)
from txsmtpd.inbox.writer import Reader, Writer, shielded

READERS = 2
TOGETHER = 200  # messages to index at once
CHECKED_EVERY = 60.0  # seconds between searches for messages that are too old

log = Logger(namespace="txsmtpd.inbox")

Connection = sqlite3.Connection


class SQLiteStore(Store):
    """Keep mail in a file.

    :param path: the file; created if missing. None: a temporary file, which :meth:`close` deletes.
    :param retention: how much to keep.
    :param headers: the header fields that can be used as scopes, such as ``X-Test``.
    :param reactor: results are delivered in its thread (IReactorFromThreads, IReactorTime). Default: the global one.
    :raises ValueError: if the file is not an inbox.
    :raises OSError: if it cannot be opened, or another process has opened it.
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
        self._folder: str | None = None  # the folder of the temporary file
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
        self._unindexed = 0  # messages that are not in the search index yet
        self._last_number = self._total = self._octets = self._unread = 0

    # Start and stop

    def _prepare(self) -> None:
        self._lock = _lock(self.path)
        try:
            schema.prepare(self.path, self._folder is None)
        except sqlite3.Error as error:
            self._unlock(refused=True)
            raise OSError(None, str(error), self.path) from error
        except BaseException:
            self._unlock(refused=True)
            raise

    async def open(self) -> None:
        """Start the threads, and create the file if it is temporary.

        :raises OSError: if it cannot be created.
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
        self._last_number, self._total, self._octets, self._unread = await self._writer.submit(jobs.totals)
        self._in_background(self._index(-1))
        self._check_ages()

    async def close(self) -> None:
        """Finish pending work, stop the threads, and delete a temporary file."""
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

    def _unlock(self, refused: bool = False) -> None:
        """Let other processes open the file.

        :param refused: whether the file was rejected. Then delete the lock file, too.
        """
        lock, self._lock = self._lock, None
        if lock is not None:
            if refused:
                os.unlink(_lock_name(self.path))
            os.close(lock)

    def _write(self, job: Callable[[Connection], Any], weight: int = 0) -> Deferred[Any]:
        if self._writer is None:
            raise StoreError("the inbox is closed")
        return self._writer.submit(job, weight).addErrback(_as_store_error)

    def _read(self, job: Callable[[Connection], Any]) -> Deferred[Any]:
        if not self._readers:
            raise StoreError("the inbox is closed")
        return self._readers[0].submit(job).addErrback(_as_store_error)

    # Mail

    @shielded
    async def add(self, arrival: Arrival) -> Message:
        try:
            message: Message = await self._write(partial(jobs.insert, arrival, self.headers), len(arrival.content))
        except (StoreError, sqlite3.Error) as error:
            log.error("cannot store mail in {path}: {error}", path=self.path, error=str(error))
            raise error if isinstance(error, StoreError) else StoreError(str(error)) from error
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
        """Index all messages, if these terms need the index."""
        if self._unindexed and any(term.kind == "words" for term in terms):
            await self._index(-1)

    async def _index(self, most: int) -> None:
        """Add up to *most* unindexed messages to the search index. -1: add all."""
        self._indexing = True
        try:
            self._unindexed = await self._write(partial(jobs.index, most))
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
        answer: Page = await self._read(
            partial(jobs.find_page, scope, terms, start, limit, before, after, exact, count)
        )
        return answer

    async def message(self, message_id: str, scope: Scope = EVERYTHING) -> Message | None:
        found: Message | None = await self._read(partial(jobs.find_message, message_id, scope))
        return found

    async def content(self, message: Message, start: int = 0, length: int | None = None) -> bytes:
        octets: bytes = await self._read(partial(jobs.read_content, message.number, start, length))
        return octets

    async def counts(self, scope: Scope = EVERYTHING) -> Counts:
        if not scope.keys:
            return Counts(self._total, self._unread)
        return Counts(*await self._read(partial(jobs.find_counts, scope, (), 0, None)))

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
        count, messages = await self._write(partial(jobs.set_seen, seen, scope, ids, terms))
        self._unread += -count if seen else count
        if count > len(messages):
            self.hub.publish("prune")
        for message in messages:
            self.hub.publish("seen", message)

    @shielded
    async def delete(self, scope: Scope = EVERYTHING, ids: Sequence[str] | None = None, terms: Terms = ()) -> None:
        if not scope.keys and ids is None and not terms:
            count = await self._write(jobs.delete_all)
            self._total = self._unread = self._octets = 0
            self._deleted([], count, everything=True)
            return
        await self._catch_up(terms)
        gone, hidden, unread, octets, messages = await self._write(partial(jobs.delete, scope, ids, terms))
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
        found: Mapping[str, int] = await self._read(partial(jobs.find_tags, scope))
        return found

    @shielded
    async def set_tags(self, ids: Sequence[str], tags: Sequence[str], scope: Scope = EVERYTHING) -> None:
        clean = list(dict.fromkeys(filter(None, map(clean_tag, tags))))
        for message in await self._write(partial(jobs.set_tags, ids, clean, scope)):
            self.hub.publish("tags", message)

    @shielded
    async def rename_tag(self, old: str, new: str | None, scope: Scope = EVERYTHING) -> None:
        await self._write(partial(jobs.rename_tag, old, new and clean_tag(new), scope))
        self.hub.publish("prune", scope=scope)

    # Retention

    def _prune(self) -> None:
        """Delete the oldest messages if there are too many, or too many bytes."""
        kept = self.retention
        too_many = self._total - kept.messages if kept.messages else 0
        too_large = self._octets - kept.octets if kept.octets and self._total > 1 else 0
        if (too_many > 0 or too_large > 0) and not self._pruning:
            self._start_pruning(partial(jobs.oldest, too_many, too_large))

    def _check_ages(self) -> None:
        self._next_check = self._reactor.callLater(CHECKED_EVERY, self._check_ages)
        if self.retention.age and not self._pruning:
            # Do not use the reactor's clock: it may be monotonic, but ages need the time since 1970.
            self._start_pruning(partial(jobs.older, time.time() - self.retention.age))

    def _start_pruning(self, choose: Callable[[Connection], list[int]]) -> None:
        self._pruning = True
        self._in_background(self._delete_chosen(choose))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        done = Deferred.fromCoroutine(work)
        done.addErrback(lambda failure: log.failure("a job of the inbox's database failed", failure))

    async def _delete_chosen(self, choose: Callable[[Connection], list[int]]) -> None:
        try:
            gone, _, unread, octets, messages = await self._write(partial(jobs.delete_chosen, choose))
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
        await self._write(partial(jobs.put_session, session), len(session.records))
        self.hub.publish("session")

    async def session(self, session_id: str) -> SessionRecord | None:
        found: SessionRecord | None = await self._read(partial(jobs.find_session, session_id))
        return found

    async def sessions(self, scope: Scope = EVERYTHING, limit: int = 50) -> list[SessionRecord]:
        found: list[SessionRecord] = await self._read(partial(jobs.find_sessions, scope, limit))
        return found


_DISK_ERRORS = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT),
    *(sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN),
}


def _as_store_error(failure: Failure) -> Failure:
    """Convert an error of the disk or of the file to StoreError. Return other errors unchanged."""
    code = getattr(failure.value, "sqlite_errorcode", 0) & 0xFF
    if code not in _DISK_ERRORS:
        return failure
    return Failure(StoreError(str(failure.value), code == sqlite3.SQLITE_FULL))


def _lock(path: str) -> int | None:
    """Lock the file against use by other processes. SQLite's own lock does not suffice: the system releases it when
    this process closes any descriptor of the file."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        descriptor = os.open(_lock_name(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BlockingIOError(error.errno, "another process has opened it", path) from None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # another process rejected the inbox, and has just deleted this lock file


def _lock_name(path: str) -> str:
    return f"{path}-lock"
