"""Controllers: servers for programs that do not use Twisted."""

from __future__ import annotations

import asyncio
import gc
import os
import smtplib
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

import txsmtpd.controller
from tests.bridges.test_reactor_thread import reactor_threads, run_program
from tests.support.effort import times_a_bare_server
from tests.support.tls import combined, issue, trusting, write
from txsmtpd import SMTP, syntax
from txsmtpd.bridges.reactor_thread import ReactorThreadError
from txsmtpd.controller import (
    BaseThreadedController,
    Controller,
    UnixSocketController,
    UnixSocketUnthreadedController,
    UnthreadedController,
    get_localhost,
)
from txsmtpd.handlers import Sink
from txsmtpd.tls.certificates import Certificates

MESSAGE = "Subject: test\r\n\r\nHello\r\n"


class Keeper:
    """A handler that keeps all messages, and the thread in which its hook was called."""

    def __init__(self) -> None:
        self.contents: list[Any] = []
        self.threads: set[str] = set()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.contents.append(envelope.content)
        self.threads.add(threading.current_thread().name)
        return "250 2.0.0 OK"


def send(controller: Any) -> None:
    """Send a message with the standard library's client."""
    with smtplib.SMTP(controller.hostname, controller.port, timeout=30) as client:
        client.sendmail("a@example.com", ["b@example.com"], MESSAGE)


def refused(controller: Any) -> bool:
    """Return True if no server listens at the address."""
    with socket.socket(socket.AF_INET6 if ":" in controller.hostname else socket.AF_INET) as probe:
        return probe.connect_ex((controller.hostname, controller.port)) != 0


