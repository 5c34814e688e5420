"""A server that collects mail, for tests of code that sends mail.

A :class:`MailCatcher` accepts all mail and all credentials. It runs in memory, on a port of the running reactor (for
trial), or on a port of its own reactor in a thread (for other test runners). The mail is read in the same way in all
cases.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import smtplib
import ssl
import tempfile
import threading
import unittest
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort

from txsmtpd.bridges.asyncio_bridge import to_awaitable
from txsmtpd.bridges.loop_reactor import LoopReactor
from txsmtpd.bridges.reactor_thread import ReactorThread
from txsmtpd.bridges.reactors import current_reactor, runs_here
from txsmtpd.factory import SMTPFactory
from txsmtpd.faults.rules import Faults
from txsmtpd.observe.transcript import Transcripts
from txsmtpd.reply import Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.settings import check_names
from txsmtpd.testing.inbox import Inbox, Mail, Query, Store, in_asyncio
from txsmtpd.testing.memory import MemorySession
from txsmtpd.testing.reporting import attach
from txsmtpd.tls.authority import Authority, authority
from txsmtpd.typed import FactoryOptions

HOST = "127.0.0.1"
COUNT = 10_000
OCTETS = 2**28  # 256 MiB
CAUGHT = Reply(250, "2.0.0", "Caught")


class ServerInfo:
    """The address and the certificates of a server, in the forms that different kinds of code under test need."""

    tls: Literal["starttls", "implicit"] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as ``smtplib.SMTP(*catcher.address)`` wants them."""
        raise NotImplementedError

    @property
    def ca_file(self) -> str:
        """A file with the certificate of the authority."""
        raise NotImplementedError

    def client_context(self) -> ssl.SSLContext:
        """An ``ssl.SSLContext`` that verifies the server's certificate."""
        raise NotImplementedError

    def said(self, text: str = "") -> list[str]:
        """Return the transcripts that contain the text, as strings."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """The host that the server listens on."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self.address[1]

    @property
    def url(self) -> str:
        """Host and port as a URL, such as ``smtp://127.0.0.1:40025``; ``smtps:`` with implicit TLS."""
        return f"smtp{'s' if self.tls == 'implicit' else ''}://{self.host}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Environment variables: ``SMTP_HOST``, ``SMTP_PORT``, ``SMTP_URL``, and ``SSL_CERT_FILE`` with TLS."""
        found = {"SMTP_HOST": self.host, "SMTP_PORT": str(self.port), "SMTP_URL": self.url}
        return found | ({"SSL_CERT_FILE": self.ca_file} if self.tls else {})

    def django_settings(self) -> dict[str, Any]:
        """Return Django settings, for ``override_settings(**catcher.django_settings())``. With them, Django trusts the
        server's certificate."""
        backend = "txsmtpd.testing.django_email" if self.tls else "django.core.mail.backends.smtp"
        ca_file = {"TXSMTPD_CA_FILE": self.ca_file} if self.tls else {}
        return ca_file | {
            "EMAIL_BACKEND": f"{backend}.EmailBackend",
            "EMAIL_HOST": self.host,
            "EMAIL_PORT": self.port,
            "EMAIL_USE_TLS": self.tls == "starttls",
            "EMAIL_USE_SSL": self.tls == "implicit",
        }

    def smtplib(self) -> smtplib.SMTP:
        """Return a connected client, with TLS if the server has it, for ``with catcher.smtplib() as client:``."""
        if self.tls == "implicit":
            return smtplib.SMTP_SSL(*self.address, context=self.client_context())
        client = smtplib.SMTP(*self.address)
        if self.tls == "starttls":
            try:
                client.starttls(context=self.client_context())
            except BaseException:
                client.close()
                raise
        return client


