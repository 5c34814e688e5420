"""The parts of the command line: options, the environment, handlers by name, and the service that listens."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import LogLevel
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from txsmtpd import SMTPFactory, __version__
from txsmtpd.interfaces import IHandlerMaker
from txsmtpd.limits.memory import Memory
from txsmtpd.log.printable import one_line
from txsmtpd.service import Options, SMTPService, handlers, makeService
from txsmtpd.service.listening import address_text
from txsmtpd.service.server import connection_limit
from txsmtpd.service.topics import describe_handlers


class Takes:
    """A handler without arguments."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 OK"


class TakesFolder(Takes):
    """A handler that requires one particular argument."""

    folder = ""

    @classmethod
    def from_cli(cls, parser: Any, folder: str) -> TakesFolder:
        if not folder:
            parser.error("a folder is needed")
        if folder == "broken":
            raise OSError("the disk is gone")
        self = cls()
        self.folder = folder
        return self


class NotCallable:
    """Its hook is not a method."""

    handle_RCPT = "250 OK"


class OddEhlo(Takes):
    """Its EHLO hook has wrong parameters."""

    def handle_EHLO(self) -> str:
        return "250 OK"


class Hookless:
    """No handler at all."""


ready = Takes()
HERE = __name__


def parse(*words: str, environ: dict[str, str] | None = None) -> Options:
    """Parse these words as the command line."""
    options = Options()
    options.environ = environ or {}
    options.parseOptions([*words] if any("andler" in word for word in words) else [f"--handler={HERE}.Takes", *words])
    return options


def refusal(*words: str, environ: dict[str, str] | None = None) -> str:
    """Return the error about the command line, which must be one line, before the process ends with status 64."""
    output = io.StringIO()
    with redirect_stderr(output):
        try:
            parse(*words, environ=environ)
        except SystemExit as end:
            assert end.code == 64, end.code
        else:
            raise AssertionError(f"{words} were taken")
    line = output.getvalue()
    assert line.startswith("smtpd: ") and line.endswith("\n") and line.count("\n") == 1, line
    return line.removeprefix("smtpd: ").rstrip("\n")


