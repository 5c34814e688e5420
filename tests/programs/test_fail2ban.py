"""The filter for fail2ban in ``examples``, with fail2ban's own program and the log of a real server."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from tests.support.programs import program
from txsmtpd.engine.budget import TOO_MANY_ERRORS, TOO_MUCH_JUNK
from txsmtpd.engine.masking import in_one_line
from txsmtpd.extensions.auth import TOO_MANY_ATTEMPTS, TOO_MANY_FAILURES

FILTER = Path(__file__).parent.parent.parent / "examples" / "fail2ban" / "filter.d" / "txsmtpd.conf"
OPTIONS = ("--handler=sink", "--auth=memory:fred:right", "--auth-without-tls", "--error-limit=2", "--error-delay=0")
PATIENCE = 60  # seconds until a test gives up


class Fail2banTests(SynchronousTestCase):
    """The addresses to ban are found, and no others."""

    def setUp(self) -> None:
        self.regex = program("fail2ban-regex", "fail2ban")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.log = Path(folder.name, "log")

    def matched(self) -> list[str]:
        """The lines of the log that count against an address."""
        found = subprocess.run(
            [self.regex, "--print-all-matched", str(self.log), str(FILTER)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        lines = found.stdout.partition("Matched line(s):")[2].partition("`-")[0]
        return [line[3:].strip() for line in lines.splitlines() if line.startswith("|  ")]

    def test_realLog(self) -> None:
        """Failed logins and sessions with too many errors count. An ordinary session does not."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TXSMTPD_")}
        with self.log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "txsmtpd", f"--listen=tcp:{port}:interface=127.0.0.1", *OPTIONS],
                env={**environ, "PYTHONPATH": str(Path(txsmtpd.__file__).parent.parent)},
                stdout=output,
                stderr=output,
            )
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
                client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nHello\r\n")
                break
            assert time.monotonic() < deadline, self.log.read_text()
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
            client.ehlo()
            # A user name that looks like the end of a log line.
            name = base64.b64encode(b"\0x, client 192.0.2.99:1\0wrong").decode()
            self.assertEqual(client.docmd("AUTH PLAIN", name)[0], 535)
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
            client.ehlo()
            self.assertEqual([client.docmd("FOO")[0] for _ in range(2)], [500, 421])
        deadline = time.monotonic() + PATIENCE
        while self.log.read_text().count("421 4.7.0 Too many errors") < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.terminate()
        server.wait()
        lines = self.matched()
        self.assertEqual(len(lines), 2, f"{lines} of\n{self.log.read_text()}")
        self.assertEqual([re.findall(r"client 127\.0\.0\.1:\d+", line) != [] for line in lines], [True, True])

    def test_addresses(self) -> None:
        """IPv6 addresses are found, too. Input from a client cannot name another address."""
        time_and_session = "2026-11-29T09:30:19.007+00:00 info  1a22.ce60.2"
        self.log.write_text(
            f"{time_and_session} authentication by PLAIN failed for 'fred', client [2001:db8::1]:59590\n"
            f"{time_and_session} RCPT refused, client 192.0.2.9:4712, from <a@x.test> to <c@x.test>: 550 5.1.1\n"
            f"{time_and_session} RCPT refused, client 192.0.2.9:4712, from <a@x.test> to <c@x.test>:"
            " 421 4.7.0 Too many errors, closing connection\n"
            f"{time_and_session} MAIL refused, client 192.0.2.9:4712: 550 5.7.1 x refused, client 192.0.2.8:1:"
            " 421 4.7.0 Too many errors\n"
        )
        lines = self.matched()
        self.assertEqual(len(lines), 2, lines)

    def test_wording(self) -> None:
        """Each reply that disconnects a client for its behavior counts, with the server's text."""
        replies = TOO_MANY_ERRORS, TOO_MUCH_JUNK, TOO_MANY_FAILURES, TOO_MANY_ATTEMPTS
        lines = [
            f"2026-11-29T09:30:19.007+00:00 info  1a22.ce60.2 NOOP refused, client 192.0.2.9:4712: {in_one_line(reply)}"
            for reply in replies
        ]
        self.log.write_text("".join(f"{line}\n" for line in lines))
        self.assertEqual(self.matched(), lines)
