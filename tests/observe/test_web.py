"""Health checks, and the pages for monitoring."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from txsmtpd.interfaces import IReadiness
from txsmtpd.observe.health import Health
from txsmtpd.observe.web import monitoring_site


@implementer(IReadiness)
class Broker:
    """A handler that is ready while its broker is available."""

    problem: str | None = None

    def not_ready(self) -> str | None:
        return self.problem


class Undeclared:
    """The same, without the declaration."""

    def not_ready(self) -> str:
        raise OSError("secret")


def health(*checks: Any) -> Health:
    found = Health(*checks)
    found.starting = False
    return found


def get(site: Any, path: str, method: str = "GET", accept: str = "*/*") -> tuple[int, dict[str, str], str]:
    """Request a page, and return the status, the header fields and the text."""
    protocol = site.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    head, _, text = transport.value().decode().partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}, text


class HealthTests(SynchronousTestCase):
    """The reasons why the server is not ready."""

    def test_life(self) -> None:
        """It is ready between its start and the beginning of its drain."""
        found = Health()
        self.assertEqual([*found.problems()], ["the server is starting"])
        found.starting = False
        self.assertEqual([*found.problems()], [])
        found.draining = True
        self.assertEqual([*found.problems()], ["the server is shutting down"])

    def test_checks(self) -> None:
        """Parts that provide IReadiness are asked, whether they declare it or not. Others are not."""
        broker = Broker()
        found = health(broker, Undeclared(), object(), None)
        self.assertEqual([*found.problems()], ["Undeclared.not_ready raised OSError"])
        broker.problem = "no connection to the broker"
        self.assertIn("no connection to the broker", [*found.problems()])


class SiteTests(SynchronousTestCase):
    """The pages."""

    def site(self, *checks: Any) -> Any:
        self.health = health(*checks)
        return monitoring_site(self.health, lambda accept: (f"for {accept}\n".encode(), "text/x"), reactor=Clock())

    def test_livez(self) -> None:
        """The process is alive, even while it drains."""
        site = self.site()
        self.health.draining = True
        self.assertEqual(get(site, "/livez")[::2], (200, "ok\n"))

    def test_readyz(self) -> None:
        """503, with the reasons, while clients should not connect."""
        broker = Broker()
        site = self.site(broker)
        self.assertEqual(get(site, "/readyz")[::2], (200, "ok\n"))
        broker.problem = "two\r\nlines"
        self.health.draining = True
        self.assertEqual(get(site, "/readyz")[::2], (503, "the server is shutting down\ntwo lines\n"))
        broker.problem = None
        self.assertEqual(get(site, "/readyz")[0], 503)

    def test_head(self) -> None:
        """HEAD requests get only the status."""
        self.assertEqual(get(self.site(), "/readyz", "HEAD")[::2], (200, ""))

    def test_metrics(self) -> None:
        """The format is the one that Accept requests."""
        status, fields, text = get(self.site(), "/metrics", accept="application/openmetrics-text")
        self.assertEqual((status, text), (200, "for application/openmetrics-text\n"))
        self.assertEqual(fields["content-type"], "text/x")
        self.assertEqual(fields["cache-control"], "no-store")

    def test_body(self) -> None:
        """A request with a body is refused before the body arrives, and nothing of it is kept."""
        site = monitoring_site(health(), reactor=Clock())
        for field in ("Content-Length: 1000000000", "Content-Length: 1", "Transfer-Encoding: chunked"):
            protocol, transport = site.buildProtocol(None), StringTransport()
            protocol.makeConnection(transport)
            protocol.dataReceived(f"POST /livez HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n".encode())
            for _ in range(10):
                protocol.dataReceived(b"1\r\nx\r\n" if "chunked" in field else b"x" * 1000)
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 413 Content Too Large\r\n"), transport.value())
            self.assertEqual(transport.value().count(b"HTTP/1.1"), 1)
            self.assertTrue(transport.disconnecting)

    def test_connections(self) -> None:
        """A hundred connections may be open, and the next one is closed. When one has ended, there is room again."""
        site = monitoring_site(health(), reactor=Clock())
        protocols = [site.buildProtocol(None) for _ in range(100)]
        self.assertIsNone(site.buildProtocol(None))
        protocols[0].makeConnection(StringTransport())
        protocols[0].connectionLost(Failure(ConnectionDone()))
        self.assertIsNotNone(site.buildProtocol(None))

    def test_slowRequest(self) -> None:
        """A request must arrive within 30 seconds, however often an octet arrives, and so must the next one. A client
        that does not read the response has the same time."""
        clock = Clock()
        site = monitoring_site(health(), reactor=clock)
        request = b"GET /livez HTTP/1.1\r\nHost: " + b"x" * 1000
        for before in b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n":
            protocol, transport = site.buildProtocol(None), StringTransport()
            protocol.makeConnection(transport)
            clock.advance(20)
            protocol.dataReceived(before)
            for octet in request[: 9 if not before else 29]:
                clock.advance(1)
                protocol.dataReceived(bytes([octet]))
            self.assertFalse(transport.disconnecting)
            clock.advance(1)
            self.assertTrue(transport.disconnecting)
            aborted: list[bool] = []
            self.patch(transport, "abortConnection", lambda aborted=aborted: aborted.append(True))
            clock.advance(14)
            self.assertEqual(aborted, [])  # the client still has time to receive the output
            clock.advance(1)
            self.assertEqual(aborted, [True])

    def test_protocols(self) -> None:
        """Over TLS, only the protocol that has this limit is offered."""
        self.assertEqual(monitoring_site(health(), reactor=Clock()).acceptableProtocols(), [b"http/1.1"])

    def test_others(self) -> None:
        """There are no other pages, nothing can be changed, and without metrics there is no page for them."""
        site = self.site()
        for path in "/", "/metric", "/%2e%2e/":
            self.assertEqual(get(site, path)[0], 404)
        self.assertEqual(get(site, "/readyz", "POST")[0], 405)
        self.assertEqual(get(monitoring_site(health(), reactor=Clock()), "/metrics")[0], 404)
