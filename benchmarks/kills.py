"""Kill a server again and again while clients send, and look for messages that had their 250 and are gone.

``python benchmarks/kills.py --kills=100``. Half of the kills hit a server that stores messages in a maildir, half one
that passes them on to another server (which is not killed). Messages are short, or large enough to be passed on while
they arrive. The process is killed with SIGKILL, so this is about the process, not about the disk.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

CLIENTS = 4
SIZES = (200, 5_000, 600_000)  # octets; the last is passed on in parts
PATIENCE = 60.0  # seconds for a server to start
NUMBER = re.compile(rb"^X-Number: (\S+)", re.MULTILINE)


class Server:
    """A server in a process of its own."""

    def __init__(self, handler: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        listen = f"--listen=tcp:{self.port}:interface=127.0.0.1"
        command = [sys.executable, "-m", "txsmtpd", listen, f"--handler={handler}", "--hostname=mx.example.com"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.end()
        raise SystemExit("the server does not start")

    def end(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait()


class Round:
    """Clients of one server, until it is killed."""

    def __init__(self, port: int, name: str) -> None:
        self.accepted: list[str] = []
        self.partly = 0  # messages that were being sent
        self._port = port
        self._name = name
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(CLIENTS)]

    def run(self, server: Server, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
        server.end()
        for thread in self._threads:
            thread.join()

    def _send(self, client: int) -> None:
        with suppress(OSError, smtplib.SMTPException):
            connection = smtplib.SMTP("127.0.0.1", self._port, timeout=30)
            number = 0
            while True:
                number += 1
                name = f"{self._name}.{client}.{number}"
                body = "x" * 70 + "\r\n"
                text = f"X-Number: {name}\r\n\r\n{body * (random.choice(SIZES) // len(body))}"
                self.partly += 1
                connection.sendmail("a@example.com", ["b@example.com"], text)
                self.partly -= 1
                self.accepted.append(name)


def stored(folder: Path) -> set[str]:
    """The numbers of the messages in a maildir."""
    found = set()
    for path in (folder / "new").iterdir():
        with path.open("rb") as file:
            number = NUMBER.search(file.read(4096))
        if number is not None:
            found.add(number[1].decode())
    return found


def kills(handler: str, folder: Path, times: int) -> tuple[int, int, int]:
    """Kill servers with this handler; return how many messages had their 250, how many were cut off, and how many of
    the first are not in the maildir."""
    accepted: list[str] = []
    cut_off = 0
    for number in range(times):
        server = Server(handler)
        one = Round(server.port, f"{handler.partition(':')[0]}.{number}")
        one.run(server, random.uniform(0.1, 0.8))
        accepted += one.accepted
        cut_off += one.partly
    return len(accepted), cut_off, len(set(accepted) - stored(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        lost = 0
        for what in ("mailbox", "proxy"):
            maildir = folder / what
            upstream = Server(f"mailbox:{maildir}") if what == "proxy" else None
            handler = f"mailbox:{maildir}" if upstream is None else f"proxy:127.0.0.1:{upstream.port}"
            times = arguments.kills // 2
            try:
                accepted, cut_off, missing = kills(handler, maildir, times)
            finally:
                if upstream is not None:
                    upstream.end(signal.SIGTERM)
            lost += missing
            print(f"{what}: {times} kills, {accepted} messages with 250, {cut_off} cut off, {missing} lost", flush=True)
    finally:
        shutil.rmtree(folder)
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()
