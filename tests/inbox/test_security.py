"""Access and response headers: one test for each vulnerability that such servers have had."""

from __future__ import annotations

import re

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.inbox.support import SiteTestCase, mail, multipart
from txsmtpd.inbox.web import content, request
from txsmtpd.inbox.web.gate import host_is_ours, make_host, make_origin, origin_is_ours
from txsmtpd.inbox.web.site import make_site
from txsmtpd.inbox.web.table import ROUTES

# All requests that change something or receive events: method, path and body.
ACTS = [
    (route.method, re.sub(r"\{\w+\}", "x", route.path), {} if route.method in ("POST", "PUT") else None)
    for route in ROUTES
    if route.changes or route.live
]


class HostTests(SynchronousTestCase):
    """The names that the server answers to."""

    def test_ours(self) -> None:
        """IP addresses, local names and configured names are accepted."""
        for host in (
            "127.0.0.1",
            "127.0.0.1:8025",
            "[::1]:8025",
            "192.0.2.1",
            "localhost",
            "LOCALHOST:1",
            "mail.localhost",
            "build-7:8025",
            "mail.example.com",
            "mail.example.com.",
        ):
            self.assertTrue(host_is_ours(host, {"mail.example.com"}), host)

    def test_foreign(self) -> None:
        """Names of the public DNS are not. Neither are malformed names, nor numbers in other forms."""
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:8025@evil.example",
            "evil.example#localhost",
            "",
            "a b",
            "0x7f000001",
            "2130706433",
            "[::1",
            "[evil]",
        ):
            self.assertFalse(host_is_ours(host), host)

    def test_configured(self) -> None:
        """An invalid name or origin is refused when it is configured."""
        self.assertEqual(make_host("Mail.Example.com"), "mail.example.com")
        self.assertEqual(make_origin("HTTP://localhost:3000/"), "http://localhost:3000")
        self.assertEqual(make_origin("https://a.example:443"), "https://a.example")
        for text in ("", "a:80", "http://a", "a/b"):
            self.assertRaises(ValueError, make_host, text)
        for text in ("", "*", "http://*", "localhost:3000", "http://a/b", "null"):
            self.assertRaises(ValueError, make_origin, text)


class OriginTests(SynchronousTestCase):
    """The origins that may change something."""

    def test_ours(self) -> None:
        """Programs send no origin. The pages of the inbox send its own."""
        for origins, site in (
            ([], None),
            ([], "none"),
            ([], "same-origin"),
            (["http://127.0.0.1:8025"], "same-origin"),
            (["http://127.0.0.1:8025"], None),
        ):
            self.assertTrue(origin_is_ours("127.0.0.1:8025", origins, site), (origins, site))

    def test_foreign(self) -> None:
        """Whole origins are compared: another port is another origin, and so is the null origin of a sandbox."""
        for origins, site in (
            (["http://127.0.0.1:3000"], None),
            (["http://127.0.0.1"], None),
            (["http://127.0.0.1:8025.evil.example"], None),
            (["null"], None),
            (["http://127.0.0.1:8025", "http://evil.example"], None),
            (["http://127.0.0.1:8025"], "cross-site"),
            ([], "cross-site"),
            ([], "same-site"),
        ):
            self.assertFalse(origin_is_ours("127.0.0.1:8025", origins, site), (origins, site))


