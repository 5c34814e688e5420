"""Hooks, clients and threads of programs that were written for aiosmtpd, with real controllers."""

from __future__ import annotations

import asyncio
import base64
import smtplib
import socket
import ssl
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.trial.unittest import SynchronousTestCase

from tests.compatibility.test_controller import MESSAGE
from tests.support.tls import authority, combined, issue, write
from txsmtpd import SMTP
from txsmtpd.bridges.reactor_thread import LOGGER
from txsmtpd.controller import Controller, UnixSocketUnthreadedController
from txsmtpd.handlers import Sink
from txsmtpd.handoff import WebhookHandoff
from txsmtpd.smtp import AuthResult, TLSSetupException

PATIENCE = 30  # seconds


def client_of(controller: Controller) -> smtplib.SMTP:
    return smtplib.SMTP(controller.hostname, controller.port, timeout=PATIENCE)


class Waits:
    """Waits in a hook for a Deferred that never fires."""

    def __init__(self) -> None:
        self.events: SimpleQueue[str] = SimpleQueue()

    async def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: Any) -> str:
        assert session.loop is server.loop is asyncio.get_running_loop()
        self.events.put("waits")
        try:
            await Deferred()
        finally:
            self.events.put("ends")
        return "250 OK"


class StopTests(SynchronousTestCase):
    """Clients and hooks at the end of a server."""

    def test_clientOutlivesServer(self) -> None:
        """A client in a with block that ends after the server's stop() sees the connection closed, without an
        exception."""
        controller = Controller(Sink(), port=0)
        controller.start()
        with client_of(controller) as client:
            client.ehlo()
            controller.stop()
        self.assertRaises(smtplib.SMTPServerDisconnected, client.noop)

    def test_waitingHook(self) -> None:
        """A hook that waits for a Deferred ends when its client leaves, or at stop(). No error is logged."""
        handler = Waits()
        with self.assertNoLogs(LOGGER, "ERROR"), Controller(handler, port=0) as controller:
            for leaves in True, False:
                client = socket.create_connection((controller.hostname, controller.port), PATIENCE)
                self.addCleanup(client.close)
                client.sendall(b"NOOP\r\n")
                self.assertEqual(handler.events.get(timeout=PATIENCE), "waits")
                if leaves:
                    client.close()
                    self.assertEqual(handler.events.get(timeout=PATIENCE), "ends")
        self.assertEqual(handler.events.get(timeout=PATIENCE), "ends")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_server(self) -> None:
        """The server of a controller is an asyncio.Server for programs that check its type."""
        with Controller(Sink(), port=0) as controller:
            self.assertIsInstance(controller.server, asyncio.Server)
            self.assertIs(controller.server.get_loop(), controller.loop)
            self.assertIn(str(controller.port), repr(controller.server))

    def test_socketFile(self) -> None:
        """The socket of an unthreaded controller remains when its loop stops, and is removed by end()."""
        path = Path(self.mktemp())
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        controller = UnixSocketUnthreadedController(Sink(), path, loop)
        controller.begin()
        loop.call_soon(loop.stop)
        loop.run_forever()
        self.assertTrue(path.is_socket())
        controller.end()
        self.assertFalse(path.exists())


class HookTests(SynchronousTestCase):
    """Actions of hooks and of methods of subclasses."""

    def test_connectionReset(self) -> None:
        """A ConnectionResetError of a hook concerns another connection: the client gets 451 and may continue."""

        class Relays:
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
                raise ConnectionResetError("the other server is gone")

        with Controller(Relays(), port=0) as controller, client_of(controller) as client:
            error = self.assertRaises(
                smtplib.SMTPDataError, client.sendmail, "a@example.com", ["b@example.com"], MESSAGE
            )
            self.assertEqual(error.smtp_code, 451)
            self.assertEqual(client.noop()[0], 250)
        self.flushLoggedErrors(ConnectionResetError)

    def test_webhookInTLS(self) -> None:
        """A handler may send mail over TLS, although the global reactor does not run."""
        received: list[bytes] = []

        class Application(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

        application = HTTPServer(("127.0.0.1", 0), Application)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(write(Path(self.mktemp()), combined(issue("localhost"))))
        application.socket = context.wrap_socket(application.socket, server_side=True)
        thread = Thread(target=application.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(application.server_close)
        self.addCleanup(application.shutdown)
        trusting = optionsForClientTLS("localhost", Certificate.loadPEM(authority().cert_pem.bytes()))
        handoff = WebhookHandoff(f"https://localhost:{application.server_port}/", tls_context=trusting)
        with Controller(handoff, port=0) as controller, client_of(controller) as client:
            client.sendmail("a@example.com", ["b@example.com"], MESSAGE)
        self.assertEqual(len(received), 1)

    def test_inheritedMechanism(self) -> None:
        """A mechanism of a subclass may call the inherited one."""
        asked: list[str] = []

        class Counts(SMTP):
            async def auth_PLAIN(self, server: Any, args: Any) -> Any:
                asked.append("PLAIN")
                return await super().auth_PLAIN(server, args)

        def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            return AuthResult(success=data.password == b"secret", handled=False)

        class Own(Controller):
            def factory(self) -> SMTP:
                return Counts(self.handler, authenticator=check, auth_require_tls=False)

        with Own(Sink(), port=0) as controller:
            for password, code in ("secret", 235), ("wrong", 535):
                with client_of(controller) as client:
                    client.ehlo()
                    words = base64.b64encode(f"\0ann\0{password}".encode()).decode()
                    self.assertEqual(client.docmd("AUTH", f"PLAIN {words}")[0], code)
        self.assertEqual(asked, ["PLAIN"] * 2)

    def test_handshakeFailed(self) -> None:
        """With an ssl.SSLContext, the cause of a TLSSetupException is an ssl.SSLError."""
        errors: list[BaseException] = []

        class Notes:
            async def handle_exception(self, error: BaseException) -> str:
                errors.append(error)
                return "451 no TLS"

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(write(Path(self.mktemp()), combined(issue("localhost"))))
        with Controller(Notes(), port=0, tls_context=context) as controller, client_of(controller) as client:
            client.ehlo()
            self.assertEqual(client.docmd("STARTTLS")[0], 220)
            self.assertRaises(smtplib.SMTPServerDisconnected, client.docmd, "NO HANDSHAKE")
        (error,) = errors
        self.assertIsInstance(error, TLSSetupException)
        self.assertIsInstance(error.__cause__, ssl.SSLError)
