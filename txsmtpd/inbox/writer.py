"""Threads that own database connections: one writes, and commits many changes at once; others read.

A change is done when it is committed. While one commit runs, further changes are queued and share the next commit.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

T = TypeVar("T")
P = ParamSpec("P")
BATCH = 500  # changes in one transaction
WEIGHT = 2**25  # bytes in one transaction, approximately

log = Logger(namespace="txsmtpd.inbox")

Job = Callable[[sqlite3.Connection], Any]
_Entry = tuple["Deferred[Any]", Job, int]


def shielded(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a coroutine function run to its end even if its awaiter is cancelled, as when a client disconnects: what
    was written must be counted and published."""

    @wraps(method)
    async def run(*arguments: P.args, **options: P.kwargs) -> T:
        answer: Deferred[T] = Deferred()

        def done(result: Any) -> None:
            if not answer.called:
                answer.callback(result)
            elif isinstance(result, Failure) and not result.check(CancelledError):
                log.failure("{method} failed in the background", result, method=method.__name__)

        Deferred.fromCoroutine(method(*arguments, **options)).addBoth(done)
        return await answer

    return run


class Worker(Generic[T]):
    """A thread that owns a connection and runs functions with it.

    :param connect: opens the connection, in the thread.
    :param reactor: results are delivered in its thread (IReactorFromThreads).
    :param entries: the queue of functions to run, shared by the reading threads.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], reactor: Any, name: str, entries: Any = None) -> None:
        self._connect = connect
        self._reactor = reactor
        self._entries: queue.SimpleQueue[_Entry | None] = entries or queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.ended: Deferred[None] = Deferred()  #: fires when the thread has ended
        self._thread.start()

    def submit(self, job: Job, weight: int = 0) -> Deferred[Any]:
        """Run a function with the connection. The Deferred fires with its result.

        :param weight: bytes that it writes, approximately.
        """
        result: Deferred[Any] = Deferred()
        self._entries.put((result, job, weight))
        return result

    def stop(self) -> Deferred[None]:
        """Finish what was submitted so far, and stop."""
        self._entries.put(None)
        return self.ended

    def _run(self) -> None:
        connection = self._connect()  # does not raise: the file was opened before
        try:
            while (entry := self._entries.get()) is not None:
                if not self._work(connection, entry):
                    break
        finally:
            connection.close()
            self._reactor.callFromThread(self.ended.callback, None)

    def _work(self, connection: sqlite3.Connection, entry: _Entry) -> bool:
        """Run one or more entries. Return False if the thread has to stop."""
        raise NotImplementedError

    def _answer(self, answers: list[tuple[Deferred[Any], Any]]) -> None:
        self._reactor.callFromThread(_fire, answers)


def _fire(answers: list[tuple[Deferred[Any], Any]]) -> None:
    for result, value in answers:
        result.callback(value)  # a Failure becomes an errback


class Reader(Worker[Any]):
    """Runs functions one at a time, each in a transaction, so that each sees a consistent database."""

    def _work(self, connection: sqlite3.Connection, entry: _Entry) -> bool:
        result, job, _ = entry
        try:
            connection.execute("BEGIN")
            try:
                answer = job(connection)
            finally:
                connection.execute("COMMIT")
        except BaseException:
            answer = Failure()
        self._answer([(result, answer)])
        return True


class Writer(Worker[Any]):
    """Runs all queued functions in one transaction. If one fails, only its own changes are rolled back."""

    def _work(self, connection: sqlite3.Connection, entry: _Entry) -> bool:
        goes_on, entries = self._take(entry)
        try:
            connection.execute("BEGIN IMMEDIATE")
            answers = [(result, _attempt(connection, job)) for result, job, _ in entries]
            connection.execute("COMMIT")
        except BaseException:
            failure = Failure()
            answers = [(result, failure) for result, _, _ in entries]
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self._answer(answers)
        return goes_on

    def _take(self, first: _Entry) -> tuple[bool, list[_Entry]]:
        entries, weight = [first], first[2]
        while len(entries) < BATCH and weight < WEIGHT:
            try:
                entry = self._entries.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return False, entries
            entries.append(entry)
            weight += entry[2]
        return True, entries


def _attempt(connection: sqlite3.Connection, job: Job) -> Any:
    connection.execute("SAVEPOINT attempt")
    try:
        result = job(connection)
    except BaseException:
        failure = Failure()
        # Some errors, such as a full disk, end the transaction themselves; then nothing is left to roll back.
        if connection.in_transaction:
            connection.execute("ROLLBACK TO attempt")
            connection.execute("RELEASE attempt")
        else:
            raise
        return failure
    connection.execute("RELEASE attempt")
    return result
