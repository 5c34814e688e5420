"""The command line as users run it: real processes, sockets and signals."""

from __future__ import annotations

import os
import pwd
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd

PATIENCE = 60  # seconds until a test gives up; nothing takes that long, on a busy machine either
TWIST = ["-m", "twisted"]
TWISTD = ["-c", "from twisted.scripts.twistd import run; run()"]
LOOPBACK = "--listen=tcp:0:interface=127.0.0.1"

OWN_MODULE = '''
class Prints:
    """Prints the sender of each message, and what it was made with."""

    def __init__(self, word=""):
        self.word = word

    @classmethod
    def from_cli(cls, parser, word=""):
        if word == "bad":
            parser.error("not this word")
        return cls(word)

    async def handle_DATA(self, server, session, envelope):
        print(f"{self.word} from {envelope.mail_from}", flush=True)
        return "250 2.0.0 printed"

class NotCallable:
    handle_RCPT = None
'''

OWN_PLUGIN = """
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer

from txsmtpd.interfaces import IHandlerMaker

@implementer(IPlugin, IHandlerMaker)
class Printing:
    name = "printing"
    usage = "printing:WORD"
    description = "Prints."

    def make_handler(self, parser, *args):
        from own_module import Prints
        return Prints(*args)

@implementer(IPlugin, IStreamServerEndpointStringParser)
class Late:
    prefix = "late"

    def parseStreamServer(self, reactor, *args, **kwargs):
        return LateEndpoint(reactor)

@implementer(IStreamServerEndpoint)
class LateEndpoint:
    def __init__(self, reactor):
        self.reactor = reactor

    def listen(self, factory):
        answer = Deferred()
        self.reactor.callLater(0, answer.errback, OSError(99, "The address came too late"))
        return answer

printing = Printing()
late = Late()
"""


def environment(folder: str, **variables: str) -> dict[str, str]:
    """The environment of a user who has installed txsmtpd, and has modules in the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TXSMTPD_", "PYTHON"))}
    root = str(Path(txsmtpd.__file__).parent.parent)
    return {**kept, "PYTHONPATH": os.pathsep.join([root, folder]), **variables}


class Process:
    """A command that runs until the end of the test: the lines that it prints and logs, and the error lines."""

    def __init__(self, words: list[str], folder: str, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(folder, **variables),
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.lines: queue.Queue[str] = queue.Queue()
        self.output: list[str] = []
        self.seen: list[str] = []
        self.errors: list[str] = []
        self._threads = [
            _reading(self.process.stdout, self._take_output),
            _reading(self.process.stderr, self._take),
        ]

    def _take_output(self, line: str) -> None:
        self.output.append(line)
        self.lines.put(line)

    def _take(self, line: str) -> None:
        """Separate the log, which is on standard error, too, from messages to the user."""
        if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T|    \| ", line):
            self.errors.append(line)
        self.lines.put(line)

    def line_with(self, text: str) -> str:
        """Wait for a line that contains this text."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {text!r}; stderr: {self.errors}") from None
            self.seen.append(line)
            if text in line:
                return line

    def port(self) -> int:
        """Wait until it listens. Return the port."""
        return int(self.line_with("listening on 127.0.0.1:").rpartition(":")[2])

    def wait(self) -> int:
        """Wait until it ends. Return its status."""
        status = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for pipe in self.process.stdout, self.process.stderr:
            assert pipe is not None
            pipe.close()


def _reading(pipe: IO[str], take: Callable[[str], None]) -> threading.Thread:
    def read() -> None:
        for line in pipe:
            take(line)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


