"""The options of a worker, which are those of its master except for the master's tasks, and of a single process."""

from __future__ import annotations

import faulthandler
import io
import json
import os
from contextlib import redirect_stderr
from dataclasses import asdict

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service import exit_status, makeService
from txsmtpd.service.options import Options
from txsmtpd.service.server import Listener
from txsmtpd.service.workers.inheritance import VARIABLE, Inherited
from txsmtpd.service.workers.sockets import InheritedSocket


class WorkerOptionsTests(SynchronousTestCase):
    """A worker parses the options with which its master was started."""

    def test_monitoring(self) -> None:
        """It counts, but serves no pages. It has no drain delay, because the master has waited already."""
        self.patch(faulthandler, "enable", lambda file: None)  # this process is not a worker, so it must not enable it
        options = Options()
        options.environ = {VARIABLE: json.dumps(asdict(Inherited(slot=0, row=0, rows=4, sockets=1, channel=5)))}
        options.parseOptions(["--handler=sink", "--workers=2", "--metrics=9125", "--drain-delay=10", "--listen=tcp:25"])
        self.assertEqual((options["monitoring"], options["is_counting"], options["drain_delay"]), (None, True, 0.0))
        [(label, endpoint)] = options["endpoints"]
        self.assertEqual(label, "--listen=tcp:25")
        self.assertIsInstance(endpoint, InheritedSocket)

    def test_complaints(self) -> None:
        """Its output on standard error begins with the command that was typed, from the first line on. The master gets
        the reason without it."""
        self.patch(faulthandler, "enable", lambda file: None)
        self.patch(exit_status, "_command", "smtpd")
        told: list[bytes] = []
        self.patch(os, "write", lambda descriptor, octets: told.append(octets))
        found = Inherited(slot=0, row=0, rows=4, sockets=1, channel=5, command="txsmtpd")
        options = Options()
        options.environ = {VARIABLE: json.dumps(asdict(found)), "TXSMTPD_COLOUR": "red"}
        output = io.StringIO()
        with redirect_stderr(output):
            self.assertRaises(SystemExit, options.parseOptions, ["--workers=2", "--size=many"])
        lines = output.getvalue().splitlines()
        self.assertEqual([line.partition(" ")[0] for line in lines], ["txsmtpd:", "txsmtpd:"], lines)
        [reason] = told
        self.assertTrue(reason.startswith(b"--size=many: "), reason)


class SingleProcessTests(SynchronousTestCase):
    """``--workers=1``."""

    def test_one(self) -> None:
        """One worker is the same as no option: this process serves, with the same services, and shares no counts."""
        servers = []
        for words in [], ["--workers=1"]:
            options = Options()
            options.environ = {}
            options.parseOptions([*words, "--handler=sink", "--listen=tcp:0:interface=127.0.0.1"])
            servers.append(makeService(options))
        without, with_one = servers
        self.assertEqual([*map(type, with_one)], [*map(type, without)])
        [listener] = with_one
        assert isinstance(listener, Listener)
        self.assertIsNone(listener.factory.connections_changed)
        self.assertIsNone(listener.factory.connections_elsewhere)