def chosen_settings(options: Options) -> dict[str, Any]:
    """The settings without the memory that all listeners share, which is always included."""
    settings = dict(options["settings"])
    memory = settings.pop("memory_limit")
    assert isinstance(memory, Memory), memory
    return settings


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_defaults(self) -> None:
        """Without options the server listens on loopback, with the limits of the framework."""
        options = parse()
        [(label, _)] = options["endpoints"]
        self.assertEqual(label, "--listen=tcp:8025:interface=127.0.0.1")
        self.assertEqual(chosen_settings(options), {"log_messages": True, "log_dialogue": False})
        self.assertEqual(options["grace"], 30)
        settings = makeService(options).services[0].factory.settings
        self.assertEqual((settings.data_size_limit, settings.timeout), (33554432, 300))

    def test_values(self) -> None:
        """Each option is passed to the factory."""
        options = parse(
            "--hostname=mx.example", "--ident=hello", "-s1000", "-u", "-t", "2.5", "--grace=0", "-ltcp:0", "-l", "tcp:1"
        )
        first, second = makeService(options).services
        for service in first, second:
            settings = service.factory.settings
            self.assertEqual((settings.hostname, settings.ident), ("mx.example", "hello"))
            self.assertEqual((settings.data_size_limit, settings.timeout), (1000, 2.5))
            self.assertIs(settings.enable_SMTPUTF8, True)
            self.assertEqual(service.grace, 0)
        self.assertIsNot(first.factory, second.factory)

    def test_noSizeLimit(self) -> None:
        """--size=0 is no limit."""
        service = makeService(parse("--size=0")).services[0]
        self.assertIs(service.factory.settings.data_size_limit, None)

    def test_emptyIdent(self) -> None:
        """No argument has to follow the name."""
        service = makeService(parse("--ident=", "--hostname=mx.example")).services[0]
        self.assertEqual(str(service.factory.settings.greeting), "220 mx.example")

    def test_debugging(self) -> None:
        """With twist's --log-level=debug, the dialogue is logged."""
        for level, logs in [(LogLevel.debug, True), (LogLevel.info, False)]:
            options = Options()
            options.parent = {"logLevel": level}  # type: ignore[assignment]  # in place of twist's options
            options.parseOptions([f"--handler={HERE}.Takes"])
            self.assertIs(options["settings"]["log_dialogue"], logs)

    def test_onlyWarnings(self) -> None:
        """Lines about messages are not composed if the level of the log is above theirs."""
        for level, logs in [(LogLevel.info, True), (LogLevel.warn, False)]:
            options = Options()
            options.parent = {"logLevel": level}  # type: ignore[assignment]  # in place of twist's options
            options.parseOptions([f"--handler={HERE}.Takes"])
            self.assertIs(options["settings"]["log_messages"], logs)

    def test_prints(self) -> None:
        """--version, --help and --help-handlers print, and end with status 0."""
        for word, expected in [
            ("--version", f"txsmtpd {__version__}\n"),
            ("--help", "--smtputf8"),
            ("--help-handlers", "mailbox:DIR"),
        ]:
            output = io.StringIO()
            with redirect_stdout(output):
                end = self.assertRaises(SystemExit, parse, word)
            self.assertEqual(end.code, 0)
            self.assertIn(expected, output.getvalue())

    def test_refusals(self) -> None:
        """The error for an invalid value is one line that names the option."""
        for words, expected in [
            (["--bogus"], "--bogus"),
            (["--size"], "--size"),
            (["stray", "--size=1"], "'stray'"),
            (["--smtputf8=no"], "--smtputf8"),
            (["--size=many"], "--size=many: must be a number of octets"),
            (["--size=-1"], "--size=-1: "),
            (["--size=1_0"], "--size=1_0: "),
            (["--size=" + 5000 * "9"], "must be a number of octets"),
            (["--timeout=soon"], "--timeout=soon: must be a number of seconds"),
            (["--timeout=0"], "--timeout=0: must be more than 0 seconds"),
            (["--timeout=nan"], "--timeout=nan: "),
            (["--grace=inf"], "--grace=inf: "),
            (["--hostname="], "--hostname=: a value is needed"),
            (["--hostname=a b"], "--hostname=a b: must be a domain"),
            (["--hostname=a\nb"], "--hostname=a b: "),
            (["--ident=a\x1bb"], "--ident=a\\x1bb: must be printable ASCII"),
            (["--listen=8025"], "--listen=8025: not an endpoint; did you mean tcp:8025 "),
            (["--listen="], "--listen=: not an endpoint"),
            (["--listen=tcp"], "--listen=tcp: "),
            (["--listen=tcp:"], "--listen=tcp:: "),
            (["--listen=tcp:nobody-knows"], "--listen=tcp:nobody-knows: "),
            (["--listen=tcp:65536"], "invalid port 65536"),
            (["--listen=tcp:port=-1:interface=::1"], "invalid port -1"),
            (["--listen=tcp:25:colour=red"], "colour"),
            (["--listen=ssl:465:privateKey=/nowhere"], "--listen=ssl:465:privateKey=/nowhere: "),
            (["-ltcp:25", "-lnowhere:1"], "--listen=nowhere:1: "),
        ]:
            self.assertIn(expected, refusal(*words))


