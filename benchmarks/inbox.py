"""Measure the web inbox with a hundred thousand messages, and compare it with maildev.

    python benchmarks/inbox.py                       # 100,000 messages of 2 KB: some minutes
    python benchmarks/inbox.py --messages 10000 --peer

Each figure is printed with its target. ``--peer`` needs npm, and installs maildev into ``--cache``. All load is on
127.0.0.1. Processor time is that of the server; other times are elapsed times of the client.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MAILDEV = "maildev@3.0.0"
CONNECTIONS = 8
SIZE = 2000  # octets of a message
REQUESTS = 200
LARGE = 25_000_000  # octets of the one large message
PATIENCE = 600.0

random.seed(1)
WORDS = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(3, 9))) for _ in range(3000)]


def message(number: int) -> bytes:
    """A message of random words."""
    header = (
        f"From: Sender {number} <sender{number}@example.org>\r\nTo: <user{number % 500}@example.com>\r\n"
        f"Subject: {' '.join(random.choices(WORDS, k=5))} {number}\r\nMessage-ID: <{number}@example.org>\r\n\r\n"
    )
    lines = []
    size = len(header)
    while size < SIZE:
        lines.append(" ".join(random.choices(WORDS, k=10)))
        size += len(lines[-1]) + 2
    return (header + "\r\n".join(lines) + "\r\n").encode()


class Client:
    """One SMTP connection without pipelining."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.reply()
        self.say(b"EHLO client.test\r\n")

    def reply(self) -> bytes:
        while True:
            line = self.file.readline()
            if line[3:4] == b" ":
                if line[:1] not in b"23":
                    raise SystemExit(f"the server says {line!r}")
                return line

    def say(self, octets: bytes) -> bytes:
        self.socket.sendall(octets)
        return self.reply()

    def send(self, content: bytes, recipient: str = "bob@example.com") -> None:
        self.say(b"MAIL FROM:<ann@example.org>\r\n")
        self.say(f"RCPT TO:<{recipient}>\r\n".encode())
        self.say(b"DATA\r\n")
        self.say(content + b".\r\n")


class Server:
    """A server under test.

    :param command: with ``{smtp}`` and ``{web}`` for the ports.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.smtp, self.web = free_port(), free_port()
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [word.format(smtp=self.smtp, web=self.web) for word in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
        )
        for port in self.smtp, self.web:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if self.process.poll() is not None:
                    raise SystemExit(f"{name} has ended")
                time.sleep(0.005)
        self.start = time.perf_counter() - started

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def cpu(self) -> float:
        """Processor time so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, name: str = "VmRSS") -> float:
        """Resident memory, in MiB."""
        found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.web, timeout=PATIENCE)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def timed(act: Callable[[], Any]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def p99(act: Callable[[], Any], times: int = REQUESTS) -> float:
    found = sorted(timed(act) for _ in range(times))
    return found[min(len(found) - 1, int(len(found) * 0.99))]


def fill(server: Server, count: int, first: int = 0) -> tuple[float, float]:
    """Send messages. Return messages per second, and the server's processor time per message in milliseconds."""
    messages = [message(number) for number in range(first, first + min(count, 2000))]
    cpu, started = server.cpu(), time.perf_counter()

    def work(worker: int) -> None:
        client = Client(server.smtp)
        for number in range(worker, count, CONNECTIONS):
            client.send(messages[number % len(messages)], f"user{number % 500}@example.com")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - started), (server.cpu() - cpu) / count * 1000


def settle(server: Server) -> None:
    """Wait until the server has stored the last sessions and indexed the last messages."""
    before = -1.0
    while (now := server.cpu()) - before > 0.02:
        before = now
        time.sleep(1)


