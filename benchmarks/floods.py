"""How long an honest client waits while others flood the server.

``python benchmarks/floods.py [--only trickle,idle] [--seconds 10]``

An honest client repeats a session with one message, from its own address. Meanwhile one of these floods runs, from
other addresses in 127.0.0.0/8:

* ``trickle``: 2,000 clients that send one octet of a command a second, each from a different network
* ``idle``: 2,000 clients that send nothing, each from a different network
* ``connects``: 500 connections a second from one network, each of which is left open
* ``hellos``: 200 connections a second from one network that start a TLS handshake and send nothing more

The server is ``python -m txsmtpd`` with its defaults. Arguments after ``--`` are options of the server. Give
``-- --unlimited-network=none``, since loopback has no limits otherwise. Printed are the median, the 99th percentile and
the maximum of the honest sessions, how many of them were refused, and the server's resident memory at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

HONEST = "127.0.0.1"
RATE = 50  # honest sessions a second
CLIENTS = 2000
SESSION = (
    b"EHLO client.test\r\n",
    b"MAIL FROM:<a@example.com>\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"DATA\r\n",
    b"Subject: test\r\n\r\n" + b"x" * 1000 + b"\r\n.\r\n",
    b"QUIT\r\n",
)
# The beginning of a ClientHello. The server waits for the rest.
HELLO = bytes.fromhex("1603010200010001fc0303")


async def connect(port: int, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))


async def reply(reader: asyncio.StreamReader) -> bytes:
    """A whole reply."""
    while True:
        line = await asyncio.wait_for(reader.readline(), 30)
        if not line or line[3:4] != b"-":
            return line


async def honest_session(port: int) -> float | None:
    """The duration in seconds of a session with one message, or None if it was refused."""
    begin = time.perf_counter()
    try:
        reader, writer = await connect(port, HONEST)
        try:
            good = (await reply(reader)).startswith(b"220")
            for line in SESSION:
                writer.write(line)
                good = (await reply(reader))[:1] in (b"2", b"3") and good
        finally:
            writer.close()
    except (TimeoutError, OSError):
        return None
    return time.perf_counter() - begin if good else None


async def honest(port: int, seconds: float) -> list[float | None]:
    """Start sessions at a fixed rate, even if earlier ones have not ended."""
    tasks = []
    for _ in range(int(seconds * RATE)):
        tasks.append(asyncio.create_task(honest_session(port)))
        await asyncio.sleep(1 / RATE)
    return list(await asyncio.gather(*tasks))


# Floods. Each runs until its process is killed.


def networks(count: int) -> Iterable[str]:
    return (f"127.1.{number // 250}.{number % 250 + 1}" for number in range(count))


async def keep(port: int, source: str, first: bytes = b"", each_second: bytes = b"") -> None:
    with contextlib.suppress(OSError):
        reader, writer = await connect(port, source)
        writer.write(first)
        while each_second and not reader.at_eof():
            await asyncio.sleep(1)
            writer.write(each_second)
            await writer.drain()
        await reader.read()
        writer.close()


async def trickle(port: int) -> None:
    await asyncio.gather(*(again(keep, port, source, b"N", b"x") for source in networks(CLIENTS)))


async def idle(port: int) -> None:
    await asyncio.gather(*(again(keep, port, source) for source in networks(CLIENTS)))


async def again(flood: object, *arguments: object) -> None:
    """Run one client. If the server closes the connection, connect again after a second."""
    while True:
        await flood(*arguments)  # type: ignore[operator]
        await asyncio.sleep(1)


async def at_rate(port: int, source: str, rate: float, first: bytes) -> None:
    tasks: set[asyncio.Task[None]] = set()
    while True:
        if len(tasks) < CLIENTS:
            task = asyncio.create_task(keep(port, source, first))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(1 / rate)


async def connects(port: int) -> None:
    await at_rate(port, "127.2.0.1", 500, b"")


async def hellos(port: int) -> None:
    await at_rate(port, "127.2.0.1", 200, HELLO)


FLOODS = {"trickle": trickle, "idle": idle, "connects": connects, "hellos": hellos}


class Server:
    """The command, with its log in a file."""

    def __init__(self, *words: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self.tls_port = free.getsockname()[1], other.getsockname()[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "txsmtpd", "--handler=sink", "--tls=auto", "--grace=0"),
                f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=1024",
                f"--listen-tls=tcp:{self.tls_port}:interface=127.0.0.1:backlog=1024",
                *words,
            ],
            stdout=subprocess.DEVNULL,
            stderr=self.log,
        )
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.tls_port)).close()
                break
            time.sleep(0.1)

    def memory(self) -> float:
        """Resident, in MiB."""
        [line] = [each for each in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in each]
        return int(line.split()[1]) / 1024

    def last_words(self) -> str:
        """The end of its log."""
        self.log.seek(0)
        return self.log.read()[-2000:].decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def measure(flood: str | None, seconds: float, words: list[str]) -> None:
    server = Server(*words)
    attacker = None
    try:
        if flood is not None:
            port = server.tls_port if flood == "hellos" else server.port
            attacker = subprocess.Popen([sys.executable, __file__, "--attack", flood, "--port", str(port)])
            time.sleep(5)
        times = asyncio.run(honest(server.port, seconds))
        good = sorted(1000 * each for each in times if each is not None)
        refused = len(times) - len(good)
        if server.process.poll() is not None:
            raise SystemExit(f"the server has ended: {server.last_words()}")
        if good:
            last = good[int(len(good) * 0.99)]
            figures = f"median {statistics.median(good):6.1f} ms  p99 {last:7.1f} ms  longest {good[-1]:7.1f} ms"
        else:
            figures = "nobody got in"
        print(f"{flood or 'calm':9} {figures}  refused {refused:4}  memory {server.memory():5.0f} MiB", flush=True)
    finally:
        if attacker is not None:
            attacker.kill()
            attacker.wait()
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="floods, separated by commas")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--attack", choices=FLOODS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="options of the server, after --")
    arguments = parser.parse_args()
    if arguments.attack:
        asyncio.run(FLOODS[arguments.attack](arguments.port))
        return
    for flood in [None, *(arguments.only.split(",") if arguments.only else FLOODS)]:
        measure(flood, arguments.seconds, arguments.words)


if __name__ == "__main__":
    main()