class EnvironmentTests(SynchronousTestCase):
    """TXSMTPD_<OPTION>."""

    def test_values(self) -> None:
        """Each option can be set there."""
        options = parse(
            environ={
                "TXSMTPD_HOSTNAME": "mx.example",
                "TXSMTPD_SIZE": "7",
                "TXSMTPD_SMTPUTF8": "Yes",
                "TXSMTPD_GRACE": "1",
                "TXSMTPD_LISTEN": " tcp:1  tcp:2\ttcp:3 ",
            }
        )
        self.assertEqual(
            chosen_settings(options),
            {
                "log_messages": True,
                "log_dialogue": False,
                "hostname": "mx.example",
                "data_size_limit": 7,
                "enable_SMTPUTF8": True,
            },
        )
        self.assertEqual(options["grace"], 1)
        self.assertEqual([label for label, _ in options["endpoints"]], [f"TXSMTPD_LISTEN=tcp:{n}" for n in (1, 2, 3)])

    def test_handler(self) -> None:
        """So can the handler."""
        options = Options()
        options.environ = {"TXSMTPD_HANDLER": f"{HERE}.TakesFolder:/a"}
        options.parseOptions([])
        self.assertEqual(options["handler"].folder, "/a")

    def test_commandLineWins(self) -> None:
        """The command line takes precedence, even if its value is the default, and even if the variable is invalid."""
        environ = {"TXSMTPD_SIZE": "x", "TXSMTPD_LISTEN": "x", "TXSMTPD_HANDLER": "x", "TXSMTPD_SMTPUTF8": "no"}
        options = parse("--size=33554432", "--listen=tcp:1", "--smtputf8", environ=environ)
        self.assertEqual(options["settings"]["data_size_limit"], 33554432)
        self.assertIs(options["settings"]["enable_SMTPUTF8"], True)
        self.assertEqual([label for label, _ in options["endpoints"]], ["--listen=tcp:1"])

    def test_empty(self) -> None:
        """An empty variable is ignored."""
        options = parse(environ={"TXSMTPD_SIZE": "", "TXSMTPD_LISTEN": " ", "TXSMTPD_HOSTNAME": ""})
        self.assertEqual(chosen_settings(options), {"log_messages": True, "log_dialogue": False})
        self.assertEqual(len(options["endpoints"]), 1)

    def test_flags(self) -> None:
        """A flag accepts all usual words for true and false."""
        for words, value in [(["1", "yes", "true", "ON"], True), (["0", "no", "False", "off"], False)]:
            for word in words:
                options = parse(environ={"TXSMTPD_SMTPUTF8": word})
                self.assertIs(options["settings"]["enable_SMTPUTF8"], value)

    def test_refusals(self) -> None:
        """The error for an invalid value names the variable."""
        for variable, value in [
            ("SIZE", "x"),
            ("SMTPUTF8", "perhaps"),
            ("LISTEN", "x"),
            ("TIMEOUT", "x"),
            ("GRACE", "x"),
            ("HOSTNAME", "a_!"),
        ]:
            line = refusal(environ={f"TXSMTPD_{variable}": value})
            self.assertTrue(line.startswith(f"TXSMTPD_{variable}={value}: "), line)


class SpecTests(SynchronousTestCase):
    """NAME:ARG:ARG."""

    def test_parts(self) -> None:
        """Colons separate, backslashes escape."""
        for spec, name, arguments in [
            ("sink", "sink", []),
            ("sink:", "sink", [""]),
            ("a:b:c", "a", ["b", "c"]),
            (r"mailbox:C\:\\Mail", "mailbox", ["C:\\Mail"]),
            ("", "", []),
        ]:
            self.assertEqual(handlers.parse_spec(spec), (name, arguments))

    def test_lonelyBackslash(self) -> None:
        """A backslash at the end is refused."""
        self.assertRaises(UsageError, handlers.parse_spec, "a:b\\")

    @given(st.lists(st.text(alphabet=st.one_of(st.sampled_from(":\\ab="), st.characters())), min_size=1))
    def test_roundTrip(self, fields: list[str]) -> None:
        """Quoting is reversible."""
        spec = ":".join(map(handlers.quote_argument, fields))
        self.assertEqual(handlers.parse_spec(spec), (fields[0], fields[1:]))

    @given(st.text(alphabet=":\\ab"))
    def test_anything(self, spec: str) -> None:
        """Any text is split without losing a character except the separators, or refused."""
        try:
            name, arguments = handlers.parse_spec(spec)
        except UsageError:
            return
        self.assertEqual(
            handlers.parse_spec(":".join(map(handlers.quote_argument, [name, *arguments]))), (name, arguments)
        )

    @given(st.text())
    def test_oneLine(self, text: str) -> None:
        """Any error is one printable line."""
        self.assertTrue(all(character.isprintable() for character in one_line(text)))


