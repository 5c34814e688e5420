"""Measure how long an honest client waits while others flood a server with commands.

python benchmarks/flood.py [--clients 1,10,30] [--kinds refused,mail,...] [--clear | --tls] [--sessions 100]

An honest session is a connection, EHLO, one message and QUIT, without TLS. Floods are sent without TLS and in it:

* ``refused``: MAIL commands that are refused, for a size that is too large
* ``mail``: whole messages, all their commands at once
* ``chunks``: messages in chunks of two octets
* ``recipients``: RCPT commands beyond the limit of recipients
* ``records``: as ``refused``, with a TLS record for each command
* ``handshakes``: TLS handshakes and no commands

Two times are printed: how long a session took, and how much processor time the server used meanwhile. Other load on the
machine hardly changes the second.

The server runs as a user runs it, with its log in a file, and on another processor than the clients if there is one.
Loopback is one of its unlimited networks, so only the batches of commands limit the floods. The floods end with the
honest sessions. Set ``PYTHONPATH`` to measure the server of another checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import smtplib
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from measure import free_port

FROM, TO = b"MAIL FROM:<flood@example.com>\r\n", b"RCPT TO:<b@example.com>\r\n"
#: What a client sends first, and what it sends repeatedly.
REFUSED = b"MAIL FROM:<flood@example.com> SIZE=99999999999\r\n"
KINDS: dict[str, tuple[bytes, list[bytes]]] = {
    "refused": (b"", [REFUSED * 1000]),
    "mail": (b"", [(FROM + TO + b"BDAT 2 LAST\r\n\r\n") * 500]),
    "chunks": (FROM + TO, [b"BDAT 2\r\na\n" * 2000]),
    "recipients": (FROM + TO * 1000, [TO * 2000]),
    "records": (b"", [REFUSED] * 1000),
    "handshakes": (b"", []),
}
ONLY_TLS = ("records", "handshakes")


async def flood(port: int, first: bytes, again: list[bytes], tls: ssl.SSLContext | None) -> None:
    """Send the commands repeatedly, and read the replies. Connect again if the server closes the connection."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)

            async def read(reader: asyncio.StreamReader = reader) -> None:
                with contextlib.suppress(OSError):
                    while await reader.read(65536):
                        pass

            reading = asyncio.ensure_future(read())
            writer.write(b"EHLO flood.test\r\n" + first)
            while again and not reading.done():
                for octets in again:
                    writer.write(octets)
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()
        except OSError:
            await asyncio.sleep(0.05)


def flooding(port: int, kind: str, clients: int, in_tls: bool) -> None:
    """Flood the server. Runs in a process until that is killed."""
    logging.disable()  # asyncio logs each write after the connection was lost
    tls = ssl._create_unverified_context() if in_tls else None

    async def all_of_them() -> None:
        await asyncio.gather(*(flood(port, *KINDS[kind], tls) for _ in range(clients)))

    asyncio.run(all_of_them())


def honest(port: int, server: int) -> tuple[float, float]:
    """The seconds of an honest session, and the processor time of the server meanwhile."""
    began, computed = time.perf_counter(), processor_time(server)
    with smtplib.SMTP("127.0.0.1", port, local_hostname="honest.test", timeout=60) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: hello\r\n\r\nHello\r\n")
    return time.perf_counter() - began, processor_time(server) - computed


def measure(kind: str | None, clients: int, in_tls: bool, sessions: int) -> None:
    """Print the times of honest sessions while *clients* clients flood the server.

    :param kind: the kind of flood. None: no flood.
    """
    port, tls_port = free_port(), free_port()
    with tempfile.NamedTemporaryFile() as log:
        words = [sys.executable, "-m", "txsmtpd", "-n", "-l", f"127.0.0.1:{port}", "-c", "txsmtpd.handlers.Sink"]
        if in_tls:
            words = [sys.executable, "-m", "txsmtpd", f"--listen=tcp:{port}:interface=127.0.0.1", "--handler=sink"]
            words += [f"--listen-tls=tcp:{tls_port}:interface=127.0.0.1", "--tls=auto"]
        # Run in another folder: the package in this one would take precedence over PYTHONPATH.
        server = subprocess.Popen(words, stdout=log, stderr=log, cwd=tempfile.gettempdir())
        flooders = None
        try:
            for _ in range(100):
                try:
                    honest(port, server.pid)
                    break
                except OSError:
                    time.sleep(0.1)
            if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
                first, *others = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(server.pid, {first})
                os.sched_setaffinity(0, set(others))
            if kind is not None:
                told = (tls_port if in_tls else port, kind, clients, in_tls)
                flooders = multiprocessing.Process(target=flooding, args=told, daemon=True)
                flooders.start()
                time.sleep(1)
            began, used = time.monotonic(), processor_time(server.pid)
            elapsed, computed = zip(*(honest(port, server.pid) for _ in range(sessions)), strict=True)
            busy = (processor_time(server.pid) - used) / (time.monotonic() - began)
            log_size = os.path.getsize(log.name)
        finally:
            if flooders is not None:
                flooders.terminate()
            server.terminate()
            server.wait()
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, range(os.cpu_count() or 1))
    print(
        f"{kind or 'calm':>12}{' in TLS' if in_tls else '':7} {clients:4} clients:"
        f" took {figures(elapsed)}; computed {figures(computed)};"
        f" server busy {busy:4.0%}, log {log_size / 2**20:.1f} MiB",
        flush=True,
    )


def figures(seconds: Sequence[float]) -> str:
    """The median, the 99th percentile and the longest, in milliseconds."""
    times = sorted(1000 * each for each in seconds)
    return f"{statistics.median(times):6.1f} p99 {times[int(len(times) * 0.99)]:6.1f} max {times[-1]:6.1f} ms"


def processor_time(pid: int) -> float:
    """Processor time of a process in seconds."""
    return time.clock_gettime(~pid << 3 | 2)  # Linux: the clock of another process


def main() -> None:
    parser = argparse.ArgumentParser(description="See what an honest client waits for while others flood a server.")
    parser.add_argument("--clients", default="1,10,30")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--clear", dest="ways", action="store_const", const=[False], help="no floods in TLS")
    parser.add_argument("--tls", dest="ways", action="store_const", const=[True], help="only floods in TLS")
    parser.add_argument("--sessions", type=int, default=100)
    told = parser.parse_args()
    measure(None, 0, False, told.sessions)
    for in_tls in told.ways or (False, True):
        for kind in [each for each in told.kinds.split(",") if in_tls or each not in ONLY_TLS]:
            for clients in map(int, told.clients.split(",")):
                measure(kind, clients, in_tls, told.sessions)


if __name__ == "__main__":
    main()
