"""Many tests at the same time on one inbox, and a server that is killed under load."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import smtplib
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import TestCase

from tests.inbox.test_clients import Server
from tests.support.programs import once

TESTS = 200
WORKERS = 8
CLIENTS = 4
ACCEPTED = 200  # the number of accepted messages after which the server is killed


class ParallelTests(TestCase):
    """Two hundred tests in eight processes."""

    def test_isolated(self) -> None:
        """Tests at the same time, each below /in/domain=.../, wait, list and delete. None sees the mail of another."""
        once()
        server = Server()
        self.addCleanup(server.stop)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"-n{WORKERS}"),
                str(Path(__file__).with_name("parallel_suite.py")),
            ],
            env={
                **os.environ,
                "INBOX_URL": str(server.url),
                "INBOX_SMTP_PORT": str(server.smtp_port),
                "INBOX_TESTS": str(TESTS),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        self.assertIn(f"{TESTS} passed", done.stdout)
        self.assertEqual(done.returncode, 0, done.stdout)


class KilledTests(TestCase):
    """kill -9, while clients send."""

    def test_nothingLost(self) -> None:
        """Every message that got 250 is in the file, complete, when the server is started again."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "mail")
            server = Server(handler=f"inbox:{path}")
            self.addCleanup(server.stop)
            accepted: list[str] = []
            enough = threading.Event()

            def send(client_number: int) -> None:
                with (
                    contextlib.suppress(OSError, smtplib.SMTPException),
                    smtplib.SMTP("127.0.0.1", server.smtp_port or 0, timeout=60) as client,
                ):
                    for number in range(100_000):
                        subject = f"{client_number}-{number}"
                        client.sendmail("a@b.test", ["c@d.test"], f"Subject: {subject}\r\n\r\nHello {subject}\r\n")
                        accepted.append(subject)
                        if len(accepted) >= ACCEPTED:
                            enough.set()

            threads = [threading.Thread(target=send, args=(number,)) for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            self.assertTrue(enough.wait(60))
            server.process.send_signal(signal.SIGKILL)
            server.process.communicate(timeout=60)
            for thread in threads:
                thread.join(30)
            connection = sqlite3.connect(path)
            rows = connection.execute("SELECT octets FROM content").fetchall()
            stored = {match[1].decode() for (octets,) in rows if (match := re.search(rb"Hello (\S+)\r\n$", octets))}
            (check,) = connection.execute("PRAGMA integrity_check").fetchone()
            connection.close()
            self.assertEqual(check, "ok")
            self.assertEqual(set(accepted) - stored, set())
            self.assertGreaterEqual(len(accepted), ACCEPTED)
            again = Server(handler=f"inbox:{path}")
            self.addCleanup(again.stop)
            self.assertIsNotNone(again.url)