@implementer(IHandlerMaker)
class Greeting:
    """A handler maker of a plugin."""

    name = "greeting"
    usage = "greeting:WORD"
    description = "Greets."

    def make_handler(self, parser: Any, *args: str) -> object:
        if not args:
            parser.error("a word is needed")
        return TakesFolder.from_cli(parser, *args)


@contextmanager
def plugins(*found: object) -> Iterator[None]:
    """Let these be the installed plugins."""
    with mock.patch.object(handlers, "getPlugins", lambda interface: list(found)):
        yield


class HandlerTests(SynchronousTestCase):
    """From a value of --handler to a handler."""

    def assertRefused(self, spec: str, *expected: str) -> None:
        line = refusal(f"--handler={spec}")
        self.assertTrue(line.startswith(f"--handler={spec}: "), line)
        for text in expected:
            self.assertIn(text, line)

    def test_dotted(self) -> None:
        """A class is called, a class with from_cli is created by it, and an object is used unchanged."""
        self.assertIsInstance(handlers.make_handler(f"{HERE}.Takes"), Takes)
        self.assertIs(handlers.make_handler(f"{HERE}.ready"), ready)
        made = handlers.make_handler(rf"{HERE}.TakesFolder:C\:\\Mail")
        assert isinstance(made, TakesFolder)
        self.assertEqual(made.folder, "C:\\Mail")

    def test_dottedRefusals(self) -> None:
        """The error for something that cannot be a handler has the reason."""
        self.assertRefused("no_such_package.Handler", "there is no module no_such_package")
        self.assertRefused(f"{HERE}.Taks", f"{HERE} has no Taks; did you mean Takes?")
        self.assertRefused(f"{HERE}.Takes.more", "has no more")
        self.assertRefused("twisted.no_such.Handler", "twisted has no no_such")
        self.assertRefused("a..b", "is not a dotted name")
        self.assertRefused("os.path", "is a module")
        self.assertRefused(f"{HERE}.Takes:x", "takes no arguments")
        self.assertRefused(f"{HERE}.TakesFolder", "invalid arguments", "folder")
        self.assertRefused(f"{HERE}.TakesFolder:a:b", "invalid arguments")
        self.assertRefused(f"{HERE}.TakesFolder:", "a folder is needed")
        self.assertRefused(f"{HERE}.TakesFolder:broken", "creating it raised OSError: the disk is gone")
        self.assertRefused(f"{HERE}.Hookless", "it has no method such as handle_DATA")
        self.assertRefused(f"{HERE}.Takes\\", "backslash")

    def test_brokenHooks(self) -> None:
        """A hook that cannot be called is found before anything listens."""
        self.assertRefused(f"{HERE}.NotCallable", "the hook RCPT")
        self.assertRefused(f"{HERE}.OddEhlo", "handle_EHLO must take")

    def test_importRaises(self) -> None:
        """The error for a module that cannot be imported is one line with the reason."""

        def broken(error: BaseException) -> types.ModuleType:
            module = types.ModuleType("broken")

            class Finder:
                @staticmethod
                def find_spec(name: str, path: Any = None, target: Any = None) -> None:
                    if name == "broken_handlers":
                        raise error

            self.patch(sys, "meta_path", [Finder, *sys.meta_path])
            return module

        for error, expected in [
            (ValueError("two\nlines"), "importing broken_handlers raised ValueError: two lines"),
            (ModuleNotFoundError("No module named 'gone'", name="gone"), "ModuleNotFoundError: No module named 'gone'"),
            (SystemExit(3), "SystemExit: 3"),
        ]:
            broken(error)
            self.assertRefused("broken_handlers.Handler", expected)

    def test_unknown(self) -> None:
        """An unknown name is refused, with the most similar one or with all."""
        self.assertRefused("debuging", "did you mean debugging?")
        self.assertRefused("Sink", "did you mean sink?")
        self.assertRefused("zzz", "there are ", "debugging", "mailbox", "proxy", "sink")
        self.assertRefused("", "no handler is called ''")

    def test_plugins(self) -> None:
        """A handler of a plugin is found by its name, and listed."""
        with plugins(Greeting()):
            made = handlers.make_handler("greeting:hello")
            self.assertIn("greeting:WORD", describe_handlers())
            self.assertRefused("greeting", "a word is needed")
        assert isinstance(made, TakesFolder)
        self.assertEqual(made.folder, "hello")

    def test_pluginCannotReplace(self) -> None:
        """A plugin with the name of a built-in handler does not replace it."""
        impostor = Greeting()
        impostor.name = "sink"
        with plugins(impostor):
            self.assertIsNot(handlers.find_maker("sink"), impostor)

    def test_builtIn(self) -> None:
        """The built-in names refer to the classes of txsmtpd.handlers."""
        made = handlers.make_handler("sink")
        self.assertEqual(type(made).__name__, "Sink")
        self.assertEqual(type(handlers.make_handler("debugging:stderr")).__name__, "Debugging")
        folder = self.mktemp()
        self.assertEqual(type(handlers.make_handler(f"mailbox:{handlers.quote_argument(folder)}")).__name__, "Mailbox")


