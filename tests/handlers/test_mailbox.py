"""The maildir: what is stored, when it may be acknowledged, and that a failed file operation leaves nothing."""

from __future__ import annotations

import email.message
import errno
import mailbox
import os
import socket
import threading
import time
from types import SimpleNamespace

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from txsmtpd.handlers import Mailbox
from txsmtpd.handlers import mailbox as mailbox_module
from txsmtpd.handlers.maildir import Maildir
from txsmtpd.reply import Refused
from txsmtpd.session import Envelope, Session

SERVER = SimpleNamespace(hostname="mx.example")
MESSAGE = b"Subject: Hi\r\nDKIM-Signature:  as;\r\n   it=came \r\n\r\nHello\r\n..dots\r\nno end"


def mail(content=MESSAGE):
    session, envelope = Session(), Envelope()
    session.peer, session.host_name, session.extended_smtp = ("192.0.2.1", 4321), "client.example", True
    envelope.mail_from, envelope.rcpt_tos, envelope.content = "a@example.com", ["b@example.com"], content
    return SERVER, session, envelope


def threads() -> set[threading.Thread]:
    """The threads of all mailboxes. Other tests may have left some running."""
    return {each for each in threading.enumerate() if "txsmtpd mailbox" in each.name}


class System:
    """The file operations of :mod:`os`. Records them, and lets one fail.

    :ivar calls: the name of each operation, and its folder or file.
    :ivar faults: the function to call instead of an operation, by its name in *calls*.
    """

    def __init__(self):
        self.calls = []
        self.faults = {}
        self._paths = {}

    def __getattr__(self, name):
        operation = getattr(os, name)

        def call(first, *arguments):
            path = self._paths.get(first, first)
            kind = os.path.basename(path) if os.path.isdir(path) else os.path.basename(os.path.dirname(path))
            self.calls.append(f"{name} {kind}")
            fault = self.faults.get(self.calls[-1])
            result = fault(first, *arguments) if fault else operation(first, *arguments)
            if name == "open":
                self._paths[result] = path
            return result

        return call


class Serial:
    """An iterator that threads may share."""

    def __init__(self, source):
        self._source, self._lock = source, threading.Lock()

    def __next__(self):
        with self._lock:
            return next(self._source)