class Client:
    """An SMTP client for a port of this machine, or the path of a Unix socket."""

    def __init__(self, address: int | str) -> None:
        if isinstance(address, int):
            self.socket = socket.create_connection(("127.0.0.1", address), timeout=PATIENCE)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(address)
        self._lines = self.socket.makefile("rb")

    def reply(self) -> str:
        """The last line of the next reply; empty if the connection has ended."""
        while True:
            try:
                line = self._lines.readline().decode()
            except ConnectionError:
                return ""
            if line[3:4] != "-":
                return line

    def say(self, text: str) -> str:
        self.socket.sendall(text.encode() + b"\r\n")
        return self.reply()

    def begin_data(self, sender: str = "a@a.example") -> None:
        """Send the commands up to the mail data."""
        assert self.reply().startswith("220")
        for command in "EHLO c.example", f"MAIL FROM:<{sender}>", "RCPT TO:<b@b.example>":
            assert self.say(command).startswith("250")
        assert self.say("DATA").startswith("354")

    def deliver(self, sender: str = "a@a.example") -> str:
        """Deliver a message. Return the reply to it."""
        self.begin_data(sender)
        reply = self.say("Subject: hello\r\n\r\nthe text\r\n.")
        assert self.say("QUIT").startswith("221")
        return reply

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that another process uses."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


class CommandLineTestCase(SynchronousTestCase):
    """Runs commands in a temporary folder with modules."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        plugins = Path(self.folder, "twisted", "plugins")
        plugins.mkdir(parents=True)
        (plugins / "own_plugin.py").write_text(OWN_PLUGIN)
        Path(self.folder, "own_module.py").write_text(OWN_MODULE)
        Path(self.folder, "broken_module.py").write_text("raise ValueError('this module\\nis broken')")

    def run_python(self, *words: str, **variables: str) -> Process:
        process = Process([sys.executable, *words], self.folder, variables)
        self.addCleanup(process.close)
        return process

    def smtpd(self, *options: str, **variables: str) -> Process:
        return self.run_python(*TWIST, "smtpd", *options, **variables)

    def connect(self, port: int) -> Client:
        client = Client(port)
        self.addCleanup(client.close)
        return client

    def assertOneLine(self, process: Process, status: int, *expected: str, command: str = "smtpd") -> None:
        """Assert that the process ends with this status, and with one line on stderr that starts with this command and
        contains all of these texts."""
        self.assertEqual((process.wait(), len(process.errors)), (status, 1), process.errors)
        line = process.errors[0]
        self.assertTrue(line.startswith(f"{command}: "), line)
        for text in expected:
            self.assertIn(text, line)


class ServingTests(CommandLineTestCase):
    """The server without errors."""

    def test_default(self) -> None:
        """Without a handler, messages are printed. SIGTERM ends the server."""
        process = self.smtpd(LOOPBACK, "--hostname=mx.example", "--ident=hello")
        client = self.connect(process.port())
        self.assertEqual(client.reply(), "220 mx.example hello\r\n")
        self.assertTrue(self.connect(_port_of(client)).deliver().startswith("250"))
        process.line_with("the text")
        process.process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(), -signal.SIGTERM)
        self.assertEqual(process.errors, [])

    def test_handlers(self) -> None:
        """A dotted name with arguments, and a handler of a plugin."""
        for handler in "own_module.Prints:some\\:word", "printing:some\\:word":
            process = self.smtpd(LOOPBACK, f"--handler={handler}")
            self.assertEqual(self.connect(process.port()).deliver("me@a.example"), "250 2.0.0 printed\r\n")
            process.line_with("some:word from me@a.example")

    def test_misspeltHook(self) -> None:
        """A misspelt hook is one line, however many listeners there are, and the server serves."""
        Path(self.folder, "mistaken.py").write_text(
            "class H:\n    def handle_DATE(self, *arguments): return '250 OK'\n"
        )
        process = self.smtpd(LOOPBACK, LOOPBACK, "--handler=mistaken.H")
        self.assertEqual(self.connect(process.port()).reply()[:3], "220")
        process.process.send_signal(signal.SIGTERM)
        process.wait()
        self.assertEqual(
            process.errors, ["warning: handle_DATE of the handler H is not a hook; did you mean handle_DATA?\n"]
        )

    def test_mailbox(self) -> None:
        """--handler=mailbox stores."""
        process = self.smtpd(LOOPBACK, "--handler=mailbox:mail")
        self.assertTrue(self.connect(process.port()).deliver().startswith("250"))
        [message] = Path(self.folder, "mail", "new").iterdir()
        self.assertIn(b"the text", message.read_bytes())

    def test_environment(self) -> None:
        """All options can be set in the environment, too."""
        process = self.smtpd(
            TXSMTPD_LISTEN="tcp:0:interface=127.0.0.1 unix:smtp.sock",
            TXSMTPD_HANDLER="own_module.Prints",
            TXSMTPD_HOSTNAME="env.example",
            TXSMTPD_SIZE="77",
        )
        client = self.connect(process.port())
        process.line_with("smtp.sock")
        self.assertIn("220 env.example ", client.reply())
        client.socket.sendall(b"EHLO c.example\r\nNOOP\r\n")
        client.reply()
        self.assertTrue(client.say("MAIL FROM:<a@a.example> SIZE=78").startswith("250"))  # to the NOOP
        self.assertTrue(client.reply().startswith("552"))

    def test_reactor(self) -> None:
        """The user who starts the program chooses the reactor."""
        process = self.run_python(*TWIST, "--reactor=asyncio", "smtpd", LOOPBACK, "--handler=own_module.Prints")
        self.assertTrue(self.connect(process.port()).deliver().startswith("250"))
        process.process.send_signal(signal.SIGTERM)
        process.wait()
        self.assertEqual(process.errors, [])

    def test_twistd(self) -> None:
        """twistd has the same subcommand."""
        process = self.run_python(*TWISTD, "-n", "smtpd", LOOPBACK, "--handler=own_module.Prints")
        self.assertTrue(self.connect(process.port()).deliver().startswith("250"))
        process.process.send_signal(signal.SIGTERM)
        process.wait()
        self.assertEqual(process.errors, [])

    def test_debugging(self) -> None:
        """twist's --log-level=debug shows the dialogue."""
        process = self.run_python(*TWIST, "--log-level=debug", "smtpd", LOOPBACK, "--handler=own_module.Prints")
        self.connect(process.port()).deliver("shown@a.example")
        process.line_with("C: MAIL FROM:<shown@a.example>")

    def test_version(self) -> None:
        """--version prints the version of txsmtpd."""
        process = self.smtpd("--version")
        self.assertEqual((process.wait(), process.lines.get()), (0, f"txsmtpd {txsmtpd.__version__}\n"))


