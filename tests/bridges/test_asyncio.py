"""Handlers that were written for asyncio: where their coroutines run, and the hints in the log if they cannot run."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.bridges.test_reactor_thread import run_program
from tests.compatibility.test_controller import send
from tests.support import GREETING, MESSAGE, TRANSACTION, Client, LoggingTestCase, handler
from txsmtpd import SMTP, Extension, SMTPFactory, syntax
from txsmtpd.auth import AuthResult
from txsmtpd.auth.oauth import XOAuth2
from txsmtpd.auth.scram import Scram
from txsmtpd.bridges.asyncio_bridge import in_asyncio, loop_in_thread
from txsmtpd.bridges.reactor_thread import ReactorThread, spare_trial_worker, wait_for_reactor
from txsmtpd.controller import Controller
from txsmtpd.filters.interfaces import IFilter
from txsmtpd.handlers import AsyncMessage, Sink
from txsmtpd.handoff import Handoff
from txsmtpd.interfaces import HOOKS, IStreamingHandler
from txsmtpd.tls.authority import authority


class WithoutTests(LoggingTestCase):
    """Coroutines that await asyncio objects, in a program without an asyncio loop."""

    def failing(self, hook: Any) -> str:
        """Return the one line that the log has about a hook that fails. The client gets 451 immediately."""
        client = Client(handler(NOOP=hook))
        self.assertEqual(client.codes(b"NOOP\r\nQUIT\r\n"), [451, 221])
        (line,) = self.logged("critical")
        self.flushLoggedErrors(RuntimeError)
        return line

    def test_sleep(self) -> None:
        """The log says what is missing, and how to fix it."""

        async def sleeps(*arguments: Any) -> str:
            await asyncio.sleep(1)
            return "250 OK"

        self.assertIn("option asyncio=True", self.failing(sleeps))

    def test_future(self) -> None:
        """A future of a loop that does not run does not block the connection. The hook may clean up."""
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        tidied = []

        async def waits(*arguments: Any) -> str:
            try:
                await loop.create_future()
            finally:
                tidied.append(True)
            return "250 OK"

        self.assertIn("option asyncio=True", self.failing(waits))
        self.assertEqual(tidied, [True])

    def test_futureLater(self) -> None:
        """The same applies to a future that is awaited after a Deferred."""
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        first: Deferred[None] = Deferred()

        async def waits(*arguments: Any) -> str:
            await first
            await loop.create_future()
            return "250 OK"

        client = Client(handler(NOOP=waits))
        client.say(b"NOOP\r\n")
        first.callback(None)
        self.assertEqual(client.codes(b"QUIT\r\n"), [451, 221])
        self.assertIn("option asyncio=True", self.logged("critical")[0])
        self.flushLoggedErrors(RuntimeError)

    def test_sleepZero(self) -> None:
        """Objects that only resemble asyncio's are awaited as usual."""

        async def pauses(*arguments: Any) -> str:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return "250 OK"

        self.assertEqual(Client(handler(NOOP=pauses)).codes(b"NOOP\r\n"), [250])

    def test_secret(self) -> None:
        """AUTH gets the hint, too, without text that may be secret."""

        async def decide(*arguments: Any) -> None:
            raise RuntimeError("no running event loop for " + "hsifdrows"[::-1])

        client = Client(handler(), authenticator=decide, auth_require_tls=False)
        client.codes(GREETING + b"AUTH PLAIN AHUAcA==\r\n")
        client.wait(5)
        (line,) = self.logged("error")
        self.assertIn("option asyncio=True", line)
        self.assertNotIn("swordfish", line)

    def test_otherErrors(self) -> None:
        """Other errors get no hint about asyncio."""

        def fails(*arguments: Any) -> str:
            raise RuntimeError("quite another thing")

        self.assertNotIn("asyncio", self.failing(fails))

    def test_loop(self) -> None:
        """server.loop raises an exception that explains why there is none."""

        def asks(server: Any, *arguments: Any) -> str:
            return f"250 {server.loop}"

        self.assertIn("option asyncio=True", self.failing(asks))


