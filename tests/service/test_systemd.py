"""The server under systemd, which a small program replaces: passed sockets, and notifications."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import once
from tests.support.systemd import Systemd
from txsmtpd.service.notify import Notifier

HANDLER = "--handler=sink"
# A module that can be imported only once. The master imports it, so that the import fails in workers.
ONCE = """
import os
os.open("imported", os.O_CREAT | os.O_EXCL)

class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 OK"

handler = Handler()
"""


def banner(family: socket.AddressFamily, address: object) -> str:
    """The greeting of a server."""
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)  # type: ignore[arg-type]
        return client.makefile().readline()


class SystemdTests(SynchronousTestCase):
    """Real processes, with sockets and messages as of sd_listen_fds and sd_notify."""

    def setUp(self) -> None:
        self.systemd = Systemd()
        self.addCleanup(self.systemd.close)

    def tcp_socket(self) -> socket.socket:
        tcp = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(tcp.close)
        return tcp

    def unix_socket(self) -> tuple[socket.socket, str]:
        path = os.path.join(self.systemd.folder, "lmtp")
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        os.chmod(path, 0o600)
        unix.listen()
        self.addCleanup(unix.close)
        return unix, path

    def test_life(self) -> None:
        """READY when it listens, STATUS, WATCHDOG repeatedly, and STOPPING with the time that stopping may take."""
        tcp = self.tcp_socket()
        self.systemd.start(
            HANDLER,
            "--listen=systemd:domain=INET:name=smtp",
            "--grace=3",
            sockets={"smtp": tcp},
            WATCHDOG_USEC="300000",
        )
        ready = self.systemd.wait_for("READY")
        assert self.systemd.process is not None
        self.assertEqual(ready["MAINPID"], str(self.systemd.process.pid))
        self.assertEqual(ready["STATUS"], "0 connections")
        self.assertTrue(banner(socket.AF_INET, tcp.getsockname()).startswith("220 "))
        self.assertEqual([self.systemd.wait_for("WATCHDOG")["WATCHDOG"] for _ in range(2)], ["1", "1"])
        self.assertEqual(self.systemd.stop(), -signal.SIGTERM)  # systemd counts SIGTERM as success
        stopping = self.systemd.wait_for("STOPPING")
        self.assertEqual(stopping["EXTEND_TIMEOUT_USEC"], "13000000")
        self.assertIn("shutting down", stopping["STATUS"])

    def test_unixSocket(self) -> None:
        """The mode and the path of a Unix socket are unchanged, and systemd can listen on it afterwards."""
        unix, path = self.unix_socket()
        for _ in range(2):
            self.systemd.start(HANDLER, "--listen-lmtp=systemd:domain=UNIX:name=lmtp", sockets={"lmtp": unix})
            self.systemd.wait_for("READY")
            self.assertTrue(banner(socket.AF_UNIX, path).startswith("220 "))
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            self.assertEqual(self.systemd.stop(), -signal.SIGTERM)  # systemd counts SIGTERM as success
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            assert self.systemd.process is not None and self.systemd.process.stderr is not None
            self.systemd.process.stderr.close()
            with socket.socket(socket.AF_UNIX) as waiting:
                waiting.connect(path)  # systemd would start the service again for this client

    def test_twoSockets(self) -> None:
        """Several sockets are distinguished by name or by index."""
        tcp, (unix, path) = self.tcp_socket(), self.unix_socket()
        self.systemd.start(
            HANDLER,
            "--listen=systemd:domain=INET:index=1",
            "--listen-lmtp=systemd:domain=UNIX:name=lmtp",
            sockets={"lmtp": unix, "smtp": tcp},
        )
        self.systemd.wait_for("READY")
        self.assertIn("LMTP", banner(socket.AF_UNIX, path))
        self.assertIn("ESMTP", banner(socket.AF_INET, tcp.getsockname()))

    def test_workers(self) -> None:
        """With workers, it is READY once one of them serves."""
        once()
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as tcp:
            self.systemd.start(HANDLER, "--workers=2", "--listen=systemd:domain=INET6:name=smtp", sockets={"smtp": tcp})
            self.systemd.wait_for("READY")
            self.assertTrue(banner(socket.AF_INET6, tcp.getsockname()).startswith("220 "))
            self.assertEqual(self.systemd.stop(), -signal.SIGTERM)
        self.assertEqual(len([each for each in self.systemd.heard if "READY" in each]), 1)

    def test_workersThatCannotStart(self) -> None:
        """It is never READY if no worker can serve. It ends with the workers' status."""
        once()
        Path(self.systemd.folder, "once.py").write_text(ONCE)
        self.systemd.start("--handler=once.handler", "--workers=2", "--listen=tcp:0:interface=127.0.0.1")
        status, errors = self.systemd.failure()
        self.assertEqual(status, 64, errors)
        self.assertEqual(errors.count("smtpd: "), 1, errors)
        self.assertEqual([each for each in self.systemd.pending() if "READY" in each], [])

    def test_unusable(self) -> None:
        """A socket that cannot accept clients, or that two options name, is one line, and status 64."""
        once()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(datagrams.close)
        accepted, other = socket.socketpair()
        self.addCleanup(accepted.close)
        self.addCleanup(other.close)
        tcp = "systemd:domain=INET:name=smtp"
        for passed, words, expected in (
            (datagrams, (f"--listen={tcp}",), "a socket that does not listen"),
            (accepted, ("--listen=systemd:domain=UNIX:name=smtp",), "no Accept=yes"),
            (self.tcp_socket(), (f"--listen={tcp}", f"--listen-lmtp={tcp}"), f"--listen={tcp} listens on this socket"),
            (self.tcp_socket(), (f"--listen={tcp}", f"--listen={tcp}"), f"--listen={tcp} listens on this socket"),
        ):
            systemd = Systemd()
            self.addCleanup(systemd.close)
            systemd.start(HANDLER, *words, sockets={"smtp": passed})
            status, errors = systemd.failure()
            self.assertEqual(status, 64, errors)
            self.assertEqual(errors.count("\n"), 1, errors)
            self.assertIn(expected, errors)

    def test_noSocket(self) -> None:
        """The error for an endpoint without a passed socket is one line with the reason, and status 64."""
        for words, named, expected in [
            ("systemd:domain=INET:index=0", False, "LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID"),
            ("systemd:domain=INET:name=smtp", True, "LISTEN_FDNAMES has web"),
            ("systemd:domain=INET:index=3", True, "LISTEN_FDNAMES has web"),
            ("systemd:domain=INET6:name=web", True, "a socket of domain INET"),
            ("systemd:domain=IP:name=web", True, "domain must be INET, INET6 or UNIX"),
            ("systemd:domain=INET:index=x", True, "write systemd:domain=INET6:name=NAME"),
            ("systemd:name=web", True, "write systemd:domain=INET6:name=NAME"),
        ]:
            systemd = Systemd()
            self.addCleanup(systemd.close)
            systemd.start(HANDLER, f"--listen={words}", sockets={"web": self.tcp_socket()}, named=named)
            status, errors = systemd.failure()
            self.assertEqual(status, 64, errors)
            self.assertEqual(errors.count("\n"), 1, errors)
            self.assertTrue(errors.startswith(f"smtpd: --listen={words}: "), errors)
            self.assertIn(expected, errors)


