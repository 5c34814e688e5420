"""More clients than the process has descriptors, with the default options."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

from tests.service.test_commandline import LOOPBACK, PATIENCE, TWIST, Client, CommandLineTestCase, Process
from tests.support.programs import once


class DescriptorsTests(CommandLineTestCase):
    """More clients than the process has descriptors."""

    def test_moreClientsThanDescriptors(self) -> None:
        """Some clients are rejected, the others are served, the process is idle afterwards, and accepts new clients."""
        process = self.with_few_descriptors("--handler=own_module.Prints")
        port = process.port()
        with ExitStack() as held:
            clients = [held.enter_context(closing(Client(port))) for _ in range(100)]
            greetings = [client.reply()[:3] for client in clients]
            self.assertEqual(set(greetings), {"220", "421"})  # no connection is closed without a reply
            self.assertEqual(greetings.count("220"), 32)
            served = clients[greetings.index("220")]
            self.assertTrue(served.say("NOOP").startswith("250"))
            self.assertLess(_processor_share(process.process.pid), 0.5)
            self.assertIsNone(process.process.poll())
        self.assertTrue(self._deliver_when_possible(port).startswith("250"))
        self.assertEqual(process.errors, [])

    def test_enoughForMessages(self) -> None:
        """Of 400 clients at once, each is served or gets 421. All messages of the served ones are stored."""
        once()
        process = self.with_few_descriptors("--handler=mailbox:mails")
        port = process.port()
        with ExitStack() as held:
            clients = [held.enter_context(closing(Client(port))) for _ in range(400)]
            greetings = [client.reply()[:3] for client in clients]
            self.assertEqual((greetings.count("220"), greetings.count("421")), (16, 384))
            served = [client for client, greeting in zip(clients, greetings, strict=True) if greeting == "220"]
            for command in "EHLO c.example", "MAIL FROM:<a@a.example>", "RCPT TO:<b@b.example>":
                self.assertEqual({client.say(command)[:3] for client in served}, {"250"})
            self.assertEqual({client.say("DATA")[:3] for client in served}, {"354"})
            for client in served:  # larger than what is kept in memory, so each message has a file open
                client.socket.sendall(b"Subject: long\r\n\r\n" + (b"x" * 98 + b"\r\n") * 3000)
            self.assertEqual({client.say(".")[:3] for client in served}, {"250"})
        self.assertEqual(len(os.listdir(Path(self.folder, "mails", "new"))), 16)
        self.assertEqual(process.errors, [])

    def with_few_descriptors(self, option: str) -> Process:
        """The command in a process with 64 descriptors."""
        words = [sys.executable, *TWIST, "smtpd", LOOPBACK, option]
        process = Process(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *words], self.folder, {})
        self.addCleanup(process.close)
        return process

    def _deliver_when_possible(self, port: int) -> str:
        """Deliver as soon as the server has noticed that the others have disconnected."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.connect(port).deliver()
            except (AssertionError, OSError):
                if time.monotonic() > deadline:
                    raise


def _processor_share(pid: int) -> float:
    """The use of a processor by the idle process, over a moment."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = used(), time.monotonic()
    threading.Event().wait(0.3)
    return (used() - before) / (time.monotonic() - began)
