"""How fast mail goes through a hand-off: processor time, and the time until 250, beside ``mailbox:`` and ``sink``.

    python benchmarks/handoff.py                     # RabbitMQ of Debian's package, a quorum queue with one member
    python benchmarks/handoff.py --seconds 3 --sizes 8192 --clients 1,4,16,64

Server, broker and client share this machine, so the number of messages per second means little. More meaningful are its
growth with the number of clients, and the server's processor time per message.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.handoff.rabbitmq import Broker  # noqa: E402

LISTEN = "--listen=tcp:0:interface=127.0.0.1"
TICKS = os.sysconf("SC_CLK_TCK")


def message_of(size: int) -> bytes:
    """A message of so many octets, ready for DATA."""
    line = b"x" * 76 + b"\r\n"
    return b"Subject: benchmark\r\n\r\n" + line * (size // 78) + b".\r\n"


async def session(port: int, message: bytes, end: float, times: list[float]) -> None:
    """Send messages over one connection until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def reply() -> bytes:
        while True:
            line = await reader.readline()
            if line[3:4] == b" ":
                return line

    await reply()
    writer.write(b"EHLO client.test\r\n")
    await reply()
    head = b"MAIL FROM:<a@x.test> SIZE=%d\r\nRCPT TO:<b@y.test>\r\nDATA\r\n" % len(message)
    while time.monotonic() < end:
        writer.write(head)
        replies = [await reply() for _ in range(3)]
        if not replies[2].startswith(b"354"):
            raise SystemExit(f"the server does not take mail: {replies}")
        started = time.monotonic()
        writer.write(message)
        answer = await reply()
        if not answer.startswith(b"250"):
            raise SystemExit(f"the server has refused a message: {answer!r}")
        times.append(time.monotonic() - started)
    writer.write(b"QUIT\r\n")
    writer.close()


async def load(port: int, clients: int, size: int, seconds: float) -> list[float]:
    """The times until 250 of all messages."""
    times: list[float] = []
    end = time.monotonic() + seconds
    await asyncio.gather(*(session(port, message_of(size), end, times) for _ in range(clients)))
    return times


class Server:
    """``twist smtpd`` with a handler."""

    def __init__(self, handler: str, folder: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twisted", "--log-format=text", "smtpd", LISTEN, f"--handler={handler}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"listening on 127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        # This process no longer reads the log. Another process reads it from the pipe and discards it.
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stdout, stdout=subprocess.DEVNULL)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.drain.wait()


def measure(handler: str, size: int, clients: int, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(handler, folder)
        try:
            asyncio.run(load(server.port, clients, size, 0.5))
            before, started = server.cpu(), time.monotonic()
            times = sorted(asyncio.run(load(server.port, clients, size, seconds)))
            used, took = server.cpu() - before, time.monotonic() - started
        finally:
            server.stop()
    count = len(times)
    return (
        f"{count / took:9.0f} {used / count * 1e6:10.0f} {times[count // 2] * 1000:8.1f}"
        f" {times[int(count * 0.99)] * 1000:8.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sizes", default=f"8192,{2**20}")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--handlers", default="sink,mailbox,amqp")
    arguments = parser.parse_args()
    broker = Broker()
    if "amqp" in arguments.handlers:
        broker.start()
    specs = {
        "sink": "sink",
        "mailbox": "mailbox:mail",
        "amqp": "amqp:" + broker.url + ":queue=benchmark",
    }
    print(f"{'handler':10} {'octets':>8} {'clients':>7} {'msg/s':>9} {'CPU us/msg':>10} {'p50 ms':>8} {'p99 ms':>8}")
    try:
        for size in map(int, arguments.sizes.split(",")):
            for handler in arguments.handlers.split(","):
                for clients in map(int, arguments.clients.split(",")):
                    if handler == "amqp":
                        broker.declare("benchmark")
                    line = measure(specs[handler], size, clients, arguments.seconds)
                    print(f"{handler:10} {size:8} {clients:7} {line}", flush=True)
    finally:
        broker.remove()


if __name__ == "__main__":
    main()
