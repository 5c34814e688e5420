"""Several workers, as the command line starts them: real processes, sockets and signals."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_commandline import environment
from tests.support.programs import once

PATIENCE = 60.0  # seconds
LETTER = "Subject: hello\r\n\r\nHello!\r\n"

HANDLER = """
import os, time

class Naming:
    async def handle_MAIL(self, server, session, envelope, address, mail_options):
        if address.startswith("hang"):
            time.sleep(100)
        envelope.mail_from = address
        return f"250 2.1.0 process {os.getpid()}"

    async def handle_DATA(self, server, session, envelope):
        return f"250 2.0.0 process {os.getpid()}"

naming = Naming()
"""


class Master:
    """``twist smtpd --workers=N``, and what it has logged."""

    def __init__(self, case: SynchronousTestCase, *options: str, workers: int = 2, listen: str | None = None) -> None:
        once()
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "naming.py").write_text(HANDLER)
        words = ["-m", "twisted", "smtpd", f"--workers={workers}", *options]
        words.append(listen or "--listen=tcp:0:interface=127.0.0.1")
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment(str(self.folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        case.addCleanup(self.stop)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines have matched."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= times:
                    return found
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no line {pattern!r} ({len(found)} of {times}) in:\n{''.join(self.lines)}")

    def port(self) -> int:
        """Wait until all workers serve; the port."""
        self.wait_for("is ready", 2)
        return int(self.wait_for(r"listen on 127\.0\.0\.1:(\d+)")[0][1])

    def pids(self) -> list[int]:
        """The processes that have become ready, in order."""
        return [int(match[1]) for match in self.wait_for(r"worker \d+ \(process (\d+)\) is ready")]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


def connect(port: int) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
    client.ehlo("client.test")
    return client


def process_of(client: smtplib.SMTP) -> int:
    """Which process serves a client."""
    client.rset()
    _, text = client.mail("a@example.com")
    client.rset()
    return int(text.split()[-1])


class Load:
    """Clients that deliver one message after the other, without trying anything twice."""

    def __init__(self, port: int, clients: int) -> None:
        self.port = port
        self.delivered = 0
        self.refused: list[Exception] = []
        self.broken: list[Exception] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client = connect(self.port)
            except ConnectionRefusedError as error:
                self.refused.append(error)
                continue
            except OSError as error:  # also SMTPException
                self.broken.append(error)
                continue
            try:
                client.sendmail("a@example.com", "b@example.com", LETTER)
                with self._lock:
                    self.delivered += 1
                client.quit()
            except OSError as error:
                self.broken.append(error)
            finally:
                client.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class ServingTests(SynchronousTestCase):
    """Who serves, and who takes over."""

    def test_even(self) -> None:
        """Clients that come one after the other are shared evenly."""
        port = (master := Master(self, "--handler=naming.naming")).port()
        clients = [connect(port) for _ in range(20)]
        split = Counter(map(process_of, clients))
        for client in clients:
            client.close()
        self.assertEqual(set(split), set(master.pids()))
        self.assertLessEqual(max(split.values()), 11)

    def test_killed(self) -> None:
        """A worker that is killed takes its own sessions with it, and no others; another one takes its place. What it
        has counted still counts."""
        master = Master(self, "--handler=naming.naming", "--metrics=tcp:0:interface=127.0.0.1")
        port = master.port()
        metrics = int(master.wait_for(r"metrics and health on 127\.0\.0\.1:(\d+)")[0][1])
        clients = [connect(port) for _ in range(20)]
        victim, survivor = master.pids()
        before = {client: process_of(client) for client in clients}
        for client in clients:
            client.sendmail("a@example.com", "b@example.com", LETTER)
        self.eventually(lambda: self.counted(metrics, "txsmtpd_messages_total") == 20)
        os.kill(victim, signal.SIGKILL)
        master.wait_for("was ended by SIGKILL")
        for client, process in before.items():
            if process == victim:
                self.assertRaises(smtplib.SMTPServerDisconnected, client.noop)
            else:
                self.assertEqual(process_of(client), survivor)
            client.close()
        master.wait_for("is ready", 3)
        self.assertEqual(self.counted(metrics, "txsmtpd_messages_total"), 20)
        self.assertEqual(self.counted(metrics, "txsmtpd_worker_restarts_total"), 1)

    def counted(self, port: int, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(name + r"[{ ]", line))

    def eventually(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)

    def test_hangs(self) -> None:
        """A worker whose reactor a hook blocks is aborted, with the traceback of the hook in the log, and replaced; the
        other one serves meanwhile."""
        master = Master(self, "--handler=naming.naming", "--worker-timeout=2")
        port = master.port()
        client = connect(port)
        client.putcmd("mail", "FROM:<hang@example.com>")
        others = [connect(port) for _ in range(2)]
        self.assertEqual(len({*map(process_of, others[:1])}), 1)
        master.wait_for("has not been heard of")
        master.wait_for("handle_MAIL")
        master.wait_for("was ended by SIGABRT")
        master.wait_for("is ready", 3)
        for each in (client, *others):
            each.close()

    def test_unixSocket(self) -> None:
        """A Unix socket keeps its mode and its path when a worker dies, and is gone with the master."""
        path = os.path.join(tempfile.mkdtemp(), "lmtp")
        master = Master(self, "--handler=naming.naming", listen=f"--listen-lmtp=unix:{path}:mode=660")
        master.wait_for("is ready", 2)
        os.kill(master.pids()[0], signal.SIGKILL)
        master.wait_for("is ready", 3)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o660)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(path)
            self.assertEqual(client.recv(4), b"220 ")
        master.stop()
        self.assertFalse(os.path.exists(path))

    def test_limit(self) -> None:
        """The limit of connections is that of all workers together."""
        port = Master(self, "--handler=naming.naming", "--connection-limit=4").port()
        clients = [connect(port) for _ in range(4)]
        with self.assertRaises(smtplib.SMTPConnectError) as raised:
            smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
        self.assertEqual(raised.exception.smtp_code, 421)
        for client in clients:
            client.close()

    def test_limitOfNetwork(self) -> None:
        """So is the limit of a network."""
        port = Master(self, "--handler=naming.naming", "--connection-limit-per-host=4").port()
        clients = [connect(port) for _ in range(4)]
        self.assertEqual(len({*map(process_of, clients)}), 2)
        with self.assertRaises(smtplib.SMTPConnectError) as raised:
            smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
        self.assertEqual(raised.exception.smtp_code, 421)
        for client in clients:
            client.close()

    def test_tlsAuto(self) -> None:
        """All workers have one certificate, of one authority."""
        port = Master(self, "--handler=naming.naming", "--tls=auto", "--ca-out=ca.pem").port()
        certificates = set()
        clients = [connect(port) for _ in range(4)]
        for client in clients:
            client.starttls()
            secured: Any = client.sock
            certificates.add(secured.getpeercert(True))
            client.close()
        self.assertEqual(len(certificates), 1)


class ReloadTests(SynchronousTestCase):
    """SIGHUP, and the end."""

    def test_underLoad(self) -> None:
        """Reloads and deaths of workers refuse no connection; a reload breaks no session, and a death only those of
        the worker that has died."""
        master = Master(self, "--handler=mailbox:mail")
        load = Load(master.port(), 8)
        ready = 2
        for _ in range(2):
            master.signal(signal.SIGHUP)
            ready += 2
            master.wait_for("is ready", ready)
        master.wait_for("all workers were replaced", 2)
        self.assertEqual((load.refused, load.broken), ([], []))
        os.kill(master.pids()[-1], signal.SIGKILL)
        master.wait_for("is ready", ready + 1)
        load.stop()
        self.assertEqual(load.refused, [])
        self.assertLessEqual(len(load.broken), 8)
        stored = len(os.listdir(master.folder / "mail/new"))
        self.assertGreaterEqual(stored, load.delivered)
        self.assertLessEqual(stored, load.delivered + len(load.broken))

    def test_brokenHandler(self) -> None:
        """A reload with a handler that cannot be imported keeps the workers that there are, and says why."""
        master = Master(self, "--handler=naming.naming")
        port = master.port()
        client = connect(port)
        before = process_of(client)
        (master.folder / "naming.py").write_text("syntax error")
        master.signal(signal.SIGHUP)
        master.wait_for("the reload has failed")
        master.wait_for("SyntaxError|invalid syntax")
        self.assertEqual(process_of(client), before)
        self.assertLessEqual({process_of(connect(port)) for _ in range(4)}, set(master.pids()))
        client.close()

    def test_drain(self) -> None:
        """SIGTERM lets open transactions end; then all processes are gone."""
        master = Master(self, "--handler=mailbox:mail")
        port = master.port()
        clients = [connect(port) for _ in range(4)]
        for client in clients:
            client.mail("a@example.com")
            client.rcpt("b@example.com")
        master.signal(signal.SIGTERM)
        master.wait_for("stopped listening", 2)
        for client in clients:
            self.assertEqual(client.data(LETTER)[0], 250)
            client.close()
        master.process.wait(PATIENCE)
        self.assertEqual(len(os.listdir(master.folder / "mail/new")), 4)
        for pid in master.pids():
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_hurry(self) -> None:
        """A second SIGTERM ends all sessions at once."""
        master = Master(self, "--handler=mailbox:mail", "--grace=1000")
        client = connect(master.port())
        client.mail("a@example.com")
        master.signal(signal.SIGTERM)
        master.wait_for("stopped listening", 2)
        master.signal(signal.SIGTERM)
        master.process.wait(PATIENCE)  # and not the grace
        client.close()

    def test_masterKilled(self) -> None:
        """Workers without a master end by themselves."""
        master = Master(self, "--handler=mailbox:mail")
        master.port()
        master.signal(signal.SIGKILL)
        master.wait_for("the master is gone", 2)
        master.process.wait(PATIENCE)
        master._reader.join(PATIENCE)  # until no process has the log any more
        self.assertFalse(master._reader.is_alive())


class RefusalTests(SynchronousTestCase):
    """What cannot be, told in one line and a status."""

    def run_command(self, *options: str) -> tuple[int, str]:
        folder = tempfile.mkdtemp()
        words = [sys.executable, "-m", "twisted", "smtpd", *options]
        done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    def test_number(self) -> None:
        """The number is one that makes sense."""
        for number in ("0", "-1", "many", "1000"):
            status, said = self.run_command(f"--workers={number}")
            self.assertEqual((status, said.count("\n")), (64, 1), said)

    def test_inbox(self) -> None:
        """The inbox is one process."""
        status, said = self.run_command("--workers=2", "--handler=inbox")
        self.assertEqual((status, said.count("\n")), (64, 1), said)
        self.assertIn("inbox", said)

    def test_wrapped(self) -> None:
        """An endpoint that speaks TLS itself cannot be handed on; what can is named."""
        status, said = self.run_command("--workers=2", "--handler=sink", "--listen=tls:/etc/ssl:port=0")
        self.assertEqual((status, said.count("\n")), (64, 1), said)

    def test_taken(self) -> None:
        """A port that is taken ends the master with status 71, before there is a worker."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            status, said = self.run_command("--workers=2", "--handler=sink", f"--listen=127.0.0.1:{port}")
        self.assertEqual(status, 71)
        self.assertIn("Address already in use", said)