class StartTests(SynchronousTestCase):
    """Starting and stopping."""

    def test_withBlock(self) -> None:
        """It listens within the block, receives mail, and knows its port."""
        handler = Keeper()
        with Controller(handler, port=0) as controller:
            self.assertNotEqual(controller.port, 0)
            send(controller)
        self.assertEqual(handler.contents, [MESSAGE.encode()])
        self.assertEqual(handler.threads, {"reactor"})
        self.assertEqual(controller.port, 0)
        self.assertEqual(reactor_threads(), [])

    def test_fifty(self) -> None:
        """Fifty starts in one process, of one controller and of new ones, each receive a message and leave nothing
        behind."""
        handler = Keeper()
        again = Controller(handler, port=0)
        for _ in range(25):
            for controller in (again, Controller(handler, "127.0.0.1", 0)):
                controller.start()
                port = controller.port
                send(controller)
                controller.stop()
                with socket.create_server((controller.hostname, port), family=_family(controller)):
                    pass  # the port is free again
        self.assertEqual(len(handler.contents), 50)
        self.assertEqual(reactor_threads(), [])

    def test_two(self) -> None:
        """Two controllers at the same time are independent. One continues when the other is stopped."""
        first, second = Keeper(), Keeper()
        with Controller(first, port=0) as one:
            with Controller(second, port=0) as two:
                self.assertNotEqual(one.port, two.port)
                send(two)
                send(one)
            send(one)
        self.assertEqual((len(first.contents), len(second.contents)), (2, 1))

    def test_twice(self) -> None:
        """Starting a running controller, or stopping a stopped one, is an AssertionError."""
        controller = Controller(Sink(), port=0)
        self.assertIn("not running", str(self.assertRaises(AssertionError, controller.stop)))
        controller.stop(no_assert=True)
        with controller:
            self.assertIn("already running", str(self.assertRaises(AssertionError, controller.start)))
            send(controller)
            controller.stop()

    def test_twoThreads(self) -> None:
        """If several threads start or stop one controller, one of them succeeds."""
        controller = Controller(Sink(), port=0)
        for change in (controller.start, controller.stop):
            done: list[str] = []
            barrier = threading.Barrier(4)

            def change_it(change: Any = change, done: list[str] = done, barrier: Any = barrier) -> None:
                barrier.wait()
                try:
                    change()
                except AssertionError:
                    done.append("refused")
                else:
                    done.append("done")

            threads = [threading.Thread(target=change_it) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(done), ["done"] + ["refused"] * 3)

    def test_portInUse(self) -> None:
        """start() raises the error of the system, and leaves nothing behind."""
        with Controller(Sink(), port=0) as controller:
            other = Controller(Sink(), controller.hostname, controller.port)
            error = self.assertRaises(OSError, other.start)
            self.assertEqual(error.errno, 98)
            self.assertIn(str(controller.port), str(error))
        self.assertEqual(reactor_threads(), [])
        with other:
            send(other)

    def test_noSuchHost(self) -> None:
        """A name without an address of this host is an OSError, too."""
        self.assertRaises(OSError, Controller(Sink(), "192.0.2.1", 0).start)
        self.assertRaises(OSError, Controller(Sink(), "nowhere.invalid", 0).start)

    def test_addresses(self) -> None:
        """A name means all its addresses, with one port. An empty name means all addresses of the host."""
        for hostname in ("localhost", ""):
            with Controller(Sink(), hostname, 0) as controller:
                self.assertEqual({each.getsockname()[1] for each in controller.server.sockets}, {controller.port})
                with smtplib.SMTP("127.0.0.1", controller.port) as client:
                    self.assertEqual(client.noop()[0], 250)

    def test_localhost(self) -> None:
        """Only this host can reach the default address."""
        self.assertEqual(Controller(Sink()).hostname, get_localhost())
        self.assertIn(get_localhost(), ("::1", "127.0.0.1"))

    def test_readyTimeout(self) -> None:
        """When start() raises TimeoutError, nothing listens, and the controller can be started again."""
        release = threading.Event()
        self.addCleanup(release.set)

        class Slow(Controller):
            def factory(self) -> Any:
                release.wait(30)
                return super().factory()

        class Waits(Controller):
            async def _create_server(self) -> Any:
                await Deferred() if not release.is_set() else None
                return await super()._create_server()

        for kind in (Slow, Waits):
            release.clear()
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            controller = kind(Sink(), "127.0.0.1", port, ready_timeout=0.05)
            self.assertRaises(TimeoutError, controller.start)
            controller.stop()  # as programs do in "finally"
            self.assertRaises(AssertionError, controller.stop)
            self.assertTrue(refused(controller))
            release.set()
            for thread in reactor_threads():
                thread.join(30)
            controller.ready_timeout = 30
            with controller:
                send(controller)

    def test_readyTimeoutOfEnvironment(self) -> None:
        """An environment variable can increase the timeout on slow hosts."""
        self.patch(os, "environ", {**os.environ, "AIOSMTPD_CONTROLLER_TIMEOUT": "7"})
        self.assertEqual(Controller(Sink(), ready_timeout=1).ready_timeout, 7)

    def test_openSocket(self) -> None:
        """It listens on a socket that is already open, and does not close it."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            for _ in range(2):
                with Controller(Sink(), sock=sock) as controller:
                    self.assertEqual((controller.hostname, controller.port), sock.getsockname())
                    send(controller)
            self.assertNotEqual(sock.fileno(), -1)

    def test_addressThatIsNot(self) -> None:
        """A name may have an address that this host lacks, as localhost often has ::1, if it has another one."""
        self.patch(txsmtpd.controller, "_addresses", lambda hostname: [hostname, "127.0.0.1"])
        with Controller(Sink(), "2001:db8::1", 0) as controller:
            self.assertEqual(len(controller.server.sockets), 1)

    def test_duration(self) -> None:
        """Starting and stopping does not wait for any period of time."""
        controller = Controller(Sink(), port=0)

        def use() -> None:
            with controller:
                pass

        self.assertLess(times_a_bare_server(use), 20)


def _family(controller: Any) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in controller.hostname else socket.AF_INET


class StopTests(SynchronousTestCase):
    """Connections when a controller stops."""

    def test_idle(self) -> None:
        """The connection of an idle client is closed without a reply that it did not ask for. It may still send
        QUIT."""
        controller = Controller(Sink(), port=0)
        controller.start()
        with smtplib.SMTP(controller.hostname, controller.port) as client:
            controller.stop()
            self.assertRaises(smtplib.SMTPServerDisconnected, client.noop)
        self.assertTrue(refused(controller))
        with controller, smtplib.SMTP(controller.hostname, controller.port):
            controller.stop()  # smtplib sends QUIT after this

    def test_busy(self) -> None:
        """A waiting hook is cancelled before stop() returns."""
        begun = threading.Event()
        ends: list[type] = []

        class Waits:
            async def handle_NOOP(self, *arguments: Any) -> str:
                begun.set()
                try:
                    await Deferred()
                except (CancelledError, asyncio.CancelledError) as error:
                    ends.append(type(error))
                    raise
                return "250 OK"

        controller = Controller(Waits(), port=0)
        controller.start()
        with closing(socket.create_connection((controller.hostname, controller.port))) as client:
            client.sendall(b"NOOP\r\n")
            self.assertTrue(begun.wait(30))
            controller.stop()
            self.assertEqual(ends, [asyncio.CancelledError])
        gc.collect()  # unhandled errors of Deferreds are logged now, and fail the test

    def test_tls(self) -> None:
        """A TLS client in the thread that stops the server does not delay the stop."""
        controller = Controller(
            Sink(),
            "localhost",
            0,
            ssl_context=Certificates(write(Path(self.mktemp()), combined(issue("localhost")))),
            linger=3600,
        )
        controller.start()
        client = smtplib.SMTP_SSL("localhost", controller.port, context=trusting())
        self.addCleanup(client.close)
        self.assertEqual(client.ehlo()[0], 250)
        stopping = threading.Thread(target=controller.stop, daemon=True)
        stopping.start()
        stopping.join(60)  # not an hour, as linger would allow
        self.assertEqual((stopping.is_alive(), controller.server), (False, None))

    def test_loopStopped(self) -> None:
        """A program may stop the loop itself. Then the port is free, and stop() may still be called."""
        for stop in (lambda controller: controller.loop.stop(), lambda controller: controller.cancel_tasks()):
            controller = Controller(Sink(), port=0)
            controller.start()
            port, thread = controller.port, controller._thread
            controller.loop.call_soon_threadsafe(stop, controller)
            assert thread is not None
            thread.join(30)
            with socket.create_server((controller.hostname, port), family=_family(controller)):
                pass
            controller.stop()
            self.assertRaises(AssertionError, controller.stop)

    def test_ownThread(self) -> None:
        """A hook that stops its own server gets an exception, and does not wait forever."""
        errors: list[Any] = []

        class Stops:
            async def handle_NOOP(self, *arguments: Any) -> str:
                try:
                    controller.stop()
                except ReactorThreadError as error:
                    errors.append(error)
                return "250 OK"

        with (
            Controller(Stops(), port=0) as controller,
            smtplib.SMTP(controller.hostname, controller.port, timeout=30) as client,
        ):
            client.noop()
        self.assertEqual(len(errors), 1)


class OptionTests(SynchronousTestCase):
    """The arguments of a controller."""

    def test_unknown(self) -> None:
        """An unknown option is refused when the controller is created. The message suggests the most similar one."""
        error = self.assertRaises(TypeError, Controller, Sink(), tiemout=3)
        self.assertIn("did you mean timeout?", str(error))
        for name, near in (
            ("prot", "port"),
            ("ready_time", "ready_timeout"),
            ("connection_limits", "connection_limit"),
        ):
            error = self.assertRaises(TypeError, Controller, Sink(), **{name: 3})
            self.assertIn(f"did you mean {near}?", str(error))
        self.assertRaises(ValueError, Controller, Sink(), timeout=-1)

    def test_address(self) -> None:
        """An address of a wrong type is refused when the controller is made."""
        for wrong, text in (
            ({"port": "smtp"}, "port must be an int, not 'smtp'"),
            ({"port": None}, "port must be an int, not None"),
            ({"hostname": 5}, "hostname must be a string or None, not 5"),
        ):
            for kind in Controller, UnthreadedController:
                self.assertEqual(str(self.assertRaises(TypeError, kind, Sink(), **wrong)), text)

    def test_portOfTheEnvironment(self) -> None:
        """A port may be a string of digits, as programs take it from the environment."""
        self.assertEqual(Controller(Sink(), port="2525").port, 2525)
        with Controller(Sink(), "127.0.0.1", "0") as controller, smtplib.SMTP("127.0.0.1", controller.port) as client:
            self.assertEqual(client.noop()[0], 250)
        controller.port = "2526"  # type: ignore[assignment]  # text is accepted, too
        self.assertEqual(controller.port, 2526)

    def test_passedOn(self) -> None:
        """Options are passed to the server. SMTPUTF8 is enabled by default."""
        with Controller(Sink(), port=0, server_hostname="mx.test", data_size_limit=1234) as controller:
            self.assertEqual(controller.smtpd.hostname, "mx.test")
            self.assertEqual(controller.smtpd.data_size_limit, 1234)
            self.assertTrue(controller.smtpd.enable_SMTPUTF8)
        with Controller(Sink(), port=0, enable_SMTPUTF8=False) as controller:
            self.assertFalse(controller.smtpd.enable_SMTPUTF8)

    def test_connectionLimit(self) -> None:
        """Options of the factory are passed, too."""
        with (
            Controller(Sink(), port=0, connection_limit=1) as controller,
            smtplib.SMTP(controller.hostname, controller.port),
        ):
            error = self.assertRaises(smtplib.SMTPConnectError, smtplib.SMTP, controller.hostname, controller.port)
            self.assertEqual(error.smtp_code, 421)

    def test_serverKwargs(self) -> None:
        """server_kwargs works, with a warning. Keyword arguments take precedence."""
        controller = Controller(Sink(), server_kwargs={"timeout": 7, "decode_data": True}, timeout=8)
        self.assertEqual(controller.SMTP_kwargs["timeout"], 8)
        self.assertTrue(controller.SMTP_kwargs["decode_data"])
        (warning,) = self.flushWarnings()
        self.assertIs(warning["category"], DeprecationWarning)
        self.assertEqual(Path(warning["filename"]).name, "test_controller.py")

    def test_wrongServerKwargs(self) -> None:
        """Invalid options in server_kwargs are raised by start(), as older programs expect. Then nothing listens."""
        controller = Controller(Sink(), port=0, server_kwargs={"no_such_option": True})
        self.assertEqual(len(self.flushWarnings()), 1)
        for _ in range(2):
            self.assertRaises(TypeError, controller.start)
            self.assertIsNone(controller.smtpd)
            controller.stop()

    def test_authWithoutTLS(self) -> None:
        """A server that has AUTH but will never offer it logs a warning."""
        options: dict[str, Any] = {"authenticator": lambda *arguments: True}
        Controller(Sink(), auth_require_tls=False, **options)
        self.assertEqual(self.flushWarnings(), [])
        Controller(Sink(), **options)
        (warning,) = self.flushWarnings()
        self.assertIn("auth_require_tls=False", warning["message"])

    def test_sslContext(self) -> None:
        """With ssl_context, connections use implicit TLS, even if factory() does not pass the options on."""

        class Own(Controller):
            def factory(self) -> Any:
                return SMTP(self.handler, hostname="own.test")

        certificates = Certificates(write(Path(self.mktemp()), combined(issue("localhost"))))
        for kind in (Controller, Own):
            with (
                kind(Keeper(), "localhost", 0, ssl_context=certificates) as controller,
                smtplib.SMTP_SSL("localhost", controller.port, context=trusting()) as client,
            ):
                client.sendmail("a@example.com", ["b@example.com"], MESSAGE)
                self.assertEqual(controller.smtpd.session.ssl.protocol, "TLSv1.3")

    def test_nowhere(self) -> None:
        """A controller without a mixin raises an exception that says what it needs."""
        self.assertRaises(NotImplementedError, BaseThreadedController(Sink()).start)


class FactoryTests(SynchronousTestCase):
    """Controllers with an overridden factory()."""

    def test_tolerant(self) -> None:
        """A protocol of an overridden factory() accepts the same addresses and line ends as the default one, unless its
        options differ."""

        class Own(Controller):
            options: ClassVar[dict[str, Any]] = {}

            def factory(self) -> Any:
                return SMTP(self.handler, **self.options)

        class Strict(Own):
            options: ClassVar[dict[str, Any]] = {"lenient_addresses": False, "bare_newlines": False}

        class WithSettings(Own):
            def factory(self) -> Any:
                return SMTP(settings=SMTP(self.handler).settings)

        for kind, expected in ((Own, [250, 250, 250]), (Strict, [553, 250, 550]), (WithSettings, [553, 250, 550])):
            with (
                kind(Keeper(), "localhost", 0) as controller,
                smtplib.SMTP("localhost", controller.port) as client,
            ):
                client.ehlo()
                seen = [client.docmd("MAIL FROM:<webmaster>")[0]]
                client.rset()
                client.mail("a@example.com")
                seen.append(client.rcpt("b@example.com")[0])
                client.putcmd("DATA")
                client.getreply()
                client.send(b"one\ntwo\r\n.\r\n")
                seen.append(client.getreply()[0])
            self.assertEqual(seen, expected, kind)

    def test_ownProtocol(self) -> None:
        """factory() creates the protocol of each connection."""

        class Pinging(SMTP):
            @syntax("PING")
            async def smtp_PING(self, arg: Any) -> str:
                return "259 Pong"

        class Own(Controller):
            def factory(self) -> Any:
                return Pinging(self.handler, **self.SMTP_kwargs)

        for kind in (Own, lambda *a, **k: Controller(*a, protocol=Pinging, **k)):
            with kind(Sink(), port=0, timeout=9) as controller:  # type: ignore[operator]
                with smtplib.SMTP(controller.hostname, controller.port) as client:
                    self.assertEqual(client.docmd("PING"), (259, b"Pong"))
                self.assertEqual(controller.smtpd.settings.timeout, 9)

    def test_ownOptions(self) -> None:
        """Its options may differ from the controller's."""

        class Coloured(SMTP):
            def __init__(self, handler: Any, *, colour: str, **options: Any) -> None:
                super().__init__(handler, **options)
                self.colour = colour

        class Own(Controller):
            def factory(self) -> Any:
                return Coloured(self.handler, **self.SMTP_kwargs)

        with Own(Sink(), port=0, colour="red") as controller:
            self.assertEqual(controller.smtpd.colour, "red")
        self.assertRaises(TypeError, Own(Sink(), port=0, color="red").start)

    def test_super(self) -> None:
        """It may change the protocol that the inherited method creates."""

        class Own(Controller):
            def factory(self) -> Any:
                made = super().factory()
                made.mark = "x"
                return made

        with Own(Sink(), port=0, server_hostname="mx.test") as controller:
            self.assertEqual((controller.smtpd.mark, controller.smtpd.hostname), ("x", "mx.test"))

    def test_errors(self) -> None:
        """start() raises its exceptions, and a TypeError if its result is not a protocol. The port stays free."""

        class Own(Controller):
            def factory(self) -> Any:
                return self.handler.make()

        class Makes:
            def __init__(self, what: Any) -> None:
                self.what = what

            def make(self) -> Any:
                if isinstance(self.what, Exception):
                    raise self.what
                return self.what

        for what, kind in ((ZeroDivisionError("x"), ZeroDivisionError), (None, RuntimeError), (object(), TypeError)):
            controller = Own(Makes(what), port=0)
            self.assertRaises(kind, controller.start)
            controller.stop()
            self.assertRaises(AssertionError, controller.stop)
        self.assertEqual(reactor_threads(), [])


