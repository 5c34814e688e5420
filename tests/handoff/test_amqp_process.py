"""``twist smtpd --handler=amqp:...`` as a process: kills at any time, and its memory."""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
import threading
import time
from pathlib import Path

from tests.handoff.clients import message_of, send
from tests.handoff.rabbitmq import Broker, free_port, shared_broker
from tests.service.test_commandline import LOOPBACK, PATIENCE, CommandLineTestCase, Process

ROUNDS = int(os.environ.get("TXSMTPD_KILL_ROUNDS", "1"))  # how often the broker is killed, and then the server
CLIENTS = 4
BETWEEN = 40  # the number of messages between kills
MEGABYTE = 2**20


class Load:
    """Clients that send until they are stopped, whatever happens to the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.acknowledged: set[str] = set()
        self.codes: set[int] = set()
        self.end = threading.Event()
        self.threads = [threading.Thread(target=self._send, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _send(self, client: int) -> None:
        number = 0
        while not self.end.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as smtp:
                    while not self.end.is_set():
                        number += 1
                        name = f"{client}-{number}"
                        smtp.sendmail("a@x.test", ["b@y.test"], f"Name: {name}\r\n\r\n{'text ' * 500}\r\n")
                        self.acknowledged.add(name)
            except smtplib.SMTPResponseException as refused:
                self.codes.add(refused.smtp_code)
                time.sleep(0.05)
            except (OSError, smtplib.SMTPException):
                time.sleep(0.05)

    def wait(self, more: int) -> None:
        """Wait until this number of further messages is acknowledged."""
        enough, deadline = len(self.acknowledged) + more, time.monotonic() + 60
        while len(self.acknowledged) < enough:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(self.acknowledged)} messages were acknowledged, not {enough}: {self.codes}")
            time.sleep(0.01)

    def stop(self) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join(PATIENCE)


class ProcessTests(CommandLineTestCase):
    """The server, with RabbitMQ as its target."""

    def setUp(self) -> None:
        super().setUp()
        self.broker: Broker = shared_broker()
        self.queue = self.id().rpartition(".")[2]
        self.broker.declare(self.queue)

    def served(self, *options: str, listen: str = LOOPBACK, handler: str = "") -> Process:
        handler = handler or f"amqp:queue={self.queue}"
        return self.smtpd(listen, f"--handler={handler}", *options, TXSMTPD_AMQP_URL=self.broker.url)

    def test_killed(self) -> None:
        """The broker and the server are killed in turn under load. Every message that got 250 is in the queue."""
        number = free_port()
        self.broker.sync()
        listen = f"--listen=tcp:{number}:interface=127.0.0.1"
        server = self.served(listen=listen)
        _wait_until_started(server)
        load = Load(number)
        self.addCleanup(load.stop)
        for _ in range(ROUNDS):
            load.wait(BETWEEN)
            self.broker.kill()
            self.broker.start()
            load.wait(BETWEEN)
            server.process.kill()
            server.close()
            server = self.served(listen=listen)
            _wait_until_started(server)
        load.wait(BETWEEN)
        load.stop()
        found = [re.search(rb"\r\nName: (\S+)\r\n", body) for _, body in self.broker.take_all(self.queue)]
        stored = {match[1].decode() for match in found if match}
        self.assertEqual(load.acknowledged - stored, set())
        self.assertLessEqual(load.codes, {451})

    def test_memory(self) -> None:
        """50 clients with 10 MB each at the same time all get 250, and memory stays within three times its limit."""
        server = self.served(handler=f"amqp:queue={self.queue}:memory=48m:max-size=16m:wait=100")
        port = server.port()
        send(port)
        idle = _peak_memory(server)
        message = message_of(10 * MEGABYTE)
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: codes.append(send(port, message, declared=n % 2 == 0)[0]))
            for n in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(codes, [250] * 50)
        grown = _peak_memory(server) - idle
        self.assertLess(grown, 3 * 48 * MEGABYTE)
        with self.broker.connection() as connection:
            connection.channel().queue_purge(self.queue)

    def test_password(self) -> None:
        """Errors in the option do not print its password."""
        for rest, problem in (
            ("", "queue=NAME or exchange=NAME is required"),
            (":queue=mail:declear=yes", "did you mean declare?"),
        ):
            process = self.smtpd(f"--handler=amqp:amqp://mail:canary@127.0.0.1:5{rest}")
            self.assertOneLine(process, 64, problem)
            self.assertNotIn("canary", process.errors[0])


def _wait_until_started(server: Process) -> None:
    """Wait for a server that starts while its clients keep the machine busy."""
    for _ in range(5):
        with contextlib.suppress(AssertionError):
            server.port()
            return
    server.port()


def _peak_memory(process: Process) -> int:
    """The highest memory use of a process, in octets."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
