"""Several workers, as the command line starts them: real processes, sockets and signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_commandline import environment
from tests.service.workers.running import LETTER, PATIENCE, Load, Master, connect, counted, eventually, process_of

ADDRESS = "tcp:0:interface=127.0.0.1"
TWISTD_RUN = "from twisted.scripts.twistd import run; run()"
TWISTD = ["-c", TWISTD_RUN, "--nodaemon", "--pidfile=", "smtpd", "--handler=naming.naming"]


class ServingTests(SynchronousTestCase):
    """Distribution of clients, and replacement of workers."""

    def test_even(self) -> None:
        """Clients that connect one after the other are distributed evenly. Two workers can use two processors."""
        port = (master := Master(self, "--handler=naming.naming")).port()
        clients = [connect(port) for _ in range(20)]
        processes = {client: process_of(client) for client in clients}
        split = Counter(processes.values())
        self.assertEqual(set(split), set(master.pids()))
        self.assertLessEqual(max(split.values()), 11)
        busy = {process: client for client, process in processes.items()}.values()
        for client in busy:
            client.putcmd("mail", "FROM:<burn+0.5@example.com>")
        times = [re.search(rb"from ([0-9.]+) to ([0-9.]+)", client.getreply()[1]) for client in busy]
        (one_began, one_ended), (other_began, other_ended) = [map(float, each.groups()) for each in times if each]
        self.assertLess(max(one_began, other_began), min(one_ended, other_ended))
        for client in clients:
            client.close()

    def test_evenForNewConnections(self) -> None:
        """The same is true for connections for one message each, even if one client makes them one after the other."""
        port = Master(self, "--handler=naming.naming").port()
        split: Counter[int] = Counter()
        for _ in range(60):
            with connect(port) as client:
                split[process_of(client)] += 1
        self.assertEqual(sum(split.values()), 60)
        self.assertLessEqual(max(split.values()), 50)  # on a busy machine, one worker may run less than the others

    def test_killed(self) -> None:
        """A worker that is killed loses its own sessions, and no others. It is replaced, and its counts are kept."""
        master = Master(self, "--handler=naming.naming", "--metrics=tcp:0:interface=127.0.0.1")
        port = master.port()
        metrics = int(master.wait_for(r"metrics and health on 127\.0\.0\.1:(\d+)")[0][1])
        clients = [connect(port) for _ in range(200)]
        victim, survivor = master.pids()
        before = {client: process_of(client) for client in clients}
        self.assertLessEqual(max(Counter(before.values()).values()), 110)
        for client in clients:
            client.sendmail("a@example.com", "b@example.com", LETTER)
        eventually(lambda: counted(metrics, "txsmtpd_messages_total") == 200)
        eventually(lambda: counted(metrics, "txsmtpd_connections_total") == 200)
        os.kill(victim, signal.SIGKILL)
        master.wait_for("was ended by SIGKILL")
        self.assertEqual(counted(metrics, "txsmtpd_messages_total"), 200)
        for client, process in before.items():
            if process == victim:
                self.assertRaises(smtplib.SMTPServerDisconnected, client.noop)
            else:
                self.assertEqual(process_of(client), survivor)
            client.close()
        master.wait_for("is ready", 3)
        self.assertEqual(counted(metrics, "txsmtpd_messages_total"), 200)
        self.assertEqual(counted(metrics, "txsmtpd_connections_total"), 200)
        self.assertEqual(counted(metrics, "txsmtpd_worker_restarts_total"), 1)

    def test_hangs(self) -> None:
        """A worker whose reactor is blocked by a hook is aborted and replaced. The log has the traceback of the hook in
        the log's format. The other worker continues to serve."""
        master = Master(self, "--handler=naming.naming", "--worker-timeout=6", "--log-file=log", "--log-format=json")
        log = master.folder / "log"
        master.wait_for_log("is ready", 2)
        [found] = master.wait_for_log(r"listen on 127\.0\.0\.1:(\d+)")
        port = int(found[1])
        client = connect(port)
        client.putcmd("mail", "FROM:<hang+100@example.com>")
        # The other worker accepts all connections that arrive meanwhile, and leaves none to the worker that hangs.
        others = [connect(port) for _ in range(6)]
        self.assertEqual(len({*map(process_of, others)}), 1)
        self.assertNotIn("SIGABRT", log.read_text())
        for line in ("has sent no heartbeat", "handle_MAIL", "was ended by SIGABRT"):
            master.wait_for_log(line)
        master.wait_for_log("is ready", 3)
        for text in log.read_text().splitlines():
            json.loads(text)
        for each in (client, *others):
            each.close()

    def test_crash(self) -> None:
        """The same is true for a worker that crashes. Child processes of a handler neither keep the address in use nor
        delay the next worker."""
        master = Master(self, words=[*TWISTD, "--workers=2", f"--listen={ADDRESS}"])
        port = master.port()
        client = connect(port)
        client.mail("start+1000@example.com")
        [line] = master.wait_for(r"started process (\d+)")
        self.addCleanup(os.kill, int(line[1]), signal.SIGKILL)
        client.rset()
        client.putcmd("mail", "FROM:<crash@example.com>")
        master.wait_for("handle_MAIL")
        master.wait_for("was ended by SIGSEGV")
        master.wait_for("is ready", 3)
        client.close()
        master.stop()
        self.assertRaises(ConnectionRefusedError, connect, port)

    def test_unixSocket(self) -> None:
        """A Unix socket keeps its mode and its path when a worker dies, and is removed with the master."""
        folder = tempfile.mkdtemp()  # the path of a socket is short
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "lmtp")
        master = Master(self, "--handler=naming.naming", listen=f"--listen-lmtp=unix:{path}:mode=660")
        master.wait_for("is ready", 2)
        os.kill(master.pids()[0], signal.SIGKILL)
        master.wait_for("is ready", 3)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o660)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(path)
            self.assertEqual(client.recv(4), b"220 ")
        master.stop()
        self.assertFalse(os.path.exists(path))

    def test_limit(self) -> None:
        """The connection limit applies to all workers together."""
        port = Master(self, "--handler=naming.naming", "--connection-limit=4").port()
        clients = [connect(port) for _ in range(4)]
        with self.assertRaises(smtplib.SMTPConnectError) as raised:
            smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
        self.assertEqual(raised.exception.smtp_code, 421)
        for client in clients:
            client.close()

    def test_limitOfNetwork(self) -> None:
        """So is the limit of a network."""
        port = Master(self, "--handler=naming.naming", "--connection-limit-per-host=4").port()
        clients = [connect(port) for _ in range(4)]
        self.assertEqual(len({*map(process_of, clients)}), 2)
        with self.assertRaises(smtplib.SMTPConnectError) as raised:
            smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
        self.assertEqual(raised.exception.smtp_code, 421)
        for client in clients:
            client.close()

    def test_tlsAuto(self) -> None:
        """All workers have the same certificate, of one authority."""
        port = Master(self, "--handler=naming.naming", "--tls=auto", "--ca-out=ca.pem").port()
        certificates = set()
        clients = [connect(port) for _ in range(4)]
        for client in clients:
            client.starttls()
            secured: Any = client.sock
            certificates.add(secured.getpeercert(True))
            client.close()
        self.assertEqual(len(certificates), 1)


