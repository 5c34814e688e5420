"""The options of a worker, which are those of its master without what the master does, and of a single process."""

from __future__ import annotations

import faulthandler
import json
from dataclasses import asdict

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service import makeService
from txsmtpd.service.options import Options
from txsmtpd.service.server import Listener
from txsmtpd.service.workers.sockets import InheritedSocket
from txsmtpd.service.workers.worker import VARIABLE, Inherited


class WorkerOptionsTests(SynchronousTestCase):
    """What a worker makes of the words that its master was started with."""

    def test_monitoring(self) -> None:
        """It counts, but serves no pages; and the delay before the end is over once the master tells it to end."""
        self.patch(faulthandler, "enable", lambda file: None)  # this process is no worker
        options = Options()
        options.environ = {VARIABLE: json.dumps(asdict(Inherited(slot=0, row=0, rows=4, sockets=1, channel=5)))}
        options.parseOptions(["--handler=sink", "--workers=2", "--metrics=9125", "--drain-delay=10", "--listen=tcp:25"])
        self.assertEqual((options["monitoring"], options["is_counting"], options["drain_delay"]), (None, True, 0.0))
        [(label, endpoint)] = options["endpoints"]
        self.assertEqual(label, "--listen=tcp:25")
        self.assertIsInstance(endpoint, InheritedSocket)


class SingleProcessTests(SynchronousTestCase):
    """``--workers=1``."""

    def test_one(self) -> None:
        """One worker is the server without the option: this process serves, with the same services, and counts
        nothing for others."""
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
