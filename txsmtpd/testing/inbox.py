"""Mail that was caught: the messages, who asks for which of them, and who waits for one.

Nothing here knows how mail comes. Everything may be used from any thread.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import re
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default as modern
from functools import cached_property
from typing import Any, Self

from twisted.internet.defer import Deferred

from txsmtpd.session import Envelope, Session, TLSInfo

PATIENCE = 5.0  # seconds; mail that has not come by then will hardly come
SHOWN = 20  # messages that are listed when the one that was wanted did not come

CRITERIA = ("to", "domain", "sender", "user", "subject", "header", "match")  # of a Query

Key = tuple[str, str]


class NoMailArrived(AssertionError):
    """The mail that was waited for did not come; the text says what did."""


@dataclass(frozen=True, eq=False)
class Mail:
    """A message that was caught, and what is known of how it came."""

    mail_from: str  #: the reverse-path; ``""`` for a bounce
    rcpt_tos: tuple[str, ...]  #: the forward-paths, in order
    content: bytes = field(repr=False)  #: the message as it came, dots undone
    mail_options: tuple[str, ...] = ()  #: parameters of MAIL
    rcpt_options: tuple[str, ...] = ()  #: parameters of RCPT
    peer: Any = None  #: the client's address
    host_name: str | None = None  #: what the client said in EHLO
    tls: TLSInfo | None = None  #: the terms of TLS, or None
    user: str | None = None  #: who has authenticated, or None
    session_id: str = ""  #: which session it came in
    arrived: float = field(default_factory=time.time)  #: seconds since the epoch

    @classmethod
    def of(cls, session: Session, envelope: Envelope) -> Self:
        """The mail in this envelope."""
        content = envelope.original_content or b""
        return cls(
            mail_from=envelope.mail_from or "",
            rcpt_tos=tuple(envelope.rcpt_tos),
            content=content,
            mail_options=tuple(envelope.mail_options),
            rcpt_options=tuple(envelope.rcpt_options),
            peer=session.peer,
            host_name=session.host_name,
            tls=session.ssl,
            user=_user(session),
            session_id=session.id,
        )

    @cached_property
    def message(self) -> EmailMessage:
        """The message, parsed when it is first asked for."""
        parsed: EmailMessage = BytesParser(policy=modern).parsebytes(self.content)
        return parsed

    @property
    def subject(self) -> str:
        """What stands in the field Subject, decoded; ``""`` without one."""
        return str(self.message["Subject"] or "")

    @property
    def text(self) -> str:
        """The body as plain text, or as HTML if there is nothing else; ``""`` without either. Lines end in LF.

        A charset that nobody knows is read as UTF-8.
        """
        body = self.message.get_body(("plain", "html"))
        if body is None:
            return ""
        try:
            text = str(body.get_content())
        except (LookupError, UnicodeError):
            octets: Any = body.get_payload(decode=True)
            text = octets.decode("utf-8", "replace")
        return text.replace("\r\n", "\n")

    def __str__(self) -> str:
        return f"from {self.mail_from!r} to {list(self.rcpt_tos)!r}, subject {self.subject!r}"

    # On its way to another process

    def to_json(self) -> dict[str, Any]:
        """The mail as JSON has it; what a client's certificate said is lost."""
        facts = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        tls = self.tls and {
            "protocol": self.tls.protocol,
            "cipher": self.tls.cipher,
            "server_name": self.tls.server_name,
        }
        return facts | {"content": base64.b64encode(self.content).decode("ascii"), "tls": tls}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The mail that :meth:`to_json` has written."""
        tuples = {name: tuple(facts[name]) for name in ("rcpt_tos", "mail_options", "rcpt_options")}
        peer = tuple(facts["peer"]) if isinstance(facts["peer"], list) else facts["peer"]
        tls = TLSInfo(**facts["tls"]) if facts["tls"] else None
        return cls(**{**facts, **tuples, "peer": peer, "tls": tls, "content": base64.b64decode(facts["content"])})


def _user(session: Session) -> str | None:
    if not session.authenticated:
        return None
    login = session.auth_data if session.auth_data is not None else session.login_data
    login = getattr(login, "login", login)
    return login.decode("utf-8", "replace") if isinstance(login, bytes) else str(login)


class Query:
    """What mail is asked for. Each criterion that is given has to hold.

    :param to: a recipient.
    :param domain: the domain of a recipient.
    :param sender: the reverse-path.
    :param user: who has authenticated.
    :param subject: the subject; or a compiled pattern, to be found in it.
    :param header: fields of the header and their values.
    :param match: a function that takes a :class:`Mail` and tells.

    :raises TypeError: for a criterion that there is not, with the nearest that there is; or one that is no string.

    Addresses, domains and names of fields are the same in upper and lower case.
    """

    def __init__(
        self,
        *,
        to: str | None = None,
        domain: str | None = None,
        sender: str | None = None,
        user: str | None = None,
        subject: str | re.Pattern[str] | None = None,
        header: Mapping[str, str] | None = None,
        match: Callable[[Mail], object] | None = None,
        **unknown: object,
    ) -> None:
        for name in unknown:
            near = difflib.get_close_matches(name, CRITERIA, 1)
            hint = f"is {near[0]} meant?" if near else f"there are {', '.join(CRITERIA)}"
            raise TypeError(f"{name} is no criterion; {hint}")
        named = {"to": to, "domain": domain, "sender": sender}
        strings = {
            **named,
            "user": user,
            "subject": None if isinstance(subject, re.Pattern) else subject,
            **(header or {}),
        }
        for name, value in strings.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, not {value!r}")
        keys: list[Key] = [(name, value.lower()) for name, value in named.items() if value is not None]
        if user is not None:
            keys.append(("user", user))
        if isinstance(subject, str):
            keys.append(("subject", subject))
        keys += [(f"header {name.lower()}", value) for name, value in (header or {}).items()]
        self.keys = tuple(keys)
        self.pattern = subject if isinstance(subject, re.Pattern) else None
        self.match = match

    def matches(self, mail: Mail) -> bool:
        """Whether the mail is what is asked for."""
        if not all(value in values_of(mail, name) for name, value in self.keys):
            return False
        if self.pattern is not None and not self.pattern.search(mail.subject):
            return False
        return self.match is None or bool(self.match(mail))

    def __str__(self) -> str:
        words = [f"{name} {value!r}" for name, value in self.keys]
        if self.pattern is not None:
            words.append(f"subject like {self.pattern.pattern!r}")
        if self.match is not None:
            words.append(f"that {getattr(self.match, '__name__', 'the function')} matches")
        return ", ".join(words)


def values_of(mail: Mail, name: str) -> Iterable[str]:
    """What a mail has under the name of a criterion."""
    if name == "to":
        return {path.lower() for path in mail.rcpt_tos}
    if name == "domain":
        return {path.rpartition("@")[2].lower() for path in mail.rcpt_tos}
    if name == "sender":
        return (mail.mail_from.lower(),)
    if name == "user":
        return () if mail.user is None else (mail.user,)
    if name == "subject":
        return (mail.subject,)
    return {str(value) for value in mail.message.get_all(name.removeprefix("header "), ())}


@dataclass(eq=False)
class _Waiter:
    inbox: Inbox
    query: Query
    tell: Callable[[Mail], object]
    forget: Callable[[], object] = int


class Store:
    """All mail that was caught, oldest first, within bounds; older mail makes room for newer.

    :param count: messages that are kept.
    :param octets: of all messages together. The newest is kept whatever its size.
    :param age: seconds that a message is kept; None: for ever.
    :param clock: tells the seconds since the epoch.
    :raises TypeError: if a bound is no number.
    :raises ValueError: if a bound leaves no room.
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
        self.dropped = 0  #: messages that had to make room
        self._count, self._octets, self._age, self._clock = count, octets, age, clock
        self._all: dict[int, Mail] = {}  # by number, in order
        self._size = 0
        self._number = 0
        # For each name of a criterion that was ever asked for: the numbers of the mail that has a value.
        self._index: dict[str, dict[str, dict[int, None]]] = {}
        self._waiters: list[_Waiter] = []

    def add(self, mail: Mail) -> None:
        """Keep the mail, and tell who waits for it."""
        with self.lock:
            number = self._number = self._number + 1
            self._all[number] = mail
            self._size += len(mail.content)
            for name, numbers in self._index.items():
                _enter(numbers, name, number, mail)
            self._prune()
            told = []
            for each in list(self._waiters):
                if each.inbox.wants(number, mail, each.query):
                    each.inbox.taken.add(number)
                    self._waiters.remove(each)
                    told.append(each)
        for each in told:
            each.tell(mail)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def last_number(self) -> int:
        """The number of the newest mail there ever was."""
        return self._number

    def find(self, *queries: Query, after: int = 0) -> Iterator[tuple[int, Mail]]:
        """The mail that all the queries ask for, oldest first, with its numbers."""
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
        """Forget this mail."""
        with self.lock:
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
        """Nobody waits any more."""
        with self.lock:
            waiters, self._waiters = self._waiters, []
        for each in waiters:
            each.forget()

    def give_up(self, waiter: _Waiter) -> bool:
        """Wait no more; whether it still was waited for."""
        with self.lock:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            return True