class RefusalTests(CommandLineTestCase):
    """An error is one line and an exit status."""

    def test_usage(self) -> None:
        """An invalid value is status 64, and the line names the option."""
        started = [
            (self.smtpd("--bogus"), "--bogus"),
            (self.smtpd("--listen=tcp:foo"), "--listen=tcp:foo: "),
            (self.smtpd("--handler=broken_module.X"), "broken_module raised ValueError: this module is broken"),
            (self.smtpd("--handler=own_module.Prints:bad"), "--handler=own_module.Prints:bad: not this word"),
            (self.smtpd("--handler=own_module.NotCallable"), "the hook RCPT"),
            (self.smtpd(TXSMTPD_TIMEOUT="x"), "TXSMTPD_TIMEOUT=x: "),
        ]
        for process, text in started:
            self.assertOneLine(process, 64, text)

    def test_usageUnderTwistd(self) -> None:
        """The same is true under twistd."""
        self.assertOneLine(self.run_python(*TWISTD, "-n", "smtpd", "--size=x"), 64, "--size=x: ")

    def test_currentFolder(self) -> None:
        """twist does not search modules in the current folder, and the line says what to do."""
        script = "import sys; sys.path.remove(''); from twisted.application.twist._twist import Twist; Twist.main()"
        Path(self.folder, "here").mkdir()
        Path(self.folder, "here", "module_here.py").write_text(OWN_MODULE)
        words = [sys.executable, "-c", script, "smtpd", "--handler=module_here.Prints"]
        process = Process(["sh", "-c", 'cd here; exec "$@"', "sh", *words], self.folder, {})
        self.addCleanup(process.close)
        self.assertOneLine(process, 64, "PYTHONPATH=.")

    def test_addressInUse(self) -> None:
        """An address that is in use is status 71, even if another one is free."""
        with taken_port() as port:
            taken = f"--listen=tcp:{port}:interface=127.0.0.1"
            alone = self.smtpd(taken, "--handler=sink")
            second = self.smtpd(LOOPBACK, taken, "--handler=sink")
            under_twistd = self.run_python(*TWISTD, "-n", "smtpd", taken, "--handler=sink")
            for process in alone, second, under_twistd:
                self.assertOneLine(process, 71, f"{taken}: cannot listen: Address already in use")
        self.assertFalse(Path(self.folder, "twistd.pid").exists())

    def test_addressInUseDaemon(self) -> None:
        """A daemon reports the error to the shell that started it, and leaves no PID file."""
        with taken_port() as port:
            options = f"--listen=tcp:{port}:interface=127.0.0.1", "--handler=sink"
            process = self.run_python(*TWISTD, "--logfile=log", "smtpd", *options)
            self.assertEqual(process.wait(), 1)
        self.assertIn("An error has occurred", process.errors[0])
        self.assertIn("Address already in use", Path(self.folder, "log").read_text())
        self.assertFalse(Path(self.folder, "twistd.pid").exists())

    def test_failsLate(self) -> None:
        """An endpoint that fails after the start ends the server, too."""
        process = self.smtpd(LOOPBACK, "--listen=late:", "--handler=sink")
        self.assertOneLine(process, 71, "--listen=late:: cannot listen: The address came too late")


