"""A real browser, Debian's Chromium driven by Playwright, and the command as users start it."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, sync_playwright

import txsmtpd
from tests.support.programs import program

PATIENCE = 60  # seconds


class Server:
    """``twist smtpd --handler=inbox`` on its own ports."""

    def __init__(self, *options: str) -> None:
        folder = str(Path(txsmtpd.__file__).parent.parent)
        loopback = "tcp:0:interface=127.0.0.1"
        words = ["-m", "twisted", "--log-format=text", "smtpd", "--handler=inbox", f"--listen={loopback}"]
        self._process = subprocess.Popen(
            [sys.executable, *words, f"--web={loopback}", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": folder},
        )
        assert self._process.stdout is not None
        lines = iter(self._process.stdout)
        seen: list[str] = []
        self.url = self._find(r"inbox on (http://\S+)/", lines, seen)
        self.port = int(self._find(r"listening on 127\.0\.0\.1:(\d+)", lines, seen))
        self._drain = threading.Thread(target=lambda: [None for _ in lines], daemon=True)
        self._drain.start()

    def _find(self, pattern: str, lines: Iterator[str], seen: list[str]) -> str:
        for text in seen:
            if match := re.search(pattern, text):
                return match[1]
        for line in lines:
            seen.append(line)
            if match := re.search(pattern, line):
                return match[1]
        raise AssertionError(f"the server has not started: {''.join(seen)}")

    def send(self, message: EmailMessage | bytes, *recipients: str) -> None:
        """Deliver a message."""
        self.send_all([message], *recipients)

    def send_all(self, messages: list[EmailMessage | bytes], *recipients: str) -> None:
        """Deliver messages, in one session."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            for message in messages:
                octets = message if isinstance(message, bytes) else message.as_bytes()
                octets = octets.replace(b"\n", b"\r\n")
                client.sendmail("ann@example.org", recipients or ("bob@example.com",), octets)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._drain.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Elsewhere:
    """The hosts that mail refers to, as the browser sees them. It counts connections."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections: list[bytes] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(0.2)
                try:
                    self.connections.append(connection.recv(200))
                except OSError:
                    self.connections.append(b"(a connection, and nothing asked)")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)


@contextmanager
def chromium(elsewhere: Elsewhere) -> Iterator[Browser]:
    """The browser, which connects to *elsewhere* for every host named ``*.example``."""
    path = program("chromium", "chromium")
    rules = f"MAP *.example 127.0.0.1:{elsewhere.port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    quiet = ("background-networking", "component-update", "sync", "domain-reliability", "default-apps", "extensions")
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                *(f"--disable-{each}" for each in quiet),
                # The browser connects to its vendor's hosts. Let their names not resolve.
                f"--host-resolver-rules={rules}",
            ],
            env={**os.environ, "HOME": home},
        )
        try:
            yield browser
        finally:
            browser.close()


def context(browser: Browser, **options: Any) -> BrowserContext:
    """A window with a new profile."""
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    made.set_default_timeout(PATIENCE * 1000)
    return made


def letter(subject: str = "Hello", html: str | None = None, text: str = "Hi!", **fields: str) -> EmailMessage:
    """A message."""
    message = EmailMessage()
    message["From"] = fields.pop("From", "Ann <ann@example.org>")
    message["To"] = "bob@example.com"
    message["Subject"] = subject
    message["Message-ID"] = f"<{subject.encode().hex()[:40]}@example.org>"
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message