def failing(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


def then_failing(operation, number):
    """An operation that succeeds, but reports an error."""

    def fail(*arguments):
        operation(*arguments)
        failing(number)()

    return fail


def short_write(number):
    """A disk that accepts three octets, and then fails."""
    written = []

    def write(fd, octets):
        if written:
            failing(number)()
        written.append(os.write(fd, octets[:3]))
        return 3

    return write


FAULTS = [
    ("open tmp", failing),
    ("write tmp", failing),
    ("write tmp", short_write),
    ("fsync tmp", failing),
    ("close tmp", lambda number: then_failing(os.close, number)),
    ("rename tmp", failing),
    ("open new", failing),
    ("fsync new", failing),
    ("close new", lambda number: then_failing(os.close, number)),
]


class MaildirTestCase(SynchronousTestCase):
    def setUp(self):
        self.path = self.mktemp()
        self.system = System()

    def make(self, **options):
        maildir = Maildir(self.path, system=self.system, **options)
        self.system.calls.clear()
        return maildir

    def stored(self, folder="new"):
        return sorted(os.listdir(f"{self.path}/{folder}"))

    def open_files(self):
        return len(os.listdir("/proc/self/fd"))


class MaildirDeliveryTests(MaildirTestCase):
    def test_deliver(self):
        """A delivered message is in new, readable only by its owner. Nothing is left in tmp."""
        name = self.make().deliver([b"one\n", b"", b"two\n"])
        self.assertEqual((self.stored(), self.stored("tmp"), self.stored("cur")), ([name], [], []))
        with open(f"{self.path}/new/{name}", "rb") as file:
            self.assertEqual(file.read(), b"one\ntwo\n")
            self.assertEqual(os.fstat(file.fileno()).st_mode & 0o777, 0o600)

    def test_order(self):
        """The file is synced before it is moved to new, and new is synced before the delivery returns."""
        self.make().deliver([b"x"])
        self.assertEqual(
            self.system.calls,
            ["open tmp", "write tmp", "fsync tmp", "close tmp", "rename tmp", "open new", "fsync new", "close new"],
        )

    def test_notDurable(self):
        """Without durability, nothing is synced."""
        self.make(durable=False).deliver([b"x"])
        self.assertEqual(self.system.calls, ["open tmp", "write tmp", "close tmp", "rename tmp"])

    def test_faults(self):
        """Whichever operation fails, the error is raised, no file is left, and no descriptor stays open."""
        maildir = self.make()
        before = self.open_files()
        for operation, fault in FAULTS:
            self.system.faults = {operation: fault(errno.EIO)}
            error = self.assertRaises(OSError, maildir.deliver, [b"some octets"])
            self.assertEqual(error.errno, errno.EIO, operation)
            self.assertEqual((self.stored(), self.stored("tmp")), ([], []), operation)
            self.assertEqual(self.open_files(), before, operation)
        self.system.faults = {}
        name = maildir.deliver([b"x"])
        self.assertEqual(self.stored(), [name])

    def test_syncNotRepeated(self):
        """A failed sync is not repeated: the second one may succeed although data was lost."""
        maildir = self.make()
        self.system.faults = {"fsync tmp": failing(errno.EIO)}
        self.assertRaises(OSError, maildir.deliver, [b"x"])
        self.assertEqual(self.system.calls.count("fsync tmp"), 1)

    def test_closeNotRepeated(self):
        """A failed close is not repeated: another file may have the descriptor by then."""
        maildir = self.make()
        self.system.faults = {"close tmp": then_failing(os.close, errno.EIO)}
        self.assertRaises(OSError, maildir.deliver, [b"x"])
        self.assertEqual(self.system.calls.count("close tmp"), 1)

    def test_shortWrites(self):
        """A disk that accepts a few octets at a time gets all of them."""
        maildir = self.make()
        self.system.faults = {"write tmp": lambda fd, octets: os.write(fd, octets[:3])}
        name = maildir.deliver([b"ten octets"])
        with open(f"{self.path}/new/{name}", "rb") as file:
            self.assertEqual(file.read(), b"ten octets")

    def test_sourceFails(self):
        """If the message ends with an exception, nothing of it is left."""

        def pieces():
            yield b"half"
            raise KeyError("x")

        self.assertRaises(KeyError, self.make().deliver, pieces())
        self.assertEqual((self.stored(), self.stored("tmp")), ([], []))

    def test_takenName(self):
        """An existing file is never overwritten. Another name is used."""
        maildir = self.make()
        with open(f"{self.path}/tmp/taken", "w") as file:
            file.write("other")
        name = maildir.deliver([b"x"], "taken")
        self.assertNotEqual(name, "taken")
        self.assertEqual((self.stored(), self.stored("tmp")), ([name], ["taken"]))

    def test_allNamesTaken(self):
        """The search for a name ends."""
        maildir = self.make()
        self.system.faults = {"open tmp": failing(errno.EEXIST)}
        self.assertRaises(FileExistsError, maildir.deliver, [b"x"])

    def test_names(self):
        """Names are unique, and start with the time. Slashes and colons of the host name are escaped."""
        maildir = self.make()
        names = {maildir.new_name() for _ in range(1000)}
        self.assertEqual(len(names), 1000)
        for name in names:
            self.assertRegex(name, r"^\d+\.M\d{1,6}P\d+Q\d+R[0-9a-f]{16}\.")

    def test_hostInNames(self):
        """A host name cannot refer to another folder."""
        self.patch(socket, "gethostname", lambda: "a/b:c")
        self.assertTrue(self.make().new_name().endswith(r".a\057b\072c"))

    def test_abort(self):
        """A file can be aborted after it was started. A delivered file stays."""
        maildir = self.make()
        draft = maildir.open()
        maildir.write(draft, b"half")
        self.assertEqual(self.stored("tmp"), [draft.name])
        maildir.abort(draft)
        self.assertEqual(self.stored("tmp"), [])
        draft = maildir.open()
        maildir.commit(draft)
        maildir.abort(draft)
        self.assertEqual(self.stored(), [draft.name])

    def test_sharedSync(self):
        """Threads that wait while the folder is synced share the next sync."""
        maildir = self.make()
        tickets, drawn, synced = maildir._tickets, threading.Semaphore(0), threading.Event()

        def draw():
            for ticket in tickets:
                drawn.release()
                yield ticket

        def fsync(fd):
            synced.wait(60)
            os.fsync(fd)

        self.system.faults = {"fsync new": fsync}
        maildir._tickets = Serial(draw())
        threads = [threading.Thread(target=maildir.deliver, args=([b"x"],)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(7):  # one ticket for each thread, and one for the sync that has started
            drawn.acquire(timeout=60)
        synced.set()
        for thread in threads:
            thread.join(60)
        self.assertEqual(len(self.stored()), 6)
        self.assertLessEqual(self.system.calls.count("fsync new"), 2)


class MaildirFolderTests(MaildirTestCase):
    def test_created(self):
        """A missing maildir is created, for its owner only, and survives a power failure."""
        Maildir(self.path, system=self.system)
        for folder in ("", "/tmp", "/new", "/cur"):
            self.assertEqual(os.stat(self.path + folder).st_mode & 0o777, 0o700)
        self.assertEqual(len([call for call in self.system.calls if call.startswith("fsync")]), 2)

    def test_there(self):
        """An existing maildir is used unchanged."""
        self.make()
        with open(f"{self.path}/new/old", "w"):
            pass
        Maildir(self.path, system=self.system)
        self.assertEqual(self.stored(), ["old"])
        self.assertNotIn("fsync", " ".join(self.system.calls))

    def test_noParent(self):
        """The parent folder is not created: its name may be a mistake."""
        error = self.assertRaises(FileNotFoundError, Maildir, f"{self.path}/a")
        self.assertIn("the folder for the maildir does not exist", str(error))
        self.assertIn(os.path.abspath(self.path), str(error))

    def test_noFolder(self):
        """A file is not a maildir. Neither is a folder with a file called new."""
        self.assertRaises(NotADirectoryError, Maildir, __file__)
        os.mkdir(self.path)
        with open(f"{self.path}/new", "w"):
            pass
        self.assertRaises(NotADirectoryError, Maildir, self.path)

    def test_noName(self):
        """An empty name does not mean the working directory."""
        self.assertRaises(ValueError, Maildir, "")

    def test_worldWritable(self):
        """A maildir that everybody can write to is refused, because anyone could create links in it."""
        self.make()
        for folder in ("", "/tmp", "/new", "/cur"):
            os.chmod(self.path + folder, 0o1777)
            error = self.assertRaises(PermissionError, Maildir, self.path)
            self.assertIn("must not be writable by others", str(error))
            os.chmod(self.path + folder, 0o700)

    def test_notWritable(self):
        """A maildir without write permission is refused immediately, not with the first message."""
        self.system.faults = {f"access {os.path.basename(self.path)}": lambda *arguments: False}
        self.assertIn("no permission to write", str(self.assertRaises(PermissionError, self.make)))

    def test_parentNotReadable(self):
        """A parent folder without read permission is no problem."""
        parent = os.path.basename(os.path.dirname(os.path.abspath(self.path)))
        self.system.faults = {f"open {parent}": failing(errno.EACCES)}
        self.make().deliver([b"x"])

    def test_workingDirectory(self):
        """A relative path keeps its meaning when the daemon changes its working directory."""
        maildir = self.make()
        self.addCleanup(os.chdir, os.getcwd())
        path = os.path.abspath(self.path)
        os.chdir("/")
        name = maildir.deliver([b"x"])
        self.assertEqual(os.listdir(f"{path}/new"), [name])

    def test_stale(self):
        """Files that a killed server left in tmp are removed after 36 hours, not before."""
        self.make()
        for name, hours in {"old": 37, "young": 35}.items():
            with open(f"{self.path}/tmp/{name}", "w"):
                pass
            then = time.time() - hours * 3600
            os.utime(f"{self.path}/tmp/{name}", (then, then))
        self.make()
        self.assertEqual(self.stored("tmp"), ["young"])


class MailboxTestCase(TestCase):
    mailbox_class = Mailbox

    def setUp(self):
        self.path = self.mktemp()
        self.system = System()
        self.handler = self.mailbox_class(self.path, maildir=Maildir(self.path, system=self.system))
        self.addCleanup(self.handler.close)
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def deliver(self, content=MESSAGE):
        return Deferred.fromCoroutine(self.handler.handle_DATA(*mail(content)))

    def names(self, folder="new"):
        return sorted(os.listdir(f"{self.path}/{folder}"))

    def octets(self):
        [name] = self.names()
        with open(f"{self.path}/new/{name}", "rb") as file:
            return file.read()

    async def refusal(self):
        try:
            await self.deliver()
        except Refused as refused:
            return refused.reply
        raise self.failureException("the message was taken")

    def levels(self):
        return [
            (event["log_level"], "log_failure" in event)
            for event in self.events
            if event["log_namespace"].startswith("txsmtpd.")
        ]


class MailboxTests(MailboxTestCase):
    async def test_stored(self):
        """A message is stored octet for octet, with LF line ends, after the trace header."""
        await self.deliver()
        header, _, message = self.octets().partition(b"X-RcptTo: b@example.com\n")
        self.assertEqual(message, MESSAGE.replace(b"\r\n", b"\n"))
        self.assertRegex(header, rb"(?s)^Return-Path: <a@example.com>\nReceived: .*by mx.example with ESMTP id")

    async def test_identifier(self):
        """The reply, the Received field and the file name have the same identifier."""
        reply = await self.deliver()
        self.assertRegex(reply, r"^250 2\.0\.0 OK, stored as \S+$")
        identifier = reply.rpartition(" ")[2]
        self.assertTrue(self.names()[0].startswith(identifier + "."))
        self.assertIn(f" id {identifier}\n".encode(), self.octets())

    async def test_text(self):
        """With decode_data, the same octets are stored."""
        await self.deliver("Subject: ä\udcff\r\n\r\nx\r\n")
        self.assertTrue(self.octets().endswith(b"\nSubject: \xc3\xa4\xff\n\nx\n"))

    async def test_forgeries(self):
        """The stored X-MailFrom and Return-Path are only those of the server."""
        await self.deliver(b" boss@example.com\r\nX-MailFrom: boss@example.com\r\nReturn-Path: <x>\r\n\r\nbody\r\n")
        [message] = self.handler.mailbox
        self.assertEqual(message.get_all("X-MailFrom"), ["a@example.com"])
        self.assertEqual(message.get_all("Return-Path"), ["<a@example.com>"])
        self.assertEqual(message["X-RcptTo"], "b@example.com")

    async def test_pieces(self):
        """Large messages are written in pieces, with the same result wherever they are split."""
        for size in range(1, 9):
            self.patch(mailbox_module, "PIECE", size)
            await self.deliver(b"A: b\r\n\r\nx\r\n\r\r\n\ny\r\n")
            self.assertTrue(self.octets().endswith(b"\nA: b\n\nx\n\r\n\ny\n"), size)
            self.handler.reset()

    async def test_binary(self):
        """A BINARYMIME message is stored octet for octet after the trace header, whole or streamed."""
        content = b"A: b\r\nX-Peer: forged\r\n\r\n" + bytes(range(256)) + b"\n\r\r\n\n.\r"
        server, session, envelope = mail(content)
        envelope.body = "BINARYMIME"
        await self.handler.handle_DATA(server, session, envelope)
        whole = self.octets()
        header, _, stored = whole.partition(b"A: b\r\n")
        self.assertEqual(stored, content[content.index(b"\r\n\r\n") + 2 :])
        self.assertNotIn(b"\n", header.replace(b"\r\n", b""))
        self.handler.reset()
        receiver = self.handler.open_message(server, session, envelope)
        for octet in content:
            receiver.write(bytes([octet]))
        await receiver.finish()
        self.assertEqual(self.octets().partition(b"A: b\r\n")[2], stored)

    async def test_wrongContent(self):
        """Content that is neither bytes nor str is an error, and stores nothing."""
        await self.assertFailure(self.deliver(None), TypeError)
        self.assertEqual(self.names(), [])

    async def test_empty(self):
        """An empty message is only a header."""
        await self.deliver(b"")
        self.assertTrue(self.octets().endswith(b"X-RcptTo: b@example.com\n"))

    async def test_reset(self):
        """reset() removes all messages, mailbox reads them, and mail_dir is the argument."""
        await self.deliver()
        self.assertEqual(self.handler.mail_dir, self.path)
        self.assertIsInstance(self.handler.mailbox, mailbox.Maildir)
        self.assertEqual([message["Subject"] for message in self.handler.mailbox], ["Hi"])
        self.handler.reset()
        self.assertEqual((self.names(), len(self.handler.mailbox)), ([], 0))

    async def test_many(self):
        """A hundred messages at the same time are all stored, by several threads, each with its own identifier."""
        at_once = threading.Barrier(4)

        def fsync(fd):
            if at_once.n_waiting or not at_once.broken:
                at_once.wait(60)
            os.fsync(fd)

        self.system.faults = {"fsync tmp": fsync}
        replies = await gatherResults([self.deliver() for _ in range(100)])
        self.assertEqual(len(set(replies)), 100)
        self.assertEqual(len(self.names()), 100)
        self.assertEqual(self.names("tmp"), [])

    async def test_faults(self):
        """Whichever file operation fails, the client gets a temporary refusal, and nothing is left."""
        for operation, fault in FAULTS:
            for number, code, status in [
                (errno.ENOSPC, 452, "4.3.1"),
                (errno.EDQUOT, 452, "4.3.1"),
                (errno.EFBIG, 452, "4.3.1"),
                (errno.EIO, 451, "4.3.0"),
                (errno.EROFS, 451, "4.3.0"),
            ]:
                self.system.faults = {operation: fault(number)}
                reply = await self.refusal()
                self.assertEqual((reply.code, reply.status), (code, status), operation)
                self.assertEqual((self.names(), self.names("tmp")), ([], []), operation)

    async def test_log(self):
        """Trouble is logged once, not with each message. Its end is logged after a minute without trouble. No traceback
        is logged."""
        now = [1000.0]
        self.patch(mailbox_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        for number in (errno.EIO, errno.EIO, errno.EIO, errno.ENOSPC, errno.ENOSPC):
            self.system.faults = {"write tmp": failing(number)}
            await self.refusal()
        self.system.faults = {}
        await self.deliver()
        self.system.faults = {"write tmp": failing(errno.ENOSPC)}
        await self.refusal()
        self.system.faults = {}
        now[0] += 61
        for _ in range(2):
            await self.deliver()
        self.assertEqual(self.levels(), [(LogLevel.error, False), (LogLevel.error, False), (LogLevel.info, False)])

    async def test_removed(self):
        """While the maildir is missing, mail is refused temporarily. When it is back, mail is accepted."""
        os.rename(self.path, self.path + "-away")
        self.assertEqual((await self.refusal()).code, 451)
        os.rename(self.path + "-away", self.path)
        await self.deliver()
        self.assertEqual(len(self.names()), 1)

    async def test_clientGone(self):
        """If the client disconnects while its message is stored, the file stays."""
        begun, go_on = threading.Event(), threading.Event()

        def fsync(fd):
            begun.set()
            go_on.wait(60)
            os.fsync(fd)

        self.system.faults = {"fsync tmp": fsync}
        answer = self.deliver()
        begun.wait(60)
        answer.cancel()
        await self.assertFailure(answer, CancelledError)
        go_on.set()
        self.handler.close()
        self.assertEqual((len(self.names()), self.names("tmp")), (1, []))

    async def test_close(self):
        """close() ends the threads. Another message starts new ones."""
        others = threads()
        self.handler.close()
        await self.deliver()
        self.handler.close()
        self.handler.close()
        self.assertEqual(threads() - others, set())
        await self.deliver()
        self.assertEqual(len(self.names()), 2)

    async def test_notDurable(self):
        """A Mailbox for tests need not wait for the disk."""
        handler = Mailbox(self.mktemp(), durable=False)
        self.addCleanup(handler.close)
        await handler.handle_DATA(*mail())
        self.assertEqual(len(handler.mailbox), 1)


class MailboxReactorTests(SynchronousTestCase):
    def test_shutdown(self):
        """There are no threads before the first message, and none after the end of the reactor."""

        class Reactor(Clock):
            triggers = ()

            def addSystemEventTrigger(self, *trigger):
                self.triggers = [*self.triggers, trigger]

            def callFromThread(self, function, *arguments):
                self.ended = True

        others = threads()
        reactor = Reactor()
        handler = Mailbox(self.mktemp(), reactor=reactor)
        self.assertEqual(list(reactor.triggers), [])
        Deferred.fromCoroutine(handler.handle_DATA(*mail()))
        [(phase, event, stop)] = reactor.triggers
        self.assertEqual((phase, event), ("during", "shutdown"))
        stop()
        self.assertEqual(len(handler.mailbox), 1)
        Deferred.fromCoroutine(handler.handle_DATA(*mail()))
        self.assertEqual(threads() - others, set())
        handler.close()


class Labelled(Mailbox):
    def prepare_message(self, session, envelope):
        message = super().prepare_message(session, envelope)
        message["X-Label"] = session.host_name
        return message


class Watched(Mailbox):
    def handle_message(self, message):
        self.seen = message["Subject"]
        super().handle_message(message)


class LabelledMailboxTests(MailboxTestCase):
    mailbox_class = Labelled

    async def test_stored(self):
        """A subclass may change the message before it is stored. The trace header still precedes it."""
        await self.deliver(b"Return-Path: <x>\r\nX-Peer: forged\r\n" + MESSAGE)
        [message] = self.handler.mailbox
        self.assertEqual(
            message.keys(),
            ["Return-Path", "Received", "Subject", "DKIM-Signature", "X-Peer", "X-MailFrom", "X-RcptTo", "X-Label"],
        )
        self.assertEqual(message["X-Label"], "client.example")
        self.assertNotIn(b"\r", self.octets())

    async def test_utf8(self):
        """Addresses that are not ASCII work in such a subclass, whatever its message class is."""
        for message_class in (None, email.message.EmailMessage):
            handler = Labelled(self.mktemp(), message_class)
            server, session, envelope = mail("Subject: ä\r\n\r\nbody ö\r\n".encode())
            envelope.mail_from, envelope.rcpt_tos = "jörg@example.com", [f"jörg{n}@example.com" for n in range(200)]
            await handler.handle_DATA(server, session, envelope)
            [key] = handler.mailbox.keys()
            self.assertLess(max(map(len, handler.mailbox.get_bytes(key).split(b"\n"))), 999)
            self.assertIn("body ö".encode(), handler.mailbox.get_bytes(key))

    async def test_nested(self):
        """Nested parts are stored. A message with too many levels gets a permanent refusal."""
        for depth, stored in ((49, True), (300, False)):
            content = b"".join(
                b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (level, level) for level in range(depth)
            )
            if stored:
                await self.deliver(content)
                self.assertIn(b"boundary=48", self.octets())
                self.handler.reset()
            else:
                refused = await self.assertFailure(self.deliver(content), Refused)
                self.assertEqual((refused.reply.code, refused.reply.status), (554, "5.6.0"))
                self.assertEqual(self.names(), [])


class WatchedMailboxTests(MailboxTestCase):
    mailbox_class = Watched

    async def test_stored(self):
        """A subclass may read each message. When super() returns, the message is stored."""
        self.assertEqual(await self.deliver(), "250 2.0.0 OK")
        self.assertEqual((self.handler.seen, len(self.names())), ("Hi", 1))

    async def test_faults(self):
        """If the message cannot be stored, the client gets a refusal, even if the subclass ignores results."""
        self.system.faults = {"fsync new": failing(errno.ENOSPC)}
        self.assertEqual((await self.refusal()).code, 452)
        self.assertEqual(self.names(), [])
