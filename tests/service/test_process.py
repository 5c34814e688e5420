"""The server as a process: its log, its standard streams, its signals, and its end."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.service.test_commandline import LOOPBACK, PATIENCE, Client, CommandLineTestCase, Process, environment
from tests.support.programs import once
from tests.support.tls import combined, issue

LOUD_MODULE = '''
import os, time
from twisted.internet.threads import deferToThread

class Loud:
    """Prints much for each message, and raises for some senders."""

    async def handle_DATA(self, server, session, envelope):
        print("x" * 5000)
        if "bad" in envelope.mail_from:
            raise ValueError("broken")
        return "250 OK"

class Frozen:
    """Waits for a disk that does not answer."""

    async def handle_DATA(self, server, session, envelope):
        await deferToThread(self.write)
        return "250 OK"

    def write(self):
        print("writing", flush=True)
        os.open("fifo", os.O_WRONLY)

class Forgetful(Frozen):
    """Does not wait for it."""

    async def handle_DATA(self, server, session, envelope):
        deferToThread(self.write)
        return "250 OK"
'''
SLOW = """
import time

class Slow:
    async def handle_NOOP(self, server, session, envelope, arg):
        time.sleep(1.5)
        return "250 OK"
"""
END_OF_WELCOME = """Hello!\\n")'"""
CONSOLE = ["-c", "from txsmtpd.service.console import main; main()"]
RUN = """
import sys, txsmtpd

class Printer:
    async def handle_DATA(self, server, session, envelope):
        print("got", envelope.mail_from)
        return "250 OK"

txsmtpd.run(Printer(), *sys.argv[1:])
"""


class ProcessTestCase(CommandLineTestCase):
    """Starts the program ``txsmtpd``."""

    def setUp(self) -> None:
        super().setUp()
        Path(self.folder, "loud.py").write_text(LOUD_MODULE)

    def txsmtpd(self, *options: str, **variables: str) -> Process:
        return self.run_python(*CONSOLE, LOOPBACK, *options, **variables)


class LogTests(ProcessTestCase):
    """The log."""

    def test_text(self) -> None:
        """The log is text on standard error. Standard output has only the output of the handler."""
        process = self.txsmtpd("--handler=own_module.Prints")
        self.assertTrue(self.connect(process.port()).deliver().startswith("250"))
        process.line_with(" message from <a@a.example> to <b@b.example>")
        process.process.send_signal(signal.SIGTERM)
        process.wait()
        self.assertEqual(process.output, [" from a@a.example\n"])
        self.assertEqual(process.errors, [])

    def test_twist(self) -> None:
        """The same is true for twist, whose own default is JSON on standard output. Its options are obeyed."""
        process = self.smtpd(LOOPBACK, "--handler=sink")
        process.line_with(" info  listening on ")
        process = self.run_python("-m", "twisted", "--log-format=json", "--log-file=log", "smtpd", LOOPBACK)
        line = self.wait_for_line("log", "listening on")
        self.assertEqual(json.loads(line)["event"], "log")

    def test_json(self) -> None:
        """--log-format=json writes one object per line."""
        process = self.txsmtpd("--log-format=json", "--log-file=-", "--handler=sink")
        port = int(json.loads(process.line_with("listening on"))["text"].rpartition(":")[2])
        self.connect(port).deliver()
        self.assertEqual(json.loads(process.line_with("b@b.example"))["level"], "info")

    def test_renamed(self) -> None:
        """SIGHUP reopens the file after logrotate has renamed it."""
        process = self.txsmtpd("--log-file=log", "--handler=sink")
        self.wait_for_line("log", "listening on")
        os.rename(Path(self.folder, "log"), Path(self.folder, "log.1"))
        process.process.send_signal(signal.SIGHUP)
        self.wait_for_line("log", "reloaded")

    def test_refusals(self) -> None:
        """Invalid options are one line."""
        for option, expected in [
            ("--log-format=xml", "must be text, for people, or json, for programs"),
            ("--log-level=loud", "must be one of debug, info, warn, error, critical"),
            ("--log-file=no/such/folder", "--log-file=no/such/folder: No such file or directory"),
        ]:
            self.assertOneLine(self.txsmtpd(option), 64, expected, command="txsmtpd")
        process = self.run_python("-c", "from twisted.scripts.twistd import run; run()", "-n", "smtpd", "--log-file=x")
        self.assertOneLine(process, 64, "twistd has a log of its own")

    def wait_for_line(self, name: str, text: str) -> str:
        """Wait until the file has a line with this text."""
        deadline = time.monotonic() + PATIENCE
        path = Path(self.folder, name)
        while time.monotonic() < deadline:
            for line in path.read_text().splitlines() if path.exists() else ():
                if text in line:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line with {text!r} in {name}")


