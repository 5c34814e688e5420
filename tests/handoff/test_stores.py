"""Claim check: large messages are stored while they arrive, and the target gets a reference."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.threads import deferToThread
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.handoff.clients import MESSAGE, Client, HandoffTestCase, message_of, send
from tests.handoff.test_promise import PromiseTestCase
from tests.service.test_commandline import LOOPBACK, CommandLineTestCase
from tests.support.programs import once
from txsmtpd.handoff import (
    DirectoryStore,
    Handoff,
    HandoffMessage,
    IHandoff,
    IMessageStore,
    IUpload,
    NotTaken,
    S3Store,
)
from txsmtpd.service.handlers import make_handler

LARGE = 3 * 2**20  # octets
MEGABYTE = 2**20
BUCKET = "mail"


@implementer(IHandoff)
class Target:
    """Keeps messages, or fails when the test says so."""

    def __init__(self) -> None:
        self.messages: list[HandoffMessage] = []
        self.error: Exception | None = None

    async def hand_off(self, message: HandoffMessage) -> None:
        self.messages.append(message)
        if self.error is not None:
            raise self.error

    def reference(self) -> dict[str, Any]:
        """The last message's."""
        found: dict[str, Any] = json.loads(self.messages[-1].content)
        return found


class Upload:
    """Keeps octets in memory, at the speed that the test sets."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.waiting: list[Deferred[Any]] = []
        self.aborted = False

    def write(self, octets: bytes) -> Deferred[Any]:
        self.written.append(octets)
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def finish(self, octets: bytes) -> Deferred[Any]:
        return self.write(octets)

    def abort(self) -> Deferred[None]:
        self.aborted = True
        return succeed(None)


class Store:
    """A store with parts of 10,000 octets."""

    part = 10_000

    def __init__(self) -> None:
        self.uploads: list[Upload] = []

    def open(self, name: str, when: Any) -> Upload:
        self.uploads.append(Upload())
        return self.uploads[-1]


class ReceiverTests(PromiseTestCase):
    """A store that the test controls: back-pressure, and the end of uploads."""

    def setUp(self) -> None:
        super().setUp()
        self.store = Store()
        self.serve(store=self.store, inline=5_000, received=False)

    def test_small(self) -> None:
        """A small message is not stored."""
        self.begin(self.client(), b"x" * 5_000)
        self.assertEqual(self.store.uploads, [])
        self.assertEqual(self.target.messages[0].content, b"x" * 5_000)

    def test_streams(self) -> None:
        """A large message is stored in parts while it arrives. While the store works, the client waits."""
        client = self.client()
        client.talk(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 60000 LAST\r\n")
        client.say(b"x" * 12_000)
        [upload] = self.store.uploads
        self.assertEqual(len(upload.written), 1)
        client.say(b"x" * 12_000)
        self.assertEqual(len(upload.written), 1)  # the next part waits for the current one
        held = self.handoff.budget.octets
        self.assertLess(held, 100_000)
        client.say(b"x" * 36_000)
        while upload.waiting:
            upload.waiting.pop(0).callback("s3://bucket/name")
        self.assertEqual(b"".join(upload.written), b"x" * 60_000)
        [message] = self.target.messages
        reference = json.loads(message.content)
        self.assertEqual(
            reference,
            {"uri": "s3://bucket/name", "size": 60_000, "sha256": hashlib.sha256(b"x" * 60_000).hexdigest()},
        )
        self.assertEqual(message.content_type, "application/vnd.txsmtpd.reference+json")
        self.target.answers[0].callback(None)
        self.assertEqual((self.last(client).code, self.handoff.budget.messages), (250, 0))
        self.assertFalse(upload.aborted)

    def test_fails(self) -> None:
        """If a store fails, the reply is 451, nothing is handed over, and nothing is left."""
        client = self.client()
        self.begin(client, b"x" * 60_000)
        upload = self.store.uploads[0]
        upload.waiting.pop(0).errback(OSError("the disk is full"))
        self.assertEqual((self.last(client).code, self.last(client).status), (451, "4.3.0"))
        self.assertEqual((self.target.messages, upload.aborted, self.handoff.budget.messages), ([], True, 0))
        self.assertIn("the store failed: the disk is full", self.logged("error")[0])

    def test_leaves(self) -> None:
        """If a client disconnects during its message, nothing is left once the current part is written."""
        client = self.client()
        client.talk(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 60000 LAST\r\n")
        client.say(b"x" * 12_000)
        client.vanish()
        [upload] = self.store.uploads
        self.assertFalse(upload.aborted)
        upload.waiting.pop(0).callback(None)
        self.assertTrue(upload.aborted)
        self.assertEqual(self.handoff.budget.messages, 0)


class StoreTestCase(HandoffTestCase):
    """A test case with a target, and a store that the subclass creates."""

    async def served(self, store: Any, **options: Any) -> int:
        self.target = Target()
        return await self.serve(Handoff(self.target, store=store, inline=MEGABYTE, **options))

    def read(self, uri: str) -> bytes:
        raise NotImplementedError

    def stored(self) -> list[str]:
        raise NotImplementedError

    async def check_store(self, store: Any) -> None:
        """The common rules of all stores."""
        verifyObject(IMessageStore, store)
        verifyObject(IUpload, store.open("name", datetime(2026, 11, 28)))
        port = await self.served(store)
        message = message_of(LARGE)
        for declared in True, False:
            code, text = await deferToThread(send, port, message, declared=declared)
            self.assertEqual(code, 250, text)
            reference = self.target.reference()
            content = await deferToThread(self.read, reference["uri"])
            self.assertEqual(reference["size"], len(content))
            self.assertEqual(reference["sha256"], hashlib.sha256(content).hexdigest())
            self.assertTrue(content.endswith(b"\r\n" + message))
            self.assertTrue(content.startswith(b"Received: "))
            self.assertIn(self.target.messages[-1].id, reference["uri"])
        self.assertEqual((await self.send(port))[0], 250)
        self.assertTrue(self.target.messages[-1].content.endswith(MESSAGE))
        # If the target refuses the reference, the object is deleted. If the outcome is unknown, it is kept, because a
        # consumer may have the reference.
        before = await deferToThread(self.stored)
        self.target.error = NotTaken("rejected")
        self.assertEqual((await deferToThread(send, port, message))[0], 451)
        self.assertEqual(await deferToThread(self.stored), before)
        self.target.error = ConnectionLost()
        self.assertEqual((await deferToThread(send, port, message))[0], 451)
        self.assertEqual(len(await deferToThread(self.stored)), len(before) + 1)
        self.target.error = None

        def leave() -> None:
            client = Client(port)
            client.smtp.mail("a@x.test")
            client.smtp.rcpt("b@y.test")
            client.smtp.docmd("DATA")
            client.smtp.send(message_of(12 * MEGABYTE))
            client.close()

        handler: Any = self.handler_of(port)
        await deferToThread(leave)
        await self.wait_for(lambda: handler.budget.messages == 0)
        await self.wait_for(lambda: not handler._handing)
        self.assertEqual(len(await deferToThread(self.stored)), len(before) + 1)

    def handler_of(self, port: int) -> Any:
        return self._served[port]

    async def serve(self, handler: Any, **settings: Any) -> int:
        port = await super().serve(handler, **settings)
        self._served = {**getattr(self, "_served", {}), port: handler}
        return port


class DirectoryTests(StoreTestCase):
    """``file:/folder``."""

    def read(self, uri: str) -> bytes:
        return Path(urlsplit(uri).path).read_bytes()

    def stored(self) -> list[str]:
        return [each.name for each in Path(self.folder, "new").iterdir()]

    async def test_store(self) -> None:
        """Files are complete, references are correct, and rejected messages are removed."""
        self.folder = Path(self.mktemp())
        await self.check_store(DirectoryStore(self.folder, durable=False))
        self.assertEqual(list(Path(self.folder, "tmp").iterdir()), [])


class S3Server:
    """moto's server, in this process."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.client = self._make()
        self.client.create_bucket(Bucket=BUCKET)

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _make(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def keys(self) -> list[str]:
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def uploads(self) -> list[str]:
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


_server: S3Server | None = None


def s3_server() -> S3Server:
    """The moto server of this process."""
    global _server
    _server = _server or S3Server()
    return _server


class S3Tests(StoreTestCase):
    """``s3://bucket/prefix``."""

    async def setUp(self) -> None:
        self.s3: S3Server = await deferToThread(s3_server)

    def read(self, uri: str) -> bytes:
        parts = urlsplit(uri)
        content: bytes = self.s3.client.get_object(Bucket=parts.netloc, Key=parts.path[1:])["Body"].read()
        return content

    def stored(self) -> list[str]:
        return self.s3.keys()

    async def test_store(self) -> None:
        """Objects are complete, references are correct, and rejected messages are removed."""
        await self.check_store(S3Store(BUCKET, "in/", client=self.s3.client))
        self.assertRegex(self.s3.keys()[-1], r"^in/\d{4}/\d\d/\d\d/[0-9a-f-]{36}$")
        await self.wait_for(lambda: not self.s3.uploads())

    async def test_multipart(self) -> None:
        """A message of several parts is one object."""
        port = await self.served(S3Store(BUCKET, client=self.s3.client))
        message = message_of(17 * MEGABYTE)
        self.assertEqual((await deferToThread(send, port, message))[0], 250)
        content = await deferToThread(self.read, self.target.reference()["uri"])
        self.assertTrue(content.endswith(message))
        self.assertEqual(self.s3.uploads(), [])

    async def test_away(self) -> None:
        """If a bucket is missing, the reply is 451, and nothing is handed over."""
        port = await self.served(S3Store("no-such-bucket", client=self.s3.client))
        for size in LARGE, 12 * MEGABYTE:
            code, text = await deferToThread(send, port, message_of(size))
            self.assertEqual((code, text[:5]), (451, "4.3.0"))
        self.assertEqual(self.target.messages, [])
        self.assertEqual((await self.send(port))[0], 250)


class S3ProcessTests(CommandLineTestCase):
    """The server as a process, whose memory can be measured."""

    def test_memory(self) -> None:
        """Memory stays constant while 30 MB are streamed. Without the store, the reply is 451."""
        once()
        s3 = s3_server()
        Path(self.folder, "keeps.py").write_text(
            "from txsmtpd.handoff import Handoff, S3Store\n"
            "class Target:\n"
            "    async def hand_off(self, message):\n"
            "        print(message.content.decode(), flush=True)\n"
            f"def keeps(): return Handoff(Target(), store=S3Store({BUCKET!r}))\n"
        )
        server = self.smtpd(LOOPBACK, "--handler=keeps.keeps", "--size=40000000", **s3.environment())
        port = server.port()
        for _ in range(2):
            self.assertEqual(send(port, message_of(12 * MEGABYTE))[0], 250)
        before = _peak(server.process.pid)
        self.assertEqual(send(port, message_of(30 * MEGABYTE))[0], 250)
        grown = _peak(server.process.pid) - before
        self.assertLess(grown, 12 * MEGABYTE, f"{grown / MEGABYTE:.0f} MiB more")
        away = {**s3.environment(), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
        server = self.smtpd(LOOPBACK, "--handler=keeps.keeps", **away)
        self.assertEqual(send(server.port(), message_of(2 * MEGABYTE))[0], 451)


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class OptionTests(SynchronousTestCase):
    """``store=`` on the command line."""

    def test_stores(self) -> None:
        """A folder or a bucket."""
        folder = os.path.abspath(self.mktemp())
        handler: Any = make_handler(f"webhook:http://app.test:8000/:store=file:{folder}:inline=64k")
        self.assertEqual((str(handler.store), handler.inline), (f"file:{folder}", 2**16))
        handler = make_handler("amqp:amqp://mq.test:queue=mail:store=s3://mail/in/box")
        self.assertEqual(str(handler.store), "s3://mail/in/box/")

    def test_mistakes(self) -> None:
        """Each error says what to do."""
        for spec, expected in (
            ("store=ftp://x", "store=ftp://x: must be s3://BUCKET/PREFIX or file:/FOLDER"),
            ("store=s3://", "must be s3://BUCKET/PREFIX"),
            ("store=file:relative", "must be s3://BUCKET/PREFIX or file:/FOLDER"),
            ("store=file:/nowhere/mail", "store=file:/nowhere/mail: /nowhere: the folder for the maildir"),
            ("inline=1m", "inline: requires store="),
            ("store=s3://b:inline=20m", "inline must be less than the maximum size of the target"),
        ):
            error = self.assertRaises(UsageError, make_handler, f"amqp:amqp://mq.test:queue=mail:{spec}")
            self.assertIn(expected, str(error), spec)
