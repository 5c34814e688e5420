"""Mail from a real relay over LMTP: Postfix, with a server in this process on a Unix socket.

Each test has its own Postfix, with configuration and queue in a temporary folder. Postfix must be started as root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import DeferredQueue
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.programs import not_here, program
from txsmtpd import LMTP, SMTPFactory
from txsmtpd.handlers import Mailbox

SOCKET = "txsmtpd/lmtp"  # relative to the queue's folder, because Postfix's processes may run in a chroot there
MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = relay.example.net
mydestination =
alias_maps =
default_transport = lmtp:unix:{socket}
queue_run_delay = 1s
minimal_backoff_time = 1s
bounce_size_limit = 1
"""
MASTER = """
pickup  unix       n - n 60  1 pickup
cleanup unix       n - n -   0 cleanup
qmgr    unix       n - n 1   1 qmgr
rewrite unix       - - n -   - trivial-rewrite
bounce  unix       - - n -   0 bounce
defer   unix       - - n -   0 bounce
trace   unix       - - n -   0 bounce
lmtp    unix       - - n -   - lmtp
error   unix       - - n -   - error
retry   unix       - - n -   - error
postlog unix-dgram n - n -   1 postlogd
"""
THREE = ["b@example.com", "c@example.com", "d@example.com"]
GONE = "550 5.1.1 No such mailbox here"
FULL = "452 4.2.2 Full for now"


class Collector:
    """Keeps messages, and has a status for some recipients: at RCPT, or after the data."""

    def __init__(self) -> None:
        self.messages: DeferredQueue[tuple[str | None, list[str], str]] = DeferredQueue()
        self.at_rcpt: dict[str, str] = {}
        self.after_data: dict[str, str] = {}

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str:
        if address in self.at_rcpt:
            return self.at_rcpt[address]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> dict[str, str]:
        statuses = {path: self.after_data.get(path, "250 2.1.5 kept") for path in envelope.rcpt_tos}
        self.messages.put((envelope.mail_from, envelope.rcpt_tos, envelope.content.decode()))
        return statuses