class MailCatcher(ServerInfo, Inbox):
    """A server and its inbox.

    In trial, use one line in ``setUp``: ``self.catcher = MailCatcher.for_test(self)``. Elsewhere use it as a context
    manager, asynchronous or not, or call :meth:`start` and :meth:`stop`.

    :param tls: ``"starttls"`` to offer STARTTLS, ``"implicit"`` for implicit TLS. Clients can verify the certificate
        with :meth:`client_context`.
    :param wrong: what is wrong with TLS: see :meth:`~txsmtpd.tls.authority.Authority.wrong`.
    :param users: a mapping from the names of users to their passwords. Default: any name and password is accepted.
    :param count: maximum number of messages to keep; the oldest are dropped first.
    :param octets: maximum size of all messages together; the oldest are dropped first.
    :param age: seconds to keep a message. None: for ever.
    :param authority: the certificate authority. By default all tests of a process share one.
    :param options: options of the factory; see :class:`~txsmtpd.settings.Settings`. ``transcript=None`` keeps no
        transcripts. Some defaults differ: SMTPUTF8 is on, LF and CR alone may end lines, and there is no limit on
        errors and junk commands.
    :raises ValueError: if the parameters contradict each other.

    A subclass may define ``handle_RCPT`` and all other hooks of a handler except ``handle_DATA``, which the catcher
    needs. Mail that a hook rejects is not caught.

    >>> catcher = MailCatcher()
    >>> catcher.session().send(b"Subject: hello\\r\\n\\r\\nHello!\\r\\n", "ann@example.com", ["bob@example.com"])
    Reply(250, '2.0.0', 'Caught')
    >>> [mail] = catcher.messages
    >>> mail.subject, mail.rcpt_tos, mail.text
    ('hello', ('bob@example.com',), 'Hello!\\n')
    """

    def __init__(
        self,
        *,
        tls: Literal["starttls", "implicit"] | None = None,
        wrong: str | None = None,
        users: Mapping[str, str] | None = None,
        count: int = COUNT,
        octets: int = OCTETS,
        age: float | None = None,
        authority: Authority | None = None,
        **options: Unpack[FactoryOptions],
    ) -> None:
        if tls not in (None, "starttls", "implicit"):
            raise ValueError(f"tls must be 'starttls' or 'implicit', not {tls!r}")
        if wrong is not None and tls is None:
            raise ValueError(f"wrong={wrong!r} requires TLS; give tls='starttls' or 'implicit'")
        if users is not None and not isinstance(users, Mapping):
            raise TypeError(f"users must be passwords by name, as in {{'ann': 'sesame'}}, not {users!r}")
        for name in options.keys() & {"host", "port"}:
            raise TypeError(f"{name} is an argument of start() and listen(); by default, a free port is used")
        check_names(options, MailCatcher, SMTPFactory)
        super().__init__(Store(count, octets, age), Query())
        self.tls = tls
        self.users = users
        self._authority = authority
        if tls is not None:
            options["tls_context"] = self.authority.wrong(wrong) if wrong else self.authority.issue()
            options["implicit_tls"] = tls == "implicit"
        defaults: dict[str, Any] = {
            "transcript": Transcripts(),
            "hostname": "localhost",
            "authenticator": self._authenticate,
            "auth_require_tls": False,
            "auth_failure_delay": 0,
            "enable_SMTPUTF8": True,
            "error_limit": None,  # bulk senders have hundreds of recipients rejected in one session
            "error_delay": 0,
            "junk_command_limit": None,
            "bare_newlines": True,  # see Mail.bare_newlines
            "lenient_addresses": True,
        }
        self._options: dict[str, Any] = {**defaults, **options}
        self.factory = SMTPFactory(self, **self._options)
        self.transcripts: Transcripts | None = self.factory.transcript  #: the transcripts of all sessions
        self._port: IListeningPort | None = None
        self._served: Any = None  # the inbox on the web
        self._listening_reactor: Any = None  # the reactor on which it listens
        self._thread: ReactorThread | None = None
        self._in_memory: SMTPFactory | None = None
        self._ca_file: str | None = None

    @property
    def faults(self) -> Faults:
        """The faults that the server simulates, in connections that clients make after the first use; see
        :class:`~txsmtpd.faults.rules.Faults`."""
        faults: Faults | None = self.factory.faults
        if faults is None:
            self._options["faults"] = faults = Faults()
            for factory in filter(None, (self.factory, self._in_memory)):
                factory.inject(faults)
        return faults

    def __repr__(self) -> str:
        where = f"on {self.url}" if self._port is not None else "that does not listen"
        return f"<MailCatcher {where}, with {len(self._store)} messages>"

    if not TYPE_CHECKING:  # type checkers report the mistake by themselves

        def __await__(self) -> Any:
            raise TypeError(
                "a MailCatcher is not awaited: for_test(self), listen() and start() have started it when they return;"
                " otherwise use `async with MailCatcher() as catcher`"
            )

    # Called by the server

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        self.caught(Mail.of(session, envelope))
        return CAUGHT

    def caught(self, mail: Mail) -> None:
        """A message was received. Override it to do more."""
        self._store.add(mail)

    def said(self, text: str = "") -> list[str]:
        """Return the transcripts that contain the text, as strings."""
        return [printed for printed in map(str, self.transcripts or ()) if text in printed]

    def _authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
        if self.users is None:
            return True
        password = self.users.get(auth_data.login.decode("utf-8", "replace"))
        return password is not None and hmac.compare_digest(password.encode("utf-8"), auth_data.password)

    # In memory

    def session(self, **options: Any) -> MemorySession:
        """Return a session with this server in memory. All its sessions share a clock.

        :param options: options of :class:`~txsmtpd.testing.memory.MemorySession`.
        """
        if self._in_memory is None:
            self._in_memory = SMTPFactory(self, **self._options)
        if self.tls == "implicit":
            options.setdefault("client_tls", self.authority.client_options())
        return MemorySession(self._in_memory, **options)

    # On a port

    @classmethod
    def for_test(cls, case: Any, **options: Any) -> Self:
        """Return a catcher for this test. It listens from now until the end of the test. If the test fails, the
        transcripts of all sessions are printed.

        :param case: the test case. For a test case of trial, it listens on the reactor; for others, on a reactor in a
            thread. Trial's SynchronousTestCase has no reactor; use :meth:`session` there.
        :param options: as for the class.
        :raises TypeError: if *case* is not a test case.
        """
        from twisted.trial.unittest import SynchronousTestCase, TestCase

        if not isinstance(case, unittest.TestCase):
            raise TypeError(
                f"for_test serves one test, in setUp: for_test(self), not for_test({case!r});"
                " for all tests of a class, start() in setUpClass, and addClassCleanup(catcher.stop)"
            )
        catcher = cls(**options)
        if isinstance(case, TestCase):
            catcher.listen()
            case.addCleanup(catcher.stop_listening)
        elif not isinstance(case, SynchronousTestCase):
            catcher.start()
            case.addCleanup(catcher.stop)
        if catcher.transcripts is not None:
            attach(case, catcher.transcripts)
        return catcher

    def listen(self, port: int = 0, host: str = HOST) -> Self:
        """Listen on the reactor of this thread: that of the running asyncio loop, else the global reactor.

        :param port: the port; 0 for any free one.
        :raises RuntimeError: if the catcher is already listening.
        """
        if self._port is not None:
            raise RuntimeError(f"{self!r} listens already")
        reactor = self._reactor
        self._port = reactor.listenTCP(port, self.factory, interface=host)
        self._listening_reactor = reactor
        if isinstance(reactor, LoopReactor):
            reactor.hold()
        return self

    def serve_inbox(self, port: int = 0, host: str = HOST) -> str:
        """Serve the web pages and the API of the inbox until the catcher stops. Needs the extra ``inbox``.

        :param port: the port; 0 for any free one.
        :return: the URL.
        :raises RuntimeError: if the catcher is not listening.
        :raises ModuleNotFoundError: if the extra is missing.
        """
        if self._port is None:
            raise RuntimeError(f"{self!r}; the inbox is served while it listens: call start() or listen() before")
        if self._served is None:
            serve = partial(self._serve, port, host)
            self._served = serve() if self._thread is None else self._thread.run(serve)
        url: str = self._served.url
        return url

    def _serve(self, port: int, host: str) -> Any:
        try:
            from txsmtpd.testing.served import ServedInbox
        except ModuleNotFoundError as error:
            reason = f"{error.name} is missing; install it by: pip install 'txsmtpd[inbox]'"
            raise ModuleNotFoundError(reason, name=error.name) from error

        return ServedInbox(self._store, self.transcripts, self.faults, self._listening_reactor, port, host)

    def stop_listening(self) -> Any:
        """Stop listening, and close all connections.

        :return: an awaitable that fires when the last one is closed: a Deferred, or a future in an asyncio task.
        """
        port, self._port = self._port, None
        self._store.forget_waiters()
        self._forget_ca_file()
        ends: list[Deferred[Any]] = [] if port is None else [maybeDeferred(port.stopListening)]
        served, self._served = self._served, None
        if served is not None:
            ends.append(maybeDeferred(served.stop))
        for connection in list(self.factory.connections):
            connection.transport.abortConnection()
        ends.append(self.factory.drain())
        return to_awaitable(gatherResults(ends).addCallback(self._stopped))

    def _stopped(self, result: Any) -> None:
        reactor, self._listening_reactor = self._listening_reactor, None
        if isinstance(reactor, LoopReactor):
            reactor.release()

    def start(self, port: int = 0, host: str = HOST) -> Self:
        """Listen on a reactor in a separate thread.

        :raises RuntimeError: if the catcher is already listening.
        """
        if self._thread is not None or self._port is not None:
            raise RuntimeError(f"{self!r} listens already")

        def listen() -> None:
            self.listen(port, host)  # do not return its result: the thread would await it

        thread = ReactorThread(finish=self.stop_listening)
        thread.start()
        try:
            thread.run(listen)
        except BaseException:
            thread.stop()
            raise
        self._thread = thread
        return self

    def stop(self) -> None:
        """Stop listening, and the thread, after :meth:`start`.

        :raises ReactorThreadError: if called in that thread, which cannot wait for itself.
        """
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start() if in_asyncio() else self.listen()

    async def __aexit__(self, *exception: object) -> None:
        if self._thread is None:
            await self.stop_listening()
        else:
            self.stop()

    @property
    def _reactor(self) -> Any:
        given = self.factory.settings.reactor
        return current_reactor() if given is None else given

    @property
    def _timer(self) -> Any:
        # The base class requires a running reactor. This reactor may not run yet: it may be trial's, or a test's clock.
        return self._reactor if self._thread is None else super()._timer

    @property
    def _serves_here(self) -> bool:
        reactor = self._listening_reactor
        if reactor is None or runs_here(reactor):
            return reactor is not None
        # Trial calls a test before the reactor runs. If the test waited, the reactor would not start.
        return self._thread is None and not reactor.running and threading.current_thread() is threading.main_thread()

    def _soon(self, reactor: Any, function: Callable[..., object], *arguments: Any) -> None:
        # Not now: the client has not received its reply yet, and the code that is notified may stop the server.
        if self._listening_reactor is None:
            function(*arguments)
        elif self._listening_reactor is reactor:
            reactor.callLater(0, function, *arguments)
        else:
            reactor.callFromThread(function, *arguments)

    # For the code under test

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as ``smtplib.SMTP(*catcher.address)`` wants them."""
        if self._port is None:
            raise RuntimeError("the catcher does not listen; use for_test, start, listen, or with")
        found: Any = self._port.getHost()
        return found.host, found.port

    @property
    def authority(self) -> Authority:
        """The certificate authority."""
        if self._authority is None:
            self._authority = authority()
        return self._authority

    def client_context(self) -> ssl.SSLContext:
        """An ``ssl.SSLContext`` that verifies this server's certificate."""
        return self.authority.client_context()

    @property
    def ca_file(self) -> str:
        """A file with the certificate of the authority. It is removed when the catcher stops."""
        if self._ca_file is None:
            descriptor, self._ca_file = tempfile.mkstemp(prefix="txsmtpd-", suffix=".pem")
            os.close(descriptor)
            self.authority.write(self._ca_file)
        return self._ca_file

    def _forget_ca_file(self) -> None:
        path, self._ca_file = self._ca_file, None
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
