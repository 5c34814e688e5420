"""Clients of Mailpit's API, run against the server that the command line starts.

``.ci/npm.sh`` installs the npm packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase

from tests.support.programs import not_here, program

PACKAGES = Path("/var/cache/txsmtpd-tests/node")
PATIENCE = 60.0


class Server:
    """An inbox that the command line starts, on free ports."""

    def __init__(self, *options: str, handler: str = "inbox") -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "txsmtpd", f"--handler={handler}"),
                *("--listen=tcp:0:interface=127.0.0.1", "--web=0", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tempfile.gettempdir(),
        )
        self.url: str | None = None
        self.smtp_port: int | None = None
        self.before = ""  # the output before the line with the URL
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.before += line
            if "inbox on " in line:
                self.url = line.split("inbox on ")[1].strip().rstrip("/")
            if "listening on " in line:
                self.smtp_port = int(line.strip().rpartition(":")[2])
            if self.url and self.smtp_port:
                return
        raise AssertionError(self.before)

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


class MailpitClientTests(TestCase):
    """The npm package mailpit-api."""

    def test_everything(self) -> None:
        """All methods of the client work, and its events arrive."""
        node = program("node", "nodejs")
        if not (PACKAGES / "packages").exists():
            raise not_here("the packages of npm are missing; .ci/npm.sh, run as root, installs them")
        server = Server("--web-auth=memory:user:secret")
        self.addCleanup(server.stop)
        script = Path(__file__).with_name("mailpit_client.mjs")
        done = subprocess.run(
            [node, str(script), str(PACKAGES), str(server.url), "user", "secret"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
            env={**os.environ, "NO_COLOR": "1"},
        )
        self.assertEqual(done.returncode, 0, done.stdout)