class DrainTests(CommandLineTestCase):
    """SIGTERM."""

    def test_drain(self) -> None:
        """Idle clients get 421, new ones cannot connect, and an open transaction is completed."""
        process = self.smtpd(LOOPBACK, "--handler=own_module.Prints")
        port = process.port()
        idle, busy = self.connect(port), self.connect(port)
        idle.reply()
        busy.begin_data()
        process.process.send_signal(signal.SIGTERM)
        self.assertTrue(idle.reply().startswith("421 4.3.2"))
        self.assertEqual(idle.reply(), "")
        process.line_with("stopped listening")
        self.assertRaises(ConnectionRefusedError, Client, port)
        self.assertEqual(busy.say("the text\r\n."), "250 2.0.0 printed\r\n")
        self.assertTrue(busy.reply().startswith("421 4.3.2"))
        self.assertEqual(busy.reply(), "")
        self.assertEqual(process.wait(), -signal.SIGTERM)
        self.assertEqual(process.errors, [])

    def test_deadline(self) -> None:
        """A transaction that does not end does not keep the server alive."""
        process = self.smtpd(LOOPBACK, "--handler=own_module.Prints", "--grace=0.2")
        client = self.connect(process.port())
        client.begin_data()
        process.process.send_signal(signal.SIGTERM)
        process.line_with(
            "waiting for connections to end: 1, 0.2 seconds at most; a second Ctrl-C or SIGTERM ends them now"
        )
        self.assertTrue(client.reply().startswith("421 4.3.2"))
        self.assertEqual(client.reply(), "")
        self.assertEqual(process.wait(), -signal.SIGTERM)
        process.line_with("1 connections did not end within 0.2 seconds")


def _port_of(client: Client) -> int:
    port: int = client.socket.getpeername()[1]
    return port


class PrivilegesTests(CommandLineTestCase):
    """A server that starts as root, and continues as another user."""

    def test_mailboxBelongsToTheServer(self) -> None:
        """Files that --handler creates belong to the user of --uid, who can then store mail."""
        if os.geteuid() != 0:
            raise SkipTest("only root can give up root's rights")
        nobody = pwd.getpwnam("nobody")
        root = tempfile.mkdtemp()  # other users may have no access to trial's folders
        self.addCleanup(shutil.rmtree, root)
        os.chown(root, nobody.pw_uid, nobody.pw_gid)
        users = [f"--uid={nobody.pw_uid}", f"--gid={nobody.pw_gid}"]
        process = self.run_python(
            *TWISTD, "-n", "--pidfile=", *users, "smtpd", LOOPBACK, f"--handler=mailbox:{root}/mail"
        )
        port = process.port()
        self.assertEqual(os.stat(f"{root}/mail/new").st_uid, nobody.pw_uid)
        self.assertTrue(self.connect(port).deliver().startswith("250"))
