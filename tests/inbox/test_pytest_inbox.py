"""pytest --mail-inbox: the mail of a test run in a browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase

from tests.support.programs import once

SUITE = """
import json, urllib.request
from pytest_txsmtpd import INBOX

def send(server, subject, to):
    with server.smtplib() as client:
        client.sendmail("ann@example.org", [to], f"Subject: {subject}\\r\\n\\r\\nHello\\r\\n")

def test_good(mail_catcher):
    send(mail_catcher, "good", "bob@example.com")

def test_bad(mail_catcher):
    send(mail_catcher, "bad", "bob@example.com")
    assert mail_catcher.messages == []

def test_shared(mail_inbox, mail_server):
    send(mail_server, "shared", mail_inbox.address("bob"))
    assert mail_inbox.wait().subject == "shared"

def test_page(request):
    page = request.config.stash[INBOX]
    with urllib.request.urlopen(f"{page.url}/api/v1/messages", timeout=60) as answer:
        found = {message["Subject"]: message["Tags"] for message in json.load(answer)["messages"]}
    assert found == {"good": ["test_good"], "bad": ["failed", "test_bad"], "shared": ["test_shared"]}
    with urllib.request.urlopen(f"{page.url}/api/inbox/v1/sessions", timeout=60) as answer:
        assert len(json.load(answer)["sessions"]) == 2
"""
SHARED = """
def test_shared(mail_inbox, mail_server):
    with mail_server.smtplib() as client:
        client.sendmail("ann@example.org", [mail_inbox.address("bob")], "Subject: x\\r\\n\\r\\nHello\\r\\n")
    assert mail_inbox.wait().subject == "x"
"""


class PytestTests(TestCase):
    """Runs of pytest."""

    def run_suite(self, suite: str, *options: str) -> tuple[int, str]:
        """The exit status and the output."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "test_suite.py").write_text(suite, "utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_suite.py"],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
        return done.returncode, done.stdout

    def test_run(self) -> None:
        """The mail of all tests is shown, including finished ones, with their names. A failure prints the address."""
        status, said = self.run_suite(SUITE, "--mail-inbox=0")
        self.assertEqual(status, 1, said)
        self.assertIn("1 failed, 3 passed", said)
        self.assertRegex(said, r"The mail of this test: http://127\.0\.0\.1:\d+/\?query=tag:test_bad")
        self.assertRegex(said, r"mail of this run: http://127\.0\.0\.1:\d+")

    def test_parallel(self) -> None:
        """With pytest-xdist, the workers share one mail_server, whose mail is shown."""
        once()
        status, said = self.run_suite(SHARED, "--mail-inbox=0", "-n2")
        self.assertEqual(status, 0, said)

    def test_portInUse(self) -> None:
        """The error for a port that is not free is one line."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            status, said = self.run_suite(SHARED, f"--mail-inbox={port}")
        self.assertEqual((status, said.strip()), (4, f"ERROR: --mail-inbox={port}: Address already in use"))
