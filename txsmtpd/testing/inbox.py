"""The inbox: finds caught mail and waits for it. :mod:`txsmtpd.testing.mail` parses the messages.

This module does not depend on how mail arrives. It is thread-safe.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from txsmtpd.bridges.reactors import current_reactor, global_reactor, has_reactor, runs_here
from txsmtpd.settings import want_number
from txsmtpd.testing.mail import Mail
from txsmtpd.testing.query import Both, Query, values_of

__all__ = ["Inbox", "Mail", "NoMailArrived", "PrivateInbox", "Query", "Store", "UnexpectedMail", "in_asyncio"]

PATIENCE = 5.0  # seconds; mail that has not arrived by then will probably not arrive
SHOWN = 20  # messages to list if the expected one did not arrive


class NoMailArrived(AssertionError):
    """The expected mail did not arrive. The message lists the mail that did."""


class UnexpectedMail(AssertionError):
    """Mail arrived although none was expected. The message lists it."""


@dataclass(eq=False)
class _Waiter:
    inbox: Inbox
    query: Query
    tell: Callable[[Mail], object]
    fail: Callable[[Exception], object]  # called with the exception that the query raised for a new mail
    forget: Callable[[], object] = int


class Watcher(Protocol):
    """Is notified of mail in a store."""

    def mail_added(self, number: int, mail: Mail) -> object: ...

    def mail_removed(self, numbers: Iterable[int]) -> object: ...


class Store:
    """All mail that was caught, oldest first, within limits. The oldest mail is dropped first.

    :param count: maximum number of messages.
    :param octets: maximum size of all messages together. The newest is kept whatever its size.
    :param age: seconds to keep a message. None: for ever.
    :param clock: returns the seconds since the epoch.
    :raises TypeError: if a limit is not a number.
    :raises ValueError: if a limit allows no mail.
    """

    def __init__(
        self, count: int, octets: int, age: float | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        for name, bound, kind in ("count", count, int), ("octets", octets, int), ("age", age, int | float):
            if bound is None and name == "age":
                continue
            if isinstance(bound, bool) or not isinstance(bound, kind):
                raise TypeError(f"{name} must be a number, not {bound!r}")
            if bound <= 0:
                raise ValueError(f"{name} must be more than 0, not {bound!r}; otherwise nothing is kept")
        self.lock = threading.RLock()
        self.dropped = 0  #: messages dropped because of the limits
        self._count, self._octets, self._age, self._clock = count, octets, age, clock
        self._all: dict[int, Mail] = {}  # by number, in order
        self._size = 0
        self._number = 0
        # For each criterion used so far: the numbers of the mail, by value.
        self._index: dict[str, dict[str, dict[int, None]]] = {}
        self._waiters: list[_Waiter] = []
        self.watchers: list[Watcher] = []  #: notified of added and removed mail, with the lock held

    def add(self, mail: Mail) -> None:
        """Add the mail, and notify those who wait for it."""
        with self.lock:
            number = self._number = self._number + 1
            self._all[number] = mail
            self._size += len(mail.content)
            for name, numbers in self._index.items():
                _enter(numbers, name, number, mail)
            for watcher in self.watchers:
                watcher.mail_added(number, mail)
            self._prune()
            told: list[Callable[[], object]] = []
            for each in list(self._waiters):
                try:
                    if not each.inbox.wants(number, mail, each.query):
                        continue
                    each.inbox.taken.add(number)
                    told.append(partial(each.tell, mail))
                except Exception as error:  # for the waiting code, not for the sender
                    told.append(partial(each.fail, error))
                self._waiters.remove(each)
        for tell in told:
            tell()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def last_number(self) -> int:
        """The number of the newest mail, even if it was removed."""
        return self._number

    def find(self, *queries: Query, after: int = 0) -> Iterator[tuple[int, Mail]]:
        """Yield the number and the mail that matches all queries, oldest first."""
        with self.lock:
            self._prune()
            keys = [key for query in queries for key in query.keys]
            numbers: Iterable[int] = self._all
            for name, value in keys:
                found = self._numbers(name).get(value, {})
                if numbers is self._all or len(found) < len(numbers):  # type: ignore[arg-type]
                    numbers = found
            candidates = [(number, self._all[number]) for number in numbers if number > after]
        return ((number, mail) for number, mail in candidates if all(query.matches(mail) for query in queries))

    def _numbers(self, name: str) -> dict[str, dict[int, None]]:
        numbers = self._index.get(name)
        if numbers is None:
            numbers = self._index[name] = {}
            for number, mail in self._all.items():
                _enter(numbers, name, number, mail)
        return numbers

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove this mail."""
        with self.lock:
            numbers = list(numbers)
            for watcher in self.watchers:
                watcher.mail_removed(numbers)
            for number in numbers:
                mail = self._all.pop(number, None)
                if mail is None:
                    continue
                self._size -= len(mail.content)
                for name, values in self._index.items():
                    for value in values_of(mail, name):
                        entry = values.get(value, {})
                        entry.pop(number, None)
                        if not entry:
                            values.pop(value, None)

    def _prune(self) -> None:
        too_old = deque[int]()
        size, count = self._size, len(self._all)
        oldest = None if self._age is None else self._clock() - self._age
        for number, mail in self._all.items():
            over = count > self._count or (size > self._octets and count > 1)
            if not over and (oldest is None or mail.arrived > oldest):
                break
            too_old.append(number)
            size -= len(mail.content)
            count -= 1
        self.dropped += len(too_old)
        self.remove(too_old)

    def await_mail(self, waiter: _Waiter) -> None:
        with self.lock:
            self._waiters.append(waiter)

    def forget_waiters(self) -> None:
        """Forget all waiters."""
        with self.lock:
            waiters, self._waiters = self._waiters, []
        for each in waiters:
            each.forget()

    def give_up(self, waiter: _Waiter) -> bool:
        """Remove a waiter. Return True if it was still waiting."""
        with self.lock:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            return True


