"""Sessions and envelopes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from txsmtpd.session import Envelope, Session

# Two processes with the same clock: one is a fork of the other.
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
    """A session's id is unique."""

    def test_unique(self) -> None:
        """No two sessions have the same id, and it does not change."""
        sessions = [Session() for _ in range(1000)]
        ids = [session.id for session in sessions]
        self.assertEqual(len(set(ids)), 1000)
        self.assertEqual([session.id for session in sessions], ids)

    def test_uniqueAmongProcesses(self) -> None:
        """Two processes that start sessions at the same moment do not use the same id."""
        printed = subprocess.run(
            [sys.executable, "-c", TWO_PROCESSES],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            env={"PYTHONPATH": str(Path(txsmtpd.__file__).parent.parent)},
        )
        ids = printed.stdout.split()
        self.assertEqual((len(ids), len(set(ids))), (200, 200))


class EnvelopeTests(SynchronousTestCase):
    """The attributes of a new envelope."""

    def test_lists(self) -> None:
        """Each envelope has its own lists, which are empty at first. A program may append to them, or set others."""
        one, other = Envelope(), Envelope()
        for name in ("mail_options", "rcpt_options", "rcpt_tos"):
            self.assertEqual(getattr(one, name), [], name)
            getattr(one, name).append("X")
            self.assertEqual((getattr(one, name), getattr(other, name)), (["X"], []), name)
            setattr(one, name, ["Y"])
            self.assertEqual(getattr(one, name), ["Y"], name)

    def test_copies(self) -> None:
        """A copied or pickled envelope has the same contents."""
        envelope = Envelope()
        envelope.mail_from = "a@example.com"
        envelope.mail_options.append("BODY=8BITMIME")
        for same in (copy.deepcopy(envelope), pickle.loads(pickle.dumps(envelope))):
            self.assertEqual((same.mail_from, same.mail_options), ("a@example.com", ["BODY=8BITMIME"]))
            self.assertEqual((same.rcpt_options, same.rcpt_tos, same.content), ([], [], None))