class Port:
    """The result of an endpoint."""

    stopped = False

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 25)

    def stopListening(self) -> Deferred[None]:
        self.stopped = True
        return succeed(None)


@implementer(IStreamServerEndpoint)
class Endpoint:
    """Responds when the test says so."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def listen(self, factory: Any) -> Any:
        return self.answer


class ServiceTests(SynchronousTestCase):
    """SMTPService."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = SMTPFactory(Takes(), reactor=self.clock)
        self.port = Port()

    def service(self, answer: Any = None, grace: float = 30) -> SMTPService:
        return SMTPService(
            Endpoint(succeed(self.port) if answer is None else answer), self.factory, grace, reactor=self.clock
        )

    def test_wrong(self) -> None:
        """What is not an endpoint, a factory or a time is refused when the service is made."""
        endpoint: Any = Endpoint(None)
        for arguments, text in (
            (("tcp:8025", self.factory), "serverFromString(reactor"),
            ((endpoint, Takes()), "factory must be an SMTPFactory, as in SMTPFactory(handler)"),
            ((endpoint, self.factory, "5s"), "grace must be a number of seconds, not '5s'"),
        ):
            self.assertIn(text, str(self.assertRaises(TypeError, SMTPService, *arguments)))

    def connect(self, said: bytes = b"") -> StringTransportWithDisconnection:
        protocol = self.factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]  # tells the protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(said)
        return transport

    def test_listens(self) -> None:
        """It binds once, as early as possible."""
        service = self.service()
        service.privilegedStartService()
        self.assertIs(service.port, self.port)
        service.endpoint = Endpoint(succeed(Port()))
        service.startService()
        self.assertTrue(service.running)
        self.assertIs(service.port, self.port)

    def test_acceptsFew(self) -> None:
        """Its port accepts eight connections in one iteration of the reactor, and one when the limit is near or the
        option says so."""

        class Accepting(Port):
            numberAccepts = 100

            def doRead(self) -> int:
                return self.numberAccepts

        port = Accepting()
        self.service(succeed(port)).startService()
        self.assertEqual(port.doRead(), 8)
        port.numberAccepts = 1  # as in a worker that shares the socket
        self.assertEqual(port.doRead(), 1)
        port.numberAccepts = 100
        self.factory.connection_limit = 50
        self.assertEqual(port.doRead(), 1)

    def test_stopsWithoutConnections(self) -> None:
        """Stopping closes the port, and it can be started again."""
        service = self.service()
        service.startService()
        self.assertIsNone(self.successResultOf(service.stopService()))
        self.assertTrue(self.port.stopped)
        self.assertFalse(service.running)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        service.endpoint = Endpoint(succeed(Port()))
        service.startService()
        self.assertIsNot(service.port, self.port)

    def test_drains(self) -> None:
        """Idle clients get 421. A client with a transaction gets the reply to its message first."""
        service = self.service()
        service.startService()
        idle = self.connect()
        busy = self.connect(b"HELO a\r\nMAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n")
        stopped = service.stopService()
        self.assertIn(b"\r\n421 4.3.2", idle.value())
        self.assertFalse(idle.connected)
        self.assertNoResult(stopped)
        busy.clear()
        busy.protocol.dataReceived(b"hello\r\n.\r\n")
        self.assertEqual([line[:3] for line in busy.value().splitlines()], [b"250", b"421"])
        self.successResultOf(stopped)

    def test_deadline(self) -> None:
        """A transaction that does not end is aborted."""
        service = self.service(grace=5)
        service.startService()
        self.connect(b"HELO a\r\nMAIL FROM:<a@a.example>\r\n")
        stopped = service.stopService()
        self.clock.advance(4.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)

    def test_cannotListen(self) -> None:
        """It does not start if the endpoint fails, and raises its exception."""
        error = CannotListenError("", 25, OSError(13, "Permission denied"))
        service = self.service(fail(error))
        self.assertIs(self.assertRaises(CannotListenError, service.startService), error)
        self.assertFalse(service.running)
        self.successResultOf(service.stopService())

    def test_boundLater(self) -> None:
        """An endpoint may take time."""
        answer: Deferred[Any] = Deferred()
        service = self.service(answer)
        service.privilegedStartService()
        service.startService()
        answer.callback(self.port)
        self.assertIs(service.port, self.port)

    def test_failsLater(self) -> None:
        """It may also fail later."""
        answer: Deferred[Any] = Deferred()
        service = self.service(answer)
        service.startService()
        answer.errback(CannotListenError("", 25, OSError("late")))
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError)), 1)

    def test_stoppedBeforeBound(self) -> None:
        """A service that stops does not wait for an endpoint without a result."""
        service = self.service(Deferred())
        service.startService()
        self.successResultOf(service.stopService())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_stopListeningFails(self) -> None:
        """A port that cannot be closed does not prevent the connections from being closed."""
        service = self.service()
        self.port.stopListening = lambda: fail(OSError("no"))  # type: ignore[method-assign]
        service.startService()
        self.successResultOf(service.stopService())
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_composes(self) -> None:
        """It takes part in the services of an application."""
        application = MultiService()
        service = self.service()
        service.setServiceParent(application)
        application.startService()
        self.assertIs(service.port, self.port)
        self.successResultOf(application.stopService())


class SmallThingsTests(SynchronousTestCase):
    """The log of the service, and its number of connections."""

    def test_addresses(self) -> None:
        """Addresses have their usual form."""
        for address, shown in [
            (IPv4Address("TCP", "127.0.0.1", 25), "127.0.0.1:25"),
            (IPv6Address("TCP", "::1", 25), "[::1]:25"),
            (UNIXAddress(b"/run/smtp.sock"), "/run/smtp.sock"),
        ]:
            self.assertEqual(address_text(address), shown)

    def test_connectionLimit(self) -> None:
        """The listeners share the descriptors of the process, except some for other uses."""
        import resource

        for descriptors, listeners, expected in [
            (1024, 1, 992),
            (1024, 2, 496),
            (20, 1, 8),
            (resource.RLIM_INFINITY, 1, None),
        ]:
            with mock.patch.object(resource, "getrlimit", lambda which, soft=descriptors: (soft, soft)):
                self.assertEqual(connection_limit(listeners), expected)
