"""--handler=inbox and its options: valid and invalid values."""

from __future__ import annotations

import io
import os
import pty
import signal
import smtplib
import subprocess
import sys
import tempfile
import urllib.request
from typing import Any
from unittest import TestCase

from twisted.trial.unittest import SynchronousTestCase

from tests.inbox.test_clients import PATIENCE, Server
from txsmtpd.service.exit_status import Exit
from txsmtpd.service.options import Options


class OptionTests(SynchronousTestCase):
    """The parsed options."""

    def parsed(self, *arguments: str, **environ: str) -> Any:
        """The settings that result."""
        options = Options()
        options.environ = environ
        options.parseOptions([*arguments])
        store = getattr(options["handler"], "store", None)
        if store is not None:
            store._unlock()
        return options

    def assertRefused(self, text: str, *arguments: str) -> None:
        """Assert that the options are refused with one line and status 64."""
        self.patch(sys, "stderr", io.StringIO())
        refused = self.assertRaises(Exit, self.parsed, *arguments)
        self.assertIn(text, str(refused))
        self.assertEqual(refused.code, 64)

    def test_defaults(self) -> None:
        """By default, SMTP listens on port 1025 of loopback, everybody may log in, and addresses may be in UTF-8."""
        options = self.parsed("--handler=inbox")
        self.assertEqual([label for label, _ in options["endpoints"]], ["--listen=tcp:1025:interface=127.0.0.1"])
        self.assertEqual(options["inbox"][0], "--web=tcp:8025:interface=127.0.0.1")
        for name in ("enable_SMTPUTF8", "bare_newlines", "lenient_addresses"):
            self.assertTrue(options["settings"][name], name)
        self.assertIsNotNone(options["settings"]["authenticator"])
        options = self.parsed("--handler=inbox", "--listen=tcp:2525", "--size=1000", TXSMTPD_SMTPUTF8="no")
        self.assertEqual([label for label, _ in options["endpoints"]], ["--listen=tcp:2525"])
        self.assertFalse(options["settings"]["enable_SMTPUTF8"])
        strict = self.parsed("--handler=inbox", TXSMTPD_BARE_NEWLINES="no", TXSMTPD_LENIENT_ADDRESSES="no")["settings"]
        self.assertFalse(strict["bare_newlines"] or strict["lenient_addresses"])
        self.assertEqual(options["inbox"][2].size_limit, 1000)

    def test_others(self) -> None:
        """Other handlers have their own defaults."""
        options = self.parsed("--handler=sink")
        self.assertEqual([label for label, _ in options["endpoints"]], ["--listen=tcp:8025:interface=127.0.0.1"])
        self.assertIsNone(options["inbox"])

    def test_web(self) -> None:
        """The options of the pages become settings of the site. They are also read from the environment."""
        options = self.parsed(
            "--handler=inbox",
            "--web-path=/a/b/",
            "--web-host=Mail.example.com",
            "--web-cors=http://localhost:3000",
            "--web-frame=https://a.example/",
            "--web-auth=memory:user:secret",
            "--web-relay=127.0.0.1:2525:tls=never",
            TXSMTPD_WEB="8026",
        )
        label, _, settings = options["inbox"]
        self.assertEqual(label, "TXSMTPD_WEB=8026")
        self.assertEqual(
            (settings.path, settings.hosts, settings.cors, settings.frames, settings.relay_name),
            ("/a/b", {"mail.example.com"}, {"http://localhost:3000"}, ("https://a.example",), "127.0.0.1:2525"),
        )
        self.assertIsNotNone(settings.portal)

    def test_kept(self) -> None:
        """The number, size and age of kept mail can be set."""
        kept = self.parsed("--handler=inbox", "--keep=10", "--keep-size=1M", "--keep-age=12h")[
            "handler"
        ].store.retention
        self.assertEqual((kept.messages, kept.octets, kept.age), (10, 2**20, 43200))

    def test_mistakes(self) -> None:
        """Invalid values are refused before anything listens."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        other = os.path.join(folder, "other")
        with open(other, "w", encoding="utf-8") as file:
            file.write("not a database, but long enough to be looked at " * 100)
        for text, *arguments in (
            ("--web: requires --handler=inbox", "--web=8025"),
            ("--keep: requires --handler=inbox", "--keep=1", "--handler=sink"),
            ("--web-path=a/../b: must be a path such as /mail", "--handler=inbox", "--web-path=a/../b"),
            ("--web-cors=*: not an origin", "--handler=inbox", "--web-cors=*"),
            ("--web-host=a:1: not a host name", "--handler=inbox", "--web-host=a:1"),
            ("--web=x: ", "--handler=inbox", "--web=x"),
            ("--keep=many: must be a number", "--handler=inbox", "--keep=many"),
            ("--keep-age=x: must be", "--handler=inbox", "--keep-age=x"),
            ("--web-auth=file: ", "--handler=inbox", "--web-auth=file:/no/such/file"),
            ("--web-relay=a: ", "--handler=inbox", "--web-relay=a"),
            ("the file is not a database; use another file", f"--handler=inbox:{other}"),
            ("No such file or directory", f"--handler=inbox:{folder}/no/mail"),
            ("a file is needed after the colon", "--handler=inbox:"),
            ("write a colon in its name as", "--handler=inbox:a:b"),
        ):
            self.assertRefused(text, *arguments)

    def test_noExtra(self) -> None:
        """If the extra is missing, the error names it."""
        from txsmtpd.inbox import handler

        self.patch(handler, "find_spec", lambda name: None)
        self.assertRefused("pip install 'txsmtpd[inbox]'", "--handler=inbox")


class ProcessTests(TestCase):
    """The server, as users start it."""

    def test_mail(self) -> None:
        """Mail that is sent to one address appears at the other, below its path. At the end nothing is left."""
        server = Server("--web-path=/mail")
        self.addCleanup(server.stop)
        with smtplib.SMTP("127.0.0.1", server.smtp_port or 0, timeout=60) as client:
            client.login("anybody", "any password")
            client.sendmail("a@b.test", ["c@d.test"], "Subject: seen\r\n\r\nHello\r\n")
        with urllib.request.urlopen(f"{server.url}/", timeout=60) as answer:
            self.assertIn(b"seen", answer.read())
        server.process.terminate()
        said, _ = server.process.communicate(timeout=PATIENCE)
        self.assertIn(server.process.returncode, (0, -signal.SIGTERM), said)
        self.assertNotIn("Traceback", said)

    def test_open(self) -> None:
        """On other addresses than loopback without a login, there is one warning."""
        server = Server("--web=tcp:0:interface=0.0.0.0")
        self.addCleanup(server.stop)
        server.process.terminate()
        said, _ = server.process.communicate(timeout=PATIENCE)
        self.assertIn("can read the mail; use --web-auth", server.before + said)
        self.assertRegex(server.before + said, r"inbox on http://localhost:\d+/")

    def test_terminal(self) -> None:
        """On a terminal, two lines show where to send mail and where to read it. The log follows."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "txsmtpd", "--handler=inbox"),
                *("--listen=tcp:0:interface=127.0.0.1", "--web=0"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=slave,
            cwd=tempfile.gettempdir(),
        )
        os.close(slave)
        said = b""
        while b"Inbox" not in said or b"\n" not in said.partition(b"Inbox")[2]:
            said += os.read(master, 1000)
        process.terminate()
        process.wait(PATIENCE)
        self.assertRegex(said.decode(), r"\ASMTP    127\.0\.0\.1:\d+\r\nInbox   http://127\.0\.0\.1:\d+/\r\n")
