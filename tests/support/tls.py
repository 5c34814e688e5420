"""Shared by the tests of TLS: temporary authorities, servers on loopback, and blocking clients in threads."""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from txsmtpd import SMTP, SMTPFactory
from txsmtpd.tls.certificates import Certificates

PATIENCE = 60  # seconds until a test gives up; nothing takes that long
MESSAGE = "Subject: test\r\n\r\nHello\r\n"
SENDER, RECIPIENT = "a@example.com", "b@example.com"

T = TypeVar("T")


@cache
def authority() -> trustme.CA:
    """The authority that the clients of the tests trust, or the server for its clients."""
    return trustme.CA()


def issue(*names: str, ca: trustme.CA | None = None, **more: Any) -> trustme.LeafCert:
    """A certificate for the names."""
    return (ca or authority()).issue_cert(*names, **more)


def combined(leaf: trustme.LeafCert) -> bytes:
    """The certificate, its chain and its key, as in one PEM file."""
    return chain(leaf) + leaf.private_key_pem.bytes()


def chain(leaf: trustme.LeafCert) -> bytes:
    """The certificate and its chain in PEM."""
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def serial(leaf: trustme.LeafCert | bytes) -> int:
    """The serial number of a certificate, issued or in DER."""
    from cryptography import x509

    if isinstance(leaf, bytes):
        return x509.load_der_x509_certificate(leaf).serial_number
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number


def write(path: Path, content: bytes) -> Path:
    """Replace the file in one step, readable only by its owner."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.chmod(0o600)
    new.replace(path)
    return path


def trusting(leaf: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client that verifies the server, and sends a certificate if it has one."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    if leaf is not None:
        leaf.configure_cert(context)
    return context


class Collecting:
    """A handler that keeps its input."""

    def __init__(self, **hooks: Any) -> None:
        self.messages: list[Any] = []
        self.sessions: list[Any] = []
        self.causes: list[BaseException] = []
        self.errors: list[BaseException] = []
        self.gone: Deferred[None] = Deferred()
        vars(self).update(hooks)

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append(envelope)
        self.sessions.append(session)
        return "250 2.0.0 OK"

    def handle_exception(self, error: BaseException) -> str:
        self.errors.append(error)
        return "451 4.3.0 failed"

    def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: BaseException) -> None:
        self.causes.append(cause)
        if not self.gone.called:
            self.gone.callback(None)


class TLSTestCase(TestCase):
    """A test case with real servers on loopback, and clients in threads."""

    timeout = 120

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.handler = Collecting()
        self.ca_file = self.folder / "ca.crt"
        authority().cert_pem.write_to_path(self.ca_file)
        self.leaf = issue("localhost", "127.0.0.1")
        self.certificate = write(self.folder / "server.pem", combined(self.leaf))

    async def serve(self, handler: object = None, *, protocol: type[SMTP] = SMTP, **options: Any) -> int:
        """Listen. Return the port. By default, with a certificate for localhost."""
        if "tls_context" not in options:
            options["tls_context"] = Certificates(self.certificate)
        options.setdefault("hostname", "mx.test")
        self.factory = SMTPFactory(self.handler if handler is None else handler, protocol=protocol, **options)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(self.factory)
        self.addCleanup(self._stop, port)
        return port.getHost().port

    async def _stop(self, port: Any) -> None:
        await port.stopListening()
        drained = self.factory.drain()
        self.factory.abort()
        await drained

    def connection(self) -> Any:
        """The protocol of the only connection."""
        (only,) = self.factory.connections
        return only

    async def run_client(self, client: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Run a blocking client in a thread."""
        return await deferToThread(client, *arguments, **more)

    async def run_program(self, *words: str, stdin: str = "") -> str:
        """Run a program that must succeed. Return its output."""

        def run() -> str:
            done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=PATIENCE)
            if done.returncode:
                raise AssertionError(f"{words[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
            return done.stdout

        return await deferToThread(run)


class LineClient:
    """A blocking client that sends and receives lines."""

    def __init__(self, port: int) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._left = b""

    def reply(self) -> str:
        """The next reply; ``""`` if the connection has ended."""
        while True:
            lines = self._left.split(b"\r\n")
            for n, line in enumerate(lines[:-1]):
                if line[3:4] != b"-":
                    self._left = b"\r\n".join(lines[n + 1 :])
                    return b"\n".join(lines[: n + 1]).decode("ascii")
            try:
                data = self.socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                return ""
            self._left += data

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def ask(self, line: str) -> str:
        """Send a line. Return its reply."""
        self.send(line.encode("ascii") + b"\r\n")
        return self.reply()

    def secure(self, context: ssl.SSLContext, name: str = "localhost") -> None:
        """Start TLS."""
        assert not self._left
        self.socket = context.wrap_socket(self.socket, server_hostname=name)

    def close(self) -> None:
        self.socket.close()


def greeted(port: int) -> LineClient:
    """A client that has received the greeting."""
    client = LineClient(port)
    assert client.reply().startswith("220 ")
    return client


def secured(port: int, context: ssl.SSLContext | None = None, name: str = "localhost") -> LineClient:
    """A client that has sent STARTTLS."""
    client = greeted(port)
    answer = client.ask("STARTTLS")
    assert answer.startswith("220 2.0.0"), answer
    client.secure(context or trusting(), name)
    return client


def from_the_first_octet(port: int, context: ssl.SSLContext | None = None, name: str = "localhost") -> LineClient:
    """A client with implicit TLS that has received the greeting."""
    client = LineClient(port)
    client.secure(context or trusting(), name)
    assert client.reply().startswith("220 ")
    return client


def send_by_starttls(port: int) -> None:
    """Send a message with smtplib, after STARTTLS."""
    with smtplib.SMTP("localhost", port, timeout=PATIENCE) as client:
        client.starttls(context=trusting())
        client.sendmail(SENDER, RECIPIENT, MESSAGE)


def send_by_implicit_tls(port: int) -> None:
    """Send a message with smtplib, with implicit TLS."""
    with smtplib.SMTP_SSL("localhost", port, timeout=PATIENCE, context=trusting()) as client:
        client.sendmail(SENDER, RECIPIENT, MESSAGE)
