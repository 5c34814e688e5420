"""What filters cost: processor time of the server for a message, its memory, and whether clients wait for each other.

    python benchmarks/filters.py [--seconds=5]

Each run starts ``twist smtpd --handler=sink`` with other filters, and loads it with Postfix's smtp-source. The milter
is that of the tests, built with Sendmail's libmilter. rspamd is Debian's. Programs that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.filters.test_rspamd import CONFIGURATION, RULES  # noqa: E402

SMALL = 1_000  # octets
LARGE = 10_000_000
TICK = os.sysconf("SC_CLK_TCK")


class Empty:
    """A filter that receives envelopes, and returns None."""

    def filter_MAIL(self, *arguments: Any) -> None: ...

    def filter_RCPT(self, *arguments: Any) -> None: ...


class EmptyMessage:
    """A filter that receives messages, and returns None."""

    def filter_message(self, *arguments: Any) -> None: ...


class EmptyHeaders:
    """A filter that receives headers, and returns None."""

    def filter_headers(self, *arguments: Any) -> None: ...


class Slow:
    """A filter that takes 50 ms for each message."""

    async def filter_message(self, *arguments: Any) -> None:
        from twisted.internet import reactor
        from twisted.internet.task import deferLater

        await deferLater(reactor, 0.05)  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*command: str, port: int | None = None, path: Path | None = None) -> Iterator[int]:
    """Run a program, and wait until it listens. Yields its process id."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            while not (listens(port) if port is not None else path is not None and path.exists()):
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with status {process.returncode}")
                time.sleep(0.02)
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak_memory(pid: int) -> float:
    """Peak resident memory in MB."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def load(port: int, messages: int, clients: int, size: int) -> float:
    """Send messages over reused connections. Return the elapsed seconds."""
    program = shutil.which("smtp-source", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise SystemExit("smtp-source is not installed; on Debian it is in the package postfix")
    words = ("-d", "-s", str(clients), "-m", str(messages), "-l", str(size), f"inet:127.0.0.1:{port}")
    began = time.monotonic()
    subprocess.run([program, *words], check=True)
    return time.monotonic() - began


def measure(name: str, filters: list[str], seconds: float, handler: str = "sink") -> float:
    """Print one line of the table. Return the microseconds per message."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "twisted",
        "smtpd",
        f"--handler={handler}",
        f"--listen=tcp:{port}:interface=127.0.0.1",
    ]
    with running(*command, "--log-level=warn", *(f"--filter={each}" for each in filters), port=port) as pid:
        load(port, 200, 4, SMALL)
        count = max(200, int(200 * seconds / max(load(port, 200, 4, SMALL), 0.01)))
        before = processor_time(pid)
        took = load(port, count, 4, SMALL)
        each = (processor_time(pid) - before) / count * 1e6
    print(f"{name:40} {each:8.0f} us of the processor  {count / took:8.0f} messages a second", flush=True)
    return each


def measure_memory(folder: Path, filters: list[str]) -> None:
    """100 clients, 10 MB each, into a maildir."""
    port = free_port()
    words = (f"--handler=mailbox:{folder}/mail", f"--listen=tcp:{port}:interface=127.0.0.1", "--log-level=warn")
    command = [sys.executable, "-m", "twisted", "smtpd", *words, *(f"--filter={each}" for each in filters)]
    with running(*command, port=port) as pid:
        load(port, 10, 10, SMALL)
        calm = peak_memory(pid)
        took = load(port, 100, 100, LARGE)
        print(f"100 x 10 MB past {filters}: {calm:.0f} MB before, {peak_memory(pid):.0f} MB at most, {took:.1f} s")
    stored = list((folder / "mail" / "new").iterdir())
    large = [each for each in stored if each.stat().st_size > LARGE * 0.9]
    print(f"  {len(large)} messages of 10 MB are stored")
    shutil.rmtree(folder / "mail")


def measure_waiting() -> None:
    """20 clients past a filter that takes 50 ms for each message."""
    port = free_port()
    words = ("--handler=sink", f"--listen=tcp:{port}:interface=127.0.0.1", "--log-level=warn", "--filter=filters.Slow")
    with running(sys.executable, "-m", "twisted", "smtpd", *words, port=port):
        one = load(port, 20, 1, SMALL)
        twenty = load(port, 400, 20, SMALL)
    print(f"a filter that takes 50 ms: 1 client {20 / one:.0f}, 20 clients {400 / twenty:.0f} messages a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--no-memory", action="store_true", help="leave out the run of 100 times 10 MB")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tx"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, True)
        measure("no filter", [], arguments.seconds)
        measure("an empty filter of envelopes", ["filters.Empty"], arguments.seconds)
        measure("an empty filter of headers", ["filters.EmptyHeaders"], arguments.seconds)
        measure("an empty filter of messages", ["filters.EmptyMessage"], arguments.seconds)
        measure_waiting()
        milter = folder / "s"
        source = HERE.parent / "tests/filters/allactions.c"
        if Path("/usr/include/libmilter/mfapi.h").exists():
            subprocess.run(["gcc", "-O2", "-o", folder / "milter", source, "-lmilter", "-lpthread"], check=True)
            stack.enter_context(running(str(folder / "milter"), f"unix:{milter}", path=milter))
            measure("a milter (kept connections)", [f"milter:unix:{milter}"], arguments.seconds)
        if shutil.which("rspamd"):
            port = free_port()
            (folder / "tld").write_text("com\n")
            (folder / "rules.lua").write_text(RULES)
            (folder / "conf").write_text(CONFIGURATION % {"folder": folder, "port": port})
            words = ("-c", f"{folder}/conf", "-f", "-u", "root", "-g", "root", "-i")
            stack.enter_context(running("rspamd", *words, port=port))
            measure("rspamd", [f"rspamd:http://127.0.0.1:{port}"], arguments.seconds)
        if not arguments.no_memory:
            measure_memory(folder, ["filters.EmptyMessage"])
            if milter.exists():
                measure_memory(folder, [f"milter:unix:{milter}"])


if __name__ == "__main__":
    main()