class GateTests(SiteTestCase):
    """Requests that are refused before they have an effect."""

    async def test_rebinding(self) -> None:
        """With a foreign Host, every path is refused: an attacker's name may point to this address."""
        await self.add(mail())
        for path in ("/", "/api/v1/messages", "/api/v1/message/latest", "/view/latest", "/livez", "/in/to=a/"):
            answer = await self.get(path, Host="evil.example")
            self.assertEqual(answer.status, 421, path)
            self.assertNotIn("hello", answer.text)

    async def test_forgery(self) -> None:
        """A page of another site can change nothing, and receives no events."""
        await self.add(mail("one"))
        self.assertGreater(len(ACTS), 15)
        for method, path, body in ACTS:
            for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
                answer = await self.ask(method, path, body, headers)
                self.assertEqual(answer.status, 403, (method, path, headers))
        self.assertEqual(await self.subjects(), ["one"])

    async def test_spelling(self) -> None:
        """However a path is spelled, the same route is found, and checks the origin itself."""
        for path in ("/%61pi/events", "/api/%65vents", "/%61%70%69/inbox/v1/events", "/in/to=a/%61pi/events"):
            self.assertEqual((await self.get(path, Origin="http://evil.example")).status, 403, path)
        for path in ("//api/events", "/./api/events", "/x/../api/events", "/api/events/"):
            self.assertEqual((await self.get(path, Origin="http://evil.example")).status, 404, path)

    async def test_form(self) -> None:
        """A form of another site could send JSON as text. Therefore a JSON body must declare its type."""
        await self.add(mail("one"))
        answer = await self.ask("DELETE", "/api/v1/messages", b"{}", {"Content-Type": "text/plain"})
        self.assertEqual(answer.status, 415)
        self.assertEqual(await self.subjects(), ["one"])

    async def test_noCors(self) -> None:
        """No other origin can read a response, unless it is configured."""
        answer = await self.get("/api/v1/messages", Origin="http://localhost:3000")
        self.assertNotIn("access-control-allow-origin", answer.headers)
        answer = await self.ask("OPTIONS", "/api/v1/messages", headers={"Origin": "http://localhost:3000"})
        self.assertNotIn("access-control-allow-origin", answer.headers)

    async def test_largeBody(self) -> None:
        """A body above the limit is refused before it is read, by every route, even by those that expect none."""
        InboxLimit = self.port.factory.requestFactory
        InboxLimit.limit = 1000
        for path in ("/api/v1/send", "/api/v1/messages", "/nowhere"):
            answer = await self.ask("POST", path, b"x" * 2000)
            self.assertEqual(answer.status, 413, path)

    async def test_announced(self) -> None:
        """The declared length of a request suffices to refuse it, without its body."""
        said = await talk(
            self.port, b"POST /api/v1/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n{"
        )
        self.assertIn(b" 413 ", said.split(b"\r\n")[0])

    async def test_slow(self) -> None:
        """A request that does not arrive in time is disconnected, whatever part of it is missing."""
        self.patch(request, "ARRIVAL", 0.02)
        for octets in (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n",
            b"POST /api/v1/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        ):
            self.assertEqual(await talk(self.port, octets), b"")

    def test_slowRequestLine(self) -> None:
        """A connection whose request line arrives octet by octet ends after a minute."""
        clock = Clock()
        site = make_site(self.store, reactor=clock)
        protocol, transport = site.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        for _ in range(59):
            clock.advance(1)
            protocol.dataReceived(b"G")
        self.assertFalse(transport.disconnecting)
        clock.advance(1)
        self.assertTrue(transport.disconnecting)

    def test_slowNetwork(self) -> None:
        """A large message may take as long as it needs at 32 KiB a second, with or without a declared length. A client
        that stops sending is disconnected after a minute."""
        for length in (b"Content-Length: 4000000", b"Transfer-Encoding: chunked"):
            clock = Clock()
            site = make_site(self.store, reactor=clock)
            protocol, transport = site.buildProtocol(None), StringTransport()
            protocol.makeConnection(transport)
            protocol.dataReceived(b"POST /api/v1/send HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n")
            for _ in range(100):
                clock.advance(1)
                protocol.dataReceived(b"8000\r\n" + b"x" * 2**15 + b"\r\n")
            self.assertFalse(transport.disconnecting or transport.disconnected, length)
            clock.advance(60)
            self.assertTrue(transport.disconnecting, length)

    async def test_largeChunks(self) -> None:
        """The same is true for a body without a declared length."""
        self.port.factory.requestFactory.limit = 1000
        said = await talk(
            self.port,
            b"POST /api/v1/send HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"190\r\n" + b"x" * 400 + b"\r\n" + b"190\r\n" + b"x" * 400 + b"\r\n" + b"190\r\n" + b"x" * 400 + b"\r\n",
        )
        self.assertIn(b" 413 ", said.split(b"\r\n")[0])

    async def test_largeJson(self) -> None:
        """JSON above 1 MiB is refused, although a message may be larger."""
        answer = await self.ask("PUT", "/api/v1/messages", b'{"Search": "' + b"x" * 2**20 + b'"}')
        self.assertEqual(answer.status, 413)

    async def test_halfCharacters(self) -> None:
        """JSON with a lone surrogate is refused, because no store accepts it."""
        for method, path, body in (
            ("PUT", "/api/v1/messages", {"Search": "\ud800", "Read": True}),
            ("PUT", "/api/v1/tags", {"IDs": [], "Tags": ["\udc00"]}),
            ("POST", "/api/inbox/v1/faults", {"spec": "rcpt reply=550 \ud800"}),
        ):
            answer = await self.ask(method, path, body)
            self.assertEqual((answer.status, "surrogate" in answer.text), (400, True), path)
        pair = await self.ask("PUT", "/api/v1/messages", {"Search": "\U0001f4e7", "Read": True})
        self.assertEqual(pair.status, 200)

    async def test_manyFields(self) -> None:
        """An address with more than a thousand parameters is refused."""
        for count, status in (1000, 200), (1001, 400):
            self.assertEqual((await self.get(f"/api/v1/messages?{'&'.join(['a=b'] * count)}")).status, status)

    async def test_deepJson(self) -> None:
        """JSON that is nested too deeply is refused."""
        answer = await self.ask("PUT", "/api/v1/messages", b"[" * 100_000)
        self.assertEqual(answer.status, 400)

    async def test_hosts(self) -> None:
        """A request without one Host field is refused."""
        for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
            said = await talk(self.port, b"GET / HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
            self.assertIn(b" 400 ", said.split(b"\r\n")[0])


class CorsTests(SiteTestCase):
    """A configured origin."""

    settings = {"cors": frozenset(["http://localhost:3000"])}

    async def test_exact(self) -> None:
        """Its pages may use the API, without the browser's credentials. Pages of other origins may not."""
        await self.add(mail())
        answer = await self.get("/api/v1/messages", Origin="http://localhost:3000")
        self.assertEqual(answer.headers["access-control-allow-origin"], "http://localhost:3000")
        self.assertNotIn("access-control-allow-credentials", answer.headers)
        answer = await self.ask("DELETE", "/api/v1/messages", headers={"Origin": "http://localhost:3000"})
        self.assertEqual(answer.status, 200)
        for origin in ("http://localhost:30000", "http://localhost", "https://localhost:3000", "null"):
            answer = await self.get("/api/v1/messages", Origin=origin)
            self.assertNotIn("access-control-allow-origin", answer.headers)
            self.assertEqual((await self.ask("DELETE", "/api/v1/messages", headers={"Origin": origin})).status, 403)


class MailTests(SiteTestCase):
    """Headers of responses with content of a mail."""

    paths = (
        "/view/{}.html",
        "/view/{}.txt",
        "/api/v1/message/{}/raw",
        "/api/v1/message/{}/part/2",
        "/api/v1/message/{}/part/1.2",
    )

    async def test_sandbox(self) -> None:
        """All content of a mail is in a sandbox without scripts and origin, and loads nothing."""
        part = "Content-Type: image/svg+xml; name=a.svg\r\n\r\n<svg onload=alert(1)></svg>"
        [message] = await self.add(multipart("<script>alert(1)</script>", part))
        for path in self.paths:
            answer = await self.get(path.format(message.id))
            policy = answer.headers["content-security-policy"]
            self.assertEqual(answer.status, 200, path)
            self.assertTrue(
                policy.startswith("sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'")
            )
            self.assertNotIn("allow-scripts", policy)
            self.assertNotIn("allow-same-origin", policy)
            self.assertNotIn("'self'", policy.replace("frame-ancestors 'self'", ""))
            self.assertIn("; form-action 'none'; frame-ancestors 'self'", policy)
            self.assertEqual(answer.headers["cross-origin-opener-policy"], "same-origin")
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
            self.assertEqual(answer.headers["cross-origin-resource-policy"], "same-origin")
            self.assertEqual(answer.headers["referrer-policy"], "no-referrer")
            self.assertEqual(answer.headers["cache-control"], "no-store")

    async def test_pages(self) -> None:
        """Pages run only their own scripts, load nothing from other hosts, and cannot be framed by other sites."""
        [message] = await self.add(mail())
        for path in "/", f"/m/{message.id}", "/sessions", "/delete", "/no-such-page":
            policy = (await self.get(path)).headers["content-security-policy"].split("; ")
            for rule in (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "img-src 'self' data:",
                "connect-src 'self'",
                "form-action 'self'",
                "base-uri 'none'",
                "frame-ancestors 'none'",
            ):
                self.assertIn(rule, policy, path)

    async def test_fileName(self) -> None:
        """A file name cannot end its quotes, and so cannot add another parameter."""
        name = "a%22.html%3B%20x%3D%22y.txt"
        part = f"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename*=utf-8''{name}\r\n\r\nx"
        [message] = await self.add(multipart("", part))
        answer = await self.get(f"/api/v1/message/{message.id}/part/2")
        self.assertEqual(
            answer.headers["content-disposition"],
            f"attachment; filename=\"a_.html_ x__y.txt\"; filename*=UTF-8''{name}",
        )

    async def test_onlyContent(self) -> None:
        """No other response has a type that a browser would run, except pages, which have their own policy."""
        await self.add(mail("<script>alert(1)</script>", header="X-Tags: <b>\r\n"))
        for path in ("/api/v1/messages", "/api/v1/message/latest", "/api/v2/messages", "/api/inbox/v1/wait", "/<b>"):
            answer = await self.get(path)
            self.assertNotIn("html", answer.headers["content-type"])
            self.assertIn("default-src 'none'", answer.headers["content-security-policy"])

    async def test_dangerousParts(self) -> None:
        """Parts that a browser might run are downloaded, not shown. The file name is only a suggestion."""
        parts = [
            f'Content-Type: {kind}\r\nContent-Disposition: inline; filename="../../etc/a{number}"\r\n\r\nx'
            for number, kind in enumerate(("text/html", "image/svg+xml", "application/pdf", "text/xml", "x"))
        ]
        [message] = await self.add(multipart("", *parts))
        for number in range(2, 7):
            answer = await self.get(f"/api/v1/message/{message.id}/part/{number}")
            disposition = answer.headers["content-disposition"]
            if number < 6:
                self.assertTrue(disposition.startswith(f'attachment; filename="a{number - 2}"'), disposition)
            self.assertNotIn("/", disposition)

    async def test_thumbnail(self) -> None:
        """No image of a mail is decoded: the thumbnail is the same for all."""
        bomb = "Content-Type: image/png; name=a.png\r\n\r\n" + "x" * 1000
        [message] = await self.add(multipart("", bomb))
        answer = await self.get(f"/api/v1/message/{message.id}/part/2/thumb")
        self.assertEqual((answer.headers["content-type"], len(answer.body)), ("image/jpeg", 247))
        self.assertEqual((await self.get(f"/api/v1/message/{message.id}/part/9/thumb")).status, 404)

    async def test_links(self) -> None:
        """The page links to web pages and mail addresses of a mail. Other URLs, such as scripts, are shown as text."""
        hostile = (
            *("javascript:alert(1)", "JaVaScRiPt:alert(2)", "java&#10;script:alert(3)", "&#1;javascript:alert(4)"),
            *(
                "data:text/html,alert(5)",
                "vbscript:x",
                "file:///etc/passwd",
                "//[",
                "/api/v1/messages",
            ),
        )
        good = ("http://a.test/", "https://a.test/?x=1", "mailto:ann@example.com")
        html = "".join(f"<a href='{url}'>x</a>" for url in (*hostile, *good))
        [message] = await self.add(multipart(html))
        page = (await self.get(f"/m/{message.id}?tab=parts")).text
        listed = page[page.index('class="links"') :]
        found = re.findall('href="([^"]*)"', listed[: listed.index("</ul>")])
        self.assertEqual(found, ["#"] * len(hostile) + list(good))

    async def test_inlineImages(self) -> None:
        """An image that the HTML refers to by its Content-ID is embedded in the document. No other part is, and a
        Content-ID cannot inject markup."""
        image = 'Content-Type: image/png\r\nContent-ID: <a"><script>@b>\r\n\r\nPNG'
        good = "Content-Type: image/png\r\nContent-ID: <good@b>\r\n\r\nPNG"
        script = "Content-Type: text/html; name=a.html\r\nContent-ID: <bad@b>\r\n\r\n<script>"
        html = '<img src="cid:good@b"><img src="cid:bad@b"><img src=\'cid:a"><script>@b\'>'
        [message] = await self.add(multipart(html, good, script, image))
        answer = await self.get(f"/view/{message.id}.html")
        self.assertEqual(
            answer.text, '<img src="data:image/png;base64,UE5H"><img src="cid:bad@b"><img src=\'cid:a"><script>@b\'>'
        )

    async def test_manyImages(self) -> None:
        """The images of a document have a limit together. Images beyond it are not embedded."""
        self.patch(content, "INLINE_LIMIT", 5)
        images = [f"Content-Type: image/png\r\nContent-ID: <{name}@b>\r\n\r\nPNG" for name in "ab"]
        [message] = await self.add(multipart('<img src="cid:a@b"><img src="cid:b@b">', *images))
        answer = await self.get(f"/view/{message.id}.html")
        self.assertEqual(answer.text, '<img src="data:image/png;base64,UE5H"><img src="cid:b@b">')

    async def test_connections(self) -> None:
        """Elements for which browsers connect despite the policy are renamed. Everything else is unchanged."""
        html = (
            "<p>5 < 6 <linker> <IFRAME src=x></IFRAME><object data=x><embed\nsrc=x><frame/><link rel=preconnect href=x>"
            '<b onclick="x">&amp;</b>'
        )
        [message] = await self.add(multipart(html))
        answer = await self.get(f"/view/{message.id}.html")
        self.assertEqual(
            answer.text,
            "<p>5 < 6 <linker> <x-IFRAME src=x><x-/IFRAME><x-object data=x><x-embed\nsrc=x><x-frame/>"
            '<x-link rel=preconnect href=x><b onclick="x">&amp;</b>',
        )

    async def test_remote(self) -> None:
        """On request, the browser loads remote images, styles, fonts and media of a mail, and nothing else."""
        [message] = await self.add(multipart("<img src=https://example.com/a>"))
        policy = (await self.get(f"/view/{message.id}.html?remote=1")).headers["content-security-policy"]
        self.assertIn("img-src data: https:;", policy)
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("https:", (await self.get(f"/view/{message.id}.html")).headers["content-security-policy"])


class OutwardTests(SiteTestCase):
    """The content of a mail does not cause the server to send a request."""

    async def test_nothing(self) -> None:
        """No request about a mail that contains addresses of this host causes a connection to them."""
        connections: list[object] = []
        factory = Factory.forProtocol(Protocol)
        factory.buildProtocol = connections.append
        elsewhere = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(elsewhere.stopListening)
        url = f"http://127.0.0.1:{elsewhere.getHost().port}/inner"
        html = f'<a href="{url}">a</a><link rel=stylesheet href="{url}"><img src="{url}"><style>@import "{url}"</style>'
        [message] = await self.add(multipart(html, text=url))
        gets = [route.path for route in ROUTES if route.method == "GET" and not route.live and "wait" not in route.path]
        for path in gets:
            path = path.replace("{id}", message.id).replace("{part}", "1.2")
            await self.get(f"{path}?query=a&follow=true&kind=to&remote=1&url={url}")
        answer = await self.get(f"/api/v1/message/{message.id}/link-check?follow=true")
        self.assertEqual(answer.json, {"Errors": 0, "Links": [{"URL": url, "StatusCode": 0, "Status": "not checked"}]})
        self.assertEqual((await self.get(f"/proxy?url={url}")).status, 404)
        self.assertEqual(connections, [])


class _Said(Protocol):
    def __init__(self) -> None:
        self.octets = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.octets += data

    def connectionLost(self, reason: object = None) -> None:
        self.done.callback(self.octets)


async def talk(port: object, octets: bytes) -> bytes:
    """Send octets to a port, and return the response until the connection closes."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    said = await connectProtocol(endpoint, _Said())
    said.transport.write(octets)
    return await said.done
