"""Shows the mail of tests in a browser, with the pages and the API of :mod:`txsmtpd.inbox`.

:class:`ServedInbox` serves the mail of one catcher: mail deleted there is deleted from the catcher, and the reverse.
:class:`InboxOfRun` has copies of the mail of all catchers of a test run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from txsmtpd.bridges.reactor_thread import ReactorThread
from txsmtpd.bridges.reactors import current_reactor, runs_here
from txsmtpd.inbox.memory import MemoryStore
from txsmtpd.inbox.message import Arrival
from txsmtpd.inbox.scope import EVERYTHING, Scope
from txsmtpd.inbox.search import Term
from txsmtpd.inbox.sessions import record_of
from txsmtpd.inbox.store import Retention, SessionRecord
from txsmtpd.observe.transcript import Transcript, Transcripts, peer_text
from txsmtpd.testing.inbox import Store as Caught
from txsmtpd.testing.mail import Mail

EVERYTHING_IS_KEPT = Retention(0, 0, 0)  # the catcher has its own limits


def arrival_of(mail: Mail) -> Arrival:
    """Convert a caught mail for the inbox."""
    return Arrival(
        content=mail.content,
        mail_from=mail.mail_from,
        rcpt_tos=mail.rcpt_tos,
        mail_options=mail.mail_options,
        rcpt_options=mail.rcpt_options,
        peer=peer_text(mail.peer),
        helo=mail.host_name or "",
        tls=f"{mail.tls.protocol} {mail.tls.cipher}" if mail.tls else "",
        user=mail.user or "",
        session=mail.session_id,
        arrived=mail.arrived,
    )


class CaughtMail(MemoryStore):
    """The mail of a catcher, as a store of the inbox.

    :param caught: the catcher's mail.
    :param transcripts: the transcripts of its sessions, or None.
    :param reactor: the reactor in whose thread the site runs.
    """

    where = "catcher"

    def __init__(self, caught: Caught, transcripts: Transcripts | None, reactor: Any) -> None:
        super().__init__(EVERYTHING_IS_KEPT)
        self._caught = caught
        self._transcripts = transcripts
        self._reactor = reactor
        with caught.lock:
            caught.watchers.append(self)
            for number, mail in caught.find():
                self.hold(arrival_of(mail), number)

    def forget(self) -> None:
        """Stop following the catcher."""
        with self._caught.lock:
            self._caught.watchers.remove(self)

    # Called by the catcher, from any thread

    def mail_added(self, number: int, mail: Mail) -> None:
        """A mail was caught."""
        self._there(lambda: self.hold(arrival_of(mail), number))

    def mail_removed(self, numbers: Iterable[int]) -> None:
        """Mail was removed."""
        gone = list(numbers)
        self._there(lambda: MemoryStore.drop(self, gone))

    def _there(self, act: Callable[[], object]) -> None:
        if runs_here(self._reactor):
            act()
        else:
            self._reactor.callFromThread(act)

    # Called by the site

    async def add(self, arrival: Arrival) -> Any:
        mail = Mail(
            mail_from=arrival.mail_from,
            rcpt_tos=arrival.rcpt_tos,
            content=arrival.content,
            user=arrival.user or None,
            arrived=arrival.arrived,
        )
        self._caught.add(mail)
        return self._held[self.last_number].message

    def drop(self, numbers: Iterable[int]) -> None:
        self._caught.remove(list(numbers))  # which calls mail_removed

    async def session(self, session_id: str) -> SessionRecord | None:
        transcript = None if self._transcripts is None else self._transcripts.of(session_id)
        return None if transcript is None else self._with_messages(record_of(transcript))

    async def sessions(self, scope: Scope = EVERYTHING, limit: int = 50) -> list[SessionRecord]:
        found = [self._with_messages(record_of(each)) for each in reversed(list(self._transcripts or ()))]
        return [session for session in found if self._is_of(session, scope)][:limit]


class ServedInbox:
    """The site of a catcher, on a port.

    :param caught: the catcher's mail.
    :param transcripts: the transcripts of its sessions, or None.
    :param faults: the fault rules that can be switched on and off, or None.
    :param reactor: the reactor to listen on.
    :param port: the port; 0 for any free one.
    """

    def __init__(
        self, caught: Caught, transcripts: Transcripts | None, faults: Any, reactor: Any, port: int, host: str
    ) -> None:
        from txsmtpd.inbox.web.site import WebSettings, make_site

        self.store = CaughtMail(caught, transcripts, reactor)
        self.settings = WebSettings(faults=faults, transcripts=transcripts)
        site = make_site(self.store, self.settings, reactor=reactor)
        try:
            self._port: IListeningPort = reactor.listenTCP(port, site, interface=host)
        except BaseException:
            self.store.forget()
            raise

    @property
    def url(self) -> str:
        """The URL of the site."""
        address: Any = self._port.getHost()
        return f"http://{address.host}:{address.port}"

    def stop(self) -> Any:
        """Serve no more."""
        self.store.forget()
        for client in list(self.settings.live):
            client.end()
        return self._port.stopListening()


class InboxOfRun:
    """The mail of all catchers of a test run on one page. They are copies, which remain when a catcher stops or removes
    mail.

    The site runs on a reactor in a separate thread. Messages have the name of their test as a tag, and ``failed`` if
    the test has failed.

    :param port: the port; 0 for any free one.
    :raises OSError: if the port is not free.
    """

    def __init__(self, port: int, host: str) -> None:
        self._named: dict[str, str] = {}  # names of tests by domain
        self._thread = ReactorThread()
        self._thread.start()
        try:
            self._thread.run(self._start, port, host)
        except BaseException:
            self._thread.stop()
            raise

    def _start(self, port: int, host: str) -> None:
        from txsmtpd.inbox.web.site import WebSettings, make_site

        self._reactor = current_reactor()
        self._store = MemoryStore()
        self._settings = WebSettings(label="tests")
        site = make_site(self._store, self._settings, reactor=self._reactor)
        try:
            self._port: IListeningPort = self._reactor.listenTCP(port, site, interface=host)
        except CannotListenError as error:
            raise OSError(error.socketError.errno, error.socketError.strerror) from None
        address: Any = self._port.getHost()
        self.url = f"http://{address.host}:{address.port}"

    def follow(self, catcher: Any, name: str = "") -> None:
        """Show the mail of a catcher from now on.

        :param name: the name of the test.
        """
        with catcher._store.lock:
            catcher._store.watchers.append(_Copies(self, tag_of(name)))

    def name(self, domain: str, name: str) -> None:
        """Tell which test the mail to a domain belongs to.

        :param name: the name of the test.
        """
        self._named[domain.lower()] = tag_of(name)

    def keep(self, transcripts: Iterable[Transcript] | None) -> None:
        """Show the transcripts of sessions that have ended."""
        for transcript in list(transcripts or ()):
            self._thread.run(self._store.put_session, record_of(transcript))

    def failed(self, name: str) -> bool:
        """Add the tag of failed tests to the messages of a test. Return True if there are any."""
        return bool(self._thread.run(self._mark, tag_of(name)))

    async def _mark(self, tag: str) -> int:
        page = await self._store.page(EVERYTHING, (Term("tag", tag.casefold()),), limit=None)
        for message in page.messages:
            await self._store.set_tags([message.id], [*message.tags, "failed"])
        return len(page.messages)

    def copy(self, mail: Mail, tag: str) -> None:
        """Show a mail. May be called from any thread."""
        domains = {path.rpartition("@")[2].lower() for path in mail.rcpt_tos}
        tags = sorted({name for name in (tag, *map(self._named.get, domains)) if name})
        self._reactor.callFromThread(self._store.hold, arrival_of(mail), None, tags)

    def stop(self) -> None:
        """Serve no more."""
        self._thread.run(self._port.stopListening)
        self._thread.stop()


class _Copies:
    """Copies the mail of a catcher."""

    def __init__(self, inbox: InboxOfRun, tag: str) -> None:
        self._inbox = inbox
        self._tag = tag

    def mail_added(self, number: int, mail: Mail) -> None:
        self._inbox.copy(mail, self._tag)

    def mail_removed(self, numbers: Iterable[int]) -> None: ...


def tag_of(name: str) -> str:
    """Convert a test's name to a tag: characters that are not allowed in tags become hyphens.

    >>> tag_of("test_login[ann/x]")
    'test_login-ann-x'
    """
    return re.sub("[^A-Za-z0-9._@]+", "-", name).strip("-")[:100]