def _enter(numbers: dict[str, dict[int, None]], name: str, number: int, mail: Mail) -> None:
    for value in values_of(mail, name):
        numbers.setdefault(value, {})[number] = None


class Inbox:
    """A view of the mail that was caught: that which somebody asks for.

    :param store: where the mail is.
    :param query: what is asked for.
    :param after: the number of the last mail that is too old to count.
    """

    def __init__(self, store: Store, query: Query, after: int = 0) -> None:
        self._store = store
        self._query = query
        self._after = after
        self.taken: set[int] = set()  # what next() and wait() have given

    # What others supply

    @property
    def _timer(self) -> Any:
        """What keeps the time of who waits in the reactor's thread."""
        from twisted.internet import reactor

        return reactor

    def _catch_up(self) -> None:
        """See to it that all mail that was taken is in the store."""

    def _soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call the function, in the reactor's thread, once the client has had its reply."""
        function(*arguments)

    # What is there

    @property
    def messages(self) -> list[Mail]:
        """The mail that is there, oldest first."""
        self._catch_up()
        return [mail for _, mail in self._store.find(self._query, after=self._after)]

    def find(self, **criteria: Any) -> list[Mail]:
        """The mail that is there and fits; the criteria are those of :class:`Query`."""
        self._catch_up()
        return [mail for _, mail in self._store.find(self._query, Query(**criteria), after=self._after)]

    def inbox(self, **criteria: Any) -> Inbox:
        """An inbox within this one, for the mail that fits; the criteria are those of :class:`Query`.

        It sees what is there already, and what comes. Its :meth:`clear` clears nothing but its own mail.
        """
        return _Within(self, Query(**criteria))

    def private_inbox(self, domain: str) -> PrivateInbox:
        """An inbox for the mail to one domain, which nobody else uses."""
        return PrivateInbox(self, domain)

    def clear(self) -> None:
        """Forget all mail of this inbox."""
        self._catch_up()
        self._store.remove([number for number, _ in self._store.find(self._query, after=self._after)])

    # What will be there

    def next(self, *, timeout: float = PATIENCE, **criteria: Any) -> Awaitable[Mail]:
        """Await the next mail that fits: the oldest that was not given yet, or else the one that comes.

        To be awaited in the reactor's thread (it is a Deferred), or in a task of asyncio (it is a future then). It
        fires when the mail is there; nothing looks again and again. Each mail is given once.

        :param timeout: seconds.
        :param criteria: those of :class:`Query`.
        :raises NoMailArrived: if it did not come in time.
        :raises RuntimeError: if this is neither of these places.
        """
        if in_asyncio():
            return self._next_in_asyncio(timeout, criteria)
        _refuse_other_threads()
        return self._next_in_twisted(timeout, criteria)

    def wait(self, *, timeout: float = PATIENCE, **criteria: Any) -> Mail:
        """Wait for the next mail that fits, as :meth:`next` does, for code that is not asynchronous.

        :raises NoMailArrived: if it did not come in time.
        :raises RuntimeError: if this is the reactor's own thread, which would wait for itself.
        """
        found: Future[Mail] = Future()
        mail, waiter = self._begin(criteria, found.set_result)
        if mail is not None:
            return mail
        try:
            _refuse_to_block()
            return found.result(timeout)
        except TookTooLong:
            if self._store.give_up(waiter):
                raise self._missing(waiter, timeout) from None
            return found.result()  # it has come at the last moment
        except BaseException:
            self._store.give_up(waiter)
            raise

    def _next_in_twisted(self, timeout: float, criteria: Mapping[str, Any]) -> Deferred[Mail]:
        def cancel(_: Deferred[Mail]) -> None:
            self._store.give_up(waiter)

        def too_late() -> None:
            if self._store.give_up(waiter):
                arrival.errback(self._missing(waiter, timeout))

        def arrived(mail: Mail) -> None:
            self._soon(fire, mail)

        def fire(mail: Mail) -> None:
            if not arrival.called:
                arrival.callback(mail)

        def stop_the_clock(result: Any = None) -> Any:
            if deadline.active():
                deadline.cancel()
            return result

        arrival: Deferred[Mail] = Deferred(cancel)
        mail, waiter = self._begin(criteria, arrived)
        if mail is not None:
            arrival.callback(mail)
        else:
            deadline = self._timer.callLater(timeout, too_late)
            arrival.addBoth(stop_the_clock)
            waiter.forget = stop_the_clock
        return arrival

    def _next_in_asyncio(self, timeout: float, criteria: Mapping[str, Any]) -> asyncio.Future[Mail]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Mail] = loop.create_future()

        def arrived(mail: Mail) -> None:
            loop.call_soon_threadsafe(_set, future, mail)

        def too_late() -> None:
            if self._store.give_up(waiter) and not future.done():
                future.set_exception(self._missing(waiter, timeout))

        mail, waiter = self._begin(criteria, arrived)
        if mail is not None:
            future.set_result(mail)
            return future
        deadline = loop.call_later(timeout, too_late)

        def done(_: asyncio.Future[Mail]) -> None:
            deadline.cancel()
            self._store.give_up(waiter)

        future.add_done_callback(done)
        return future

    def _begin(self, criteria: Mapping[str, Any], tell: Callable[[Mail], object]) -> tuple[Mail | None, _Waiter]:
        """The mail if it is there already; otherwise, who is told once it is."""
        waiter = _Waiter(self, Query(**criteria), tell)
        self._catch_up()
        with self._store.lock:
            for number, mail in self._store.find(self._query, waiter.query, after=self._after):
                if number not in self.taken:
                    self.taken.add(number)
                    return mail, waiter
            self._store.await_mail(waiter)
        return None, waiter

    def wants(self, number: int, mail: Mail, query: Query) -> bool:
        """Whether a mail that comes is what somebody waits for here."""
        return number not in self.taken and self._query.matches(mail) and query.matches(mail)

    def _missing(self, waiter: _Waiter, timeout: float) -> NoMailArrived:
        wanted = ", ".join(filter(None, (str(self._query), str(waiter.query))))
        there = list(self._store.find(self._query, after=self._after))
        lines = [f"no mail {wanted + ' ' if wanted else ''}arrived within {timeout:g} seconds"]
        if not there:
            lines.append("nothing arrived at all")
        else:
            lines.append(f"what did arrive ({len(there)}):")
            lines += [f"  {mail}{' (given before)' if number in self.taken else ''}" for number, mail in there[-SHOWN:]]
        if self._store.dropped:
            lines.append(f"{self._store.dropped} older messages had to make room")
        return NoMailArrived("\n".join(lines))