class ReactorTests(ProcessTestCase):
    """--reactor."""

    def test_asyncio(self) -> None:
        """The reactor can be chosen on the command line and in the environment."""
        for process in self.txsmtpd("--reactor=asyncio"), self.txsmtpd(TXSMTPD_REACTOR="asyncio"):
            self.assertTrue(self.connect(process.port()).deliver().startswith("250"))

    def test_refusals(self) -> None:
        """The error for an unknown one is one line with the existing ones."""
        process = self.txsmtpd("--reactor=fast")
        self.assertOneLine(process, 64, "there is no such reactor; there are ", "asyncio", command="txsmtpd")


class UnreadTests(ProcessTestCase):
    """Standard streams without a reader."""

    def test_pipes(self) -> None:
        """The server continues to serve, however much it logs."""
        once()
        reading, writing = os.pipe()
        folder = tempfile.mkdtemp()  # the path of a socket is short
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, *CONSOLE, f"--listen=unix:{folder}/socket", "--handler=loud.Loud"],
            cwd=self.folder,
            stdout=writing,
            stderr=writing,
            env=environment(self.folder),
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        os.close(writing)
        self.addCleanup(os.close, reading)
        client = self.connect_to_path(f"{folder}/socket")
        assert client.reply().startswith("220")
        client.say("EHLO c.example")
        for number in range(60):  # 5 KB each; a pipe holds 64 KiB
            sender = "bad@a.example" if number % 2 else "a@a.example"
            for command in f"MAIL FROM:<{sender}>", "RCPT TO:<b@b.example>", "DATA":
                client.say(command)
            self.assertEqual(client.say("hello\r\n.")[:3], "451" if number % 2 else "250")
        process.send_signal(signal.SIGTERM)
        client.close()
        process.wait(PATIENCE)

    def connect_to_path(self, path: str) -> Client:
        """A client that waits until the server listens on the path."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client = Client(path)
            except (FileNotFoundError, ConnectionRefusedError):  # the socket exists before the server listens
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            else:
                self.addCleanup(client.close)
                return client


class SignalTests(ProcessTestCase):
    """Signals."""

    def test_harmless(self) -> None:
        """SIGHUP, SIGUSR1, SIGUSR2 and SIGALRM end neither the server nor a session during a message."""
        process = self.txsmtpd("--handler=sink")
        client = self.connect(process.port())
        client.begin_data()
        for name in "SIGUSR1", "SIGUSR2", "SIGALRM":
            process.process.send_signal(getattr(signal, name))
            process.line_with(f"{name} is ignored")
        process.process.send_signal(signal.SIGHUP)
        process.line_with("reloaded")
        self.assertTrue(client.say("hello\r\n.").startswith("250"))

    def test_twistd(self) -> None:
        """SIGHUP does not end twistd either."""
        process = self.run_python(
            "-c", "from twisted.scripts.twistd import run; run()", "-n", "smtpd", LOOPBACK, "--handler=sink"
        )
        client = self.connect(process.port())
        client.begin_data()
        process.process.send_signal(signal.SIGHUP)
        process.line_with("reloaded")
        self.assertTrue(client.say("hello\r\n.").startswith("250"))

    def test_certificates(self) -> None:
        """SIGHUP reads the certificates again. Each time it fails, the log says so."""
        certificate = Path(self.folder, "cert.pem")
        certificate.write_bytes(combined(issue("localhost")))
        process = self.txsmtpd(f"--tls={certificate}", "--handler=sink")
        process.port()
        certificate.write_text("no certificate")
        for _ in range(2):
            process.process.send_signal(signal.SIGHUP)
            process.line_with("the previous certificate stays in use")
            process.line_with("the reload failed")
        certificate.write_bytes(combined(issue("localhost")))
        process.process.send_signal(signal.SIGHUP)
        process.line_with("reloaded")

    def test_watchdog(self) -> None:
        """If systemd's watchdog aborts a server that hangs, the journal shows the code that blocks it."""
        Path(self.folder, "slow.py").write_text(SLOW.replace("time.sleep(1.5)", "print('blocks'); time.sleep(600)"))
        process = self.txsmtpd("--handler=slow.Slow")
        self.connect(process.port()).socket.sendall(b"NOOP\r\n")
        process.line_with("blocks")
        process.process.send_signal(signal.SIGABRT)
        process.line_with("Fatal Python error: Aborted")
        process.line_with("handle_NOOP")
        self.assertEqual(process.wait(), -signal.SIGABRT)

    def test_twice(self) -> None:
        """A second SIGTERM does not wait for open transactions, and is not logged as a failure."""
        process = self.txsmtpd("--handler=sink", "--grace=60")
        client = self.connect(process.port())
        client.begin_data()
        process.process.send_signal(signal.SIGTERM)
        process.line_with("stopped listening")
        process.process.send_signal(signal.SIGTERM)
        process.line_with("SIGTERM again")
        self.assertEqual(process.wait(), -signal.SIGTERM)
        self.assertEqual([line for line in process.seen if "Traceback" in line or " critical " in line], [])

    def test_frozenDisk(self) -> None:
        """A thread that waits for a disk does not keep the process, which ends with 71 after a second SIGTERM."""
        once()
        os.mkfifo(Path(self.folder, "fifo"))
        process = self.txsmtpd("--handler=loud.Frozen", "--grace=60")
        client = self.connect(process.port())
        client.begin_data()
        client.socket.sendall(b"hello\r\n.\r\n")
        process.line_with("writing")
        process.process.send_signal(signal.SIGTERM)
        process.line_with("stopped listening")
        process.process.send_signal(signal.SIGTERM)
        process.line_with("the process is killed")
        self.assertEqual(process.wait(), 71)

    def test_forgottenThread(self) -> None:
        """A thread that is still busy when all transactions are over does not keep the process for the grace period."""
        once()
        os.mkfifo(Path(self.folder, "fifo"))
        process = self.txsmtpd("--handler=loud.Forgetful", "--grace=600")
        client = self.connect(process.port())
        client.begin_data()
        self.assertTrue(client.say("hello\r\n.").startswith("250"))
        process.line_with("writing")
        process.process.send_signal(signal.SIGTERM)
        process.line_with("the process is killed")
        self.assertEqual(process.wait(), 71)