class UnixSocketTests(SynchronousTestCase):
    """On Unix sockets."""

    def talk(self, path: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(path)
            client.sendall(b"QUIT\r\n")
            return b"".join(iter(lambda: client.recv(1000), b""))

    def test_listens(self) -> None:
        """It listens on the socket, for its owner only, and again after a stop."""
        path = self.mktemp()
        controller = UnixSocketController(Sink(), path)
        for _ in range(2):
            with controller:
                self.assertRegex(self.talk(path), rb"(?s)^220 .*\r\n221 ")
                self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        with UnixSocketController(Sink(), Path(path), mode=0o666):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o666)

    def test_left(self) -> None:
        """A stale socket is replaced. The socket of a running server and a regular file are kept."""
        path = self.mktemp()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        with UnixSocketController(Sink(), path):
            error = self.assertRaises(OSError, UnixSocketController(Sink(), path).start)
            self.assertIn(path, str(error))
            self.talk(path)
        Path(path).write_text("precious")
        self.assertRaises(OSError, UnixSocketController(Sink(), path).start)
        self.assertEqual(Path(path).read_text(), "precious")


class ReactorTests(TestCase):
    """In programs that run the reactor."""

    async def test_threaded(self) -> None:
        """A threaded controller works in the reactor's thread, since it does not need the reactor."""
        from twisted.internet import reactor

        await deferLater(reactor, 0)  # type: ignore[arg-type]
        handler = Keeper()
        with Controller(handler, port=0) as controller:
            send(controller)
        self.assertEqual(handler.threads, {"reactor"})

    async def test_unthreaded(self) -> None:
        """The unthreaded one starts and stops in the reactor's thread any number of times."""
        from twisted.internet import reactor

        await deferLater(reactor, 0)  # type: ignore[arg-type]
        handler = Keeper()
        controller = UnthreadedController(handler, port=0)
        for _ in range(2):
            controller.begin()
            self.assertRaises(AssertionError, controller.begin)
            await deferToThread(send, controller)
            self.assertFalse(controller.ended.is_set())
            await controller.finalize()
            self.assertTrue(controller.ended.is_set())
        self.assertEqual(len(handler.contents), 2)
        controller.end()

    async def test_unthreadedSocket(self) -> None:
        """The one on a Unix socket does, too. end() does not wait."""
        path = self.mktemp()
        controller = UnixSocketUnthreadedController(Sink(), path)
        controller.begin()
        self.assertTrue(os.path.exists(path))
        controller.end()
        await deferToThread(controller.ended.wait, 30)
        self.assertFalse(os.path.exists(path))

    async def test_unthreadedElsewhere(self) -> None:
        """If the reactor runs in another thread, begin() is refused."""
        from twisted.internet import reactor

        await deferLater(reactor, 0)  # type: ignore[arg-type]
        controller = UnthreadedController(Sink(), port=0)
        with self.assertRaises(ReactorThreadError) as caught:
            await deferToThread(controller.begin)
        self.assertIn("threaded Controller", str(caught.exception))


