"""The names of sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from txsmtpd.session import Session

# Two processes with one clock, of which one has forked off the other.
TWO_PROCESSES = """
import os, sys, time
time.time = lambda: 1.0
from txsmtpd.session import Session
child = os.fork()
for _ in range(100):
    print(Session().id, flush=True)
if child:
    os.waitpid(child, 0)
"""


class IDTests(SynchronousTestCase):
    """A session's id tells it from all others."""

    def test_unique(self) -> None:
        """No two sessions have the same id, and an id stays."""
        sessions = [Session() for _ in range(1000)]
        ids = [session.id for session in sessions]
        self.assertEqual(len(set(ids)), 1000)
        self.assertEqual([session.id for session in sessions], ids)

    def test_uniqueAmongProcesses(self) -> None:
        """Two processes that start their sessions at the same moment do not use the same id."""
        printed = subprocess.run(
            [sys.executable, "-c", TWO_PROCESSES],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            env={"PYTHONPATH": str(Path(txsmtpd.__file__).parent.parent)},
        )
        ids = printed.stdout.split()
        self.assertEqual((len(ids), len(set(ids))), (200, 200))
