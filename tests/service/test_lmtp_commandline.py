"""LMTP on the command line: --listen-lmtp, and Unix sockets."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_commandline import LOOPBACK, PATIENCE, TWISTD, Client, CommandLineTestCase, Process
from tests.service.test_service import parse, refusal
from tests.support.tls import combined, issue, write
from txsmtpd.service import makeService
from txsmtpd.service.sockets import replace_stale_socket


class UnixClient(Client):
    """An LMTP client over a Unix socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self._lines = self.socket.makefile("rb")


class OptionTests(SynchronousTestCase):
    """From options to servers."""

    def banners(self, *words: str, **environ: str) -> list[str]:
        """The protocols of the servers, in the order of their endpoints."""
        service: Any = makeService(parse("--hostname=mx", *words, environ=environ))
        assert isinstance(service, MultiService)
        return [listener.factory.settings.greeting.text for listener in service]  # type: ignore[attr-defined]

    def test_listens(self) -> None:
        """--listen-lmtp starts LMTP, alone or together with --listen, and may be repeated."""
        lmtp, smtp = "mx LMTP txsmtpd", "mx ESMTP txsmtpd"
        self.assertEqual(self.banners("--listen-lmtp=tcp:24"), [lmtp])
        self.assertEqual(
            self.banners("--listen=tcp:1", "--listen-lmtp=tcp:24", "--listen-lmtp=unix:x"), [smtp, lmtp, lmtp]
        )
        self.assertEqual(self.banners(TXSMTPD_LISTEN_LMTP="tcp:24 unix:x:mode=660"), [lmtp, lmtp])
        self.assertEqual(self.banners("--listen-lmtp=tcp:24", "--ident=hello"), ["mx hello"])

    def test_settings(self) -> None:
        """All other options apply as for --listen."""
        (listener,) = makeService(parse("--listen-lmtp=tcp:24", "--size=5", "--smtputf8"))  # type: ignore[misc]
        settings = listener.factory.settings
        self.assertEqual((settings.data_size_limit, settings.enable_SMTPUTF8), (5, True))

    def test_port25(self) -> None:
        """Port 25 is refused for LMTP, however it is written."""
        for port in "tcp:25", "tcp:25:interface=127.0.0.1", "tcp:port=25", "tcp6:25", "haproxy:tcp:25":
            self.assertIn("port 25 must not be used for LMTP", refusal(f"--listen-lmtp={port}"))
        self.assertTrue(refusal(environ={"TXSMTPD_LISTEN_LMTP": "tcp:25"}).startswith("TXSMTPD_LISTEN_LMTP=tcp:25: "))
        for port in "tcp:250", "tcp:2525", "unix:25", "tcp:24:interface=25":
            parse(f"--listen-lmtp={port}")

    def test_malformed(self) -> None:
        """An invalid endpoint is refused as for --listen."""
        for word in "unix:x:colour=red", "25", "":
            self.assertTrue(refusal(f"--listen-lmtp={word}").startswith(f"--listen-lmtp={word}: not an endpoint"), word)
        for word in "unix:", "unix::mode=660", "unix:address=":
            self.assertIn("a Unix socket needs a path", refusal(f"--listen-lmtp={word}"))

    def test_mode(self) -> None:
        """The mode of a socket must be three octal digits."""
        for mode in "rw", "", "999", "-1", "77777", "4660", "6", "0x1b0":
            self.assertIn("mode must be three octal digits", refusal(f"--listen-lmtp=unix:x:mode={mode}"), mode)
        for word in "unix:x:mode=600", "unix:x:mode=0660", "unix:x:backlog=5:mode=0o666", "unix:mode=660:address=x":
            parse(f"--listen-lmtp={word}")


class DeadTests(SynchronousTestCase):
    """When a socket counts as stale."""

    def setUp(self) -> None:
        self.path = self.mktemp().encode()
        self.socket = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.socket.close)
        self.socket.bind(self.path)
        self.tried = 0

    def listen(self) -> None:
        self.tried += 1
        if os.path.exists(self.path):
            raise CannotListenError(None, self.path, OSError())

    def test_notYet(self) -> None:
        """A socket that is created, and listens a moment later, is not stale."""
        self.assertRaises(
            CannotListenError, replace_stale_socket, self.listen, sleep=lambda moment: self.socket.listen()
        )
        self.assertTrue(os.path.exists(self.path))
        self.assertEqual(self.tried, 1)

    def test_dead(self) -> None:
        """A socket on which no process listens after that moment is stale."""
        replace_stale_socket(self.listen, sleep=lambda moment: None)
        self.assertEqual(self.tried, 2)