class OptionTests(SynchronousTestCase):
    """The option itself."""

    def test_values(self) -> None:
        """The value is True, False or a loop."""
        for wrong in (None, 1, "yes", asyncio):
            self.assertIn("asyncio must be", str(self.assertRaises(TypeError, SMTPFactory, asyncio=wrong)))

    def test_plainHooks(self) -> None:
        """Plain hooks are called as usual, and the responses of handle_EHLO are still passed."""

        def noop(*arguments: Any) -> str:
            return "250 OK"

        async def ehlo(server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]) -> list[str]:
            return responses

        settings = SMTPFactory(handler(NOOP=noop, EHLO=ehlo), asyncio=True).settings
        self.assertIs(settings.hooks["NOOP"], noop)
        self.assertIsNot(settings.hooks["EHLO"], ehlo)
        self.assertTrue(settings.ehlo_takes_responses)

    def test_sessionLoop(self) -> None:
        """A protocol accepts a loop, as in programs for aiosmtpd, and ignores it."""
        self.assertTrue(SMTP(handler(), loop=object(), timeout=3).settings.timeout, 3)


class Keeper:
    """A handler that requires asyncio."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.ended: list[str] = []
        self.begun = threading.Event()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("wait"):
            self.begun.set()
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                self.ended.append("cancelled")
                self.begun.clear()
                raise
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        assert server.loop is asyncio.get_running_loop()
        assert asyncio.current_task() is not None
        async with asyncio.timeout(30):
            await asyncio.gather(asyncio.sleep(0), asyncio.to_thread(int))
        self.threads.append(threading.current_thread().name)
        return f"250 {len(envelope.content)} octets"

    async def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: str) -> str:
        await asyncio.sleep(0)
        raise LookupError("on purpose")

    async def handle_exception(self, error: Exception) -> str:
        await asyncio.sleep(0)
        return f"450 {type(error).__name__}"

    async def auth_TOKEN(self, server: Any, args: list[str]) -> Any:
        await asyncio.sleep(0)
        answer = await server.challenge_auth(b"token?")
        if answer == b"refuse":
            await server.push("535 5.7.8 I refuse")
            return None
        return AuthResult(success=answer == b"sesame", auth_data=answer)

    async def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        await asyncio.sleep(0)
        return AuthResult(success=data.password == b"pw")


# Places where a user's callable is called. Each value is a function that returns the options of a server. It takes a
# coroutine function that records where it runs, and returns its argument. "octets" is what a client sends so that the
# server calls it.

AUTH = b"EHLO x\r\nAUTH PLAIN AGEAYg==\r\nQUIT\r\n"
MAIL = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
MESSAGE_SENT = MAIL + b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n"

Note = Callable[[Any], Any]


async def note_task(noted: list[str], result: Any) -> Any:
    """Record the current thread, if this runs in an asyncio task."""
    await asyncio.sleep(0)
    if asyncio.current_task() is not None:
        noted.append(threading.current_thread().name)
    return result


def a_hook(name: str, octets: bytes, result: Any, **options: Any) -> Callable[[Note], dict[str, Any]]:
    def make(note: Note) -> dict[str, Any]:
        async def hook(*arguments: Any) -> Any:
            if name == "handle_RCPT":
                arguments[2].rcpt_tos.append(arguments[3])
            return await note(result)

        hooks = {name: hook}
        if name == "handle_exception":
            hooks["handle_NOOP"] = raises
        return {"handler": SimpleNamespace(**hooks), "octets": octets, **options}

    return make


async def raises(*arguments: Any) -> str:
    raise LookupError


def of_streaming(place: str) -> Callable[[Note], dict[str, Any]]:
    def make(note: Note) -> dict[str, Any]:
        class Receiver:
            registerProducer = unregisterProducer = write = abort = lambda self, *arguments: None

            async def finish(self) -> Any:
                return await note("250 2.0.0 OK") if place == "finish" else "250 2.0.0 OK"

        @implementer(IStreamingHandler)
        class Handler:
            async def open_message(self, *arguments: Any) -> Any:
                return await note(Receiver()) if place == "open_message" else Receiver()

        return {"handler": Handler(), "octets": MESSAGE_SENT}

    return make


def of_async_message(note: Note) -> dict[str, Any]:
    class Handler(AsyncMessage):
        async def handle_message(self, message: Any) -> Any:
            return await note("250 2.0.0 OK")

    return {"handler": Handler(), "octets": MESSAGE_SENT}


def of_mechanism(note: Note) -> dict[str, Any]:
    class Mechanism:
        name = "OWN"

        async def authenticate(self, exchange: Any) -> AuthResult:
            assert await exchange.challenge(b"") == b"yes"
            return await note(AuthResult(success=True))  # type: ignore[no-any-return]

    octets = b"EHLO x\r\nAUTH OWN eWVz\r\nEHLO x\r\nQUIT\r\n"
    return {"auth_mechanisms": [Mechanism()], "octets": octets}


def of_scram(note: Note) -> dict[str, Any]:
    async def lookup(login: Any) -> Any:
        return await note(None)

    first = b64encode(b"n,,n=ann,r=abc")
    octets = b"EHLO x\r\nAUTH SCRAM-SHA-256 " + first + b"\r\n*\r\nQUIT\r\n"
    return {"auth_mechanisms": [Scram("SHA-256", lookup)], "octets": octets}


def of_own_authenticator(note: Note) -> dict[str, Any]:
    async def decide(*arguments: Any) -> Any:
        return await note(True)

    octets = b"EHLO x\r\nAUTH XOAUTH2 " + b64encode(b"user=u\x01auth=Bearer t\x01\x01") + b"\r\nQUIT\r\n"
    return {"auth_mechanisms": [XOAuth2(decide)], "octets": octets}


def of_extension(note: Note) -> dict[str, Any]:
    class Ping(Extension):
        keyword = "PING"

        @syntax("PING")
        async def smtp_PING(self, server: Any, arg: Any) -> Any:
            return await note("250 2.0.0 Pong")

    return {"extensions": [Ping()], "octets": b"EHLO x\r\nPING\r\nQUIT\r\n"}


def of_filter(method: str) -> Callable[[Note], dict[str, Any]]:
    def make(note: Note) -> dict[str, Any]:
        async def notes(*arguments: Any) -> None:
            await note(None)

        return {"filters": [SimpleNamespace(name="test", **{method: notes})], "octets": MESSAGE_SENT}

    return make


def of_quarantine(note: Note) -> dict[str, Any]:
    class Filter:
        def filter_message(self, server: Any, session: Any, envelope: Any, message: Any) -> None:
            message.quarantine("odd")

    class Handler:
        async def handle_QUARANTINE(self, *arguments: Any) -> Any:
            return await note("250 2.0.0 OK")

        def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "250 2.0.0 OK"

    return {"handler": Handler(), "filters": [Filter()], "octets": MESSAGE_SENT}


def behind_a_filter(make: Callable[[Note], dict[str, Any]]) -> Callable[[Note], dict[str, Any]]:
    def make_both(note: Note) -> dict[str, Any]:
        return {"filters": [SimpleNamespace(filter_message=lambda *arguments: None)], **make(note)}

    return make_both


def of_target(method: str) -> Callable[[Note], dict[str, Any]]:
    def make(note: Note) -> dict[str, Any]:
        async def notes(*arguments: Any) -> None:
            await note(None)

        target = SimpleNamespace(**{"hand_off": lambda message: None, method: notes})
        return {"handler": Handoff(target), "octets": MESSAGE_SENT}

    return make


def of_authenticator(name: str) -> Callable[[Note], dict[str, Any]]:
    def make(note: Note) -> dict[str, Any]:
        async def decide(*arguments: Any) -> Any:
            return await note(True)

        return {name: decide, "octets": AUTH}

    return make


def of_method(note: Note) -> dict[str, Any]:
    class Handler:
        async def auth_OWN(self, server: Any, args: Any) -> Any:
            return await note(AuthResult(success=True))

    return {"handler": Handler(), "octets": b"EHLO x\r\nAUTH OWN\r\nQUIT\r\n"}


PLACES: dict[str, Callable[[Note], dict[str, Any]]] = {
    "handle_CONNECT": a_hook("handle_CONNECT", b"QUIT\r\n", None),
    "handle_DISCONNECT": a_hook("handle_DISCONNECT", b"QUIT\r\n", None),
    "handle_HELO": a_hook("handle_HELO", b"HELO x\r\nQUIT\r\n", "250 x"),
    "handle_EHLO": a_hook("handle_EHLO", b"EHLO x\r\nQUIT\r\n", ["250 x"]),
    "handle_NOOP": a_hook("handle_NOOP", b"NOOP\r\nQUIT\r\n", "250 OK"),
    "handle_QUIT": a_hook("handle_QUIT", b"QUIT\r\n", "221 bye"),
    "handle_RSET": a_hook("handle_RSET", b"RSET\r\nQUIT\r\n", "250 OK"),
    "handle_VRFY": a_hook("handle_VRFY", b"VRFY a\r\nQUIT\r\n", "252 OK"),
    "handle_MAIL": a_hook("handle_MAIL", MESSAGE_SENT, "250 OK"),
    "handle_RCPT": a_hook("handle_RCPT", MESSAGE_SENT, "250 OK"),
    "handle_DATA": a_hook("handle_DATA", MESSAGE_SENT, "250 OK"),
    "handle_exception": a_hook("handle_exception", b"NOOP\r\nQUIT\r\n", "450 sorry"),
    "handle_AUTH": a_hook("handle_AUTH", AUTH, "235 OK", authenticator=lambda *arguments: True),
    "handle_STARTTLS": a_hook("handle_STARTTLS", b"QUIT\r\n", True, implicit_tls=True),
    "handle_PROXY": a_hook(
        "handle_PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nQUIT\r\n", True, proxy_from=["127.0.0.1"]
    ),
    "handle_QUARANTINE": of_quarantine,
    "process_message": a_hook("process_message", MESSAGE_SENT, None),
    "auth_MECHANISM": of_method,
    "authenticator": of_authenticator("authenticator"),
    "auth_callback": of_authenticator("auth_callback"),
    "mechanism": of_mechanism,
    "mechanism with a lookup": of_scram,
    "mechanism with its own authenticator": of_own_authenticator,
    "open_message": of_streaming("open_message"),
    "open_message behind a filter": behind_a_filter(of_streaming("open_message")),
    "finish of a receiver": of_streaming("finish"),
    "finish of a receiver behind a filter": behind_a_filter(of_streaming("finish")),
    "command of an extension": of_extension,
    "handle_message of AsyncMessage": of_async_message,
    "hand_off of a target": of_target("hand_off"),
    "check of a target": of_target("check"),
    **{f"{method} of a filter": of_filter(method) for method in IFilter.names() if method.startswith("filter_")},
}


def converse(port: int, octets: bytes, trusted: ssl.SSLContext | None) -> bytes:
    """Send these commands and return the replies until the server closes; use TLS if a trusted authority is given."""
    client = socket.create_connection(("127.0.0.1", port), 30)
    if trusted is not None:
        client = trusted.wrap_socket(client, server_hostname="localhost")
    with client:
        client.sendall(octets)
        heard = b""
        while piece := client.recv(10000):
            heard += piece
        return heard


class ThreadTests(SynchronousTestCase):
    """With asyncio=True and another reactor, coroutines run in a loop in a thread."""

    @contextmanager
    def controller(self, handler: Keeper, **options: Any) -> Iterator[Any]:
        """A server on trial's reactor, which runs in a thread during the test."""
        with self.reactor_thread() as reactor:
            factory = SMTPFactory(
                handler,
                asyncio=True,
                authenticator=handler.authenticate,
                auth_require_tls=False,
                auth_failure_delay=0,
                **options,
            )
            port = wait_for_reactor(reactor, reactor.listenTCP, 0, factory, interface="127.0.0.1")
            try:
                yield SimpleNamespace(hostname="127.0.0.1", port=port.getHost().port)
            finally:
                wait_for_reactor(reactor, port.stopListening)
                wait_for_reactor(reactor, factory.abort)
                wait_for_reactor(reactor, factory.drain)

    @contextmanager
    def reactor_thread(self) -> Iterator[Any]:
        """Trial's reactor, which runs in a thread during the test."""
        from twisted.internet import reactor as reactor_of_trial

        reactor: Any = reactor_of_trial
        spare_trial_worker()
        thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
        running = threading.Event()
        reactor.callWhenRunning(running.set)
        thread.start()
        running.wait(30)
        try:
            yield reactor
        finally:
            reactor.callFromThread(type(reactor).crash, reactor)  # for trial, which runs the reactor again
            thread.join()

    def test_hooks(self) -> None:
        """Hooks are tasks of that loop. Their results and exceptions are used."""
        keeper = Keeper()
        with self.controller(keeper) as controller:
            send(controller)
            with smtplib.SMTP(controller.hostname, controller.port) as client:
                self.assertEqual(client.noop(), (450, b"LookupError"))
        self.flushLoggedErrors(LookupError)
        self.assertEqual(keeper.threads, ["asyncio"])

    def test_auth(self) -> None:
        """Authenticators, and methods that run an AUTH exchange, are tasks of that loop, too."""
        keeper = Keeper()
        for answer, code in ((b"sesame", 235), (b"no", 535), (b"refuse", 535)):
            with self.controller(keeper) as controller, smtplib.SMTP(controller.hostname, controller.port) as client:
                client.ehlo()
                self.assertEqual(client.docmd("AUTH TOKEN"), (334, b64encode(b"token?")))
                self.assertEqual(client.docmd(b64encode(answer).decode())[0], code)
        with self.controller(keeper) as controller, smtplib.SMTP(controller.hostname, controller.port) as client:
            self.assertRaises(smtplib.SMTPAuthenticationError, client.login, "u", "wrong")
            self.assertEqual(client.login("u", "pw")[0], 235)

    def test_everyPlace(self) -> None:
        """Every coroutine of the handler and of its filters and targets is a task of that loop."""
        for place, make in PLACES.items():
            noted: list[str] = []
            made = make(partial(note_task, noted))
            octets = made.pop("octets")
            trusted = None
            if made.get("implicit_tls"):
                made["tls_context"], trusted = authority().issue(), authority().client_context()
            with self.reactor_thread() as reactor:
                factory = SMTPFactory(
                    asyncio=True, auth_require_tls=False, auth_failure_delay=0, **{"handler": Sink(), **made}
                )
                port = wait_for_reactor(reactor, reactor.listenTCP, 0, factory, interface="127.0.0.1")
                try:
                    heard = converse(port.getHost().port, octets, trusted)
                    deadline = time.monotonic() + 60  # the last hook is called after the client has disconnected
                    while not noted and time.monotonic() < deadline:
                        wait_for_reactor(reactor, deferLater, reactor, 0.01)
                finally:
                    wait_for_reactor(reactor, port.stopListening)
                    wait_for_reactor(reactor, factory.abort)
                    wait_for_reactor(reactor, factory.drain)
            self.assertEqual(noted[:1], ["asyncio"], (place, heard))
            self.assertNotIn(b"451", heard, place)
        self.flushLoggedErrors(LookupError)

    def test_places(self) -> None:
        """The list of these coroutines includes each hook, and each method of a filter and of a target."""
        names = [*HOOKS, "open_message", *(name for name in IFilter.names() if name.startswith("filter_")), "hand_off"]
        self.assertEqual(set(names) - {place.partition(" ")[0] for place in PLACES}, set())

    def test_timeout(self) -> None:
        """A hook that takes too long is cancelled in its thread, and the client gets 451. The session continues."""
        keeper = Keeper()
        with (
            self.controller(keeper, hook_timeout=0.2) as controller,
            smtplib.SMTP(controller.hostname, controller.port) as client,
        ):
            client.ehlo()
            client.mail("a@example.com")
            self.assertEqual(client.rcpt("wait@example.com")[0], 451)
            self.assertEqual(client.rcpt("b@example.com")[0], 250)
            self.assertEqual(client.data(MESSAGE)[0], 250)
        self.assertEqual(keeper.ended, ["cancelled"])

    def test_clientGone(self) -> None:
        """When the client disconnects, its hook is cancelled."""
        keeper = Keeper()
        with self.controller(keeper) as controller:
            client = smtplib.SMTP(controller.hostname, controller.port)
            client.ehlo()
            client.sock.sendall(TRANSACTION.replace(b"b@", b"wait@"))  # type: ignore[union-attr]
            self.assertTrue(keeper.begun.wait(30))
            client.close()
            for _ in range(6000):
                if keeper.ended:
                    break
                self.in_loop(asyncio.sleep(0.01))
        self.assertEqual(keeper.ended, ["cancelled"])

    def in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop_in_thread()).result(30)

    def test_ownLoop(self) -> None:
        """The loop may be one that the program runs in a thread."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="mine")
        thread.start()
        try:
            keeper = Keeper()
            with Controller(keeper, port=0, asyncio=loop) as controller:
                send(controller)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        self.assertEqual(keeper.threads, ["mine"])

    def test_function(self) -> None:
        """Any coroutine function can run there, and returns a Deferred."""

        async def work(number: int) -> int:
            await asyncio.sleep(0)
            return number + 1

        thread = ReactorThread()
        thread.start()
        self.assertEqual(thread.run(in_asyncio(work), 2), 3)
        thread.stop()


HANDLER = r"""
import asyncio
from twisted.internet.task import deferLater