class TerminalTests(ProcessTestCase):
    """On a terminal."""

    def start(self, *options: str) -> tuple[int, subprocess.Popen[bytes]]:
        terminal, inner = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, *CONSOLE, LOOPBACK, *options],
            cwd=self.folder,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            env=environment(self.folder),
        )
        os.close(inner)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return terminal, process

    def read(self, terminal: int, until: str) -> str:
        text = ""
        while until not in text:
            if not select.select([terminal], [], [], PATIENCE)[0]:
                raise AssertionError(f"{until!r} is not in {text!r}")
            text += os.read(terminal, 4096).decode()
        return text

    def test_welcome(self) -> None:
        """Two lines show where it listens and how to try it. The command in them works."""
        terminal, _ = self.start("--handler=sink")
        text = self.read(terminal, END_OF_WELCOME)
        self.assertRegex(text, r"txsmtpd listens on 127\.0\.0\.1:\d+ \(--handler=sink\)\. Ctrl-C stops it")
        [command] = [line for line in text.splitlines() if "Try it" in line]
        code = command.partition("python3 -c '")[2].rpartition("'")[0]
        subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
        self.read(terminal, "message from <a@example.com>")
        os.close(terminal)

    def test_closed(self) -> None:
        """When the terminal is closed, the server ends."""
        terminal, process = self.start("--handler=sink")
        self.read(terminal, END_OF_WELCOME)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        process.wait(PATIENCE)


class RunTests(ProcessTestCase):
    """txsmtpd.run."""

    def test_serves(self) -> None:
        """A program of one line serves, logs text on standard error, and ends at Ctrl-C."""
        process = self.run_python("-c", RUN, "tcp:0:interface=127.0.0.1")
        self.assertTrue(self.connect(process.port()).deliver().startswith("250"))
        process.line_with("got a@a.example")
        process.process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(), 0)
        self.assertEqual((process.output, process.errors), (["got a@a.example\n"], []))

    def test_taken(self) -> None:
        """A port in use is one line and status 71."""
        other = self.txsmtpd("--handler=sink")
        port = other.port()
        process = self.run_python("-c", RUN, f"127.0.0.1:{port}")
        self.assertOneLine(process, 71, "Address already in use", command="txsmtpd")
        self.assertEqual(
            [process.lines.get() for _ in range(process.lines.qsize())], process.errors
        )  # it is not logged

    def test_mistakes(self) -> None:
        """An invalid option or endpoint is an exception that says why."""
        for arguments, expected in [
            ("'25'", "ValueError: not an endpoint; did you mean tcp:25"),
            ("25", "TypeError: an endpoint is a string such as"),
            ("data_sizelimit=1", "data_size_limit"),
            ("port=25", 'give an endpoint, as in run(handler, "localhost:8025")'),
        ]:
            process = self.run_python(
                "-c", f"import txsmtpd.handlers; txsmtpd.run(txsmtpd.handlers.Sink(), {arguments})"
            )
            self.assertEqual(process.wait(), 1)
            self.assertIn(expected, process.errors[-1])

    def test_blockingHook(self) -> None:
        """The log names a hook that blocks, of such a program and on the command line."""
        Path(self.folder, "slow.py").write_text(SLOW)
        code = "import txsmtpd, slow; txsmtpd.run(slow.Slow(), 'tcp:0:interface=127.0.0.1')"
        for process in self.run_python("-c", code), self.smtpd("--handler=slow.Slow", LOOPBACK):
            self.connect(process.port()).say("NOOP")
            process.line_with("Slow.handle_NOOP (slow.py, line 6) has blocked the server for more than ")

    def test_uselessAuth(self) -> None:
        """Options with which no client can authenticate cause a warning."""
        for options, expected in [
            ("auth_required=True", "there is no authenticator: all mail will be rejected"),
            ("authenticator=print", "there is no tls_context: AUTH is never offered"),
        ]:
            process = self.run_python(
                "-c",
                "import txsmtpd.handlers; txsmtpd.run(txsmtpd.handlers.Sink(), 'tcp:0:interface=127.0.0.1', "
                f"{options})",
            )
            process.port()
            self.assertIn(expected, "".join(process.errors + process.seen))
