"""A RabbitMQ broker for the tests: Debian's package, on loopback ports, with its own folder."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support import tls
from tests.support.programs import not_here, program

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
CONTROL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
MAX_MESSAGE_SIZE = 2**24  # octets; the default of RabbitMQ 4
PATIENCE = 90  # seconds that a broker may take to start on a busy machine


def free_port() -> int:
    """A port that nobody listens on just now, and that the system gives to no client: while a server is down, one that
    tries to connect to such a port of this host may be connected to itself, and keep the port."""
    for _ in range(100):
        port = random.randrange(10000, 30000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no free port was found")


class Broker:
    """One RabbitMQ node, with a TLS listener for clients with a certificate."""

    def __init__(self) -> None:
        if not os.path.exists(SERVER):
            raise not_here("RabbitMQ is not installed; on Debian it is in the package rabbitmq-server")
        self.folder = Path(tempfile.mkdtemp(prefix="txsmtpd-rabbitmq-"))
        atexit.register(self.remove)
        self.port = free_port()
        self.tls_port = free_port()
        self.distribution = free_port()
        self.epmd_port = free_port()
        self.node = f"test{self.port}@localhost"
        self.process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        (self.folder / "plugins").write_text("[].")
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "disk_free_limit.absolute = 10MB",
            f"max_message_size = {MAX_MESSAGE_SIZE}",
            "vm_memory_high_watermark.absolute = 1GB",
            "log.console = false",
            "log.file.level = warning",
            "collect_statistics_interval = 60000",
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
            f"ssl_options.cacertfile = {self.authority}",
            f"ssl_options.certfile = {self.certificate('localhost')}",
            f"ssl_options.keyfile = {self.certificate('localhost')}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, ""]))

    @property
    def authority(self) -> Path:
        """The certificate file of the authority."""
        path = self.folder / "authority.pem"
        path.write_bytes(tls.authority().cert_pem.bytes())
        return path

    def certificate(self, name: str) -> Path:
        """A file with the certificate for the name and its key."""
        path = self.folder / f"{name}.pem"
        if not path.exists():
            path.write_bytes(tls.combined(tls.issue(name)))
        return path

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_DIST_PORT": str(self.distribution),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            # Two schedulers that do not spin while idle: parallel tests share the processors.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self, wait: bool = True) -> None:
        """Start the node. Wait until it accepts connections."""
        if self._epmd is None:
            epmd = program("epmd", "erlang-base")
            self._epmd = subprocess.Popen(
                [epmd, "-address", "127.0.0.1", "-port", str(self.epmd_port)], env=self.environment()
            )
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [SERVER], env=self.environment(), stdout=output, stderr=output, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the node accepts messages."""
        import pika

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
                    channel = connection.channel()
                    channel.confirm_delivery()
                    channel.queue_declare("up", durable=True, arguments={"x-queue-type": "quorum"})
                    channel.basic_publish("", "up", b"up", mandatory=True)
                    return
            except Exception:
                if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                    raise AssertionError(f"RabbitMQ did not start:\n{(self.folder / 'output').read_text()}") from None
            time.sleep(0.05)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        return subprocess.run(
            [CONTROL, "-n", self.node, *arguments],
            env=self.environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        ).stdout

    def sync(self) -> None:
        """Put what the node knows of its queues onto the disk: RabbitMQ waits for a while, and a new quorum queue takes
        no messages after a kill in that time."""
        self.control("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the node: immediately with SIGKILL, cleanly with SIGTERM."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):  # the broker has already ended
            os.killpg(self.process.pid, number)
        self.process.wait(PATIENCE)
        self.process = None

    def remove(self) -> None:
        """Stop everything, and remove the folder."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        shutil.rmtree(self.folder, ignore_errors=True)

    # What the broker contains

    def connection(self) -> Any:
        import pika

        return pika.BlockingConnection(pika.URLParameters(self.url))

    def declare(self, queue: str, **arguments: Any) -> None:
        """Create an empty quorum queue."""
        with self.connection() as connection:
            channel = connection.channel()
            channel.queue_delete(queue)
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum", **arguments})

    def take_all(self, queue: str) -> list[tuple[Any, bytes]]:
        """Return the properties and the body of each message of the queue, and empty it."""
        found = []
        with self.connection() as connection:
            channel = connection.channel()
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return found
                found.append((properties, body))


_shared: Broker | None = None


def shared_broker() -> Broker:
    """The broker that all tests of this process share. The first test starts it."""
    global _shared
    if _shared is None:
        broker = Broker()
        broker.start()
        _shared = broker
    elif _shared.process is None:
        _shared.start()
    return _shared
