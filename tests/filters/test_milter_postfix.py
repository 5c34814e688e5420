"""The same session with the same milter, once with Postfix and once with this server. A recording proxy in front of the
milter shows whether both send the same commands in the same order.

There are some differences. Postfix looks up the client's name in the DNS, creates the queue id of a message only with
the first recipient, offers to send recipients that it has refused, and sends unknown commands. It also sends aborts
after each greeting and twice at the end, although no message is open.
"""

from __future__ import annotations

import os
import pwd
import smtplib
import subprocess
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols import portforward

from tests.filters.programs import ProgramTests, answers, free_port, send_data
from tests.filters.support import Keeper
from tests.filters.test_milter_programs import HEADER, compiled
from tests.support.programs import not_here, program
from txsmtpd.filters.milter import Milter
from txsmtpd.wire.milter import PacketReader

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = mx.example.com
mydestination =
alias_maps =
local_recipient_maps =
mynetworks = 127.0.0.0/8
default_transport = smtp
smtpd_milters = inet:127.0.0.1:{milter}
smtpd_error_sleep_time = 0
in_flow_delay = 0
"""
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix       n - n -   0 cleanup
rewrite unix       - - n -   - trivial-rewrite
bounce  unix       - - n -   0 bounce
anvil   unix       - - n -   1 anvil
postlog unix-dgram n - n -   1 postlogd
"""


class RecordingServer(portforward.ProxyServer):
    """Forwards and records what a mail server sends."""

    def connectionMade(self) -> None:
        self.reader = PacketReader()
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self.factory.said.extend(self.reader.feed(data))
        super().dataReceived(data)


class RecordingFactory(portforward.ProxyFactory):
    """Makes recording proxies in front of a milter."""

    protocol = RecordingServer
    noisy = False

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.said: list[tuple[bytes, bytes]] = []


def talk(client: smtplib.SMTP) -> list[int]:
    """The session: messages that are accepted, changed, refused, discarded and aborted."""
    replies = []

    def message(
        subject: str, body: bytes = b"Hello\r\n", sender: str = "a@example.com", to: str = "b@example.com"
    ) -> None:
        replies.append(client.docmd(f"MAIL FROM:<{sender}>", "SIZE=100 BODY=8BITMIME")[0])
        replies.extend(client.docmd(f"RCPT TO:<{recipient}>")[0] for recipient in to.split())
        content = HEADER + f"Subject: {subject}\r\nX-Folded: one\r\n\ttwo\r\nX-Empty:\r\n\r\n".encode() + body
        replies.append(send_data(client, content)[0])
        if replies[-1] == 503:
            client.rset()

    message("hello", to="no@example.com b@example.com c@example.com")
    message("change envelope body progress")
    message("skip", b"x" * 70 + b"\r\n" + (b"y" * 998 + b"\r\n") * 150)
    message("large", b"..two dots\r\n" + (b"y" * 998 + b"\r\n") * 150)
    for subject in "reject", "tempfail", "reply", "discard", "accept", "quarantine":
        message(subject)
    for sender in "reject", "tempfail", "accept", "discard":
        message("hello", sender=f"{sender}@example.com")
    message("no body", b"", sender="")
    client.docmd("MAIL FROM:<a@example.com>")
    client.docmd("RCPT TO:<b@example.com>")
    client.rset()
    client.docmd("MAIL FROM:<a@example.com>")
    client.ehlo("again.test")
    message("last")
    return replies


def comparable(said: list[tuple[bytes, bytes]]) -> list[tuple[bytes, Any]]:
    """What both should send, without known differences."""
    found: list[tuple[bytes, Any]] = []
    for command, data in said:
        value: Any = data
        if command == b"D":
            names = data[1:].split(b"\0")[:-1:2]
            value = (data[:1], [name for name in names if name != b"i"])
        elif command == b"C":
            value = data.split(b"\0", 1)[1][:1] + data.split(b"\0", 1)[1][3:]
        elif command == b"M":
            value = data.lower()
        elif command == b"O":
            value = data.replace(b"\x1f\xff\xff", b"\x1f\xf7\xff")
        if command == b"A" and found and found[-1][0] in (b"A", b"H"):
            continue
        if command == b"H":
            # If a greeting ends a transaction, both send abort: Postfix after the greeting, txsmtpd before it.
            while found and found[-1][0] in (b"A", b"D"):
                found.pop()
            found.append((b"D", (b"H", [])))
        found.append((command, value))
    return found


class PostfixTests(ProgramTests):
    """Postfix is the model."""

    async def test_sameDialogue(self) -> None:
        """Postfix and this server send the same commands to a milter."""
        postfix = program("postfix", "postfix")
        if os.getuid():
            raise not_here("Postfix must be started by root")
        milter_port = free_port()
        path = compiled(self.folder)
        await self.start(path, "", f"inet:{milter_port}@127.0.0.1", ready=lambda: answers(milter_port))
        recorded = []
        for run in self.with_postfix, self.with_ours:
            factory = RecordingFactory(milter_port)
            proxy = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
            self.addCleanup(proxy.stopListening)
            replies = await run(proxy.getHost().port, postfix)
            while not factory.said or factory.said[-1][0] != b"Q":
                await deferLater(reactor, 0.02)  # type: ignore[arg-type]
            recorded.append((replies, comparable(factory.said)))
        (their_replies, theirs), (our_replies, ours) = recorded
        self.assertEqual(our_replies, their_replies)
        for number, (their, our) in enumerate(zip(theirs, ours, strict=False)):
            self.assertEqual(our, their, f"the {number}th of {[command for command, _ in theirs]}")
        self.assertEqual(len(ours), len(theirs))
        self.assertGreater(len(ours), 200)

    async def with_ours(self, milter_port: int, postfix: str) -> Any:
        """What this server sends."""
        port = await self.serve(Keeper(), filters=[Milter(f"tcp:127.0.0.1:{milter_port}")])
        return await self.client(port, talk)

    async def with_postfix(self, milter_port: int, postfix: str) -> Any:
        """What Postfix sends."""
        for name in "etc", "queue", "data":
            (self.folder / name).mkdir()
        account = pwd.getpwnam("postfix")
        os.chown(self.folder / "data", account.pw_uid, account.pw_gid)
        port = free_port()
        (self.folder / "etc/main.cf").write_text(MAIN.format(folder=self.folder, milter=milter_port))
        (self.folder / "etc/master.cf").write_text(MASTER.format(port=port))
        await self.run_postfix(postfix, "start")
        self.addCleanup(self.run_postfix, postfix, "stop")
        return await self.client(port, talk)

    async def run_postfix(self, postfix: str, word: str) -> None:
        """Start or stop Postfix."""
        command = [postfix, "-c", f"{self.folder}/etc", word]
        with (self.folder / "postfix.log").open("ab") as output:
            done = await deferToThread(subprocess.run, command, stdout=output, stderr=output, timeout=30, check=False)
        log = self.folder / "log"
        self.assertEqual(done.returncode, 0, log.read_text() if log.exists() else "")
