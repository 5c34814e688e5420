"""Kill a server repeatedly while clients send, and check that no message with a 250 is lost.

``python benchmarks/kills.py --kills=100``. The kills are divided among three servers:

* ``mailbox`` stores messages in a maildir
* ``proxy`` forwards them to another server, which is not killed
* ``filtered`` spools them for a filter, large ones in a file, and then stores them in a maildir

Messages are short, or large enough to be forwarded or spooled to a file while they arrive. Every accepted message must
be complete. The process is killed with SIGKILL, so this tests the process, and not the disk.
"""

from __future__ import annotations

import argparse
import os
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
from typing import Any

CLIENTS = 4
SIZES = (200, 5_000, 600_000, 1_600_000)  # octets; the last two are forwarded in parts, the last is spooled to a file
PATIENCE = 60.0  # seconds for a server to start
NUMBER = re.compile(rb"^X-Number: (\S+)", re.MULTILINE)
END = b"end of the message"
TAIL = 64  # octets; the end of a file, which contains the end of its message


class Reads:
    """A filter that reads whole messages and adds their size."""

    async def filter_message(self, server: Any, session: Any, envelope: Any, message: Any) -> None:
        size = 0
        async for piece in message.content():
            size += len(piece)
        message.add_header("X-Size", str(size))


class Server:
    """A server in its own process."""

    def __init__(self, handler: str, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        listen = f"--listen=tcp:{self.port}:interface=127.0.0.1"
        command = [sys.executable, "-m", "txsmtpd", listen, f"--handler={handler}", "--hostname=mx.example.com"]
        self.process = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
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
        self.partly = 0  # messages that were partly sent
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

    def text(self, name: str) -> str:
        """The message of this number, of a random size."""
        body = "x" * 70 + "\r\n"
        return f"X-Number: {name}\r\n\r\n{body * (random.choice(SIZES) // len(body))}{END.decode()}\r\n"

    def _send(self, client: int) -> None:
        with suppress(OSError, smtplib.SMTPException):
            connection = smtplib.SMTP("127.0.0.1", self._port, timeout=30)
            number = 0
            while True:
                number += 1
                name = f"{self._name}.{client}.{number}"
                self.partly += 1
                connection.sendmail("a@example.com", ["b@example.com"], self.text(name))
                self.partly -= 1
                self.accepted.append(name)


def stored(folder: Path) -> set[str]:
    """The numbers of the complete messages in a maildir."""
    found = set()
    for path in (folder / "new").iterdir():
        with path.open("rb") as file:
            number = NUMBER.search(file.read(4096))
            file.seek(max(path.stat().st_size - TAIL, 0))
            whole = file.read().rstrip().endswith(END)
        if number is not None and whole:
            found.add(number[1].decode())
    return found


def kills(what: str, folder: Path, times: int, *words: str) -> tuple[int, int, int]:
    """Kill servers that were started with these arguments. Return how many messages got 250, how many were cut off, and
    how many of those with 250 are not in the maildir."""
    accepted: list[str] = []
    cut_off = 0
    for number in range(times):
        server = Server(*words)
        one = Round(server.port, f"{what}.{number}")
        one.run(server, random.uniform(0.1, 0.8))
        accepted += one.accepted
        cut_off += one.partly
    return len(accepted), cut_off, len(set(accepted) - stored(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    upstream = None
    lost = 0
    try:
        upstream = Server(f"mailbox:{folder / 'proxy'}")
        servers = {
            "mailbox": [f"mailbox:{folder / 'mailbox'}"],
            "proxy": [f"proxy:127.0.0.1:{upstream.port}"],
            "filtered": [f"mailbox:{folder / 'filtered'}", "--filter=kills.Reads"],
        }
        for number, (what, words) in enumerate(servers.items()):
            times = (arguments.kills + number) // len(servers)
            accepted, cut_off, missing = kills(what, folder / what, times, *words)
            lost += missing
            print(f"{what}: {times} kills, {accepted} messages with 250, {cut_off} cut off, {missing} lost", flush=True)
    finally:
        if upstream is not None:
            upstream.end()
        shutil.rmtree(folder)
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()