class UnixTests(CommandLineTestCase):
    """Real processes on real Unix sockets."""

    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(self.folder, "lmtp.sock")
        if len(self.path) > 100:  # the maximum length of a socket's path is 108
            self.path = os.path.relpath(self.path)

    def lmtpd(self, *options: str) -> Process:
        where = os.path.basename(self.path)
        return self.smtpd(f"--listen-lmtp=unix:{where}:mode=660", "--handler=own_module.Prints", *options)

    def deliver(self) -> list[str]:
        """Deliver to two recipients. Return the replies to the message."""
        client = UnixClient(self.path)
        self.addCleanup(client.close)
        self.assertTrue(client.reply().startswith("220 "))
        for command in "LHLO c.test", "MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>", "RCPT TO:<c@b.test>":
            self.assertTrue(client.say(command).startswith("250 "), command)
        self.assertTrue(client.say("DATA").startswith("354 "))
        return [client.say("Subject: x\r\n\r\n."), client.reply()]

    def test_delivers(self) -> None:
        """A message for two recipients gets two replies. The socket has the requested mode, and is removed with the
        server."""
        process = self.lmtpd()
        process.line_with("listening on lmtp.sock")
        self.assertEqual(self.deliver(), ["250 2.0.0 printed\r\n"] * 2)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o660)
        process.process.send_signal(signal.SIGTERM)
        process.wait()
        self.assertEqual(sorted(each.name for each in Path(self.folder).glob("lmtp*")), [])

    def test_dead(self) -> None:
        """The socket of a killed server is replaced, even if another process has its PID."""
        process = self.lmtpd()
        process.line_with("listening on")
        process.process.kill()
        process.wait()
        self.assertTrue(os.path.exists(self.path))
        os.symlink(str(os.getpid()), f"{self.path}.lock")  # as if another server had left it
        again = self.lmtpd()
        again.line_with("listening on")
        self.assertEqual(len(self.deliver()), 2)

    def test_alive(self) -> None:
        """If a server is running, another one is refused, however often it tries. The first one continues."""
        self.lmtpd().line_with("listening on")
        label = "--listen-lmtp=unix:lmtp.sock:mode=660"
        for _ in range(2):
            self.assertOneLine(self.lmtpd(), 71, f"{label}: cannot listen: Address already in use")
        under_twistd = self.run_python(*TWISTD, "-n", "smtpd", label, "--handler=sink")
        self.assertOneLine(under_twistd, 71, f"{label}: cannot listen: Address already in use")
        self.assertEqual(len(self.deliver()), 2)

    def test_foreign(self) -> None:
        """Other paths are not removed: a file, a folder, another kind of socket."""
        path = Path(self.path)
        path.write_text("mine")
        self.assertOneLine(self.lmtpd(), 71, "Address already in use")
        self.assertEqual(path.read_text(), "mine")
        path.unlink()
        path.mkdir()
        self.assertOneLine(self.lmtpd(), 71, "Address already in use")
        path.rmdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(self.path)
            self.assertOneLine(self.lmtpd(), 71, "Address already in use")
            self.assertTrue(path.exists())

    def test_noFolder(self) -> None:
        """The error for a socket in a missing folder is one line and status 71."""
        process = self.smtpd(LOOPBACK, "--listen-lmtp=unix:nowhere/lmtp.sock")
        self.assertOneLine(process, 71, "cannot listen: No such file or directory")

    def test_requireStarttls(self) -> None:
        """With --require-starttls, LHLO and STARTTLS are accepted without TLS, and mail is not."""
        pem = write(Path(self.folder) / "mx.pem", combined(issue("mx.test")))
        self.lmtpd(f"--tls={pem}", "--require-starttls").line_with("listening on")
        client = UnixClient(self.path)
        self.addCleanup(client.close)
        client.reply()
        self.assertTrue(client.say("LHLO c.test").startswith("250 "))
        self.assertTrue(client.say("MAIL FROM:<a@a.test>").startswith("530 5.7.0 "))
        self.assertTrue(client.say("STARTTLS").startswith("220 "))
