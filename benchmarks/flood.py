"""See what an honest client waits for while others flood a server.

python benchmarks/flood.py [--clients 1,10,30] [--kinds mail,chunks,recipients] [--sessions 100]

An honest session is a connection, EHLO, one message and QUIT. The server runs as a user runs it, its log in a file,
on another processor than the clients where there is one. Floods are bounded: they end with the honest sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import smtplib
import statistics
import subprocess
import sys
import tempfile
import time

from measure import free_port

FROM, TO = b"MAIL FROM:<flood@example.com>\r\n", b"RCPT TO:<b@example.com>\r\n"
#: What is said first, and what is said again and again.
KINDS: dict[str, tuple[bytes, bytes]] = {
    "none": (b"", b""),
    "mail": (b"", (FROM + TO + b"BDAT 2 LAST\r\n\r\n") * 500),
    "chunks": (FROM + TO, b"BDAT 2\r\na\n" * 2000),
    "recipients": (FROM + TO * 1000, TO * 2000),
}


async def flood(port: int, first: bytes, again: bytes) -> None:
    """Say it again and again, and read the replies; anew, if the server has enough of it."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)

            async def read(reader: asyncio.StreamReader = reader) -> None:
                while await reader.read(65536):
                    pass

            reading = asyncio.ensure_future(read())
            writer.write(b"EHLO flood.test\r\n" + first)
            while not reading.done():
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()
        except OSError:
            await asyncio.sleep(0.05)


def flooding(port: int, kind: str, clients: int) -> None:
    """A process that floods until it is ended."""

    async def all_of_them() -> None:
        await asyncio.gather(*(flood(port, *KINDS[kind]) for _ in range(clients)))

    asyncio.run(all_of_them())


def honest(port: int) -> float:
    """Seconds that an honest session takes."""
    began = time.perf_counter()
    with smtplib.SMTP("127.0.0.1", port, local_hostname="honest.test", timeout=60) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: hello\r\n\r\nHello\r\n")
    return time.perf_counter() - began


def measure(kind: str, clients: int, sessions: int) -> None:
    port = free_port()
    with tempfile.NamedTemporaryFile() as log:
        words = [sys.executable, "-m", "txsmtpd", "-n", "-l", f"127.0.0.1:{port}", "-c", "txsmtpd.handlers.Sink"]
        server = subprocess.Popen(words, stdout=log, stderr=log)
        flooders = multiprocessing.Process(target=flooding, args=(port, kind, clients), daemon=True)
        try:
            for _ in range(100):
                try:
                    honest(port)
                    break
                except OSError:
                    time.sleep(0.1)
            if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
                first, *others = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(server.pid, {first})
                os.sched_setaffinity(0, set(others))
            if clients:
                flooders.start()
                time.sleep(1)
            times = sorted(honest(port) * 1000 for _ in range(sessions))
            log_size = os.path.getsize(log.name)
        finally:
            if flooders.is_alive():
                flooders.terminate()
            server.terminate()
            server.wait()
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, range(os.cpu_count() or 1))
    print(
        f"{kind:>12} {clients:4} clients: median {statistics.median(times):7.1f} ms,"
        f" p99 {times[int(len(times) * 0.99)]:7.1f} ms, log {log_size / 2**20:.1f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="See what an honest client waits for while others flood a server.")
    parser.add_argument("--clients", default="1,10,30")
    parser.add_argument("--kinds", default="mail,chunks,recipients")
    parser.add_argument("--sessions", type=int, default=100)
    told = parser.parse_args()
    measure("none", 0, told.sessions)
    for kind in told.kinds.split(","):
        for clients in map(int, told.clients.split(",")):
            measure(kind, clients, told.sessions)


if __name__ == "__main__":
    main()
