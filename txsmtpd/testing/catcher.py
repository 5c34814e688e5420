"""A server that collects what it is sent: for tests of code that sends mail.

A :class:`MailCatcher` takes all mail, and all credentials. It serves in memory, on a port of the reactor that runs (for
trial), or on one of a reactor of its own, in a thread of its own (for everybody else); what it has caught is read the
same way.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import smtplib
import ssl
import tempfile
import unittest
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Self, Unpack

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort

from txsmtpd.bridges.asyncio_bridge import for_whoever_awaits
from txsmtpd.bridges.loop_reactor import LoopReactor
from txsmtpd.bridges.reactor_thread import ReactorThread
from txsmtpd.bridges.reactors import current_reactor, runs_here
from txsmtpd.factory import SMTPFactory
from txsmtpd.observe.transcript import Transcripts
from txsmtpd.reply import Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.testing.inbox import Inbox, Mail, Query, Store, in_asyncio
from txsmtpd.testing.memory import MemorySession
from txsmtpd.testing.reporting import attach
from txsmtpd.tls.authority import Authority, authority
from txsmtpd.typed import FactoryOptions

HOST = "127.0.0.1"
COUNT = 10_000
OCTETS = 2**28  # 256 MiB
CAUGHT = Reply(250, "2.0.0", "Caught")


class Reachable:
    """What code under test has to know of a server, in the words of each kind of code."""

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
        """The transcripts of the sessions in which this was said, as they print."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.address[1]

    @property
    def url(self) -> str:
        """Both, as in ``smtp://127.0.0.1:40025``; ``smtps:`` where TLS is implicit."""
        return f"smtp{'s' if self.tls == 'implicit' else ''}://{self.host}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Variables for a program: ``SMTP_HOST``, ``SMTP_PORT``, ``SMTP_URL``, and with TLS ``SSL_CERT_FILE``."""
        found = {"SMTP_HOST": self.host, "SMTP_PORT": str(self.port), "SMTP_URL": self.url}
        return found | ({"SSL_CERT_FILE": self.ca_file} if self.tls else {})

    def django_settings(self) -> dict[str, Any]:
        """Settings of Django: for ``override_settings(**catcher.django_settings())``. Its clients trust the server's
        certificate."""
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
        """A client that is connected, and in TLS if there is any: for ``with catcher.smtplib() as client:``."""
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


