"""The examples of the documentation are run unchanged, against one server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase

from tests.inbox.test_clients import PACKAGES, Server
from tests.support.programs import not_here, program

EXAMPLES = Path(__file__).parents[2] / "examples" / "inbox"


class ExampleTests(TestCase):
    """The files in examples/inbox."""

    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.stop)
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def run_example(self, *command: str) -> str:
        """The output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={
                **os.environ,
                "INBOX_URL": str(self.server.url),
                "INBOX_SMTP_PORT": str(self.server.smtp_port),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_pytest(self) -> None:
        """Two tests of pytest, each with its own inbox."""
        said = self.run_example(
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_signup.py")
        )
        self.assertIn("2 passed", said)

    def test_browser(self) -> None:
        """A test that clicks on a mail in a browser."""
        program("chromium", "chromium")
        said = self.run_example(
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_browser.py")
        )
        self.assertIn("1 passed", said)

    def test_javascript(self) -> None:
        """A test in JavaScript, with a client that does not depend on this server."""
        node = program("node", "nodejs")
        if not (PACKAGES / "packages").exists():
            raise not_here("the packages of npm are missing; .ci/npm.sh, run as root, installs them")
        os.symlink(PACKAGES / "node_modules", os.path.join(self.folder, "node_modules"))
        shutil.copy(EXAMPLES / "signup.test.mjs", self.folder)
        self.assertIn("# pass 1", self.run_example(node, "--test", "--test-reporter=tap", "signup.test.mjs"))