class ReloadTests(SynchronousTestCase):
    """SIGHUP, and the end of the server."""

    def test_underLoad(self) -> None:
        """Reloads and deaths of workers refuse no connection. A reload ends no session, and a death only those of its
        worker."""
        master = Master(self, "--handler=mailbox:mail")
        load = Load(master.port(), 20)
        ready = 2
        for _ in range(2):
            master.signal(signal.SIGHUP)
            ready += 2
            master.wait_for("is ready", ready)
        master.wait_for("all workers were replaced", 2)
        self.assertEqual((load.refused, load.broken), ([], []))
        os.kill(master.pids()[-1], signal.SIGKILL)
        master.wait_for("is ready", ready + 1)
        load.stop()
        self.assertEqual(load.refused, [])
        self.assertLessEqual(len(load.broken), 20)
        stored = len(os.listdir(master.folder / "mail/new"))
        self.assertGreaterEqual(stored, load.delivered)
        self.assertLessEqual(stored, load.delivered + len(load.broken))

    def test_brokenHandler(self) -> None:
        """After a reload with a handler that cannot be imported, the existing workers continue, and the log has the
        reason."""
        master = Master(self, "--handler=naming.naming")
        port = master.port()
        client = connect(port)
        before = process_of(client)
        (master.folder / "naming.py").write_text("syntax error")
        master.signal(signal.SIGHUP)
        master.wait_for("the reload failed")
        master.wait_for("SyntaxError|invalid syntax")
        self.assertEqual(process_of(client), before)
        self.assertLessEqual({process_of(connect(port)) for _ in range(4)}, set(master.pids()))
        client.close()

    def test_failedReloadReopens(self) -> None:
        """A reload that fails still reopens the log and the transcript: the old workers continue, and do not write to
        the renamed files. The log has the reason."""
        master = Master(self, "--handler=naming.naming", "--log-file=log", "--transcript=sessions")
        master.wait_for_log("is ready", 2)
        [found] = master.wait_for_log(r"listen on 127\.0\.0\.1:(\d+)")
        clients = [connect(int(found[1])) for _ in range(2)]
        for name in ("log", "sessions"):
            os.rename(master.folder / name, master.folder / f"{name}.1")
        (master.folder / "naming.py").write_text("syntax error")
        master.signal(signal.SIGHUP)
        master.wait_for_log("naming: .*SyntaxError")
        master.wait_for_log("ended before it was ready; the other workers continue")
        master.wait_for_log("error the reload failed")
        self.assertNotIn("info  reloaded", (master.folder / "log").read_text())
        eventually(lambda: not {"log.1", "sessions.1"} & {*master.open_files()})
        for client in clients:
            client.sendmail("a@example.com", "b@example.com", LETTER)
            client.close()
        master.wait_for_log("message from <a@example.com>", 2)
        self.assertIn("a@example.com", (master.folder / "sessions").read_text())

    def test_drain(self) -> None:
        """After SIGTERM, open transactions are completed, and idle clients get 421 immediately. Then all processes have
        ended."""
        master = Master(self, "--handler=mailbox:mail")
        port = master.port()
        clients = [connect(port) for _ in range(4)]
        idle = [connect(port) for _ in range(4)]
        for client in clients:
            client.mail("a@example.com")
            client.rcpt("b@example.com")
        master.signal(signal.SIGTERM)
        for client in idle:
            self.assertEqual(client.getreply()[0], 421)
            client.close()
        master.wait_for("stopped listening", 2)
        for client in clients:
            self.assertEqual(client.data(LETTER)[0], 250)
            client.close()
        master.process.wait(PATIENCE)
        self.assertEqual(len(os.listdir(master.folder / "mail/new")), 4)
        for pid in master.pids():
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_hurry(self) -> None:
        """A second SIGTERM ends all sessions immediately."""
        master = Master(self, "--handler=mailbox:mail", "--grace=1000")
        client = connect(master.port())
        client.mail("a@example.com")
        master.signal(signal.SIGTERM)
        master.wait_for("stopped listening", 2)
        master.signal(signal.SIGTERM)
        master.process.wait(PATIENCE)  # without waiting for the grace period
        client.close()

    def test_endsWhileStarting(self) -> None:
        """SIGTERM does not wait for a worker whose handler takes long to start. If such a worker is aborted, the log
        shows what it was doing."""
        slow = (
            "import os, time\nfrom naming import naming\n"
            "if '_TXSMTPD_WORKER' in os.environ:\n    print('starts slowly', flush=True)\n    time.sleep(1000)\n"
        )
        master = Master(self, "--handler=slow.naming", "--grace=1000", files={"slow.py": slow})
        [worker] = master.wait_for(r"worker 0 \(process (\d+)\) started")
        master.wait_for("^starts slowly")
        os.kill(int(worker[1]), signal.SIGABRT)
        master.wait_for('worker 0 .*slow.py", line ')
        master.wait_for("worker 1 .* started")
        master.signal(signal.SIGTERM)
        self.assertEqual(master.process.wait(PATIENCE), -signal.SIGTERM)
        master.wait_for("worker 1 .* has ended")

    def test_masterKilled(self) -> None:
        """Workers without a master end by themselves, and their accepted messages are stored."""
        master = Master(self, "--handler=mailbox:mail")
        load = Load(master.port(), 4)
        eventually(lambda: load.delivered > 20)
        master.signal(signal.SIGKILL)
        master.wait_for("the master has died", 2)
        load.stop()
        master.process.wait(PATIENCE)
        master._reader.join(PATIENCE)  # until all processes have closed the log
        self.assertFalse(master._reader.is_alive())
        self.assertGreaterEqual(len(os.listdir(master.folder / "mail/new")), load.delivered)

    def test_masterKilledWhileWorkerHangs(self) -> None:
        """So does a worker whose reactor is blocked by a hook, which would otherwise keep the address in use."""
        master = Master(self, "--handler=naming.naming", "--worker-timeout=2")
        port = master.port()
        client = connect(port)
        client.putcmd("mail", "FROM:<hang+1000@example.com>")
        master.wait_for("^hangs")
        master.signal(signal.SIGKILL)
        master.process.wait(PATIENCE)
        master._reader.join(PATIENCE)
        self.assertFalse(master._reader.is_alive())
        self.assertRaises(ConnectionRefusedError, connect, port)
        client.close()


