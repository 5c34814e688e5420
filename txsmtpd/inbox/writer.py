"""Threads that own connections to a database: one writes, and commits many changes at once; others read.

A change is done when it is committed; while one commit runs, the next changes queue and share the next commit.
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
WEIGHT = 2**25  # octets in one transaction, roughly

log = Logger(namespace="txsmtpd.inbox")

Job = Callable[[sqlite3.Connection], Any]
_Entry = tuple["Deferred[Any]", Job, int]


def shielded(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A coroutine function that runs to its end, also if whoever awaits it is cancelled, as happens when a client
    leaves: what has been written has to be counted, and told."""

    @wraps(method)
    async def run(*arguments: P.args, **options: P.kwargs) -> T:
        answer: Deferred[T] = Deferred()

        def done(result: Any) -> None:
            if not answer.called:
                answer.callback(result)
            elif isinstance(result, Failure) and not result.check(CancelledError):
                log.failure("{method} failed, and nobody waited for it", result, method=method.__name__)

        Deferred.fromCoroutine(method(*arguments, **options)).addBoth(done)
        return await answer

    return run


class Worker(Generic[T]):
    """A thread with a connection, which runs what it is given.

    :param connect: opens the connection, in the thread.
    :param reactor: whose thread results come back to (IReactorFromThreads).
    :param entries: what to run; shared by the threads that read.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], reactor: Any, name: str, entries: Any = None) -> None:
        self._connect = connect
        self._reactor = reactor
        self._entries: queue.SimpleQueue[_Entry | None] = entries or queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.ended: Deferred[None] = Deferred()  #: fires when the thread has ended
        self._thread.start()

    def submit(self, job: Job, weight: int = 0) -> Deferred[Any]:
        """Run a function with the connection; the Deferred has its result.

        :param weight: octets that it writes, roughly.
        """
        result: Deferred[Any] = Deferred()
        self._entries.put((result, job, weight))
        return result

    def stop(self) -> Deferred[None]:
        """Do what was submitted so far, and end."""
        self._entries.put(None)
        return self.ended

    def _run(self) -> None:
        connection = self._connect()  # to a file that was opened before, so that it raises nothing
        try:
            while (entry := self._entries.get()) is not None:
                if not self._work(connection, entry):
                    break
        finally:
            connection.close()
            self._reactor.callFromThread(self.ended.callback, None)

    def _work(self, connection: sqlite3.Connection, entry: _Entry) -> bool:
        """Run one entry, or more. False: the end was among them."""
        raise NotImplementedError

    def _answer(self, answers: list[tuple[Deferred[Any], Any]]) -> None:
        self._reactor.callFromThread(_fire, answers)


def _fire(answers: list[tuple[Deferred[Any], Any]]) -> None:
    for result, value in answers:
        result.callback(value)  # a Failure becomes an errback


class Reader(Worker[Any]):
    """Runs functions one at a time, each in a transaction, so that it sees one state of the database."""

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
    """Runs all functions that are there in one transaction, each for itself: one that fails undoes only its own."""

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
        # What ends a transaction by itself, such as a full disk, has left nothing to undo.
        if connection.in_transaction:
            connection.execute("ROLLBACK TO attempt")
            connection.execute("RELEASE attempt")
        else:
            raise
        return failure
    connection.execute("RELEASE attempt")
    return result
