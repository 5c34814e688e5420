"""Servers of several processes for tests: the command with ``--workers``, clients, and a load."""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_commandline import environment
from tests.support.programs import once

PATIENCE = 60.0  # seconds
LETTER = "Subject: hello\r\n\r\nHello!\r\n"

HANDLER = """
import ctypes, os, subprocess, time

class Naming:
    '''Tells which process serves, and does what the sender asks for.'''

    async def handle_MAIL(self, server, session, envelope, address, mail_options):
        what, _, seconds = address.partition("@")[0].partition("+")
        if what == "hang":
            print("hangs", flush=True)
            time.sleep(float(seconds))
        elif what == "burn":
            began = time.monotonic()
            until = time.process_time() + float(seconds)
            while time.process_time() < until:
                pass
            envelope.mail_from = address
            return f"250 2.1.0 from {began} to {time.monotonic()}"
        elif what == "crash":
            ctypes.string_at(0)
        elif what == "start":
            self.started = subprocess.Popen(["sleep", seconds], close_fds=False)
            print("started process", self.started.pid)
        envelope.mail_from = address
        return f"250 2.1.0 process {os.getpid()}"

    async def handle_DATA(self, server, session, envelope):
        return f"250 2.0.0 process {os.getpid()}"

naming = Naming()
"""


class Master:
    """``twist smtpd --workers=N``, and its log."""

    def __init__(
        self,
        case: SynchronousTestCase,
        *options: str,
        workers: int = 2,
        listen: str | None = None,
        words: Sequence[str] | None = None,
        files: Mapping[str, str] = {},
        prepare: Callable[[Path], object] = lambda folder: None,
        **variables: str,
    ) -> None:
        once()
        self.workers = workers
        self.folder = Path(tempfile.mkdtemp())
        case.addCleanup(shutil.rmtree, self.folder)
        for name, text in {"naming.py": HANDLER, **files}.items():
            (self.folder / name).write_text(text)
        prepare(self.folder)
        if words is None:
            words = ["-m", "twisted", "smtpd", f"--workers={workers}", *options]
            words.append(listen or "--listen=tcp:0:interface=127.0.0.1")
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment(str(self.folder)) | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        case.addCleanup(self.stop)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Wait until this number of lines has matched."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= times:
                    return found
                if self._ended or not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no line {pattern!r} ({len(found)} of {times}) in:\n{''.join(self.lines)}")

    def wait_for_log(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """The same for the lines of ``--log-file=log``."""
        log = self.folder / "log"
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found[:] = re.finditer(pattern, log.read_text()) if log.exists() else ()
            return len(found) >= times

        eventually(is_there, pattern)
        return found

    def open_files(self) -> Iterator[str]:
        """The names of the files that the master and its workers have open."""
        for pid in (self.process.pid, *children(self.process.pid)):
            for each in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    yield os.path.basename(os.readlink(each))

    def port(self) -> int:
        """Wait until all workers serve. Return the port."""
        self.wait_for("is ready", self.workers)
        return int(self.wait_for(r"listen on 127\.0\.0\.1:(\d+)")[0][1])

    def pids(self) -> list[int]:
        """The processes that have become ready, in order."""
        return [int(match[1]) for match in self.wait_for(r"worker \d+ \(process (\d+)\) is ready")]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


def connect(port: int) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
    client.ehlo("client.test")
    return client


def process_of(client: smtplib.SMTP) -> int:
    """Return which process serves a client."""
    client.rset()
    _, text = client.mail("a@example.com")
    client.rset()
    return int(text.split()[-1])


class Load:
    """Clients that deliver messages one after the other, without retries."""

    def __init__(self, port: int, clients: int) -> None:
        self.port = port
        self.delivered = 0
        self.refused: list[Exception] = []
        self.broken: list[Exception] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client = connect(self.port)
            except ConnectionRefusedError as error:
                self.refused.append(error)
                continue
            except OSError as error:  # also SMTPException
                self.broken.append(error)
                continue
            try:
                client.sendmail("a@example.com", "b@example.com", LETTER)
                with self._lock:
                    self.delivered += 1
                client.quit()
            except OSError as error:
                self.broken.append(error)
            finally:
                client.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def counted(port: int, name: str) -> float:
    """The sum of a metric over all processes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(name + r"[{ ]", line))


def proportional_memory(pid: int) -> float:
    """MB of memory, where shared memory counts in part."""
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def children(pid: int) -> list[int]:
    """The running child processes of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(is_so: Callable[[], bool], what: str = "it") -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"{what} has not come to be so"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Return True if the process exists and is not a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
