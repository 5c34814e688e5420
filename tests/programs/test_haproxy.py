"""Behind a real HAProxy, and behind curl as a proxy: without TLS, with STARTTLS and with implicit TLS."""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.engine.test_proxy_header import CLIENT as FORWARDED
from tests.engine.test_proxy_header import HEADER
from tests.service.test_commandline import LOOPBACK, CommandLineTestCase
from tests.service.test_service import parse, refusal
from tests.support.programs import program
from tests.support.tls import (
    MESSAGE,
    PATIENCE,
    RECIPIENT,
    SENDER,
    Collecting,
    LineClient,
    TLSTestCase,
    combined,
    issue,
    trusting,
    write,
)
from txsmtpd.handlers.trace_header import received

PROXY, CLIENT = "127.0.0.1", "127.0.0.2"  # two addresses of the loopback network, to distinguish the two

CONFIGURATION = """
global
    maxconn 20

defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m

listen mail
    bind fd@{bound}
    server mx {server} {options}
"""


class HAProxy:
    """A HAProxy in front of one server, until it is stopped.

    :param folder: the folder for its configuration.
    :param server: the port of the server.
    :param options: the options of the connection, such as ``send-proxy``.
    """

    def __init__(self, folder: Path, server: int, options: str) -> None:
        path = program("haproxy", "haproxy")
        with socket.create_server((PROXY, 0)) as bound:
            self.port: int = bound.getsockname()[1]
            text = CONFIGURATION.format(bound=bound.fileno(), server=f"{PROXY}:{server}", options=options)
            configuration = folder / f"haproxy-{self.port}.cfg"
            configuration.write_text(text)
            self.process = subprocess.Popen(
                [path, "-q", "-db", "-f", str(configuration)], pass_fds=[bound.fileno()], stderr=subprocess.DEVNULL
            )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


def send(port: int, how: str, name: str = "localhost") -> None:
    """Send a message from the client's address."""
    source, context = (CLIENT, 0), trusting()
    if how == "implicit":
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            PROXY, port, name, timeout=PATIENCE, context=context, source_address=source
        )
    else:
        client = smtplib.SMTP(PROXY, port, name, PATIENCE, source_address=source)
    with client:
        if how == "starttls":
            client.starttls(context=context)
        client.sendmail(SENDER, RECIPIENT, MESSAGE)


