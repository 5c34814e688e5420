"""The examples, and tests that need a separate process: pytest, its plugin, and cleanup after tests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import pytest_txsmtpd
from tests.support.programs import once

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PATIENCE = 300  # seconds; a busy machine starts eight workers slowly

SHARED = """
import smtplib, pytest

@pytest.mark.parametrize("number", range(40))
def test_own(mail_server, mail_inbox, number):
    for to in mail_inbox.address(), "everybody@example.com":
        with smtplib.SMTP(*mail_server.address) as client:
            client.sendmail("a@x.test", [to], f"Subject: {number}\\r\\n\\r\\nHello\\r\\n")
    assert [mail.subject for mail in mail_inbox.messages] == [str(number)]
    assert mail_inbox.wait().subject == str(number)
    assert str(number) in [mail.subject for mail in mail_server.inbox(to="everybody@example.com").messages]
    (%s / f"{mail_server.port}").touch()
"""

FAILING = """
import smtplib, pytest

def send(server, to="b@x.test"):
    with smtplib.SMTP(*server.address) as client:
        client.login("ann", "canary" + "-17")
        client.sendmail("a@x.test", [to], "Subject: hello\\r\\n\\r\\nHello\\r\\n")

@pytest.fixture
def failing(mail_catcher):
    send(mail_catcher)
    raise ZeroDivisionError

@pytest.fixture
def failing_late(mail_catcher):
    yield
    send(mail_catcher)
    raise ZeroDivisionError

def test_call(mail_catcher):
    send(mail_catcher)
    assert mail_catcher.messages == []

def test_setup(failing):
    pass

def test_teardown(failing_late):
    pass

def test_asked_for(request):
    send(request.getfixturevalue("mail_catcher"))
    assert False

def test_inbox(mail_server, mail_inbox):
    send(mail_server)
    send(mail_server, mail_inbox.address("bob"))
    assert False

def test_both(mail_catcher, failing_late):
    send(mail_catcher)
    assert False

@pytest.mark.mail_catcher(tls="starttls")
def test_options(mail_catcher):
    with mail_catcher.smtplib() as client:
        client.noop()
    assert False

@pytest.mark.mail_catcher("starttls")
def test_nameless_option(mail_catcher):
    pass

def test_passes(mail_catcher):
    send(mail_catcher)
"""

HIDDEN = """
import pytest

def test_wait(mail_server, mail_inbox):
    mail_inbox.wait(subject="Welcome", timeout=0.01)  # the line of the test

def test_none(mail_catcher):
    mail_catcher.session().send(b"Subject: x\\r\\n\\r\\n")
    mail_catcher.assert_none()  # the line of the test
"""

DJANGO_TLS = """
import smtplib, ssl
import django, pytest
from django.conf import settings
from django.core.mail import send_mail
from django.test import override_settings
from txsmtpd.testing import MailCatcher

settings.configure()
django.setup()

def test_settings_alone():
    with MailCatcher(tls=%r) as catcher, override_settings(**catcher.django_settings()):
        send_mail("Welcome", "Hello!", "app@example.com", ["bob@example.com"])
        assert catcher.wait().tls is not None

@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.mail_catcher(tls=%r)
def test_tls(mail_catcher, number):
    with override_settings(**mail_catcher.django_settings()):
        send_mail("Welcome", "Hello!", "app@example.com", ["bob@example.com"])
    [mail] = mail_catcher.messages
    assert mail.tls is not None

@pytest.mark.mail_catcher(tls="starttls")
def test_default_context(mail_catcher):
    with smtplib.SMTP(*mail_catcher.address) as client:
        client.starttls(context=ssl.create_default_context())
"""

MANY = """
import smtplib
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from txsmtpd.testing import MailCatcher

class ManyTests(TestCase):
    def setUp(self):
        self.catcher = MailCatcher.for_test(self)

    def send(self):
        with self.catcher.smtplib() as client:
            client.sendmail("a@x.test", ["b@x.test"], "Subject: hello\\r\\n\\r\\nHello\\r\\n")

    async def run_one(self):
        sending = deferToThread(self.send)
        mail = await self.catcher.next(to="b@x.test")
        self.assertEqual(mail.subject, "hello")
        await sending
        self.catcher.next(timeout=600)  # which nobody awaits

for number in range(200):
    setattr(ManyTests, f"test_{number}", ManyTests.run_one)