FIFTY = """
import smtplib
from txsmtpd.controller import Controller

class Keeper:
    kept = 0
    async def handle_DATA(self, server, session, envelope):
        self.kept += 1
        return "250 OK"

def send(host, port):
    with smtplib.SMTP(host, port) as client:
        client.sendmail("a@example.com", "b@example.com", "hello")

def fifty():
    handler = Keeper()
    for _ in range(50):
        with Controller(handler, port=0) as controller:
            send(controller.hostname, controller.port)
    return handler.kept
"""


class ProgramTests(SynchronousTestCase):
    """Whole programs."""

    def run_program(self, code: str, *arguments: str) -> str:
        done = run_program(code, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        return done.stdout + done.stderr

    def test_script(self) -> None:
        """Fifty cycles in a plain program, which ends by itself."""
        self.assertEqual(self.run_program(f"{FIFTY}\nprint(fifty())"), "50\n")

    def test_unittest(self) -> None:
        """Fifty cycles in a test of unittest."""
        code = f"""{FIFTY}
import unittest
class Tests(unittest.TestCase):
    def test(self):
        self.assertEqual(fifty(), 50)
unittest.main()
"""
        self.assertIn("OK", self.run_program(code))

    def test_pytest(self) -> None:
        """Fifty cycles in a test of pytest, with tests of trial that use the reactor in between."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "test_it.py").write_text(
            f"""{FIFTY}
from twisted.trial.unittest import TestCase
from twisted.internet.task import deferLater

def test_plain():
    assert fifty() == 50

class Tests(TestCase):
    async def test_reactor(self):
        from twisted.internet import reactor
        await deferLater(reactor, 0)

def test_plain_again():
    assert fifty() == 50
"""
        )
        code = f"import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(folder)!r}]))"
        self.assertIn("3 passed", self.run_program(code))

    def test_neverStopped(self) -> None:
        """A program that does not stop its controller still ends."""
        code = f"{FIFTY}\nController(Keeper(), port=0).start()\nprint('end')"
        self.assertEqual(self.run_program(code), "end\n")

    def test_stoppedAtExit(self) -> None:
        """A program may stop its controller at the exit of the interpreter, after the reactor has ended."""
        code = f"{FIFTY}\nimport atexit\ncontroller = Controller(Keeper(), port=0)\natexit.register(controller.stop)"
        self.assertEqual(self.run_program(f"{code}\ncontroller.start()\nprint('end')"), "end\n")

    def test_loop(self) -> None:
        """The controller provides the loop of the handler's coroutines, so that other threads can wait for them."""
        code = f"""{FIFTY}
import asyncio
class Queuing:
    async def handle_DATA(self, server, session, envelope):
        await self.queue.put(envelope.mail_from)
        return "250 OK"
handler = Queuing()
handler.queue = asyncio.Queue()
with Controller(handler, port=0) as controller:
    with smtplib.SMTP(controller.hostname, controller.port) as client:
        client.sendmail("a@example.com", "b@example.com", "hello")
    print(asyncio.run_coroutine_threadsafe(handler.queue.get(), controller.loop).result(30))
"""
        self.assertEqual(self.run_program(code), "a@example.com\n")

    def test_createServer(self) -> None:
        """asyncio may listen with a protocol, or with a controller's. Hooks are tasks there."""
        code = f"""{FIFTY}
import asyncio, logging
from txsmtpd.smtp import SMTP
logging.disable()  # it tells of stress

class Task:
    async def handle_DATA(self, server, session, envelope):
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        return "250 " + session.peer[0]

class OldWay(Controller):
    def _create_server(self):
        return self.loop.create_server(self._factory_invoker, self.hostname, self.port)

def send(host, port):
    with smtplib.SMTP(host, port, timeout=60) as client:
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        print(client.data(b"hello")[1].decode())

async def main():
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Task()), "127.0.0.1", 0)
    await asyncio.to_thread(send, *server.sockets[0].getsockname())
    server.close()

asyncio.run(main())
with OldWay(Task(), "127.0.0.1", 0, connection_limit=1) as controller:
    send(controller.hostname, controller.port)
    with smtplib.SMTP(controller.hostname, controller.port):
        try:
            smtplib.SMTP(controller.hostname, controller.port, timeout=60)
        except smtplib.SMTPConnectError as error:
            print(error.smtp_code)
"""
        self.assertEqual(self.run_program(code), "127.0.0.1\n127.0.0.1\n421\n")

    def test_log(self) -> None:
        """The server's log goes to Python's logging, and Python's warnings are not redirected."""
        code = f"""{FIFTY}
import logging, warnings
logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
class Fails:
    def handle_NOOP(self, *arguments):
        raise ZeroDivisionError("on purpose")
with Controller(Fails(), port=0) as controller, smtplib.SMTP(controller.hostname, controller.port) as client:
    print(client.noop()[0])
warnings.warn("beware")
"""
        said = self.run_program(code)
        self.assertRegex(said, r"(?s)^451\n.*mail\.log: \S+ NOOP failed\nTraceback.*on purpose")
        self.assertIn("UserWarning: beware", said)

    def test_asyncioLoop(self) -> None:
        """The unthreaded one works in the program's asyncio loop, whether it begins before the loop runs or in it."""
        code = f"""{FIFTY}
import asyncio
from txsmtpd.controller import UnthreadedController

def send(controller):
    with smtplib.SMTP(controller.hostname, controller.port) as client:
        client.sendmail("a@example.com", "b@example.com", "hello")

loop = asyncio.new_event_loop()
handler = Keeper()
controller = UnthreadedController(handler, port=0, loop=loop)
controller.begin()
loop.run_until_complete(asyncio.wait_for(loop.run_in_executor(None, send, controller), 30))
controller.end()
print(handler.kept, controller.ended.is_set())

async def main():
    controller = UnthreadedController(handler, port=0)
    controller.begin()
    await asyncio.to_thread(send, controller)
    await controller.finalize()
    print(handler.kept, controller.ended.is_set())

loop.run_until_complete(main())
"""
        self.assertEqual(self.run_program(code), "1 True\n2 True\n")

    def test_loopsInTurn(self) -> None:
        """Fifty loops in turn, each with an unthreaded server that ends with its loop, a controller and a catcher, work
        and leave nothing behind."""
        code = f"""{FIFTY}
import asyncio, gc, os, threading
from txsmtpd.controller import UnthreadedController
from txsmtpd.testing import MailCatcher

def send(hostname, port):
    with smtplib.SMTP(hostname, port) as client:
        client.sendmail("a@example.com", "b@example.com", "hello")

def turn(handler):
    loop = asyncio.new_event_loop()
    controller = UnthreadedController(handler, port=0, loop=loop)
    controller.begin()
    loop.run_until_complete(loop.run_in_executor(None, send, controller.hostname, controller.port))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    with Controller(handler, port=0) as controller:
        send(controller.hostname, controller.port)
    with MailCatcher() as catcher:
        send(*catcher.address)
    return len(catcher.messages)

def left():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()

handler = Keeper()
turn(handler)
before = left()
print(sum(turn(handler) for _ in range(50)), handler.kept, before == left())
"""
        self.assertEqual(self.run_program(code), "50 102 True\n")

    def test_connectionsGone(self) -> None:
        """A closed connection leaves nothing in memory: no timer, and no object that a timer refers to."""
        code = f"""{FIFTY}
import gc, socket, tracemalloc

def talk():
    with socket.create_connection((controller.hostname, controller.port)) as client, client.makefile("rb") as replies:
        replies.readline()
        client.sendall(b"HELO c.test\\r\\nQUIT\\r\\n")
        replies.read()

with Controller(Keeper(), hostname="127.0.0.1", port=0) as controller:
    for _ in range(100):
        talk()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(500):
        talk()
    gc.collect()
    print(tracemalloc.get_traced_memory()[0] - before < 50_000)
"""
        self.assertEqual(self.run_program(code), "True\n")

    def test_forwards(self) -> None:
        """A hook may wait, in its thread, for a second controller and for a catcher in the same process."""
        code = f"""{FIFTY}
from txsmtpd.testing import MailCatcher

class Forwards:
    async def handle_DATA(self, server, session, envelope):
        for host, port in self.to:
            with smtplib.SMTP(host, port, timeout=60) as client:
                client.sendmail(envelope.mail_from, envelope.rcpt_tos, envelope.content)
        return "250 OK"

second = Keeper()
first = Forwards()
with Controller(second, port=0) as other, MailCatcher() as catcher, Controller(first, port=0) as controller:
    first.to = [(other.hostname, other.port), catcher.address]
    with smtplib.SMTP(controller.hostname, controller.port) as client:
        client.sendmail("a@example.com", "b@example.com", "hello")
    print(second.kept, len(catcher.messages))
"""
        self.assertEqual(self.run_program(code), "1 1\n")

    def test_relays(self) -> None:
        """A Proxy resolves a name and connects with the controller's own reactor. The global one is not used."""
        code = """
import smtplib, sys
from txsmtpd.controller import Controller
from txsmtpd.handlers import Proxy

class Keeps:
    async def handle_DATA(self, server, session, envelope):
        print(envelope.rcpt_tos)
        return "250 OK"

with Controller(Keeps(), "localhost", 0) as last, Controller(Proxy("localhost", last.port), "localhost", 0) as first:
    with smtplib.SMTP(first.hostname, first.port, timeout=30) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: x\\n\\nHello\\n")
print("twisted.internet.reactor" in sys.modules)
"""
        self.assertEqual(self.run_program(code), "['b@example.com']\nFalse\n")

    def test_filters(self) -> None:
        """The same applies to a filter that connects to another server, and to a hand-off."""
        code = """
import json, smtplib, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from txsmtpd.controller import Controller
from txsmtpd.filters.rspamd import Rspamd
from txsmtpd.handoff import WebhookHandoff

class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"action": "no action"}).encode())
        print(self.path)

    def log_message(self, *words):
        pass

server = HTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://localhost:{server.server_port}"
handler, filter = WebhookHandoff(f"{url}/mail"), Rspamd(url)
with Controller(handler, port=0, filters=[filter]) as controller:
    with smtplib.SMTP(controller.hostname, controller.port, timeout=30) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: x\\n\\nHello\\n")
print("twisted.internet.reactor" in sys.modules)
"""
        self.assertEqual(self.run_program(code), "/checkv2\n/mail\nFalse\n")

    def test_globalReactor(self) -> None:
        """Whatever a controller does - store, relay over TLS, authenticate in a thread - it does not use the global
        reactor, and leaves no thread or descriptor behind."""
        code = f"""{FIFTY}
import gc, os, sys, tempfile, threading
from twisted.internet.ssl import CertificateOptions
from txsmtpd.auth.results import in_thread
from txsmtpd.handlers import Mailbox, Proxy
from txsmtpd.testing import MailCatcher

def turn(folder):
    box = Mailbox(folder)
    with MailCatcher(tls="starttls") as catcher:
        proxy = Proxy(*catcher.address, tls="required", tls_context=CertificateOptions())
        options = dict(authenticator=in_thread(lambda *arguments: True), auth_require_tls=False)
        with Controller(box, port=0, **options) as stores, Controller(proxy, port=0) as relays:
            for controller in stores, relays:
                with smtplib.SMTP(controller.hostname, controller.port, timeout=30) as client:
                    if controller is stores:
                        client.login("user", "password")
                    client.sendmail("a@example.com", "b@example.com", "hello\\r\\n" * 40000)
        return len(box.mailbox), len(catcher.messages), catcher.messages[0].tls is not None

def left():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()

with tempfile.TemporaryDirectory() as folder:
    turn(folder + "/1")
    before = left()
    print(*turn(folder + "/2"), left() == before, "twisted.internet.reactor" in sys.modules)
"""
        self.assertEqual(self.run_program(code), "1 1 True True False\n")

    def test_loopGiven(self) -> None:
        """A controller serves in the loop that is passed. Its hooks can use objects of that loop."""
        code = f"""{FIFTY}
import asyncio
class Waits:
    async def handle_DATA(self, server, session, envelope):
        return await self.answer

loop = asyncio.new_event_loop()
handler = Waits()
handler.answer = loop.create_future()
handler.answer.set_result("250 mine")
controller = Controller(handler, port=0, loop=loop)
print(controller.loop is loop)
with controller, smtplib.SMTP(controller.hostname, controller.port) as client:
    print(controller.smtpd.loop is loop)
    client.ehlo()
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    print(client.data(b"hello"))
print(loop.is_closed())
"""
        self.assertEqual(self.run_program(code), "True\nTrue\n(250, b'mine')\nTrue\n")

    def test_createServerInLoop(self) -> None:
        """Programs that run a loop can await the result of the private method, and use it as an asyncio server."""
        code = f"""{FIFTY}
import asyncio

async def main():
    handler = Keeper()
    controller = Controller(handler, port=0)
    async with await controller._create_server() as server:
        await server.start_serving()
        await asyncio.to_thread(send, *server.sockets[0].getsockname()[:2])
        print(handler.kept, server.is_serving(), server.get_loop() is asyncio.get_running_loop())
        serving = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        serving.cancel()
        print(type((await asyncio.gather(serving, return_exceptions=True))[0]).__name__)
    print(server.is_serving())

asyncio.run(main())
"""
        self.assertEqual(self.run_program(code), "1 True True\nCancelledError\nFalse\n")

    def test_serveForever(self) -> None:
        """Such a server serves until the task is cancelled, or until it is closed, as asyncio's servers do."""
        code = f"""{FIFTY}
import asyncio
from txsmtpd.controller import UnthreadedController

async def main():
    handler = Keeper()
    for stop in "cancel", "close", "finalize":
        controller = UnthreadedController(handler, port=0)
        controller.server = server = await controller._create_server()
        serving = asyncio.create_task(server.serve_forever())
        await asyncio.to_thread(send, *server.sockets[0].getsockname()[:2])
        try:
            await server.serve_forever()
        except RuntimeError as error:
            print(error)
        if stop == "cancel":
            serving.cancel()
        elif stop == "close":
            server.close()
        else:
            await controller.finalize()
        await asyncio.wait([serving])
        print(handler.kept, serving.cancelled(), server.is_serving())
        server.close()
        await server.wait_closed()

asyncio.run(main())
"""
        lines = [f"serve_forever() is already running\n{kept} True False\n" for kept in (1, 2, 3)]
        self.assertEqual(self.run_program(code), "".join(lines))

    def test_ownServerInRunningLoop(self) -> None:
        """begin() in a running loop, or in the reactor's thread, does not ignore an overridden _create_server()."""
        code = """
import asyncio
from txsmtpd.controller import UnthreadedController
from txsmtpd.handlers import Sink

class Own(UnthreadedController):
    def _create_server(self):
        print("mine")
        return super()._create_server()

async def main():
    controller = Own(Sink(), port=0)
    try:
        controller.begin()
    except RuntimeError as error:
        print(error)
    controller.server = await controller._create_server()
    print(controller.server.is_serving())
    await controller.finalize()

asyncio.run(main())
from twisted.internet import reactor
try:
    Own(Sink(), port=0).begin()
except RuntimeError as error:
    print(error)
"""
        refused = (
            "begin() cannot wait for an overridden _create_server() here; await it: server = await _create_server()"
        )
        self.assertEqual(self.run_program(code), f"{refused}\nmine\nTrue\n{refused}\n")
