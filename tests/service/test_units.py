"""The systemd units in ``examples/systemd``, with systemd's own programs."""

from __future__ import annotations

import os
import re
import shutil
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

UNITS = Path(__file__).parent.parent.parent / "examples" / "systemd"
STATE = "/var/lib/smtpd"
PATIENCE = 60  # seconds until a test gives up


class UnitTests(SynchronousTestCase):
    """They are valid, and the service receives mail."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def test_verify(self) -> None:
        """systemd accepts them without warnings."""
        for unit in UNITS.iterdir():
            # systemd would also complain that the program does not exist.
            text = unit.read_text().replace("/opt/mail/bin/txsmtpd", "/bin/true")
            (self.folder / unit.name).write_text(text)
        found = subprocess.run(
            [program("systemd-analyze", "systemd"), "verify", *self.folder.iterdir()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.assertEqual((found.returncode, found.stdout), (0, ""))

    def test_activation(self) -> None:
        """systemd's own program for socket activation starts the service of the unit, which stores mail."""
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
        text = (UNITS / "smtpd.service").read_text().replace(STATE, str(self.folder))
        variables = dict(re.findall(r"^Environment=(TXSMTPD_\w+)=(.*)$", text, re.MULTILINE))
        self.assertIn("TXSMTPD_LISTEN", variables)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TXSMTPD_", "LISTEN_"))}
        variables["PYTHONPATH"] = str(Path(txsmtpd.__file__).parent.parent)
        activate = [program("systemd-socket-activate", "systemd"), "-l", f"[::1]:{port}", "--fdname=smtpd.socket"]
        # systemd-socket-activate does not pass on its environment.
        passed = [f"--setenv={name}={value}" for name, value in variables.items()]
        process = subprocess.Popen(
            [*activate, *passed, sys.executable, "-m", "twisted", "--log-format=text", "smtpd"],
            env=kept | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client = smtplib.SMTP("::1", port, timeout=PATIENCE)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "nobody listens"
        with client:
            client.sendmail("a@example.com", "b@example.com", "Subject: test\r\n\r\nHello\r\n")
        [message] = (self.folder / "incoming" / "new").iterdir()
        self.assertIn("Subject: test", message.read_text())
