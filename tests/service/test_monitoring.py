"""--metrics and --drain-delay: the order of start and stop, and a real scrape."""

from __future__ import annotations

import io
import socket
import urllib.error
import urllib.request
from contextlib import redirect_stderr
from unittest import mock

from prometheus_client.parser import text_string_to_metric_families
from twisted.application.service import Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.systemd import Systemd
from txsmtpd.observe.health import Health
from txsmtpd.observe.lag import ReactorLag
from txsmtpd.service import Options
from txsmtpd.service.exit_status import Exit
from txsmtpd.service.monitoring import Monitoring, Server


class Recorded(Service):
    """A service that records its start and stop, and takes time to stop."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes
        self.stopped: Deferred[None] = Deferred()

    def startService(self) -> None:
        self.notes.append(f"{self.name} starts")

    def stopService(self) -> Deferred[None]:
        self.notes.append(f"{self.name} stops")
        return self.stopped


class ServerTests(SynchronousTestCase):
    """The order in which the server starts and stops."""

    def test_order(self) -> None:
        """It is not ready immediately, stops listening after the delay, and serves health checks until the end."""
        clock, notes = Clock(), list[str]()
        listener, pages = Recorded("listener", notes), Recorded("pages", notes)
        health = Health()
        server = Server(health, drain_delay=5, monitoring=pages, reactor=clock, environ={})
        server.addService(listener)
        server.startService()
        self.assertEqual([*health.problems()], [])
        stopped = server.stopService()
        self.assertEqual([*health.problems()], ["the server is shutting down"])
        self.assertEqual(notes, ["listener starts", "pages starts"])
        clock.advance(5)
        self.assertEqual(notes[2:], ["listener stops"])
        listener.stopped.callback(None)
        self.assertEqual(notes[3:], ["pages stops"])
        self.assertNoResult(stopped)
        pages.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_plain(self) -> None:
        """Without metrics and systemd, only the listeners are there."""
        server = Server(reactor=Clock(), environ={})
        server.startService()
        self.assertEqual(server._clock().getDelayedCalls(), [])
        self.successResultOf(server.stopService())

    def test_reload(self) -> None:
        """A reload ends with READY, but not before the first worker serves clients."""
        waiting: Deferred[None] = Deferred()
        server = Server(reactor=Clock(), environ={}, when_ready=lambda: waiting)
        server.notifier = notifier = mock.Mock()
        server.reload_begins()
        server.reload_ends()
        self.assertEqual([each[0] for each in notifier.method_calls], ["reloading"])
        waiting.callback(None)
        self.assertEqual([each[0] for each in notifier.method_calls], ["reloading", "ready"])
        server.health.draining = True
        server.reload_begins()
        server.reload_ends()
        self.assertEqual(notifier.ready.call_count, 1)


class MonitoringTests(SynchronousTestCase):
    """The service of the pages."""

    def test_cannotListen(self) -> None:
        """The error for an address in use is one line and status 71."""
        endpoint = mock.Mock()
        endpoint.listen = lambda factory: fail(CannotListenError("127.0.0.1", 9125, OSError(98, "Address in use")))
        service = Monitoring("--metrics=9125", endpoint, object())
        with redirect_stderr(io.StringIO()), mock.patch("sys.__stderr__", io.StringIO()) as stderr:
            end = self.assertRaises(Exit, service.startService)
        self.assertEqual(end.code, 71)
        self.assertTrue(stderr.getvalue().startswith("smtpd: --metrics=9125: cannot listen: Address in use"))

    def test_stop(self) -> None:
        """It closes its port. Stopping a service that never listened is no error."""
        port, endpoint = mock.Mock(), mock.Mock()
        port.stopListening = lambda: None
        port.getHost = lambda: IPv4Address("TCP", "127.0.0.1", 9125)
        endpoint.listen = lambda factory: succeed(port)
        service = Monitoring("", endpoint, object())
        self.successResultOf(service.stopService())
        service.privilegedStartService()
        service.startService()
        self.assertIs(service.port, port)
        self.successResultOf(service.stopService())


class LagTests(SynchronousTestCase):
    """The lag of the reactor."""

    def test_late(self) -> None:
        """The lateness of a call is reported, and measuring continues."""
        clock, late = Clock(), list[float]()
        lag = ReactorLag(late.append, clock, 0.25, clock.seconds)
        lag.start()
        clock.advance(0.25)
        clock.advance(1.0)
        clock.advance(0.25)
        self.assertEqual(late, [0.0, 0.75, 0.0])
        lag.stop()
        self.assertEqual(clock.getDelayedCalls(), [])


class OptionTests(SynchronousTestCase):
    """The options."""

    def refused(self, *words: str) -> str:
        options = Options()
        options.environ = {}
        with redirect_stderr(io.StringIO()) as stderr:
            self.assertRaises(SystemExit, options.parseOptions, ["--handler=sink", *words])
        return stderr.getvalue()

    def test_malformed(self) -> None:
        """The error for an invalid endpoint, or for a delay without --metrics, is one line."""
        self.assertIn("--metrics=nowhere: not an endpoint", self.refused("--metrics=nowhere"))
        self.assertIn("--metrics=99999: invalid port 99999", self.refused("--metrics=99999"))
        self.assertIn("requires --metrics", self.refused("--drain-delay=5"))
        self.assertIn("must be a number of seconds", self.refused("--metrics=0", "--drain-delay=-1"))

    def test_missingExtra(self) -> None:
        """Without prometheus-client, the error names the extra."""
        with mock.patch("importlib.util.find_spec", lambda name: None):
            self.assertIn("pip install 'txsmtpd[metrics]'", self.refused("--metrics=9125"))


class ScrapeTests(SynchronousTestCase):
    """A real process."""

    def get(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def test_scrape(self) -> None:
        """/metrics can be parsed, /livez and /readyz respond. While it drains, /readyz is 503, and clients can still
        connect."""
        systemd = Systemd()
        self.addCleanup(systemd.close)
        smtp, pages = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        self.addCleanup(smtp.close)
        self.addCleanup(pages.close)
        port = pages.getsockname()[1]
        systemd.start(
            "--handler=sink",
            "--listen=systemd:domain=INET:name=smtp",
            "--metrics=systemd:domain=INET:name=pages",
            "--drain-delay=30",
            sockets={"smtp": smtp, "pages": pages},
        )
        systemd.wait_for("READY")
        self.assertEqual(self.get(port, "/livez"), (200, "ok\n"))
        self.assertEqual(self.get(port, "/readyz"), (200, "ok\n"))
        status, text = self.get(port, "/metrics")
        self.assertEqual(status, 200)
        names = {family.name for family in text_string_to_metric_families(text)}
        self.assertLessEqual({"txsmtpd_build_info", "txsmtpd_messages", "process_cpu_seconds"}, names)
        assert systemd.process is not None
        systemd.process.terminate()
        systemd.wait_for("STOPPING")
        self.assertEqual(self.get(port, "/readyz"), (503, "the server is shutting down\n"))
        self.assertEqual(self.get(port, "/livez"), (200, "ok\n"))
        with socket.create_connection(smtp.getsockname(), 10) as client:
            client.settimeout(10)
            self.assertIn(b"220 ", client.recv(1000))