class Handler:
    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        await asyncio.sleep(0)
        session.host_name = hostname
        return responses

    async def handle_DATA(self, server, session, envelope):
        future = server.loop.create_future()
        server.loop.call_later(0.01, future.set_result, "x")
        assert await future == "x"
        assert await deferLater(server.settings.clock(), 0.01, lambda: "y") == "y"
        try:
            await deferLater(server.settings.clock(), 0, lambda: 1 / 0)
        except ZeroDivisionError:
            pass
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.to_thread(int)
        return "250 " + type(asyncio.current_task()).__name__

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            print("cancelled\n", end="", flush=True)
            raise
"""


class AsyncioReactorTests(SynchronousTestCase):
    """With asyncio's reactor, everything runs in one loop."""

    def run_program(self, code: str) -> list[str]:
        done = run_program(HANDLER + code)
        self.assertEqual((done.returncode, done.stderr.count("Traceback")), (0, 0), done.stderr)
        return done.stdout.splitlines()

    def test_controller(self) -> None:
        """A Controller in a program without a reactor: hooks are tasks, which may also await Deferreds."""
        code = """
import smtplib
from txsmtpd.controller import Controller

with Controller(Handler(), port=0, hook_timeout=0.2) as controller:
    with smtplib.SMTP(controller.hostname, controller.port) as client:
        client.ehlo()
        client.mail("a@example.com")
        print(f'{client.rcpt("b@example.com")[0]}\\n', end="", flush=True)
del Handler.handle_RCPT
with Controller(Handler(), port=0) as controller:
    with smtplib.SMTP(controller.hostname, controller.port) as client:
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        print(client.data(b"hello")[1].decode())
"""
        self.assertEqual(sorted(self.run_program(code)), ["451", "Task", "cancelled"])

    def test_byHand(self) -> None:
        """Without the option, hooks on this reactor can still await futures and Deferreds in any order."""
        code = """
import smtplib
from twisted.internet import asyncioreactor
asyncioreactor.install()
from twisted.internet import reactor, endpoints, threads
from txsmtpd import SMTPFactory

class ByHand(Handler):
    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        await deferLater(reactor, 0.01)
        await asyncio.sleep(0.01)
        envelope.rcpt_tos.append(address)
        if address.startswith("wait"):
            return await super().handle_RCPT(server, session, envelope, address, rcpt_options)
        if address.startswith("bad"):
            await server.loop.create_task(self.fail())
        return "250 OK"

    async def fail(self):
        raise LookupError("bad")

    async def handle_exception(self, error):
        return "450 " + type(error).__name__

    async def handle_DATA(self, server, session, envelope):
        await asyncio.sleep(0)
        await asyncio.gather(asyncio.to_thread(int), asyncio.sleep(0.01))
        return "250 fine"

def talk(port):
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        client.mail("a@example.com")
        print(f'{client.rcpt("wait@example.com")[0]}\\n', end="", flush=True)
        client.mail("a@example.com")
        print(client.rcpt("bad@example.com")[1].decode(), client.rcpt("b@example.com")[0])
        print(client.data(b"hello")[1].decode())

async def main():
    endpoint = endpoints.serverFromString(reactor, "tcp:0:interface=127.0.0.1")
    port = await endpoint.listen(SMTPFactory(ByHand(), hook_timeout=0.3))
    await threads.deferToThread(talk, port.getHost().port)
    reactor.stop()

from twisted.internet.defer import ensureDeferred
from twisted.logger import globalLogBeginner
globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
def failed(failure):
    failure.printTraceback()
    reactor.stop()
reactor.callWhenRunning(lambda: ensureDeferred(main()).addErrback(failed))
reactor.run()
"""
        self.assertEqual(self.run_program(code), ["cancelled", "451", "LookupError 250", "fine"])