class HAProxyTests(TLSTestCase):
    """HAProxy with send-proxy and send-proxy-v2."""

    def forward(self, server: int, options: str) -> int:
        """Let a HAProxy forward to the server. Return its port."""
        haproxy = HAProxy(self.folder, server, options)
        self.addCleanup(haproxy.stop)
        return haproxy.port

    async def check(self, options: str, how: str) -> Any:
        """Send a message through HAProxy. Return the session, whose peer is the client."""
        lets_in: list[Any] = []

        def proxy(server: Any, session: Any, envelope: Any, proxy_data: Any) -> bool:
            lets_in.append(proxy_data)
            return True

        self.handler = Collecting(handle_PROXY=proxy)
        port = await self.serve(self.handler, proxy_from=[PROXY], implicit_tls=how == "implicit")
        await self.run_client(send, self.forward(port, options), how)
        ((session,), (envelope,)) = self.handler.sessions, self.handler.messages
        self.assertEqual((session.peer[0], session.proxy_peer[0]), (CLIENT, PROXY))
        self.assertEqual([session.proxy_data], lets_in)
        self.assertEqual((str(session.proxy_data.src_addr), session.proxy_data.src_port), session.peer)
        self.assertEqual(session.ssl is not None, how != "plain")
        self.assertIn(f"([{CLIENT}])".encode(), received("mx.test", session, envelope, "1"))
        self.assertNotIn(PROXY.encode(), received("mx.test", session, envelope, "1"))
        return session

    async def test_version1(self) -> None:
        """send-proxy, without TLS."""
        self.assertEqual((await self.check("send-proxy", "plain")).proxy_data.version, 1)

    async def test_version1StartTLS(self) -> None:
        """send-proxy, with STARTTLS."""
        await self.check("send-proxy", "starttls")

    async def test_version1ImplicitTLS(self) -> None:
        """send-proxy, with implicit TLS after the header."""
        await self.check("send-proxy", "implicit")

    async def test_version2(self) -> None:
        """send-proxy-v2, without TLS."""
        self.assertEqual((await self.check("send-proxy-v2", "plain")).proxy_data.version, 2)

    async def test_version2StartTLS(self) -> None:
        """send-proxy-v2, with STARTTLS."""
        await self.check("send-proxy-v2", "starttls")

    async def test_version2ImplicitTLS(self) -> None:
        """send-proxy-v2, with implicit TLS after the header."""
        await self.check("send-proxy-v2", "implicit")

    async def test_options(self) -> None:
        """The additional data of HAProxy, with its checksum."""
        session = await self.check("send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl,cert-cn", "plain")
        found = session.proxy_data.tlv
        self.assertEqual(len(found.CRC32C), 4)
        self.assertTrue(session.proxy_data)

    async def test_healthChecks(self) -> None:
        """HAProxy's own connections name no client. Their peer is the proxy."""
        checked: Deferred[Any] = Deferred()

        def disconnect(server: Any, session: Any, envelope: Any, cause: BaseException) -> None:
            if not checked.called:
                checked.callback(session)

        self.handler = Collecting(handle_DISCONNECT=disconnect)
        port = await self.serve(self.handler, proxy_from=[PROXY])
        self.forward(port, "send-proxy-v2 check inter 100ms")
        session = await checked.addTimeout(PATIENCE, reactor)
        self.assertEqual((session.proxy_data.command, session.peer[0], session.proxy_peer), (0, PROXY, None))

    async def test_withoutHeader(self) -> None:
        """The connection of a proxy that sends no header is closed soon."""
        port = await self.serve(proxy_from=[PROXY], proxy_protocol_timeout=3)

        def connect(port: int) -> bytes:
            with socket.create_connection((PROXY, port), PATIENCE, source_address=(CLIENT, 0)) as client:
                client.sendall(b"EHLO client.test\r\n")
                return client.recv(1000)

        self.assertEqual(await self.run_client(connect, self.forward(port, "")), b"")


class OneSegmentTests(TLSTestCase):
    """The header and the following octets in one segment."""

    async def test_clientHello(self) -> None:
        """A handshake that starts in the segment of the header works."""
        peers: list[Any] = []
        self.handler = Collecting(handle_CONNECT=lambda server, session, envelope: peers.append(session.peer))
        port = await self.serve(proxy_from=[PROXY], implicit_tls=True)

        def talk() -> str:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
            beginning = HEADER
            with socket.create_connection((PROXY, port), PATIENCE) as client:
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        client.sendall(beginning + outgoing.read())
                        beginning = b""
                        incoming.write(client.recv(65536))
                client.sendall(outgoing.read())
                while True:
                    try:
                        return tls.read().decode()
                    except ssl.SSLWantReadError:
                        incoming.write(client.recv(65536))

        self.assertEqual(await self.run_client(talk), "220 mx.test ESMTP txsmtpd\r\n")
        self.assertEqual(peers, [FORWARDED])

    async def test_noHandshake(self) -> None:
        """After a header, octets that are not a handshake end the connection as usual."""
        port = await self.serve(proxy_from=[PROXY], implicit_tls=True)

        def talk() -> bytes:
            with socket.create_connection((PROXY, port), PATIENCE) as client:
                client.sendall(HEADER + b"EHLO client.test\r\n")
                said = b""
                while octets := client.recv(1000):
                    said += octets
                return said

        self.assertNotIn(b"220", await self.run_client(talk))
        await self.handler.gone
        self.assertEqual([type(error).__name__ for error in self.handler.errors], ["TLSSetupException"])

    async def test_startTLS(self) -> None:
        """After a header, too, commands that were sent before TLS are not executed."""
        port = await self.serve(proxy_from=[PROXY])

        def talk() -> list[str]:
            client = LineClient(port)
            client.send(HEADER + b"EHLO client.test\r\nSTARTTLS\r\nNOOP injected\r\n")
            replies = [client.reply()[:3] for _ in range(3)]
            client.secure(trusting())
            replies.append(client.ask("NOOP")[:3])
            client.close()
            return replies

        self.assertEqual(await self.run_client(talk), ["220", "250", "220", "250"])


