"""Workers on a system with problems: no descriptors, a full disk, stopped processes. Real processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.trial.unittest import SynchronousTestCase

from tests.service.workers.running import (
    PATIENCE,
    Master,
    children,
    connect,
    eventually,
    is_alive,
    process_of,
    proportional_memory,
)

NOBODY = 65534
DAEMON = "from twisted.scripts.twistd import run; run()"


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Prevent a process from opening further files."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(each) for each in os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


class TroubleTests(SynchronousTestCase):
    """The behavior of the master in these cases."""

    def test_descriptors(self) -> None:
        """A process uses about 40 MB. Reloads leave nothing behind in the master. A master that cannot open files
        starts no worker, reports that, and starts it as soon as it can. It can be stopped during a reload."""
        master = Master(self, "--handler=naming.naming")
        port = master.port()
        before = descriptors(master.process.pid)
        for pid in (master.process.pid, *master.pids()):  # about 40 MB, of which Twisted and Python take 33
            self.assertLess(proportional_memory(pid), 50)
        for reloads in (1, 2):
            master.signal(signal.SIGHUP)
            master.wait_for("info  reloaded", reloads)
        master.wait_for(r"\) has ended", 4)
        eventually(lambda: descriptors(master.process.pid) == before, "the number of descriptors")
        with without_descriptors(master.process.pid):
            os.kill(master.pids()[-1], signal.SIGKILL)
            master.wait_for("cannot start worker 1: .*: Too many open files", 2)
            connect(port).close()
        master.wait_for("is ready", 7)
        eventually(lambda: descriptors(master.process.pid) == before, "the number of descriptors")
        master.signal(signal.SIGHUP)
        master.wait_for(r"worker 0 \(process \d+\) started", 4)
        workers = children(master.process.pid)
        master.signal(signal.SIGTERM)
        self.assertEqual(master.process.wait(PATIENCE), -signal.SIGTERM)
        self.assertFalse(any(map(is_alive, workers)))
        self.assertFalse([line for line in master.lines if "failed" in line or "is killed" in line])

    def test_stoppedWorker(self) -> None:
        """A worker that is stopped (SIGSTOP) counts as hung. At the end of the server, a second SIGTERM does not wait
        for it, and it does not keep the address in use."""
        master = Master(self, "--handler=naming.naming", "--worker-timeout=3", "--grace=1000")
        port = master.port()
        first, second = master.pids()
        os.kill(first, signal.SIGSTOP)
        with connect(port) as client:
            self.assertEqual(process_of(client), second)
        master.wait_for("has sent no heartbeat for . seconds, and is aborted")
        master.wait_for("is ready", 3)
        os.kill(second, signal.SIGSTOP)
        master.signal(signal.SIGTERM)
        master.wait_for("stopped listening", 1)
        master.signal(signal.SIGTERM)
        self.assertEqual(master.process.wait(PATIENCE), -signal.SIGTERM)
        self.assertRaises(ConnectionRefusedError, connect, port)
        eventually(lambda: not is_alive(second))

    def test_fullDisk(self) -> None:
        """A log on a full disk does not prevent serving, reloading and stopping; standard error has the error. The
        lines of the workers begin with the command that was typed, like those of the master."""
        options = ["--workers=2", "--handler=sink", "--log-file=/dev/full", "--listen-lmtp=unix:lmtp"]
        master = Master(self, words=["-m", "txsmtpd", *options])
        path = str(master.folder / "lmtp")
        master.wait_for("^txsmtpd: /dev/full: No space left on device; log lines are lost", 3)
        eventually(lambda: len(children(master.process.pid)) == 2)
        before = {*children(master.process.pid)}
        master.signal(signal.SIGHUP)
        eventually(lambda: len({*children(master.process.pid)} - before) == 2)
        eventually(lambda: len(children(master.process.pid)) == 2)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(path)
            self.assertEqual(client.recv(4), b"220 ")
        master.stop()
        self.assertEqual(master.process.returncode, -signal.SIGTERM)

    def test_daemon(self) -> None:
        """``twistd`` as a daemon, with a PID file, drops the privileges of root, if it has them. Its workers have the
        same privileges. They reload, and end with it."""
        uid, gid = (NOBODY, NOBODY) if can_be_nobody() else (os.getuid(), os.getgid())
        words = ["--pidfile=pid", "--logfile=log", f"--uid={uid}", f"--gid={gid}", "smtpd", "--workers=2"]
        words += ["--handler=naming.naming", "--listen=tcp:0:interface=127.0.0.1"]
        master = Master(self, words=["-c", DAEMON, *words], prepare=lambda folder: shutil.chown(folder, uid, gid))
        self.assertEqual(master.process.wait(PATIENCE), 0)  # the started process is the daemon's parent, and exits
        pid = int((master.folder / "pid").read_text())
        self.addCleanup(lambda: is_alive(pid) and os.kill(pid, signal.SIGKILL))
        master.wait_for_log("is ready", 2)
        os.kill(pid, signal.SIGHUP)
        master.wait_for_log("reloaded")
        eventually(lambda: len(children(pid)) == 2)
        for each in (pid, *children(pid)):
            self.assertEqual((os.stat(f"/proc/{each}").st_uid, os.stat(f"/proc/{each}").st_gid), (uid, gid))
        [found] = master.wait_for_log(r"listen on 127\.0\.0\.1:(\d+)")
        workers = children(pid)
        with connect(int(found[1])) as client:
            self.assertIn(process_of(client), workers)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not any(map(is_alive, (pid, *workers))))
        self.assertFalse((master.folder / "pid").exists())


def descriptors(pid: int) -> int:
    """The number of open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def can_be_nobody() -> bool:
    """Return True if this is root, and the user ``nobody`` can run this Python with the package."""
    if os.getuid() != 0:
        return False
    words = [sys.executable, "-c", "import txsmtpd"]
    try:
        found = subprocess.run(words, user=NOBODY, group=NOBODY, cwd="/", capture_output=True, timeout=PATIENCE)
    except PermissionError:
        return False
    return found.returncode == 0
