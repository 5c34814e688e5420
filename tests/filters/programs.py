"""Real filters, and a server in this process that uses them."""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.programs import program
from txsmtpd import SMTPFactory


class ProgramTests(TestCase):
    """Tests that start filters."""

    timeout = 120

    def setUp(self) -> None:
        # Short: the path of a socket has 108 octets at most. Some filters are run by an account of their own.
        self.folder = Path(tempfile.mkdtemp(prefix="tx"))
        self.folder.chmod(0o755)
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.processes: list[subprocess.Popen[bytes]] = []

    async def start(self, name: str, package: str, *arguments: str, ready: Callable[[], bool], **env: str) -> None:
        """Start a program, which ends with the test. Wait until it is ready."""
        command = [program(name, package) if "/" not in name else name, *arguments]
        log = self.folder / f"{Path(name).name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self.processes.append(process)
        self.addCleanup(self.end, process)
        while not ready():
            if process.poll() is not None:
                self.fail(f"{name} ended with status {process.returncode}: {log.read_text()}")
            await deferLater(reactor, 0.02)  # type: ignore[arg-type]

    async def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a program, with its child processes. Milters take seconds to end after SIGTERM."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await deferToThread(process.wait, 5)

    async def serve(self, handler: Any, **options: Any) -> int:
        """Listen with this handler. Return the port."""
        self.factory = SMTPFactory(handler, hostname="mx.example.com", **options)
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(self.factory)
        self.addCleanup(self.stop, port)
        address = port.getHost()
        return int(address.port)

    async def stop(self, port: Any) -> None:
        await port.stopListening()
        self.factory.abort()
        await self.factory.drain()

    def client(self, port: int, function: Callable[[smtplib.SMTP], Any]) -> Deferred[Any]:
        """Return the result of a client's function, which runs in a thread."""

        def run() -> Any:
            with smtplib.SMTP("127.0.0.1", port, "client.test", timeout=30) as client:
                client.ehlo()
                return function(client)

        return deferToThread(run)


def send_data(client: smtplib.SMTP, content: bytes) -> tuple[int, bytes]:
    """Send the message of a transaction. Return the reply to it, whatever it is."""
    code, text = client.docmd("DATA")
    if code != 354:
        return code, text
    client.send(content + b".\r\n")
    return client.getreply()


def exists(*paths: Path) -> Callable[[], bool]:
    """Return True if all paths exist."""
    return lambda: all(path.exists() for path in paths)


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Return True if a process listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