class _Within(Inbox):
    """An inbox within another."""

    def __init__(self, outer: Inbox, query: Query) -> None:
        super().__init__(outer._store, _Both(outer._query, query), outer._after)
        self._outer = outer

    @property
    def _timer(self) -> Any:
        return self._outer._timer

    def _catch_up(self) -> None:
        self._outer._catch_up()

    def _soon(self, function: Callable[..., object], *arguments: Any) -> None:
        self._outer._soon(function, *arguments)


class PrivateInbox(_Within):
    """The inbox of one test among many, on a server that they share: that of a domain of its own."""

    def __init__(self, outer: Inbox, domain: str) -> None:
        super().__init__(outer, Query(domain=domain))
        self.domain = domain

    def address(self, name: str = "somebody") -> str:
        """An address whose mail comes here."""
        return f"{name}@{self.domain}"


class _Both(Query):
    """What two queries ask for."""

    def __init__(self, first: Query, second: Query) -> None:
        super().__init__(match=lambda mail: first.matches(mail) and second.matches(mail))
        self.keys = first.keys + second.keys
        self._words = ", ".join(filter(None, (str(first), str(second))))

    def __str__(self) -> str:
        return self._words


def in_asyncio() -> bool:
    """Whether a task of asyncio is what runs now. A reactor on asyncio has a loop, but runs no task."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _set(future: asyncio.Future[Mail], mail: Mail) -> None:
    if not future.done():
        future.set_result(mail)


def _refuse_other_threads() -> None:
    from twisted.internet import reactor
    from twisted.python.threadable import isInIOThread

    if reactor.running and not isInIOThread():
        raise RuntimeError("this is not the reactor's thread, and no task of asyncio: use wait() instead of next()")


def _refuse_to_block() -> None:
    from twisted.internet import reactor
    from twisted.python.threadable import isInIOThread

    if reactor.running and isInIOThread():
        raise RuntimeError("this is the reactor's own thread, which would wait for itself; await next() instead")