def _enter(numbers: dict[str, dict[int, None]], name: str, number: int, mail: Mail) -> None:
    for value in values_of(mail, name):
        numbers.setdefault(value, {})[number] = None


class Inbox:
    """A view of the caught mail: the messages that match a query.

    :param store: the store of all mail.
    :param query: the query.
    :param after: mail up to this number is ignored.
    """

    def __init__(self, store: Store, query: Query, after: int = 0) -> None:
        self._store = store
        self._query = query
        self._after = after
        self.taken: set[int] = set()  # numbers of the mail that next() and wait() have returned

    # Overridden by subclasses

    @property
    def _timer(self) -> Any:
        """The reactor that runs in this thread, for timeouts.

        :raises RuntimeError: if none is running.
        """
        if asyncio._get_running_loop() is None and not (has_reactor() and runs_here(global_reactor())):
            raise RuntimeError("no reactor runs in this thread, and no task of asyncio: use wait() instead of next()")
        return current_reactor()

    @property
    def _serves_here(self) -> bool:
        """True if the server runs in the calling thread."""
        return False

    def _catch_up(self) -> None:
        """Make sure that all accepted mail is in the store."""

    def _soon(self, reactor: Any, function: Callable[..., object], *arguments: Any) -> None:
        """Call the function in this reactor's thread, after the client has received its reply."""
        function(*arguments)

    # What is there

    def __len__(self) -> int:
        """The number of messages."""
        return len(self.messages)

    def __bool__(self) -> bool:
        return True  # an empty inbox is true

    @property
    def messages(self) -> list[Mail]:
        """The mail in the inbox, oldest first."""
        self._catch_up()
        return [mail for _, mail in self._store.find(self._query, after=self._after)]

    def find(self, **criteria: Any) -> list[Mail]:
        """Return the mail that matches; for the criteria see :class:`Query`."""
        self._catch_up()
        return [mail for _, mail in self._store.find(self._query, Query(**criteria), after=self._after)]

    def inbox(self, **criteria: Any) -> Inbox:
        """Return an inbox with the mail of this one that matches; for the criteria see :class:`Query`.

        It has mail that is already here and mail that arrives later. Its :meth:`clear` removes only its own mail.
        """
        return _Within(self, Query(**criteria))

    def private_inbox(self, domain: str) -> PrivateInbox:
        """Return an inbox for the mail to a domain that no other test uses."""
        return PrivateInbox(self, domain)

    def clear(self) -> None:
        """Remove all mail of this inbox."""
        self._catch_up()
        self._store.remove([number for number, _ in self._store.find(self._query, after=self._after)])

    # What will be there

    def next(self, *, timeout: float = PATIENCE, **criteria: Any) -> Awaitable[Mail]:
        """Wait for the next mail that matches: the oldest that was not returned yet, or else the next to arrive.

        Await it in a reactor's thread (it returns a Deferred) or in an asyncio task (it returns a future). It fires as
        soon as the mail arrives, without polling. Each mail is returned once.

        :param timeout: seconds to wait.
        :param criteria: see :class:`Query`.
        :raises NoMailArrived: if no mail arrived in time.
        :raises RuntimeError: if called anywhere else.
        """
        want_number("timeout", timeout, float)
        if in_asyncio():
            return self._next_in_asyncio(timeout, criteria)
        return self._next_in_twisted(timeout, criteria)

    def wait(self, *, timeout: float = PATIENCE, **criteria: Any) -> Mail:
        """Wait for the next mail that matches, as :meth:`next` does, in code that is not asynchronous.

        :raises NoMailArrived: if no mail arrived in time.
        :raises RuntimeError: if called in the reactor's thread, which would wait for itself.
        """
        __tracebackhide__ = True  # makes pytest show the line of the test
        want_number("timeout", timeout, float)
        found: Future[Mail] = Future()
        mail, waiter = self._begin(criteria, found.set_result, found.set_exception)
        if mail is not None:
            return mail
        try:
            self._refuse_to_block("next()")
            found.exception(timeout)  # result() would add frames of concurrent.futures to the traceback
        except TookTooLong:
            if self._store.give_up(waiter):
                raise self._missing(waiter, timeout) from None
        except BaseException:
            self._store.give_up(waiter)
            raise
        return found.result()

    def assert_none(self, *, timeout: float = 0, **criteria: Any) -> None:
        """Check that no matching mail has arrived. Mail that :meth:`wait` and :meth:`next` have returned is ignored.

        :param timeout: seconds to wait for mail that must not arrive. In asynchronous code, await :meth:`none_comes`.
        :param criteria: see :class:`Query`.
        :raises UnexpectedMail: if there is any.
        :raises RuntimeError: if there is a timeout and this is the reactor's thread, which would wait for itself.
        """
        __tracebackhide__ = True
        wanted = Query(**criteria)
        if timeout:
            self._refuse_to_block("none_comes()")
            try:
                mail = self.wait(timeout=timeout, **criteria)
            except NoMailArrived:
                return
            raise self._unexpected(wanted, mail)
        self._catch_up()
        for number, mail in self._store.find(self._query, wanted, after=self._after):
            if number not in self.taken:
                raise self._unexpected(wanted, mail)

    async def none_comes(self, *, timeout: float, **criteria: Any) -> None:
        """Check that no matching mail arrives, as :meth:`assert_none` does. Await it in Twisted or asyncio.

        :raises UnexpectedMail: as soon as any arrives.
        """
        __tracebackhide__ = True
        wanted = Query(**criteria)
        try:
            mail = await self.next(timeout=timeout, **criteria)
        except NoMailArrived:
            return
        raise self._unexpected(wanted, mail)

    def _refuse_to_block(self, instead: str) -> None:
        if self._serves_here or (has_reactor() and runs_here(global_reactor())):
            raise RuntimeError(f"this is the reactor's own thread, which would wait for itself; await {instead}")

    def _next_in_twisted(self, timeout: float, criteria: Mapping[str, Any]) -> Deferred[Mail]:
        def cancel(_: Deferred[Mail]) -> None:
            self._store.give_up(waiter)

        def too_late() -> None:
            if self._store.give_up(waiter):
                arrival.errback(self._missing(waiter, timeout))

        def arrived(mail: Mail) -> None:
            self._soon(timer, fire, mail)

        def failed(error: Exception) -> None:
            self._soon(timer, fire, Failure(error))

        def fire(result: Mail | Failure) -> None:
            if not arrival.called:
                arrival.callback(result)  # a Failure calls the errback

        def stop_the_clock(result: Any = None) -> Any:
            if deadline.active():
                deadline.cancel()
            return result

        timer = self._timer
        arrival: Deferred[Mail] = Deferred(cancel)
        mail, waiter = self._begin(criteria, arrived, failed)
        if mail is not None:
            arrival.callback(mail)
        else:
            deadline = timer.callLater(timeout, too_late)
            arrival.addBoth(stop_the_clock)
            waiter.forget = stop_the_clock
        return arrival

    def _next_in_asyncio(self, timeout: float, criteria: Mapping[str, Any]) -> asyncio.Future[Mail]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Mail] = loop.create_future()

        def arrived(mail: Mail) -> None:
            loop.call_soon_threadsafe(_settle, future, future.set_result, mail)

        def failed(error: Exception) -> None:
            loop.call_soon_threadsafe(_settle, future, future.set_exception, error)

        def too_late() -> None:
            if self._store.give_up(waiter) and not future.done():
                future.set_exception(self._missing(waiter, timeout))

        mail, waiter = self._begin(criteria, arrived, failed)
        if mail is not None:
            future.set_result(mail)
            return future
        deadline = loop.call_later(timeout, too_late)

        def done(_: asyncio.Future[Mail]) -> None:
            deadline.cancel()
            self._store.give_up(waiter)

        future.add_done_callback(done)
        return future

    def _begin(
        self, criteria: Mapping[str, Any], tell: Callable[[Mail], object], fail: Callable[[Exception], object]
    ) -> tuple[Mail | None, _Waiter]:
        """Return the mail if it has already arrived, otherwise a waiter for it."""
        waiter = _Waiter(self, Query(**criteria), tell, fail)
        self._catch_up()
        with self._store.lock:
            for number, mail in self._store.find(self._query, waiter.query, after=self._after):
                if number not in self.taken:
                    self.taken.add(number)
                    return mail, waiter
            self._store.await_mail(waiter)
        return None, waiter

    def wants(self, number: int, mail: Mail, query: Query) -> bool:
        """Return True if a new mail matches the query of a waiter of this inbox."""
        return number not in self.taken and self._query.matches(mail) and query.matches(mail)

    def _missing(self, waiter: _Waiter, timeout: float) -> NoMailArrived:
        wanted = ", ".join(filter(None, (str(self._query), str(waiter.query))))
        there = list(self._store.find(self._query, after=self._after))
        lines = [f"no mail {wanted + ' ' if wanted else ''}arrived within {timeout:g} seconds"]
        if not there:
            lines.append("nothing arrived at all")
        else:
            lines.append(f"mail that arrived ({len(there)}):")
            lines += [
                f"  {mail}{' (returned before)' if number in self.taken else ''}" for number, mail in there[-SHOWN:]
            ]
        if self._store.dropped:
            lines.append(f"{self._store.dropped} older messages were dropped, because of the limits")
        return NoMailArrived("\n".join(lines))

    def _unexpected(self, wanted: Query, mail: Mail) -> UnexpectedMail:
        words = ", ".join(filter(None, (str(self._query), str(wanted))))
        return UnexpectedMail(f"mail {words + ' ' if words else ''}arrived, but none was expected:\n  {mail}")


class _Within(Inbox):
    """An inbox within another."""

    def __init__(self, outer: Inbox, query: Query) -> None:
        super().__init__(outer._store, Both(outer._query, query), outer._after)
        self._outer = outer

    @property
    def _timer(self) -> Any:
        return self._outer._timer

    @property
    def _serves_here(self) -> bool:
        return self._outer._serves_here

    def _catch_up(self) -> None:
        self._outer._catch_up()

    def _soon(self, reactor: Any, function: Callable[..., object], *arguments: Any) -> None:
        self._outer._soon(reactor, function, *arguments)


class PrivateInbox(_Within):
    """The inbox of one test on a shared server: the mail to a domain that only this test uses."""

    def __init__(self, outer: Inbox, domain: str) -> None:
        super().__init__(outer, Query(domain=domain))
        self.domain = domain

    def address(self, name: str = "somebody") -> str:
        """Return an address in the domain of this inbox."""
        return f"{name}@{self.domain}"


def in_asyncio() -> bool:
    """Return True if an asyncio task is running. A reactor on asyncio has a loop, but no task."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _settle(future: asyncio.Future[Mail], settle: Callable[[Any], None], result: Any) -> None:
    if not future.done():
        settle(result)