class MailCatcher(Reachable, Inbox):
    """A server and its inbox.

    In trial, one line of ``setUp`` does it all: ``self.catcher = MailCatcher.for_test(self)``. Elsewhere it is a
    context manager, asynchronous or not; or call :meth:`start` and :meth:`stop`.

    :param tls: ``"starttls"`` offers STARTTLS, ``"implicit"`` begins with TLS; with a certificate that clients can
        verify by :meth:`client_context`.
    :param wrong: what is wrong with TLS: see :meth:`~txsmtpd.tls.authority.Authority.wrong`.
    :param users: the passwords of those who may authenticate, by name. Default: everybody may, with any password.
    :param count: messages that are kept; older ones make room.
    :param octets: of all messages together, the same.
    :param age: seconds that a message is kept; None: for ever.
    :param authority: whose certificates are used; by default one that all tests of a process share.
    :param options: of the factory; see :class:`~txsmtpd.settings.Settings`. ``transcript=None`` keeps no transcripts.
        Other defaults than a factory's: SMTPUTF8 is on, LF and CR alone may end lines, and errors and commands that
        bring no message are not counted.
    :raises ValueError: if the parameters do not go together.

    A subclass may have ``handle_RCPT`` and all other hooks of a handler; ``handle_DATA`` is the catcher's own. What a
    hook refuses is not caught.

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
            raise ValueError(f"without TLS there is nothing {wrong} about it; give tls='starttls' or 'implicit'")
        if users is not None and not isinstance(users, Mapping):
            raise TypeError(f"users must be passwords by name, as in {{'ann': 'sesame'}}, not {users!r}")
        for name in options.keys() & {"host", "port"}:
            raise TypeError(f"{name} is an argument of start() and listen(), not of a catcher; without, a port is free")
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
        self.transcripts: Transcripts | None = self.factory.transcript  #: what was said in each session
        self._port: IListeningPort | None = None
        self._served: Any = None  # the inbox in a browser
        self._listening: Any = None  # the reactor on which it listens
        self._thread: ReactorThread | None = None
        self._in_memory: SMTPFactory | None = None
        self._ca_file: str | None = None

    def __repr__(self) -> str:
        where = f"on {self.url}" if self._port is not None else "that does not listen"
        return f"<MailCatcher {where}, with {len(self._store)} messages>"

    # What the server asks

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        self.caught(Mail.of(session, envelope))
        return CAUGHT

    def caught(self, mail: Mail) -> None:
        """A message has come; override it to do more."""
        self._store.add(mail)

    def said(self, text: str = "") -> list[str]:
        """The transcripts of the sessions in which this was said, as they print."""
        return [printed for printed in map(str, self.transcripts or ()) if text in printed]

    def _authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
        if self.users is None:
            return True
        password = self.users.get(auth_data.login.decode("utf-8", "replace"))
        return password is not None and hmac.compare_digest(password.encode("utf-8"), auth_data.password)

    # In memory

    def session(self, **options: Any) -> MemorySession:
        """A session with this server in memory; its clock is that of all of them.

        :param options: of :class:`~txsmtpd.testing.memory.MemorySession`.
        """
        if self._in_memory is None:
            self._in_memory = SMTPFactory(self, **self._options)
        if self.tls == "implicit":
            options.setdefault("client_tls", self.authority.client_options())
        return MemorySession(self._in_memory, **options)

    # On a port

    @classmethod
    def for_test(cls, case: Any, **options: Any) -> Self:
        """A catcher for this test: it listens now, and is gone when the test is over. If the test fails, what was said
        in each session is printed.

        :param case: the test case. For trial's, it listens on the reactor; for others, on one in a thread. Trial's
            SynchronousTestCase has no reactor: there, use :meth:`session`.
        :param options: as for the class.
        :raises TypeError: if it is no test case.
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
        """Listen, on the reactor of this thread: that of the asyncio loop that runs here, else the program's.

        :param port: 0 is any that is free.
        :raises RuntimeError: if it listens already.
        """
        if self._port is not None:
            raise RuntimeError(f"{self!r} listens already")
        reactor = self._reactor
        self._port = reactor.listenTCP(port, self.factory, interface=host)
        self._listening = reactor
        if isinstance(reactor, LoopReactor):
            reactor.hold()
        return self

    def serve_inbox(self, port: int = 0, host: str = HOST) -> str:
        """Serve the mail in a browser, and the API of the inbox, until the catcher stops. Needs the extra ``inbox``.

        :param port: 0 is any that is free.
        :return: the address for the browser.
        :raises RuntimeError: if the catcher does not listen.
        """
        if self._port is None:
            raise RuntimeError(f"{self!r}; the inbox is served while it listens: call start() or listen() before")
        if self._served is None:
            serve = partial(self._serve, port, host)
            self._served = serve() if self._thread is None else self._thread.run(serve)
        url: str = self._served.url
        return url

    def _serve(self, port: int, host: str) -> Any:
        from txsmtpd.testing.served import ServedInbox

        return ServedInbox(self._store, self.transcripts, self.factory.faults, self._listening, port, host)

    def stop_listening(self) -> Any:
        """Stop, and end all connections.

        :return: to be awaited, until the last one is gone: a Deferred, or within an asyncio task a future.
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
        return for_whoever_awaits(gatherResults(ends).addCallback(self._stopped))

    def _stopped(self, result: Any) -> None:
        reactor, self._listening = self._listening, None
        if isinstance(reactor, LoopReactor):
            reactor.release()

    def start(self, port: int = 0, host: str = HOST) -> Self:
        """Listen, on a reactor of its own in a thread of its own.

        :raises RuntimeError: if it listens already.
        """
        if self._thread is not None or self._port is not None:
            raise RuntimeError(f"{self!r} listens already")
        thread = ReactorThread(finish=self.stop_listening)
        thread.start()
        try:
            thread.run(self.listen, port, host)
        except BaseException:
            thread.stop()
            raise
        self._thread = thread
        return self

    def stop(self) -> None:
        """Stop what :meth:`start` has begun.

        :raises ReactorThreadError: in that thread, which cannot wait for itself.
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
        # Trial's reactor, and a test's clock, do not run yet when a test begins.
        return self._reactor if self._thread is None else super()._timer

    @property
    def _serves_here(self) -> bool:
        return self._listening is not None and runs_here(self._listening)

    def _soon(self, reactor: Any, function: Callable[..., object], *arguments: Any) -> None:
        # Not now: the client has not had its reply yet, and who is told may end the server.
        if self._listening is None:
            function(*arguments)
        elif self._listening is reactor:
            reactor.callLater(0, function, *arguments)
        else:
            reactor.callFromThread(function, *arguments)

    # What the code under test has to know

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as ``smtplib.SMTP(*catcher.address)`` wants them."""
        if self._port is None:
            raise RuntimeError("the catcher does not listen; use for_test, start, listen, or with")
        found: Any = self._port.getHost()
        return found.host, found.port

    @property
    def authority(self) -> Authority:
        """Whose certificates are used."""
        if self._authority is None:
            self._authority = authority()
        return self._authority

    def client_context(self) -> ssl.SSLContext:
        """An ``ssl.SSLContext`` that verifies this server's certificate."""
        return self.authority.client_context()

    @property
    def ca_file(self) -> str:
        """A file with the certificate of the authority, for programs that want one; gone when the catcher stops."""
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