@contextlib.contextmanager
def page_open(server: Server) -> Iterator[None]:
    """Act as a browser with an open page: receive events, and load the list every second."""
    events = socket.create_connection(("127.0.0.1", server.web))
    events.sendall(b"GET /api/inbox/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    over = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):
            while events.recv(65536):
                pass

    def look() -> None:
        while not over.wait(1):
            server.ask("GET", "/")

    threads = [threading.Thread(target=read, daemon=True), threading.Thread(target=look)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        threads[1].join()
        events.shutdown(socket.SHUT_RDWR)
        events.close()


def wait_latency(server: Server) -> float:
    """Median time in milliseconds between a 250 and the response to a request that waits for that message."""
    client = Client(server.smtp)
    found = []
    for number in range(30):
        answered: list[float] = []

        def wait(number: int = number, answered: list[float] = answered) -> None:
            server.ask("GET", f"/in/domain=wait{number}.test/api/inbox/v1/wait?timeout=30")
            answered.append(time.perf_counter())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        client.send(message(number), f"bob@wait{number}.test")
        accepted = time.perf_counter()
        thread.join()
        found.append((answered[0] - accepted) * 1000)
    return statistics.median(found)


def smtp_latency(server: Server) -> tuple[float, float]:
    """Median time in milliseconds to send a message: alone, and while another client loads pages.

    The two alternate, so that other load on the machine affects both. After each page there is a pause as long as its
    loading took, so the pages keep the server busy half of the time.
    """
    client = Client(server.smtp)
    loading, over = threading.Event(), threading.Event()

    def load() -> None:
        while not over.is_set():
            if loading.wait(0.1):
                time.sleep(timed(partial(server.ask, "GET", "/")) / 1000)

    thread = threading.Thread(target=load)
    thread.start()
    found: dict[bool, list[float]] = {False: [], True: []}
    for busy in [False, True] * 10:
        (loading.set if busy else loading.clear)()
        time.sleep(0.1)
        found[busy] += [timed(partial(client.send, message(number))) for number in range(20)]
    over.set()
    thread.join()
    return statistics.median(found[False]), statistics.median(found[True])


def large_message() -> bytes:
    line = b"QUJD" * 19 + b"\r\n"
    header = (
        b"Subject: large\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\n\r\ntext\r\n--b\r\n"
        b"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n"
    )
    return header + line * (LARGE // len(line)) + b"--b--\r\n"


def show(what: str, figure: str, target: str = "") -> None:
    print(f"{what:62} {figure:>16}   {target}", flush=True)


def measure_ours(count: int) -> None:
    options = ["--keep=0", "--keep-size=0", "--listen=tcp:{smtp}:interface=127.0.0.1", "--web={web}"]
    server = Server("txsmtpd", [sys.executable, "-m", "txsmtpd", "--handler=inbox", *options])
    try:
        show("start to listening", f"{server.start:.2f} s", "< 1 s")
        empty = server.memory()
        with page_open(server):
            rate, cpu = fill(server, 2000)
        show("intake with the page open, 8 connections", f"{rate:.0f}/s", ">= 500/s on one core")
        show("processor time for each message", f"{cpu:.2f} ms", "< 2 ms")
        rate, cpu = fill(server, count - 2000, 2000)
        show(f"intake of the rest, up to {count:,}", f"{rate:.0f}/s, {cpu:.2f} ms")
        settle(server)
        show("memory beyond an empty process", f"{server.memory() - empty:.0f} MiB", "< 100 MiB")
        for what, path, target in (
            ("first page of the list (JSON)", "/api/v1/messages", "< 50 ms"),
            ("first page of the list (HTML)", "/", "< 50 ms"),
            ("search, a common word, first page (HTML)", f"/?query={WORDS[0]}", "< 100 ms"),
            ("search, a rare word, first page (HTML)", "/?query=sender1234%40", "< 100 ms"),
            ("search, a common word, exact count (JSON)", f"/api/v1/search?query={WORDS[0]}", "< 300 ms"),
            ("search, a word of all messages, exact count", "/api/v1/search?query=example.org", "< 300 ms"),
        ):
            show(f"{what}, p99", f"{p99(partial(server.ask, 'GET', path)):.0f} ms", target)
        show("from 250 to the answer of who waits", f"{wait_latency(server):.1f} ms", "< 10 ms")
        alone, busy = smtp_latency(server)
        show("a message by SMTP, alone; while a page loads", f"{alone:.1f}, {busy:.1f} ms", "no change")
        Client(server.smtp).send(large_message())
        peak = server.memory("VmHWM")
        status, body = server.ask("GET", "/api/v1/message/latest")
        assert status == 200, body
        found = json.loads(body)
        show("25 MB: opening it", f"{timed(lambda: server.ask('GET', '/api/v1/message/latest')):.0f} ms", "< 200 ms")
        part = f"/api/v1/message/{found['ID']}/part/{found['Attachments'][0]['PartID']}"
        show("25 MB: its attachment", f"{timed(lambda: server.ask('GET', part)):.0f} ms", "< 200 ms")
        show("25 MB: memory beyond the peak of taking it", f"{server.memory('VmHWM') - peak:.1f} MiB", "< 5 MiB")
        show("delete all", f"{timed(lambda: server.ask('DELETE', '/api/v1/messages')):.0f} ms", "< 1000 ms")
    finally:
        server.stop()


def measure_peer(count: int, cache: Path) -> None:
    program = cache / "node_modules/.bin/maildev"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(cache), MAILDEV], check=True)
    command = [str(program), "--ip", "127.0.0.1", "--web-ip", "127.0.0.1", "--smtp", "{smtp}", "--web", "{web}"]
    server = Server("maildev", command)
    try:
        show("maildev: start to listening", f"{server.start:.2f} s")
        empty = server.memory()
        rate, cpu = fill(server, count)
        show(f"maildev: intake of {count:,}", f"{rate:.0f}/s, {cpu:.2f} ms")
        show("maildev: memory beyond an empty process", f"{server.memory() - empty:.0f} MiB")
        for path in "/email?limit=50", "/email":
            times = 3 if path == "/email" else REQUESTS
            show(f"maildev: GET {path}, p99", f"{p99(partial(server.ask, 'GET', path), times):.0f} ms")
        show("maildev: delete all", f"{timed(lambda: server.ask('DELETE', '/email/all')):.0f} ms")
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--peer", action="store_true", help="measure maildev as well, with a tenth of the messages")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/txsmtpd-benchmarks/maildev")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    measure_ours(max(options.messages, 4000))
    if options.peer:
        measure_peer(max(options.messages // 10, 1000), options.cache)


if __name__ == "__main__":
    main()