class NotifierTests(SynchronousTestCase):
    """Notifications, and their environment variables."""

    def setUp(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.bind(f"\0txsmtpd-test-{os.getpid()}")
        self.address = f"@txsmtpd-test-{os.getpid()}"

    def message(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def messages(self) -> list[dict[str, str]]:
        """All messages that have come."""
        self.socket.setblocking(False)
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(self.message())
        return told

    def test_environment(self) -> None:
        """The variables are removed from the environment. Without them, nothing is sent."""
        environ = {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7", "HOME": "/"}
        notifier = Notifier.of(environ, 7)
        assert notifier is not None
        self.assertEqual(notifier.watchdog_period, 3.0)
        self.assertEqual(environ, {"HOME": "/"})
        self.assertIsNone(Notifier.of(environ, 7))
        self.assertIsNone(Notifier.of({"NOTIFY_SOCKET": "vsock:2:1234"}, 7))

    def test_watchdog_of_another(self) -> None:
        """A watchdog for another process, or no watchdog, gets no message."""
        infinity = str(2**64 - 1)
        for period, pid in ("3000000", "8"), ("0", "7"), ("x", "7"), ("", "7"), (infinity, "7"), ("9" * 400, "7"):
            environ = {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": period, "WATCHDOG_PID": pid}
            notifier = Notifier.of(environ, 7)
            assert notifier is not None
            self.assertIsNone(notifier.watchdog_period)

    def test_messages(self) -> None:
        """RELOADING has the monotonic time of its beginning. A status is one line."""
        notifier = Notifier(self.address)
        notifier.ready("3\nconnections")
        self.assertEqual(self.message(), {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "3 connections"})
        before = time.monotonic()
        notifier.reloading()
        told = self.message()
        self.assertEqual(told["RELOADING"], "1")
        self.assertTrue(before - 1 <= int(told["MONOTONIC_USEC"]) / 1e6 <= time.monotonic() + 1)
        notifier.stopping(1.5)
        self.assertEqual(self.message(), {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "1500000"})
        notifier.watchdog()
        self.assertEqual(self.message(), {"WATCHDOG": "1"})

    def test_full(self) -> None:
        """A change of the state is not lost while systemd is busy. It is sent before later ones, and only once."""
        notifier = Notifier(self.address)
        notifier.watchdog()
        with contextlib.suppress(BlockingIOError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            while True:
                other.sendto(b"OTHER=1", "\0" + self.address[1:])
        notifier.ready()
        notifier.status("busy")  # this message may be lost
        told = self.messages()
        self.assertEqual(told[0], {"WATCHDOG": "1"})
        self.assertEqual(set(map(str, told[1:])), {"{'OTHER': '1'}"})
        notifier.watchdog()
        notifier.watchdog()
        ready = {"READY": "1", "MAINPID": str(os.getpid())}
        self.assertEqual(self.messages(), [ready, {"WATCHDOG": "1"}, {"WATCHDOG": "1"}])

    def test_neverRead(self) -> None:
        """What waits for a systemd that never reads does not grow."""
        notifier = Notifier("/nowhere/notify")
        for _ in range(1000):
            notifier.reloading()
            notifier.ready()
        self.assertLess(len(notifier._unsent), 20)

    def test_nobody_listens(self) -> None:
        """A failed notification has no other effect."""
        self.socket.close()
        Notifier(self.address).ready()
        Notifier("/nowhere/notify").ready()