class RefusalTests(SynchronousTestCase):
    """Errors are one line and an exit status."""

    def run_command(self, *options: str) -> tuple[int, str]:
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        words = [sys.executable, "-m", "twisted", "smtpd", *options]
        done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    def test_number(self) -> None:
        """The number must be valid."""
        for number in ("0", "-1", "many", "1000"):
            status, said = self.run_command(f"--workers={number}")
            self.assertEqual((status, said.count("\n")), (64, 1), said)

    def test_inbox(self) -> None:
        """The inbox supports only one process."""
        status, said = self.run_command("--workers=2", "--handler=inbox")
        self.assertEqual((status, said.count("\n")), (64, 1), said)
        self.assertIn("inbox", said)

    def test_wrapped(self) -> None:
        """An endpoint that starts TLS itself cannot be shared. The error names the alternative."""
        status, said = self.run_command("--workers=2", "--handler=sink", "--listen=tls:/etc/ssl:port=0")
        self.assertEqual((status, said.count("\n")), (64, 1), said)

    def test_taken(self) -> None:
        """A port in use ends the master with status 71 before a worker starts."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            status, said = self.run_command("--workers=2", "--handler=sink", f"--listen=127.0.0.1:{port}")
        self.assertEqual(status, 71)
        self.assertIn("Address already in use", said)
