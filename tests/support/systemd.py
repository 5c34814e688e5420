"""A substitute for systemd: it opens sockets, starts a service with them, and receives its notifications."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import txsmtpd

PATIENCE = 60  # seconds until a test gives up
TWIST = ("-m", "twisted", "--log-format=text", "smtpd")

# What systemd does between fork and exec: it makes the sockets descriptors 3, 4, ..., and sets LISTEN_PID.
BECOME = """
import fcntl, os, sys
count = int(sys.argv[1])
passed = [fcntl.fcntl(int(each), fcntl.F_DUPFD_CLOEXEC, 100) for each in sys.argv[2:2 + count]]
for place, descriptor in enumerate(passed):
    os.dup2(descriptor, 3 + place)
if count:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count:]])
"""


class Systemd:
    """A substitute for systemd, for one service. Close it at the end."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.notify_path = os.path.join(self.folder, "notify")
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(self.notify_path)
        self._notified.settimeout(PATIENCE)
        self.heard: list[dict[str, str]] = []
        self.process: subprocess.Popen[str] | None = None

    def start(
        self, *words: str, sockets: Mapping[str, socket.socket] | None = None, named: bool = True, **variables: str
    ) -> None:
        """Start ``twist smtpd`` as a service.

        :param sockets: the sockets that it gets, by FileDescriptorName.
        :param named: whether it gets the names.
        """
        sockets = sockets or {}
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("TXSMTPD_", "LISTEN_"))}
        environ |= {
            "PYTHONPATH": str(Path(txsmtpd.__file__).parent.parent),
            "NOTIFY_SOCKET": self.notify_path,
            **variables,
        }
        if sockets:
            environ["LISTEN_FDS"] = str(len(sockets))
            if named:
                environ["LISTEN_FDNAMES"] = ":".join(sockets)
        passed = [each.fileno() for each in sockets.values()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(len(passed)), *map(str, passed), *TWIST, *words],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environ,
        )

    def wait_for(self, name: str) -> dict[str, str]:
        """The next message that has this variable. Earlier ones are in ``heard``."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message = self._next()
            if name in message:
                return message
        raise AssertionError(f"no message with {name} in {self.heard}")

    def _next(self) -> dict[str, str]:
        message = dict(line.split("=", 1) for line in self._notified.recv(65536).decode().split("\n"))
        self.heard.append(message)
        return message

    def pending(self) -> list[dict[str, str]]:
        """All messages that have arrived, including earlier ones."""
        self._notified.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._next()
        self._notified.settimeout(PATIENCE)
        return self.heard

    def stop(self) -> int:
        """Stop the service as ``systemctl stop`` does. Return its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def failure(self) -> tuple[int, str]:
        """Return the exit status and the output of a service that cannot start."""
        assert self.process is not None
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def close(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()
        self._notified.close()
        shutil.rmtree(self.folder)
