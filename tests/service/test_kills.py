"""Servers that are killed while clients send: messages that got 250 are not lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import once

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "kills.py"


class KillTests(SynchronousTestCase):
    """A few kills. The script makes a hundred."""

    def test_nothingLost(self) -> None:
        """A maildir, a next server, and a maildir behind a filter that reads whole messages have all messages that got
        250, complete."""
        once()
        done = subprocess.run(
            [sys.executable, SCRIPT, "--kills=5"], capture_output=True, text=True, timeout=120, check=False
        )
        found = re.findall(r"(\w+): [12] kills, ([0-9]+) messages with 250, [0-9]+ cut off, ([0-9]+) lost", done.stdout)
        lost = {what: number for what, _, number in found}
        self.assertEqual(lost, {"mailbox": "0", "proxy": "0", "filtered": "0"}, done.stderr)
        self.assertGreater(sum(int(accepted) for _, accepted, _ in found), 0, done.stdout)
        self.assertEqual(done.returncode, 0)
