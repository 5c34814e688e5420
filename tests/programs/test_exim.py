"""Mail from a real relay: Exim, which uses BDAT if a server offers CHUNKING.

``.ci/exim.sh`` installs it. Each test has its own Exim, with configuration and spool in a temporary folder. Its queue
is run once, with a server in this process as the next one.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from tests.support.programs import not_here
from txsmtpd import SMTP, SMTPFactory
from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler

UNPACKED = "/var/cache/txsmtpd-tests/exim/usr/sbin/exim4"
CONFIGURATION = """
exim_path = {exim}
exim_user = {user}
exim_group = {group}
deliver_drop_privilege = true
primary_hostname = relay.example.net
spool_directory = {folder}/spool
log_file_path = {folder}/spool/%slog
keep_environment =
never_users =
trusted_users = {user}
bounce_return_body = false

begin routers
onward:
  driver = manualroute
  route_list = * 127.0.0.1 byname
  self = send
  transport = onward

begin transports
onward:
  driver = smtp
  port = {port}
  hosts_avoid_tls = *

begin retry
* * F,1h,1m
"""

HEADER = (
    b"From: Alice <a@example.org>\r\n"
    b"Subject: hello\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n"
    b"Message-ID: <1@example.org>\r\n"
    b"\r\n"
)
# Contains dots at the beginning of lines, lines that look like commands, octets beyond ASCII, and NUL.
BODY = b".\r\n..\r\n.x\r\nQUIT\r\nBDAT 5 LAST\r\n\r\n\xc3\xa9\xff\x00\r\n" + b"x" * 900 + b"\r\n"


class Counting(SMTP):
    """Counts commands in the ``commands`` of its handler."""

    def lineReceived(self, line: bytes) -> None:
        self.event_handler.commands[line.partition(b" ")[0].decode().upper()] += 1
        super().lineReceived(line)


class Collector:
    """Keeps messages."""

    def __init__(self) -> None:
        self.commands: Counter[str] = Counter()
        self.messages: list[tuple[str | None, list[str], bytes]] = []
        self.statuses: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return self.statuses.pop(0) if self.statuses else "250 2.0.0 kept"


@implementer(IStreamingHandler)
class StreamCollector(Collector):
    """Keeps messages as they arrive, and pauses from time to time."""

    def open_message(self, server: Any, session: Any, envelope: Any) -> Any:
        return Resting(self, envelope)


@implementer(IMessageReceiver)
class Resting:
    """A receiver that pauses after each write until the next iteration of the reactor."""

    def __init__(self, handler: Collector, envelope: Any) -> None:
        self.handler = handler
        self.envelope = envelope
        self.octets: list[bytes] = []

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.octets.append(data)
        self.producer.pauseProducing()
        reactor.callLater(0, self.producer.resumeProducing)  # type: ignore[attr-defined]

    def finish(self) -> str:
        content = b"".join(self.octets)
        self.handler.messages.append((self.envelope.mail_from, self.envelope.rcpt_tos, content))
        return "250 2.0.0 kept"

    def abort(self, reason: BaseException) -> None:
        raise AssertionError(reason)


class Run(ProcessProtocol):
    """A run of a program."""

    def __init__(self, input: bytes) -> None:
        self.input = input
        self.output: list[bytes] = []
        self.ended: Deferred[int] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.input)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self.output.append(data)

    errReceived = outReceived

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(reason.value.exitCode)


class EximTests(TestCase):
    """Exim relays mail to this server."""

    timeout = 120

    def setUp(self) -> None:
        found = UNPACKED if os.access(UNPACKED, os.X_OK) else shutil.which("exim4", path=f"{os.defpath}:/usr/sbin")
        if found is None:
            raise not_here("Exim is missing; .ci/exim.sh, run as root, installs it")
        self.exim = found
        # As root, Exim delivers as the account that it was built for. It needs a folder that this account can write to.
        account = pwd.getpwnam("Debian-exim") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        self.spool = folder / "spool"
        self.spool.mkdir()
        os.chown(self.spool, account.pw_uid, account.pw_gid)
        self.configuration = folder / "exim.conf"
        self.values = {"exim": found, "user": account.pw_name, "group": account.pw_gid, "folder": folder}

    def listen(self, handler: Collector, **options: Any) -> None:
        """Let Exim relay all mail to this handler."""
        factory = SMTPFactory(handler, protocol=Counting, hostname="mx.example.com", **options)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.configuration.write_text(CONFIGURATION.format(port=port.getHost().port, **self.values))

    def transport_option(self, line: str) -> None:
        """Add an option to Exim's smtp transport."""
        text = self.configuration.read_text()
        self.configuration.write_text(text.replace("driver = smtp", f"driver = smtp\n  {line}"))

    async def run_exim(self, *arguments: str, input: bytes = b"") -> str:
        """Run Exim, which must succeed. Return its output."""
        run = Run(input)
        arguments = ("exim4", "-C", str(self.configuration), *arguments)
        reactor.spawnProcess(run, self.exim, arguments, env={})  # type: ignore[attr-defined]
        status = await run.ended
        output = b"".join(run.output).decode()
        self.assertEqual(status, 0, output + self.log())
        return output

    def log(self) -> str:
        """Exim's log."""
        return "".join(each.read_text() for each in sorted(self.spool.glob("*log")) if each.is_file())

    async def queue(self, message: bytes, *recipients: str) -> None:
        """Let Exim queue the message for these recipients."""
        text = message.replace(b"\r\n", b"\n")
        await self.run_exim("-odq", "-oi", "-f", "a@example.org", *recipients, input=text)

    async def run_queue(self) -> None:
        """Let Exim relay its queue, and wait for it."""
        await self.run_exim("-qff")

    async def test_message(self) -> None:
        """A message arrives by BDAT, octet by octet as it was sent, after the relay's trace header."""
        handler = Collector()
        self.listen(handler)
        await self.queue(HEADER + BODY, "b@example.com", "c@example.com")
        await self.run_queue()
        [(sender, recipients, content)] = handler.messages
        self.assertEqual((sender, recipients), ("a@example.org", ["b@example.com", "c@example.com"]))
        self.assertEqual(without_trace(content), HEADER + BODY)
        self.assertEqual(handler.commands, {"EHLO": 1, "MAIL": 1, "RCPT": 2, "BDAT": 1, "QUIT": 1})
        self.assertIn("Completed", self.log())

    async def test_chunks(self) -> None:
        """A large message arrives in several chunks, which are joined."""
        handler = Collector()
        self.listen(handler)
        message = HEADER + b"".join(numbered(20000))
        await self.queue(message, "b@example.com")
        await self.run_queue()
        [(_, _, content)] = handler.messages
        self.assertTrue(without_trace(content) == message)
        self.assertGreater(handler.commands["BDAT"], 1)
        self.assertEqual(handler.commands["DATA"], 0)

    async def test_streamed(self) -> None:
        """A receiver that pauses after each write gets the same octets."""
        handler = StreamCollector()
        self.listen(handler, buffer_limit=4096)
        message = HEADER + b"".join(numbered(20000))
        await self.queue(message, "b@example.com")
        await self.run_queue()
        [(_, _, content)] = handler.messages
        self.assertTrue(without_trace(content) == message)
        self.assertGreater(handler.commands["BDAT"], 1)

    async def test_several(self) -> None:
        """Several messages over one connection or many are not mixed."""
        handler = Collector()
        self.listen(handler)
        messages = [HEADER + line for line in numbered(5)]
        for message in messages:
            await self.queue(message, "b@example.com")
        await self.run_queue()
        self.assertEqual(sorted(without_trace(content) for _, _, content in handler.messages), messages)
        self.assertEqual(handler.commands["BDAT"], 5)

    async def test_tooLarge(self) -> None:
        """A message that is too large, without a declared size, is returned to its sender."""
        handler = Collector()
        self.listen(handler, data_size_limit=10000)
        self.transport_option("size_addition = -1")  # MAIL is sent without SIZE
        await self.queue(HEADER + b"".join(numbered(300)), "b@example.com")
        await self.run_queue()
        self.assertIn("** b@example.com", self.log())
        self.assertIn("552 5.3.4 Message size exceeds the limit", self.log())
        self.assertGreater(handler.commands["BDAT"], 1)
        # The only message that arrives is the bounce to the sender.
        [(sender, recipients, _)] = handler.messages
        self.assertEqual((sender, recipients), ("", ["a@example.org"]))

    async def test_deferred(self) -> None:
        """A message that was refused temporarily is sent again, and arrives once."""
        handler = Collector()
        handler.statuses = ["451 4.3.0 Not now"]
        self.listen(handler)
        await self.queue(HEADER + BODY, "b@example.com")
        await self.run_queue()
        self.assertIn("451 4.3.0 Not now", self.log())
        self.assertNotIn("Completed", self.log())
        await self.run_queue()
        self.assertIn("Completed", self.log())
        self.assertEqual([without_trace(content) for _, _, content in handler.messages], [HEADER + BODY] * 2)
        self.assertEqual(handler.commands["BDAT"], 2)

    async def test_withoutChunking(self) -> None:
        """A server that does not offer CHUNKING gets the same message by DATA."""
        handler = Collector()
        self.listen(handler)
        self.transport_option("hosts_try_chunking = :")
        await self.queue(HEADER + BODY, "b@example.com")
        await self.run_queue()
        [(_, _, content)] = handler.messages
        self.assertEqual(without_trace(content), HEADER + BODY)
        self.assertEqual((handler.commands["BDAT"], handler.commands["DATA"]), (0, 1))


def numbered(count: int) -> Iterator[bytes]:
    """Lines that are all different, each starting with a dot."""
    return (b".%07d and some more text behind it to fill a line\r\n" % number for number in range(count))


def without_trace(content: bytes) -> bytes:
    """The message without the field that the relay has added at the top."""
    field = re.match(rb"Received: from .*\r\n(?:[ \t].*\r\n)+", content)
    assert field is not None, content[:200]
    return content[field.end() :]