class PostfixTests(TestCase):
    """Postfix delivers to this server."""

    timeout = 120

    def setUp(self) -> None:
        self.postfix = program("postfix", "postfix")
        self.sendmail = program("sendmail", "postfix")
        if os.getuid():
            raise not_here("Postfix must be started by root")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        for name in "etc", "queue", "queue/txsmtpd", "data":
            (self.folder / name).mkdir()
        account = pwd.getpwnam("postfix")
        os.chown(self.folder / "data", account.pw_uid, account.pw_gid)
        # Files created in this folder get Postfix's group, so that Postfix can connect to the socket.
        os.chown(self.folder / "queue/txsmtpd", -1, account.pw_gid)
        (self.folder / "queue/txsmtpd").chmod(0o2750)
        (self.folder / "etc/main.cf").write_text(MAIN.format(folder=self.folder, socket=SOCKET))
        (self.folder / "etc/master.cf").write_text(MASTER)

    async def serve(self, handler: object) -> None:
        """Listen with this handler, and start Postfix."""
        endpoint = serverFromString(reactor, f"unix:{self.folder}/queue/{SOCKET}:mode=660:lockfile=0")
        factory = SMTPFactory(handler, protocol=LMTP, hostname="mx.example.com")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        self.addCleanup(factory.drain)
        await self.run_program(self.postfix, "-c", f"{self.folder}/etc", "start")
        self.addCleanup(self.run_program, self.postfix, "-c", f"{self.folder}/etc", "stop")

    async def run_program(self, *command: str, input: bytes = b"") -> None:
        """Run a program, which must succeed."""
        # Do not use pipes: Postfix would keep them open while it runs.
        with tempfile.TemporaryFile() as output:
            done = await deferToThread(
                subprocess.run, command, input=input, stdout=output, stderr=output, timeout=30, check=False
            )
            output.seek(0)
            self.assertEqual(done.returncode, 0, output.read().decode() + self.log())

    def log(self) -> str:
        """The log of Postfix."""
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    async def logged(self, text: str) -> None:
        """Wait until Postfix has logged this."""
        while text not in self.log():
            await deferLater(reactor, 0.05)  # type: ignore[arg-type]

    async def submit(self, *recipients: str) -> None:
        """Put a message into Postfix's queue."""
        words = "-C", f"{self.folder}/etc", "-i", "-f", "a@example.org", *recipients
        await self.run_program(self.sendmail, *words, input=b"Subject: hello\n\nthe text\n.\n")

    async def assertBounced(self, handler: Collector, recipient: str) -> None:
        """Assert that the next message is the report to the sender that only this recipient did not get it."""
        sender, recipients, content = await handler.messages.get()
        self.assertEqual((sender, recipients), ("", ["a@example.org"]))
        self.assertIn(f"<{recipient}>: host relay.example.net[{SOCKET}] said:", content)
        self.assertIn(GONE, " ".join(content.split()))
        self.assertEqual(content.count("Final-Recipient:"), 1)

    async def test_refusedAtRcpt(self) -> None:
        """Of three recipients, one is refused at RCPT: two get the message, which arrives once, and one is bounced."""
        handler = Collector()
        handler.at_rcpt["c@example.com"] = GONE
        await self.serve(handler)
        await self.submit(*THREE)
        sender, recipients, content = await handler.messages.get()
        self.assertEqual((sender, recipients), ("a@example.org", ["b@example.com", "d@example.com"]))
        self.assertTrue(content.endswith("the text\r\n.\r\n"))
        await self.assertBounced(handler, "c@example.com")

    async def test_refusedAfterData(self) -> None:
        """Of three recipients, one is refused after the data: the result is the same, and the server got all three."""
        handler = Collector()
        handler.after_data["c@example.com"] = GONE
        await self.serve(handler)
        await self.submit(*THREE)
        sender, recipients, _ = await handler.messages.get()
        self.assertEqual((sender, recipients), ("a@example.org", THREE))
        await self.assertBounced(handler, "c@example.com")
        sent = [line for line in self.log().splitlines() if "status=sent (250 2.1.5 kept)" in line]
        self.assertEqual([line.partition("to=<")[2].partition(">")[0] for line in sent[:2]], [THREE[0], THREE[2]])

    async def test_deferredAfterData(self) -> None:
        """The recipient with a full mailbox gets the message later. The others do not get it again."""
        handler = Collector()
        handler.after_data["d@example.com"] = FULL
        await self.serve(handler)
        await self.submit(*THREE)
        self.assertEqual((await handler.messages.get())[1], THREE)
        handler.after_data.clear()
        self.assertEqual((await handler.messages.get())[1], ["d@example.com"])

    async def test_mailbox(self) -> None:
        """A Mailbox stores one message for all, with a trace header that names LMTP."""
        folder = self.folder / "mail"
        mailbox = Mailbox(folder)
        self.addCleanup(mailbox.close)
        await self.serve(mailbox)
        await self.submit(*THREE)
        await self.logged("removed")
        (message,) = mailbox.mailbox
        self.assertIn("\n\tby mx.example.com with LMTP id ", message["Received"])
        self.assertEqual(message["X-RcptTo"], ", ".join(THREE))
        self.assertEqual(self.log().count("status=sent (250 2.0.0 OK, stored as "), 3)


class SourceTests(TestCase):
    """Postfix's test program."""

    timeout = 120

    async def test_smtpSource(self) -> None:
        """2,000 messages for three recipients each, sent by smtp-source -L over 20 connections, are all received."""
        path = program("smtp-source", "postfix")
        handler = Collector()
        socket = os.path.join(tempfile.mkdtemp(), "lmtp")
        self.addCleanup(shutil.rmtree, os.path.dirname(socket))
        factory = SMTPFactory(handler, protocol=LMTP)
        port = await serverFromString(reactor, f"unix:{socket}:lockfile=0").listen(factory)
        self.addCleanup(port.stopListening)
        command = [path, "-L", "-d", "-s", "20", "-m", "2000", "-r", "3", "-t", "b@example.com", f"unix:{socket}"]
        done = await deferToThread(subprocess.run, command, capture_output=True, text=True, timeout=100, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(len(handler.messages.pending), 2000)
        self.assertTrue(all(len(set(recipients)) == 3 for _, recipients, _ in handler.messages.pending))