class CurlTests(TLSTestCase):
    """curl with --haproxy-protocol."""

    async def test_curl(self) -> None:
        """It writes the line of version 1 first."""
        path = program("curl", "curl")
        port = await self.serve(proxy_from=[PROXY])
        words = ["--haproxy-protocol", "--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--upload-file", "-"]
        await self.run_program(path, "--silent", "--show-error", *words, f"smtp://{PROXY}:{port}", stdin=MESSAGE)
        (session,) = self.handler.sessions
        self.assertEqual((session.proxy_data.version, session.peer[0]), (1, PROXY))
        self.assertEqual(session.proxy_data.dst_port, port)


class OptionTests(SynchronousTestCase):
    """--proxy-from."""

    def proxies(self, *words: str, **environ: str) -> Any:
        return parse(*words, environ=environ)["settings"].get("proxy_from")

    def test_values(self) -> None:
        """Networks, addresses and unix, once or several times, and in the environment."""
        self.assertIsNone(self.proxies())
        self.assertEqual(self.proxies("--proxy-from=10.0.0.0/8"), ["10.0.0.0/8"])
        self.assertEqual(self.proxies("--proxy-from=::1", "--proxy-from", "unix"), ["::1", "unix"])
        self.assertEqual(self.proxies(TXSMTPD_PROXY_FROM="::1 unix"), ["::1", "unix"])

    def test_wrong(self) -> None:
        """The error for an invalid network is one line with valid examples."""
        self.assertEqual(
            refusal("--proxy-from=unix", "--proxy-from=lb.test"),
            "--proxy-from=lb.test: must contain networks; 'lb.test' is not one;"
            " write 192.0.2.1, 192.0.2.0/24, 2001:db8::/32 or unix",
        )
        self.assertIn("did you mean 10.0.0.0/8?", refusal("--proxy-from=10.0.0.1/8"))
        self.assertTrue(refusal("--proxy-from=").startswith("--proxy-from=: "))
        self.assertTrue(refusal(environ={"TXSMTPD_PROXY_FROM": "x"}).startswith("TXSMTPD_PROXY_FROM=x: "))

    def test_endpoints(self) -> None:
        """Endpoints that read the header, or start TLS, before the server are refused."""
        for endpoint in "haproxy:tcp:25", "ssl:25:privateKey=x.pem":
            said = refusal("--proxy-from=unix", f"--listen={endpoint}")
            self.assertTrue(said.startswith(f"--listen={endpoint}: an endpoint {endpoint.partition(':')[0]}: "), said)
            self.assertIn("because of --proxy-from", said)


class ProcessTests(CommandLineTestCase):
    """The server as users run it, behind HAProxy."""

    def test_everyWay(self) -> None:
        """All kinds of TLS, and both versions: the stored message names the client."""
        folder = Path(self.folder)
        pem = write(folder / "server.pem", combined(issue("localhost", PROXY)))
        words = [LOOPBACK, LOOPBACK.replace("listen", "listen-tls"), f"--handler=mailbox:{folder / 'mail'}"]
        process = self.smtpd(f"--proxy-from={PROXY}", f"--tls={pem}", *words)
        clear, implicit = process.port(), process.port()
        for options in "send-proxy", "send-proxy-v2":
            for port, ways in ((clear, ("plain", "starttls")), (implicit, ("implicit",))):
                haproxy = HAProxy(folder, port, options)
                self.addCleanup(haproxy.stop)
                for how in ways:
                    send(haproxy.port, how, f"{options}.{how}.test")
        stored = [path.read_text() for path in (folder / "mail" / "new").iterdir()]
        lines = sorted(
            next(line for line in message.splitlines() if line.startswith("Received:")) for message in stored
        )
        self.assertEqual(
            lines,
            sorted(
                f"Received: from {options}.{how}.test ([{CLIENT}])"
                for options in ("send-proxy", "send-proxy-v2")
                for how in ("plain", "starttls", "implicit")
            ),
        )
        self.assertTrue(all(f"X-Peer: ('{CLIENT}', " in message for message in stored))

    def test_wrong(self) -> None:
        """The error for an invalid network is one line and status 64."""
        self.assertOneLine(self.smtpd("--proxy-from=nowhere"), 64, "--proxy-from=nowhere: ", "unix")