"""


def free_port() -> int:
    """A port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class ProcessTestCase(SynchronousTestCase):
    """A test case that runs tests in a separate process."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def python(self, *words: str) -> tuple[int, str]:
        """Run Python. Return its status and its output."""
        path = os.pathsep.join([str(Path(pytest_txsmtpd.__file__).parent), *sys.path])
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout + done.stderr

    def pytest(self, *words: str) -> tuple[int, str]:
        return self.python("-m", "pytest", "-p", "pytest_txsmtpd", "-p", "no:cacheprovider", *words)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


class ExampleTests(ProcessTestCase):
    """Each example works, and is shorter than the same with a Controller."""

    def check(self, name: str, *words: str) -> None:
        for folder in EXAMPLES, EXAMPLES / "with_aiosmtpd":
            # Other test runs on this host may use the same ports.
            text = re.sub(r"\b803\d\b", str(free_port()), (folder / f"{name}.py").read_text())
            self.write(f"{name}.py", text)
            status, said = self.python("-m", *words, name) if words else self.pytest(f"{name}.py")
            self.assertEqual(status, 0, said)
        ours, theirs = (len((EXAMPLES / each / f"{name}.py").read_text()) for each in ("", "with_aiosmtpd"))
        self.assertLess(ours, theirs)

    def test_twisted(self) -> None:
        """trial, and a Twisted application."""
        self.check("test_twisted", "twisted.trial")

    def test_django(self) -> None:
        """pytest, and Django's send_mail."""
        once()
        self.check("test_django")

    def test_asyncio(self) -> None:
        """pytest, and asyncio code with aiosmtplib."""
        self.check("test_asyncio")

    def test_smtplib(self) -> None:
        """unittest, and smtplib."""
        self.check("test_smtplib", "unittest")


class PytestTests(ProcessTestCase):
    """The plugin for pytest."""

    def shared(self, *words: str) -> int:
        """Run tests that share servers. Return the number of servers."""
        (self.folder / "ports").mkdir()
        self.write("test_shared.py", SHARED % f"__import__('pathlib').Path({str(self.folder / 'ports')!r})")
        status, said = self.pytest("-q", "test_shared.py", *words)
        self.assertEqual(status, 0, said)
        self.assertIn("40 passed", said)
        return len(list((self.folder / "ports").iterdir()))

    def test_oneProcess(self) -> None:
        """There is one server for all tests, and each test sees only its own mail."""
        self.assertEqual(self.shared(), 1)

    def test_workers(self) -> None:
        """By default, each worker has its own server."""
        once()
        self.assertEqual(self.shared("-n", "2"), 2)

    def test_workersOnOneServer(self) -> None:
        """Eight workers on one server see only their own mail, including all mail that was sent before."""
        once()
        self.assertEqual(self.shared("-n", "8", "--shared-mail-server"), 1)

    def test_transcript(self) -> None:
        """A test that fails, even in a fixture, prints its transcript once, without passwords."""
        once()
        self.write("test_failing.py", FAILING)
        for words in (), ("-n", "2", "--shared-mail-server"):
            status, said = self.pytest("-q", "test_failing.py", "--tb=short", "--strict-markers", *words)
            self.assertEqual(status, 1, said)
            self.assertIn("5 failed, 2 passed, 4 errors", said)
            self.assertEqual(said.count("SMTP transcripts"), 7, said)
            self.assertRegex(said, re.compile(r"mail from:<a@x\.test>", re.IGNORECASE))
            self.assertIn("* TLSv1.3 with", said)
            self.assertNotIn("canary-17", said)
            self.assertNotIn("AGFubgBjYW5hcnktMTc=", said)

    def test_hidden(self) -> None:
        """If mail is missing or unexpected, the failure shows the line of the test, and not those of the inbox."""
        self.write("test_hidden.py", HIDDEN)
        status, said = self.pytest("-q", "test_hidden.py")
        self.assertEqual(status, 1, said)
        self.assertIn("2 failed", said)
        self.assertEqual(said.count("# the line of the test"), 2)
        for name in "inbox.py", "concurrent/futures", "def wait", "def assert_none":
            self.assertNotIn(name, said)

    def test_djangoTLS(self) -> None:
        """Clients of Django trust the certificate with django_settings(), others with the fixture."""
        once()
        for tls in "starttls", "implicit":
            self.write("test_tls.py", DJANGO_TLS % (tls, tls))
            status, said = self.pytest("-q", "test_tls.py")
            self.assertEqual(status, 0, said)
            self.assertIn("4 passed", said)

    def test_notUsed(self) -> None:
        """If no fixture of it is used, the plugin imports neither Twisted nor txsmtpd."""
        self.write(
            "test_nothing.py",
            "import sys\n\ndef test_nothing():\n    assert not {'twisted', 'txsmtpd', 'OpenSSL'} & set(sys.modules)\n",
        )
        status, said = self.pytest("-q", "test_nothing.py")
        self.assertEqual(status, 0, said)


class LeavingsTests(ProcessTestCase):
    """Many tests leave nothing behind."""

    def test_many(self) -> None:
        """Two hundred tests with a catcher each leave the reactor clean, and no resource open."""
        self.write("test_many.py", MANY)
        status, said = self.python("-W", "error::ResourceWarning", "-m", "twisted.trial", "test_many")
        self.assertEqual(status, 0, said)
        self.assertIn("successes=200", said)
        self.assertNotIn("ResourceWarning", said)

    def test_trialTranscript(self) -> None:
        """A failing test of trial prints its transcript without code for it in the test."""
        self.write("test_many.py", MANY.replace('"hello")', '"bye")').replace("range(200)", "range(1)"))
        status, said = self.python("-m", "twisted.trial", "test_many")
        self.assertEqual(status, 1, said)
        self.assertIn("test_many.ManyTests.test_0: transcripts", said)
        self.assertIn("250 2.0.0 Caught", said)
